"""Programs that run for as long as we do, and not a moment longer.

Each program gets a session of its own, so that Ctrl-C in a terminal reaches us alone and we decide the order in
which things stop. Each is also told to the kernel as ours: when we are killed, even with `kill -9`, the kernel
kills it too (`PR_SET_PDEATHSIG`, set by `setpriv`), so nothing is left behind to hold a port or a data directory.

The kernel ties that promise to the *thread* that started the program: call `start` from a loop in the main thread.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from hythe_events.errors import HytheError

LOG_LIMIT = 10_000_000


class DidNotStart(HytheError):
    """A program did not start; its log says why."""


class AlreadyRunning(HytheError):
    """Another Hythe runs on this directory; stop it first."""


@dataclass(frozen=True)
class Program:
    """What to start and how to end it. Everything secret goes into `env` or a file, never into `argv`."""

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] | None = field(default=None, repr=False)
    """The whole environment; ours when None."""
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    """How long the program may take to stop before it is killed."""
    if_we_die: signal.Signals | None = signal.SIGKILL
    """What the kernel sends it when we are gone; None lets it live on."""
    wrapper: Sequence[str] = ()
    """Words in front of everything else, such as `unshare … --`."""


class Running:
    """One program that was started. `stop` may be called twice, and after the program ended by itself."""

    def __init__(self, program: Program, process: asyncio.subprocess.Process) -> None:
        self.program = program
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number when a signal ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until the program ends and return its exit code."""
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the program has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def stop(self) -> int:
        """Ask the program to stop, kill it and its children when it does not, and return its exit code."""
        self.send(self.program.stop_signal)
        try:
            async with asyncio.timeout(self.program.stop_seconds):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """End the program and everything it started at once, as `kill -9` does."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return await self.wait()

    def last_words(self, lines: int = 15) -> str:
        """The end of the program's log."""
        return last_lines(self.program.log, lines)


async def start(program: Program) -> Running:
    """Start a program with its output appended to its log; the returned object owns it.

    Raises DidNotStart when the system refuses to run it.
    """
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with _open_log(program.log) as log:
        try:
            process = await asyncio.create_subprocess_exec(
                # First, as the kernel forgets our last wish when a process changes its user.
                *program.wrapper,
                *_dying_with_us(program.if_we_die),
                *program.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env=program.env,
                cwd=program.cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise DidNotStart(f"{program.name} could not be started: {error}") from error
    return Running(program, process)


async def keep_running(
    program: Program,
    told: Callable[[str], None],
    *,
    started: Callable[[Running], None] | None = None,
    first_pause: float = 0.2,
    longest_pause: float = 10.0,
    steady_after: float = 30.0,
) -> None:
    """Start a program again each time it ends, with growing pauses, until this task is cancelled; then stop it.

    Own it with a TaskGroup. `told` hears one sentence per unexpected end, `started` gets each new process. A program
    that ran for `steady_after` seconds counts as healthy again: its next pause is the first one.
    """
    clock = asyncio.get_running_loop().time
    pause = first_pause
    while True:
        since = clock()
        running = await start(program)
        if started is not None:
            started(running)
        try:
            code = await running.wait()
        finally:
            if running.exit_code is None:
                await asyncio.shield(running.stop())
        if clock() - since >= steady_after:
            pause = first_pause
        told(f"{program.name} {describe_exit(code)}; starting it again in {pause:g} s (log: {program.log})")
        await asyncio.sleep(pause)
        pause = min(pause * 2, longest_pause)


class Server(Protocol):
    """A server that can be started again after it ended. `start` returns when it is ready."""

    @property
    def name(self) -> str: ...
    async def start(self) -> None: ...
    async def wait(self) -> int: ...
    async def stop(self) -> None: ...


async def keep_serving(server: Server, told: Callable[[str], None], *, longest_pause: float = 10.0) -> None:
    """Start a server again whenever it ends by itself, until this task is cancelled; then stop it.

    The server must have been started. Own this with a TaskGroup. `told` hears one sentence per unexpected end.
    """
    pause = 0.2
    try:
        while True:
            told(f"{server.name} {describe_exit(await server.wait())}; starting it again")
            while True:
                try:
                    await server.start()
                except HytheError as error:
                    told(f"{error} (trying again in {pause:g} s)")
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, longest_pause)
                else:
                    pause = 0.2
                    break
    finally:
        await asyncio.shield(server.stop())


async def run_to_end(
    *argv: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, seconds: float = 60.0
) -> tuple[int, str]:
    """Run a short program to its end; returns its exit code and all it printed. It is killed when time is up."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    except TimeoutError:
        return -signal.SIGKILL, f"{argv[0]} was not done after {seconds:g} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
    return process.returncode or 0, output.decode(errors="replace")


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


async def become_ready(running: Running, ready: Coroutine[None, None, None], seconds: float) -> None:
    """Wait until `ready` returns. When it does not, the program is killed and its own words are the error.

    Raises DidNotStart when the program ends first or is not ready after `seconds`.
    """
    name = running.program.name
    getting_ready = asyncio.create_task(ready, name=f"{name} gets ready")
    ending = asyncio.create_task(running.wait(), name=f"{name} ends")
    try:
        done, _ = await asyncio.wait(
            {getting_ready, ending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if getting_ready in done:
            return getting_ready.result()
        code = running.exit_code
        what = f"was not ready after {seconds:g} s" if code is None else describe_exit(code)
        raise DidNotStart(f"{name} {what}; its log ends:\n{running.last_words()}")
    except BaseException:
        await asyncio.shield(running.kill())
        raise
    finally:
        getting_ready.cancel()
        ending.cancel()


@contextlib.contextmanager
def only_us(directory: Path) -> Iterator[None]:
    """Hold a directory for this process. The kernel gives it back when we end, however we end.

    Raises AlreadyRunning when another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "in-use").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise AlreadyRunning(
                f"{directory} is in use by process {holder}; stop that Hythe first"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def remembered_port(file: Path) -> int:
    """A free port of 127.0.0.1, the same one as last time wherever that is possible."""
    try:
        port = int(file.read_text())
    except (FileNotFoundError, ValueError):
        port = 0
    if not port or not _is_free(port):
        port = free_port()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{port}\n")
    return port


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: a connection of last time that still lingers does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def installed_program(name: str) -> Path:
    """The path of a program that one of our Python packages brought.

    Raises DidNotStart when it is not there.
    """
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        raise DidNotStart(f"{name} is missing from {path.parent}; remove .venv and run ./hythe again")
    return path


def last_lines(file: Path, lines: int) -> str:
    """The end of a text file; empty when there is no such file."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - 200 * lines))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _open_log(path: Path) -> BinaryIO:
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(path.suffix + ".1"))
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def _dying_with_us(number: signal.Signals | None) -> list[str]:
    """The words in front of a program that make the kernel send it a signal when this process is gone.

    Where we are gone before the kernel was told, the program finds another parent than us, and does not begin.
    """
    # Other systems have no such promise: there, stop Hythe with Ctrl-C rather than with kill -9.
    if number is None or sys.platform != "linux":
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise DidNotStart("setpriv is missing; it comes with the package util-linux")
    still_ours = 'test "$PPID" = "$1" || exit 1; shift; exec "$@"'
    name = number.name.removeprefix("SIG")
    return [setpriv, "--pdeathsig", name, "--", "sh", "-c", still_ours, "sh", str(os.getpid())]
