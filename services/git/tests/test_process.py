"""The git service as a process, on the real log and the real bus; killed where it hurts."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest

from hythe_cli.demo.git_server import Hosted, WorkTree, git
from hythe_cli.local.world import World
from hythe_events import streams
from hythe_events.blobs import Blobs
from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import BusUnavailable, NotNow
from hythe_events.git import (
    BuildRequested,
    DeploymentOpened,
    ListRepositories,
    RepositorySaved,
    RequestDeployment,
    SaveRepository,
)
from hythe_events.language import Event, new_id
from hythe_events.log import Done, RebuildProjection, Rebuilt, Rows
from hythe_events.store import Store
from hythe_events.webhooks import Commit, WebhookReceived


@asynccontextmanager
async def process(
    world: World, folder: Path, *, faults: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m hythe_git` until the block ends; it is asked to stop then, and must."""
    told = world.told("git", git_dir=folder / "mirrors", git_allow="http,private", log_level="warning")
    environment = {f"HYTHE_{name.upper()}": str(value) for name, value in told.items()} | {
        "HYTHE_FAULTS": faults
    }
    log = (folder / f"git-{new_id()}.log").open("wb")
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hythe_git", env={**os.environ, **environment}, stdout=log, stderr=log
    )
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            child.terminate()
        async with asyncio.timeout(20):
            await child.wait()
        log.close()


async def said(store: Store, stream: str, kind: str, *, seconds: float = 30) -> Envelope[Event]:
    """Wait until an event of type `kind` stands in `stream`."""
    async with asyncio.timeout(seconds):
        while True:
            position = (await store.head()).position
            for event in await store.read(stream):
                if event.type == kind:
                    return event
            await store.beyond(position)


async def pushed(world: World, commit: str, delivery: str) -> UUID:
    """A push is received; the id of the deployment it will lead to."""
    received = WebhookReceived(
        source="hub",
        provider="github",
        delivery=delivery,
        repository="demo/app",
        ref="refs/heads/main",
        before=None,
        after=commit,
        commit=Commit(id=commit, message="a change", author="Ada"),
        sender="octocat",
        body_sha256="0" * 64,
    )
    async with world.store("webhooks") as store:
        cause = Cause(new_id(), None, "github:octocat")
        (event,) = await store.append(streams.delivery("hub", delivery), 0, [received], because=cause)
    return streams.deployment_id(event.id, "app")


async def save(world: World, url: str) -> None:
    async with world.store("git") as store:
        saved = RepositorySaved(stack="app", url=url, branch="main", source="hub")
        await store.append(streams.repository("app"), 0, [saved], because=Cause(new_id(), None, "cli:root"))


async def test_a_push_is_fetched_and_its_build_asked_for(
    world: World, tree: WorkTree, hosted: Hosted, tmp_path: Path
) -> None:
    """From the log through the bus and back, with commands, and the read model rebuilt to the same rows."""
    commit = await git("rev-parse", "HEAD", cwd=tree.folder)
    async with world.store("git") as store, world.bus("client") as client, process(world, tmp_path):
        async with asyncio.timeout(30):
            while True:
                with suppress(BusUnavailable, NotNow):
                    saved = await client.ask(
                        SaveRepository(stack="app", url=hosted.url, source="hub", token="s3cret"),
                        Done,
                        actor="cli:root",
                    )
                    break
        assert saved == Done(stream="repository-app", version=1)
        deployment = await pushed(world, commit, "d-1")
        build = (await said(store, streams.deployment(deployment), "build.requested")).data
        assert isinstance(build, BuildRequested)
        assert (build.commit, build.asked_by) == (commit, "github:octocat")
        async with world.bus("build") as bus:
            assert len(await Blobs(bus).get(build.source)) == build.source.size
        (row,) = (await client.ask(ListRepositories(), Rows, actor="cli:root")).rows
        assert (row["stack"], row["url"], row["source"], row["credential_kind"]) == (
            "app",
            hosted.url,
            "hub",
            "token",
        )
        opened = await client.ask(RequestDeployment(stack="app"), DeploymentOpened, actor="cli:root")
        await said(store, streams.deployment(opened.deployment), "build.requested")
        rebuilt = await client.ask(RebuildProjection(), Rebuilt, actor="cli:root", service="git")
        assert rebuilt == Rebuilt(projections={"git_repositories": 1}, equal={"git_repositories": True})


@pytest.mark.slow
@pytest.mark.parametrize("crash_point", ["G3", "G5", "C6:2"])
async def test_a_service_killed_while_it_fetches_asks_for_one_build(
    world: World, tree: WorkTree, hosted: Hosted, tmp_path: Path, crash_point: str
) -> None:
    """Of the commit that was named, although the branch was rewritten while the service was down."""
    commit = await tree.commit({"n": "named"}, "named")
    await tree.push()
    await save(world, hosted.url)
    deployment = await pushed(world, commit, "d-1")
    async with process(world, tmp_path, faults=crash_point) as killed:
        async with asyncio.timeout(30):
            assert await killed.wait() == -9
    await git("reset", "--quiet", "--hard", "HEAD~1", cwd=tree.folder)
    await tree.commit({"n": "instead"}, "instead")
    await tree.push(force=True)
    async with world.store("git") as store, process(world, tmp_path):
        await said(store, streams.deployment(deployment), "build.requested")
        routed = await said(store, streams.delivery("hub", "d-1"), "delivery.routed")
        position = (await pushed_and_done(world, store, tree)).position
        types = [event.type for event in await store.read(streams.deployment(deployment))]
        assert types == ["deployment.requested", "build.requested"]
        assert len([event for event in await store.read_all(0) if event.stream == routed.stream]) == 2
        assert position > routed.position
        build = (await store.read(streams.deployment(deployment)))[-1].data
        assert isinstance(build, BuildRequested)
        assert build.commit == commit


async def pushed_and_done(world: World, store: Store, tree: WorkTree) -> Envelope[Event]:
    """A later push goes all the way: by then the redelivered messages of the first were handled too."""
    commit = await git("rev-parse", "HEAD", cwd=tree.folder)
    deployment = await pushed(world, commit, "d-2")
    return await said(store, streams.deployment(deployment), "build.requested")
