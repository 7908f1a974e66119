"""Programs that run for as long as we do: how they start, end, come back, and never outlive us."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from hythe_cli.local.processes import (
    AlreadyRunning,
    DidNotStart,
    Program,
    _dying_with_us,
    become_ready,
    free_port,
    keep_running,
    only_us,
    remembered_port,
    run_to_end,
    start,
)
from hythe_events.testing import until

STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
while True:
    signal.pause()
"""


def program(folder: Path, *argv: str, stop_seconds: float = 5.0) -> Program:
    return Program(name="The program", argv=argv, log=folder / "program.log", stop_seconds=stop_seconds)


async def gone(pid: int) -> None:
    await until(
        lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text(), 60
    )


async def test_a_program_that_hears_us_ends_by_the_signal_we_sent(tmp_path: Path) -> None:
    """A polite stop lets a service finish what it is doing."""
    running = await start(program(tmp_path, "sleep", "600"))
    assert await running.stop() == -signal.SIGTERM
    assert await running.stop() == -signal.SIGTERM, "stopping twice is allowed"


async def test_a_program_that_does_not_hear_us_is_killed_when_its_time_is_up(tmp_path: Path) -> None:
    """Ctrl-C must end, whatever a program does about SIGTERM."""
    running = await start(program(tmp_path, sys.executable, "-c", STUBBORN, stop_seconds=0.2))

    await become_ready(running, until(lambda: "deaf" in running.last_words()), seconds=10)
    assert await running.stop() == -signal.SIGKILL


async def test_a_program_that_ends_before_it_is_ready_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    """ "It did not start" alone sends people looking for a log; the log's end is in the sentence."""
    running = await start(program(tmp_path, "sh", "-c", "echo no such flag; exit 3"))
    with pytest.raises(DidNotStart, match=r"ended with exit code 3; its log ends:\nno such flag"):
        await become_ready(running, asyncio.Event().wait(), seconds=10)  # type: ignore[arg-type]


async def test_a_program_that_does_not_get_ready_in_time_is_killed(tmp_path: Path) -> None:
    """A half-started server must not stay behind and hold the port."""
    running = await start(program(tmp_path, "sleep", "600"))
    with pytest.raises(DidNotStart, match=r"was not ready after 0\.1 s"):
        await become_ready(running, asyncio.Event().wait(), seconds=0.1)  # type: ignore[arg-type]
    assert running.exit_code == -signal.SIGKILL


async def test_a_program_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    """No traceback for a missing program."""
    running = await start(program(tmp_path, "/nowhere/program"))
    assert await running.wait() != 0
    assert "/nowhere/program" in running.last_words()


async def test_a_program_is_started_again_each_time_it_ends(tmp_path: Path) -> None:
    """A service that crashes must be back without anybody looking."""
    told: list[str] = []
    third = asyncio.Event()

    def hear(line: str) -> None:
        told.append(line)
        if len(told) == 3:
            third.set()

    keeping = asyncio.create_task(
        keep_running(program(tmp_path, "sh", "-c", "exit 7"), hear, first_pause=0.01)
    )
    async with asyncio.timeout(10):
        await third.wait()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert told[0].startswith("The program ended with exit code 7; starting it again in 0.01 s")
    assert "0.04 s" in told[2], "each pause is twice the one before"


async def test_a_program_that_is_kept_running_stops_with_its_task(tmp_path: Path) -> None:
    """Cancelling the owner is how everything ends."""
    pids: list[int] = []
    begun = asyncio.Event()
    keeping = asyncio.create_task(
        keep_running(
            program(tmp_path, "sleep", "600"),
            print,
            started=lambda running: (pids.append(running.pid), begun.set())[0],  # type: ignore[func-returns-value]
        )
    )
    async with asyncio.timeout(10):
        await begun.wait()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await gone(pids[0])


@pytest.mark.real
async def test_nothing_outlives_us_when_we_are_killed(tmp_path: Path) -> None:
    """`kill -9` runs no handler of ours: the kernel must end what we started, servers and their processes alike."""
    script = tmp_path / "parent.py"
    script.write_text(
        """
import asyncio, sys
from pathlib import Path
from hythe_cli.local.nats import NatsServer
from hythe_cli.local.postgres import PostgresServer
from hythe_cli.local.processes import Program, start
from hythe_events.testing import until

async def main(folder: Path) -> None:
    postgres, nats = PostgresServer(folder / "pg"), NatsServer(folder / "nats")
    await asyncio.gather(postgres.start(), nats.start())
    service = await start(Program(name="a service", argv=["sleep", "600"], log=folder / "log"))
    print(postgres.pid, nats.pid, service.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1])))
"""
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(60):
        pids = [int(word) for word in (await parent.stdout.readline()).split()]
        backends = children_of(pids[0])
        assert len(pids) == 3
        assert backends, "Postgres has processes of its own"
        parent.kill()
        await parent.wait()
    async with asyncio.timeout(10):
        for pid in [*pids, *backends]:
            await gone(pid)


def children_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may end while we look.
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found


async def test_a_program_that_is_orphaned_while_it_starts_does_not_begin(tmp_path: Path) -> None:
    """Between the fork and the moment the kernel knows that it is ours, a `kill -9` could leave a program behind."""
    started = tmp_path / "begun"
    words = _dying_with_us(signal.SIGKILL)
    stranger = str(os.getpid() + 1)
    code, _ = await run_to_end(*words[:-1], stranger, "touch", str(started))
    assert code == 1
    assert not started.exists()
    code, _ = await run_to_end(*words, "touch", str(started))
    assert code == 0
    assert started.exists()


async def test_a_directory_is_held_by_one_hythe_at_a_time(tmp_path: Path) -> None:
    """Two servers on one data directory would destroy it."""
    refused = pytest.raises(AlreadyRunning, match=f"in use by process {os.getpid()}")
    with only_us(tmp_path), refused, only_us(tmp_path):
        raise AssertionError("two hold one directory")
    with only_us(tmp_path):
        pass


async def test_a_port_is_the_one_of_last_time_unless_somebody_has_it(tmp_path: Path) -> None:
    """A link in a bookmark and a DSN in a shell history keep working."""
    file = tmp_path / "port"
    first = remembered_port(file)
    assert remembered_port(file) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        second = remembered_port(file)
    assert second != first
    assert remembered_port(file) == second
    file.write_text("not a number")
    assert remembered_port(file) > 0
    assert free_port() > 0


async def test_a_short_program_that_hangs_is_killed_when_its_time_is_up() -> None:
    """A hanging apt-get must not hang us."""
    code, output = await run_to_end("sleep", "600", seconds=0.1)
    assert code < 0
    assert "was not done after 0.1 s" in output
