"""The build service as a process of its own, on the real Postgres, NATS and Docker: killed, told to stop, started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from hythe_cli.local.world import World
from hythe_events import streams
from hythe_events.blobs import Blobs
from hythe_events.build import BuildFinished, CancelDeployment, FindLog, FoundLog
from hythe_events.envelope import Cause
from hythe_events.errors import BusUnavailable
from hythe_events.git import BuildRequested, DeploymentRequested
from hythe_events.language import BlobRef, new_id
from hythe_events.log import Done
from hythe_events.store import Store

BASE = "hythe-test-build/base:1"


@asynccontextmanager
async def service(
    world: World, docker: Any, folder: Path, **more: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The build service in a process, until the block ends."""
    told = {f"HYTHE_{name.upper()}": str(value) for name, value in world.told("build").items()}
    own = {"HYTHE_BUILD_DIR": str(folder), "HYTHE_DOCKER_HOST": docker.host}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hythe_build"),
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **told, **own, **more},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def requested(world: World, store: Store, tar: Callable[..., bytes], run: str) -> UUID:
    """A deployment that is to be built from the base image by one RUN."""
    deployment, stack = new_id(), "hythe-test-build"
    files = {"compose.yaml": "services: {web: {build: .}}\n", "Dockerfile": f"FROM {BASE}\nRUN {run}\n"}
    source = await _kept(world, tar(files))
    opened = DeploymentRequested(
        deployment=deployment,
        stack=stack,
        trigger="command",
        ref="refs/heads/main",
        commit="a" * 40,
        asked_by="cli:ada",
    )
    asked = BuildRequested(
        deployment=deployment,
        stack=stack,
        commit="a" * 40,
        ref="refs/heads/main",
        message="",
        author="",
        asked_by="cli:ada",
        source=source,
        compose_file="compose.yaml",
    )
    because = Cause(deployment, None, "cli:ada")
    await store.append(streams.deployment(deployment), 0, [opened, asked], because=because)
    return deployment


async def _kept(world: World, source: bytes) -> BlobRef:
    """`source` in the object store, which the service that leads the relay makes at its start."""
    async with world.bus("git") as bus, asyncio.timeout(20):
        while True:
            try:
                return await Blobs(bus).put(source)
            except BusUnavailable:
                await asyncio.sleep(0.1)


async def ended(store: Store, deployment: UUID) -> BuildFinished:
    """How the build ended, once it has."""
    async with asyncio.timeout(60):
        while True:
            position = (await store.head()).position
            told = [event.data for event in await store.read(streams.deployment(deployment))]
            endings = [event for event in told if isinstance(event, BuildFinished)]
            if endings:
                [ending] = endings
                return ending
            await store.beyond(position)


async def begun(world: World, deployment: UUID) -> None:
    """Returns when the live log says `begun`."""
    async with world.bus("client") as bus, asyncio.timeout(30):
        async for line in bus.follow_log(deployment):
            if line == b"web | begun":
                return


async def running(mark: str) -> bool:
    """Whether a process with `mark` in its command line runs on this machine."""

    def look() -> bool:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if mark.encode() in file.read_bytes():
                    return True
            except OSError:
                continue
        return False

    return await asyncio.to_thread(look)


@pytest.mark.parametrize("point", ["C4", "B5", "C6"])
async def test_a_build_killed_at_a_crash_point_ends_once_with_its_image(
    world: World, docker: Any, tmp_path: Path, tar: Callable[..., bytes], point: str
) -> None:
    """kill -9 after the image is there, before its digest is in the log, or before the message is acknowledged."""
    async with world.store("git") as store:
        async with service(world, docker, tmp_path / "work", HYTHE_FAULTS=point) as first:
            deployment = await requested(world, store, tar, f"echo {uuid4()}")
            async with asyncio.timeout(60):
                assert await first.wait() == -signal.SIGKILL
        assert list((tmp_path / "work").glob("builder-*"))
        async with service(world, docker, tmp_path / "work") as second, world.bus("client") as bus:
            ending = await ended(store, deployment)
            assert ending.outcome == "succeeded", ending.reason
            seen = await docker.get(f"images/{ending.images['web'].reference}/json")
            assert seen["Id"] == ending.images["web"].digest
            again = await requested(world, store, tar, f"echo {uuid4()}")
            assert (await ended(store, again)).outcome == "succeeded"
            found = await bus.ask(FindLog(deployment=deployment), FoundLog, actor="cli:test")
            assert found == FoundLog(deployment=deployment, running=False, log=ending.log)
            assert len(list((tmp_path / "work").glob("builder-*"))) == 1, (
                "the killed one's sources were swept"
            )
        assert second.returncode == 0
        told = [event.type for event in await store.read(streams.deployment(deployment))]
        assert told.count("build.finished") == 1
        assert told.count("build.started") == 1


async def test_a_build_killed_in_the_middle_leaves_nothing_running_and_starts_over(
    world: World, docker: Any, tmp_path: Path, tar: Callable[..., bytes]
) -> None:
    """The engine notices that nobody listens any more; the next process builds it from the start."""
    mark = f"600.{uuid4().int % 10**9}"
    async with world.store("git") as store:
        async with service(world, docker, tmp_path / "work") as first:
            deployment = await requested(world, store, tar, f"echo begun; sleep {mark}")
            await begun(world, deployment)
            first.kill()
            await first.wait()
        async with asyncio.timeout(5):
            while await running(mark):
                await asyncio.sleep(0.05)
        async with service(world, docker, tmp_path / "work", HYTHE_BUILD_TIMEOUT="3"):
            ending = await ended(store, deployment)
        assert ending.outcome == "failed"
        assert "took longer than 3 s" in (ending.reason or "")
        assert not await running(mark)


async def test_a_cancelled_build_is_over_within_seconds(
    world: World, docker: Any, tmp_path: Path, tar: Callable[..., bytes]
) -> None:
    """By command, as the command line asks; its processes are gone and the log says who did it."""
    mark = f"600.{uuid4().int % 10**9}"
    async with (
        world.store("git") as store,
        world.bus("client") as bus,
        service(world, docker, tmp_path / "work"),
    ):
        deployment = await requested(world, store, tar, f"echo begun; sleep {mark}")
        await begun(world, deployment)
        async with asyncio.timeout(5):
            done = await bus.ask(CancelDeployment(deployment=deployment), Done, actor="cli:ada")
            ending = await ended(store, deployment)
            while await running(mark):
                await asyncio.sleep(0.05)
        assert (ending.outcome, ending.reason) == ("cancelled", "cancelled by cli:ada")
        assert done.stream == streams.deployment(deployment)
        assert ending.log is not None
        async with world.bus("git") as other:
            assert (await Blobs(other).get(ending.log)).endswith(b"hythe | cancelled: cancelled by cli:ada\n")


async def test_a_service_that_is_told_to_stop_hands_its_build_on(
    world: World, docker: Any, tmp_path: Path, tar: Callable[..., bytes]
) -> None:
    """After the grace period the build is stopped, nothing is said, and the next process starts it over at once."""
    mark = f"600.{uuid4().int % 10**9}"
    async with world.store("git") as store:
        async with service(world, docker, tmp_path / "work", HYTHE_GRACE="0.2") as first:
            deployment = await requested(world, store, tar, f"echo begun; sleep {mark}")
            await begun(world, deployment)
            first.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await first.wait() == 0
        assert not await running(mark)
        assert not list((tmp_path / "work").glob("builder-*"))
        async with service(world, docker, tmp_path / "work", HYTHE_BUILD_TIMEOUT="2"):
            assert (await ended(store, deployment)).outcome == "failed"
