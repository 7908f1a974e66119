"""`hythe demo`: the main job, told as it happens.

1. a push becomes a running, healthy stack
2. a push that breaks the app leaves the old version serving
3. a rollback brings back exactly the images of the first deployment
4. the log tells all of it again, from nothing but its events

Everything is real: four service processes, Postgres, NATS, Git over HTTP, a signed webhook, Docker. Nothing is
believed that was not seen: each step is checked against the app's own answers, the Docker engine, or the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from uuid import UUID

from cyclopts import Parameter

from hythe_cli import asking, deployments, shown, story
from hythe_cli.demo import sample
from hythe_cli.demo.git_server import GitServer, Webhook, WorkTree
from hythe_cli.demo.stage import Stage, progress
from hythe_cli.demo.witness import DockerView, NotSeen, get, visiting
from hythe_cli.home import default_home
from hythe_cli.local.engine import ensure_engine, ensure_packages, static_busybox
from hythe_cli.local.processes import free_port
from hythe_cli.system import System
from hythe_cli.up import until_told_to_stop
from hythe_events import log, streams
from hythe_events.build import BuildFinished, ImageBuilt
from hythe_events.bus import Bus
from hythe_events.decider import fold
from hythe_events.deploy import (
    DeployCompleted,
    DeployHealthChecked,
    DeployRollbackStarted,
    DeployStepCompleted,
    Rollback,
)
from hythe_events.deployment import Deployment, evolve
from hythe_events.envelope import Envelope
from hythe_events.git import BuildRequested, DeploymentOpened, DeploymentRequested, SaveRepository
from hythe_events.language import Event
from hythe_events.log import Done, Verdict
from hythe_events.webhooks import CreateSource, SourceMade, WebhookReceived

STEPS = ("webhook received", "source fetched", "image built", "stack up", "healthy")
PATIENCE = 120.0
"""Seconds that any one deployment of the demo may take."""

Once = Annotated[
    bool,
    Parameter(
        negative="", help="Stop everything at the end; exit with 0 only if every step was seen to be true."
    ),
]


async def demo(*, once: Once = False) -> int:
    """Set up all that is missing, then show a push become a running stack, a bad push cost nothing, and a rollback.

    It runs a Hythe of its own, in a folder that is removed at the end. Without --once it stays up until Ctrl-C.
    """
    name = f"hythe-demo-{secrets.token_hex(2)}"
    below = default_home() / "demo"
    folder = below / name
    stage = Stage()
    async with until_told_to_stop() as told, contextlib.AsyncExitStack() as cleaning:
        engine = await ensure_engine(progress, log=default_home() / "log" / "dockerd.log", ends_with_us=False)
        await ensure_packages({"git": "git"}, progress)
        busybox = await static_busybox(progress)
        docker = await cleaning.enter_async_context(DockerView(engine.host))
        await _clear_leftovers(below, docker)
        folder.mkdir(parents=True, mode=0o700)
        cleaning.push_async_callback(_clear, folder, name, docker)
        forge = await cleaning.enter_async_context(GitServer(folder / "forge"))
        system = System(
            folder,
            stacks=folder / "stacks",
            settings={"HYTHE_GRACE": "5", "HYTHE_GIT_ALLOW": "http,private"},
            tell=progress,
        )
        await cleaning.enter_async_context(system)
        stage.say(
            f"Hythe is ready: Postgres, NATS and four services as processes ({system.seconds_to_ready:.1f} s)"
        )
        async with asking.running_hythe(folder) as bus:
            tale = Tale(stage, bus, system, docker, forge, name)
            try:
                await tale.tell(busybox.read_bytes())
            except (NotSeen, TimeoutError) as error:
                stage.check(str(error) or "everything happened in time", False)
            verdict = _verdict(stage)
            if not once and stage.all_seen:
                _what_next(stage, folder, tale)
                await told.wait()
        stage.say()
        stage.say("Stopping, and removing what the demo made …", style="dim")
    return verdict


class Tale:
    """The demo's recipe. Raises NotSeen or TimeoutError when the story does not go as it should."""

    def __init__(
        self, stage: Stage, bus: Bus, system: System, docker: DockerView, forge: GitServer, stack: str
    ) -> None:
        self.stage = stage
        self.bus = bus
        self.system = system
        self.docker = docker
        self.forge = forge
        self.stack = stack
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/{sample.PAGE}"

    async def tell(self, busybox: bytes) -> None:
        """All four chapters."""
        work = await self._register()
        first = await self._first_push(work, busybox)
        second = await self._broken_push(work, first)
        third = await self._rollback(first)
        await self._timelines([first, second, third])

    async def _register(self) -> WorkTree:
        """What `hythe stack add` does, and a repository that tells of each push."""
        made = await self.bus.ask(CreateSource(source=self.stack), SourceMade, actor=asking.actor())
        webhook = Webhook(self.system.webhooks_url + made.path, made.secret)
        hosted = await self.forge.create_repository("app", webhook=webhook)
        await self.bus.ask(
            SaveRepository(stack=self.stack, url=hosted.url, source=self.stack), Done, actor=asking.actor()
        )
        self.stage.say(f"Registered the stack {self.stack}: {hosted.url}, branch main, told by {webhook.url}")
        return await WorkTree.of(hosted, self.system.home.directory / "work")

    async def _first_push(self, work: WorkTree, busybox: bytes) -> UUID:
        stage = self.stage
        with stage.chapter("1. A push becomes a running stack", STEPS):
            files = sample.first_version(busybox, self.port)
            commit = await work.commit(files, "Say hello")
            deployment, end = await self._push(work, commit)
        stage.check(f"the deployment {shown.short(deployment)} succeeded", end.outcome == "succeeded")
        self._must(end.outcome == "succeeded", end.reason)
        answer = await get(self.url)
        stage.check(f"GET {self.url} answers “{answer.strip()}”", answer == sample.HELLO.format(version=1))
        await self._runs_what_it_says(end)
        return deployment

    async def _broken_push(self, work: WorkTree, first: UUID) -> UUID:
        stage = self.stage
        before = {container.id for container in await self.docker.containers(self.stack)}
        title = "2. A push that breaks the app: its container never becomes healthy"
        async with visiting(self.url) as visits:
            with stage.chapter(title, (*STEPS, "old version kept")):
                commit = await work.commit(sample.broken_version(), "Move the page")
                deployment, end = await self._push(work, commit, visits=visits)
                stage.done("old version kept", str(visits), good=end.outcome == "rolled_back")
        stage.check(
            f"it ended as rolled_back: {end.reason}", end.outcome == "rolled_back" and bool(end.reason)
        )
        hello = sample.HELLO.format(version=1)
        stage.check(f"while it was tried, visitors got {visits}", set(visits.answers) == {hello})
        if not visits.failures:
            after = {container.id for container in await self.docker.containers(self.stack)}
            stage.check("the container that ran before still runs, untouched", after == before)
        stage.check("the old version serves", await get(self.url) == hello)
        live = await self._state(first)
        assert live.manifest is not None
        await self._digests_run({name: said.digest for name, said in live.manifest.services.items()})
        return deployment

    async def _rollback(self, first: UUID) -> UUID:
        stage = self.stage
        with stage.chapter("3. A rollback to the first deployment", ("asked for", "stack up", "healthy")):
            since = await asking.head(self.bus)
            opened = await self.bus.ask(
                Rollback(stack=self.stack, to=first, reason="to show that it works"),
                DeploymentOpened,
                actor=asking.actor(),
            )
            stage.done("asked for", f"hythe rollback {self.stack} --to {shown.short(first)}")
            async with asyncio.timeout(PATIENCE):
                end = await self._follow(opened.deployment, since)
        stage.check(f"the rollback {shown.short(opened.deployment)} succeeded", end.outcome == "succeeded")
        self._must(end.outcome == "succeeded", end.reason)
        then, now = await self._state(first), await self._state(opened.deployment)
        assert then.manifest is not None
        assert now.manifest is not None
        same = {n: s.digest for n, s in then.manifest.services.items()} == {
            n: s.digest for n, s in now.manifest.services.items()
        }
        stage.check("it asks for the digests of the first deployment", same)
        await self._runs_what_it_says(end)
        stage.check("the first version serves", await get(self.url) == sample.HELLO.format(version=1))
        return opened.deployment

    async def _timelines(self, told: Sequence[UUID]) -> None:
        stage = self.stage
        with stage.chapter("4. What happened, from nothing but the log"):
            for deployment in told:
                events = await asking.read_stream(self.bus, streams.deployment(deployment))
                state = fold(evolve, events, Deployment())
                stage.say()
                deployments.show_state(state)
                deployments.show_timeline(events)
                ends = [event for event in events if isinstance(event.data, DeployCompleted)]
                if len(ends) != 1:
                    raise NotSeen(f"deployment {deployment} has {len(ends)} ends, where one was expected")
            stage.say()
            verdict = await self.bus.ask(log.VerifyLog(), Verdict, actor=asking.actor(), timeout=60)
            what = verdict.bad or f"{verdict.checked} events, each hashed onto the one before"
            stage.check(f"the log verifies: {what}", verdict.bad is None and verdict.finished)

    async def _push(
        self, work: WorkTree, commit: str, *, visits: object = None
    ) -> tuple[UUID, DeployCompleted]:
        """Push, and follow what it leads to until its end."""
        since = await asking.head(self.bus)
        async with asyncio.timeout(PATIENCE):
            pushing = asyncio.create_task(work.push(), name="git push")
            try:
                deployment = await self._opened_by(commit, since)
                end = await self._follow(deployment, since, visits=visits)
            finally:
                await pushing
        sent = await self.forge.deliveries.get()
        self._must(sent.status == 202, f"the webhook was answered {sent.status}: {sent.answer}")
        return deployment, end

    async def _opened_by(self, commit: str, since: int) -> UUID:
        """The deployment that the push of `commit` led to."""
        async for event in self.bus.watch(since, actor=asking.actor()):
            match event.data:
                case WebhookReceived(after=after) as said if after == commit:
                    self.stage.done(
                        "webhook received", story.tell(said).text.removeprefix("webhook received: ")
                    )
                case DeploymentRequested(commit=asked) as opened if asked == commit:
                    return opened.deployment
                case _:
                    pass
        raise NotSeen("the events ended before the push was heard of")

    async def _follow(self, deployment: UUID, since: int, *, visits: object = None) -> DeployCompleted:
        """Show what happens to a deployment, until its end."""
        stage = self.stage
        async for event in asking.follow(self.bus, deployment, since):
            text = story.tell(event.data).text
            match event.data:
                case BuildRequested():
                    stage.done("source fetched", text.removeprefix("source fetched: "))
                case ImageBuilt():
                    stage.doing(text)
                case BuildFinished() as said:
                    built = ", ".join(f"{name} {image.digest[:19]}" for name, image in said.images.items())
                    stage.done("image built", built or text, good=said.outcome == "succeeded")
                case DeployStepCompleted(step="up"):
                    stage.done("stack up", text)
                case DeployHealthChecked() as said:
                    if not said.healthy:
                        stage.done("stack up", "tried beside what runs" if visits is not None else "")
                    stage.done("healthy", text.removeprefix("healthy: "), good=said.healthy)
                case DeployRollbackStarted():
                    stage.doing(text)
                case DeployCompleted() as end:
                    return end
                case _:
                    stage.doing(text)
        raise NotSeen("the events ended before the deployment did")

    async def _state(self, deployment: UUID) -> Deployment:
        events: list[Envelope[Event]] = await asking.read_stream(self.bus, streams.deployment(deployment))
        return fold(evolve, events, Deployment())

    async def _runs_what_it_says(self, end: DeployCompleted) -> None:
        if end.manifest is None:
            raise NotSeen("the deployment succeeded without saying what it runs")
        await self._digests_run({name: said.digest for name, said in end.manifest.services.items()})

    async def _digests_run(self, wanted: dict[str, str]) -> None:
        containers = await self.docker.containers(self.stack)
        running = {
            one.service: one.image for one in containers if one.running and one.health in {"healthy", "none"}
        }
        self.stage.check(
            f"docker inspect: {', '.join(f'{name} runs {digest[:19]}' for name, digest in running.items())}, as the manifest says",
            running == wanted,
        )

    def _must(self, held: bool, otherwise: str | None) -> None:
        if not held:
            raise NotSeen(otherwise or "the story ends here")


def _verdict(stage: Stage) -> int:
    held = sum(1 for _, good in stage.seen if good)
    stage.say()
    if stage.all_seen:
        stage.say(f"All {held} statements above were seen to be true.", style="bold green")
        return shown.GOOD
    stage.say(
        f"{len(stage.seen) - held} of {len(stage.seen)} statements were not seen to be true.",
        style="bold red",
    )
    return shown.BAD


def _what_next(stage: Stage, folder: Path, tale: Tale) -> None:
    stage.say()
    stage.say("It stays up until Ctrl-C. Try, in another terminal:", style="bold")
    stage.say(f"  export HYTHE_HOME={folder}")
    for command, why in (
        (f"curl {tale.url}", "the app"),
        ("./hythe history", "every deployment"),
        ("./hythe events tail -n 40", "everything that happened"),
        (
            f"cd {tale.system.home.directory / 'work'} && git commit --allow-empty -m 'Again' && git push",
            "one more push",
        ),
        (f"./hythe deploy {tale.stack} --follow", "the same by command"),
        ("./hythe projections rebuild", "drop every table that is made from the log, and make it again"),
    ):
        stage.say(f"  {command:<45} {why}")


async def _clear(folder: Path, stack: str, docker: DockerView) -> None:
    """Remove what a demo made: containers, networks, images, files."""
    images = set(await docker.images("hythe.stack", stack))
    images |= {container.image for container in await docker.containers(stack)}
    await docker.remove(stack, images)
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _clear_leftovers(below: Path, docker: DockerView) -> None:
    """Remove what demos left that were killed. One that still runs holds its folder."""
    for folder in sorted(below.glob("hythe-demo-*")) if below.is_dir() else []:
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            descriptor = os.open(folder / "in-use", os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                await _clear(folder, folder.name, docker)
            finally:
                os.close(descriptor)
