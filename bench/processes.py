"""Programs that a bench starts, watches and stops: each in a group of its own, its output in a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from bench.provision import ROOT

DISK = Path(os.environ.get("HYTHE_BENCH_DIR", "/var/tmp"))
START_SECONDS = 60.0
STOP_SECONDS = 10.0
TICK = os.sysconf("SC_CLK_TCK")


@contextmanager
def folder() -> Iterator[Path]:
    """A folder on the disk, which servers that run as another user can reach; removed in the end."""
    with tempfile.TemporaryDirectory(prefix="hythe-bench-", dir=DISK, ignore_cleanup_errors=True) as name:
        made = Path(name)
        made.chmod(0o755)
        yield made


@asynccontextmanager
async def running(
    *command: str, log: Path, env: dict[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a program from the checkout's root; ask it to stop in the end, and kill it when it does not."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    except SystemExit as error:
        raise SystemExit(f"{error}\n{log.read_text(errors='replace')[-2000:]}") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def until(process: asyncio.subprocess.Process, ready: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `ready` says so. Ends the bench when the program ends first, or takes too long."""
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await ready():
                if process.returncode is not None:
                    raise SystemExit(
                        f"a program ended with {process.returncode} instead of getting ready; it said:"
                    )
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise SystemExit(f"a program was not ready after {START_SECONDS:g} s; it said:") from error


async def listens(port: int) -> bool:
    """Whether somebody listens on this port of the loopback."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def answers(port: int, path: str) -> bool:
    """Whether `GET path` is answered 200."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()


def free_port() -> int:
    """A port of the loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def below(pid: int) -> list[int]:
    """The children of a process and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *below(int(child))]
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes so far."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / TICK
    return total
