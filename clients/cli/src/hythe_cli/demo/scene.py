"""A whole Hythe to try things on: the system, a forge on this machine, and a view of the Docker engine.

The demo plays on it, and so do the system and chaos tests. Everything it makes is removed at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from hythe_cli import asking
from hythe_cli.demo import sample
from hythe_cli.demo.git_server import GitServer, Hosted, Webhook, WorkTree
from hythe_cli.demo.witness import DockerView
from hythe_cli.local.processes import free_port
from hythe_cli.system import System
from hythe_events import log, streams
from hythe_events.bus import Bus
from hythe_events.decider import fold
from hythe_events.deploy import DeployCompleted
from hythe_events.deployment import Deployment, evolve
from hythe_events.envelope import Envelope
from hythe_events.git import DeploymentRequested, SaveRepository
from hythe_events.language import Event
from hythe_events.log import Done, Verdict
from hythe_events.webhooks import CreateSource, SourceMade

PREFIX = "hythe-demo-"
LOCAL = {"HYTHE_GRACE": "5", "HYTHE_GIT_ALLOW": "http,private"}
"""Settings: stop soon; the forge is on this machine and speaks plain HTTP."""


@dataclass(frozen=True)
class App:
    """A stack of the sample application: its repository, its webhook, and where it answers."""

    stack: str
    port: int
    repository: Hosted
    work: WorkTree
    webhook: Webhook

    @property
    def url(self) -> str:
        """The app's page."""
        return f"http://127.0.0.1:{self.port}/{sample.PAGE}"


@dataclass
class Scene:
    """What is on stage. `busybox` is the static program that the sample images are made of."""

    folder: Path
    system: System
    forge: GitServer
    docker: DockerView
    bus: Bus
    busybox: bytes = field(repr=False)

    async def add_app(self, stack: str, *, told_of_pushes: bool = True) -> App:
        """What `hythe stack add` does, with a new repository that tells of each push, or does not."""
        made = await self.bus.ask(CreateSource(source=stack), SourceMade, actor=asking.actor())
        webhook = Webhook(self.system.webhooks_url + made.path, made.secret)
        hosted = await self.forge.create_repository(stack, webhook=webhook if told_of_pushes else None)
        saved = SaveRepository(stack=stack, url=hosted.url, source=stack)
        await self.bus.ask(saved, Done, actor=asking.actor())
        work = await WorkTree.of(hosted, self.folder / "work" / stack)
        return App(stack, free_port(), hosted, work, webhook)

    async def commit_first(self, app: App, message: str = "Say hello") -> str:
        """Commit a version that works."""
        (app.work.folder / "busybox").touch(mode=0o755)  # it is run in the image: git keeps the mode
        return await app.work.commit(sample.first_version(self.busybox, app.port), message)

    async def commit_broken(self, app: App, message: str = "Move the page") -> str:
        """Commit a version whose container never becomes healthy."""
        return await app.work.commit(sample.broken_version(), message)

    async def opened_by(self, commit: str, since: int) -> UUID:
        """The deployment that was asked for to bring a stack to `commit`, after position `since` of the log."""
        async for event in self.bus.watch(since, actor=asking.actor()):
            if isinstance(event.data, DeploymentRequested) and event.data.commit == commit:
                return event.data.deployment
        raise AssertionError("watching never ends by itself")

    async def end_of(self, deployment: UUID, since: int) -> DeployCompleted:
        """The end of a deployment that begins after position `since`."""
        async for event in asking.follow(self.bus, deployment, since):
            if isinstance(event.data, DeployCompleted):
                return event.data
        raise AssertionError("watching never ends by itself")

    async def events_of(self, deployment: UUID) -> list[Envelope[Event]]:
        """All that happened to a deployment."""
        return await asking.read_stream(self.bus, streams.deployment(deployment))

    async def state_of(self, deployment: UUID) -> Deployment:
        """A deployment's state, as the fold over its events gives it."""
        return fold(evolve, await self.events_of(deployment), Deployment())

    async def verify(self) -> Verdict:
        """Check the whole log."""
        verdict = await self.bus.ask(log.VerifyLog(), Verdict, actor=asking.actor(), timeout=60)
        while not verdict.finished:
            asked = log.VerifyLog(after=verdict.position, hash=verdict.hash)
            verdict = await self.bus.ask(asked, Verdict, actor=asking.actor(), timeout=60)
        return verdict


@asynccontextmanager
async def set_up(
    folder: Path,
    busybox: Path,
    *,
    docker_host: str | None = None,
    settings: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda _sentence: None,
) -> AsyncIterator[Scene]:
    """A new scene in `folder`, which is made, and removed at the end with all that the scene's stacks left in Docker."""
    async with contextlib.AsyncExitStack() as cleaning:
        docker = await cleaning.enter_async_context(DockerView(docker_host))
        folder.mkdir(parents=True, mode=0o700)
        cleaning.push_async_callback(_clear, folder, docker)
        forge = await cleaning.enter_async_context(GitServer(folder / "forge"))
        system = System(folder, stacks=folder / "stacks", settings={**LOCAL, **(settings or {})}, tell=tell)
        await cleaning.enter_async_context(system)
        bus = await cleaning.enter_async_context(asking.running_hythe(folder))
        yield Scene(folder, system, forge, docker, bus, await asyncio.to_thread(busybox.read_bytes))


async def clear_leftovers(below: Path, docker: DockerView) -> None:
    """Remove what scenes left that were killed. One that still plays holds its folder."""
    for folder in sorted(below.glob(f"{PREFIX}*")) if below.is_dir() else []:
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            descriptor = os.open(folder / "in-use", os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                await _clear(folder, docker)
            finally:
                os.close(descriptor)


async def _clear(folder: Path, docker: DockerView) -> None:
    stacks = folder / "stacks"
    for stack in sorted(path.name for path in stacks.iterdir()) if stacks.is_dir() else []:
        await docker.remove_stack(stack)
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
