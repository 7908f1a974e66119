"""`hythe demo` as a newcomer runs it: a process of its own, with an empty home."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

from hythe_cli.demo.witness import DockerView
from hythe_cli.local.engine import Engine

PATIENCE = 110.0


async def start_demo(home: Path, *words: str) -> asyncio.subprocess.Process:
    """Start the demo with everything it writes going through one pipe."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HYTHE_", "STACKS_"))
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hythe_cli", "demo", *words),
        env={**environment, "HYTHE_HOME": str(home)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def until(process: asyncio.subprocess.Process, words: str) -> str:
    """What the demo wrote, up to the line with these words, or to its end."""
    assert process.stdout is not None
    told = ""
    async with asyncio.timeout(PATIENCE):
        while line := (await process.stdout.readline()).decode():
            told += line
            if words and words in line:
                break
    return told


async def left_over(told: str, home: Path, engine: Engine) -> list[object]:
    """What of a demo is still there, in Docker or in its home."""
    name = re.search(r"hythe-demo-[0-9a-f]{4}", told)
    assert name is not None, told
    async with DockerView(engine.host) as docker:
        return [*await docker.containers(name[0]), *(home / "demo").iterdir()]


async def test_the_demo_sees_every_step_to_be_true_and_leaves_nothing(
    tmp_path: Path, docker_engine: Engine
) -> None:
    """The first thing anybody runs. Its exit code is the promise that all of it was seen."""
    process = await start_demo(tmp_path, "--once")
    told = await until(process, "")
    async with asyncio.timeout(PATIENCE):
        code = await process.wait()
    assert code == 0, told
    assert "NOT SEEN" not in told
    for chapter in ("1. A push", "2. A push that breaks", "3. A push that mends", "4. What happened"):
        assert chapter in told
    assert "“Hello from version 1”, 0 failed" in told, "visitors never noticed the broken push"
    assert "rolled_back" in told
    assert await left_over(told, tmp_path, docker_engine) == []


async def test_a_demo_that_is_interrupted_leaves_nothing(tmp_path: Path, docker_engine: Engine) -> None:
    """Ctrl-C in the middle of a deployment: the processes end, the containers go, the folder goes."""
    process = await start_demo(tmp_path)
    told = await until(process, "image built")
    process.send_signal(signal.SIGINT)
    told += await until(process, "")
    async with asyncio.timeout(PATIENCE):
        assert await process.wait() == 130, told
    assert "Traceback" not in told
    assert await left_over(told, tmp_path, docker_engine) == []
