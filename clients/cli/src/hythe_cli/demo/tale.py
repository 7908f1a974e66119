"""`hythe demo`: the main job, told as it happens.

1. a push becomes a running, healthy stack
2. a push that breaks the app leaves the old version serving
3. a third push mends it, and a rollback brings back exactly the images of the first deployment
4. the log tells all of it again, from nothing but its events

Everything is real: four service processes, Postgres, NATS, Git over HTTP, a signed webhook, Docker. Nothing is
believed that was not seen: each step is checked against the app's own answers, the Docker engine, or the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from cyclopts import Parameter

from hythe_cli import asking, deployments, shown, story
from hythe_cli.demo import sample
from hythe_cli.demo.scene import PREFIX, App, Scene, clear_leftovers, set_up
from hythe_cli.demo.stage import Stage, progress
from hythe_cli.demo.witness import DockerView, NotSeen, get, visiting
from hythe_cli.home import default_home
from hythe_cli.local.engine import ensure_engine, ensure_packages, static_busybox
from hythe_cli.up import until_told_to_stop
from hythe_events.build import BuildFinished, ImageBuilt
from hythe_events.decider import fold
from hythe_events.deploy import (
    DeployCompleted,
    DeployHealthChecked,
    DeployRollbackStarted,
    DeployStepCompleted,
    Rollback,
)
from hythe_events.deployment import Deployment, evolve
from hythe_events.errors import HytheError
from hythe_events.git import BuildRequested, DeploymentOpened, DeploymentRequested
from hythe_events.webhooks import WebhookReceived

STEPS = ("webhook received", "source fetched", "image built", "stack up", "healthy")
BESIDE = "tried beside it"
HEALTHY_WITHIN = 10.0
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
    name = f"{PREFIX}{secrets.token_hex(2)}"
    below = default_home() / "demo"
    stage = Stage()
    async with until_told_to_stop() as told:
        log = default_home() / "log" / "dockerd.log"
        engine = await ensure_engine(progress, log=log, ends_with_us=True)
        try:
            await ensure_packages({"git": "git"}, progress)
            busybox = await static_busybox(progress)
            async with DockerView(engine.host) as docker:
                await clear_leftovers(below, docker)
            async with set_up(below / name, busybox, docker_host=engine.host, tell=progress) as scene:
                seconds = scene.system.seconds_to_ready
                stage.say(
                    f"Hythe is ready: Postgres, NATS and four services, each a process ({seconds:.1f} s)"
                )
                tale = Tale(stage, scene, name)
                try:
                    await tale.tell()
                except TimeoutError:
                    stage.check("everything happened in time", False)
                except HytheError as error:
                    stage.check(shown.told(error), False)
                verdict = _verdict(stage)
                if not once:
                    _what_next(stage, tale)
                    await told.wait()
                stage.say()
                stage.say("Stopping, and removing what the demo made …", style="dim")
        finally:
            await engine.stop()
    return verdict


class Tale:
    """The demo's recipe. Raises NotSeen, TimeoutError or Hythe's own errors when the story does not go as it should."""

    def __init__(self, stage: Stage, scene: Scene, stack: str) -> None:
        self.stage = stage
        self.scene = scene
        self.stack = stack
        self.bus = scene.bus
        self.docker = scene.docker

    async def tell(self) -> None:
        """All four chapters."""
        app = await self.scene.add_app(self.stack)
        self.stage.say(
            f"Registered the stack {app.stack}: {app.repository.url}, branch main, told by {app.webhook.url}"
        )
        first = await self._first_push(app)
        second = await self._broken_push(app, first)
        third = await self._mended_push(app)
        fourth = await self._rollback(app, first)
        await self._timelines([first, second, third, fourth])

    async def _first_push(self, app: App) -> UUID:
        stage = self.stage
        with stage.chapter("1. A push becomes a running stack", STEPS):
            deployment, end = await self._push(app, await self.scene.commit_first(app))
        stage.check(f"the deployment {shown.short(deployment)} succeeded", end.outcome == "succeeded")
        self._must(end.outcome == "succeeded", end.reason)
        answer = await get(app.url)
        stage.check(f"GET {app.url} answers “{answer.strip()}”", answer == sample.HELLO.format(version=1))
        await self._runs_what_it_says(end)
        return deployment

    async def _broken_push(self, app: App, first: UUID) -> UUID:
        stage = self.stage
        before = {container.id for container in await self.docker.containers(self.stack)}
        title = "2. A push that breaks the app: its container never becomes healthy"
        async with visiting(app.url) as visits:
            with stage.chapter(title, (*STEPS[:3], BESIDE, "healthy", "old version kept")):
                deployment, end = await self._push(app, await self.scene.commit_broken(app), broken=True)
                stage.done("old version kept", str(visits), good=end.outcome == "rolled_back")
        stage.check(
            f"it ended as rolled_back: {end.reason}", end.outcome == "rolled_back" and bool(end.reason)
        )
        hello = sample.HELLO.format(version=1)
        stage.check(f"while it was tried, visitors got {visits}", set(visits.answers) == {hello})
        if not visits.failures:
            after = {container.id for container in await self.docker.containers(self.stack)}
            stage.check("the container that ran before still runs, untouched", after == before)
        stage.check("the old version serves", await get(app.url) == hello)
        live = await self.scene.state_of(first)
        assert live.manifest is not None
        await self._digests_run({name: said.digest for name, said in live.manifest.services.items()})
        return deployment

    async def _mended_push(self, app: App) -> UUID:
        stage = self.stage
        with stage.chapter("3. A push that mends it, and then a rollback to the first deployment", STEPS):
            commit = await app.work.commit(sample.mended_version(), "Put the page back")
            deployment, end = await self._push(app, commit)
        stage.check(f"the deployment {shown.short(deployment)} succeeded", end.outcome == "succeeded")
        answer = await get(app.url)
        stage.check(f"GET {app.url} answers “{answer.strip()}”", answer == sample.HELLO.format(version=3))
        return deployment

    async def _rollback(self, app: App, first: UUID) -> UUID:
        stage = self.stage
        with stage.chapter("", ("asked for", "stack up", "healthy")):
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
        then, now = await self.scene.state_of(first), await self.scene.state_of(opened.deployment)
        assert then.manifest is not None
        assert now.manifest is not None
        same = {n: s.digest for n, s in then.manifest.services.items()} == {
            n: s.digest for n, s in now.manifest.services.items()
        }
        stage.check("it asks for the digests of the first deployment", same)
        await self._runs_what_it_says(end)
        answer = await get(app.url)
        stage.check(
            f"GET {app.url} answers “{answer.strip()}” again", answer == sample.HELLO.format(version=1)
        )
        return opened.deployment

    async def _timelines(self, told: Sequence[UUID]) -> None:
        stage = self.stage
        with stage.chapter("4. What happened, from nothing but the log"):
            for deployment in told:
                events = await self.scene.events_of(deployment)
                state = fold(evolve, events, Deployment())
                stage.say()
                deployments.show_state(state)
                deployments.show_timeline(events)
                ends = [event for event in events if isinstance(event.data, DeployCompleted)]
                if len(ends) != 1:
                    raise NotSeen(f"deployment {deployment} has {len(ends)} ends, where one was expected")
            stage.say()
            verdict = await self.scene.verify()
            what = verdict.bad or f"{verdict.position} events, each hashed onto the one before"
            stage.check(f"the log verifies: {what}", verdict.bad is None and verdict.finished)

    async def _push(self, app: App, commit: str, *, broken: bool = False) -> tuple[UUID, DeployCompleted]:
        """Push, and follow what it leads to until its end."""
        since = await asking.head(self.bus)
        async with asyncio.timeout(PATIENCE):
            pushing = asyncio.create_task(app.work.push(), name="git push")
            try:
                deployment = await self._opened_by(commit, since)
                end = await self._follow(deployment, since, broken=broken)
            finally:
                await pushing
        sent = await self.scene.forge.deliveries.get()
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

    async def _follow(self, deployment: UUID, since: int, *, broken: bool = False) -> DeployCompleted:
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
                    stage.done(BESIDE if broken else "stack up", text)
                case DeployHealthChecked() as said:
                    if broken:
                        stage.done(BESIDE, "a second container, which no visitor reaches")
                    stage.done("healthy", text.removeprefix("healthy: "), good=said.healthy)
                case DeployRollbackStarted():
                    stage.doing(text)
                case DeployCompleted() as end:
                    return end
                case _:
                    stage.doing(text)
        raise NotSeen("the events ended before the deployment did")

    async def _runs_what_it_says(self, end: DeployCompleted) -> None:
        if end.manifest is None:
            raise NotSeen("the deployment succeeded without saying what it runs")
        await self._digests_run({name: said.digest for name, said in end.manifest.services.items()})

    async def _digests_run(self, wanted: dict[str, str]) -> None:
        """Docker runs these images and calls them healthy: it does so at its own next look, a moment after Hythe's."""
        running: dict[str, str] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEALTHY_WITHIN):
                while running != wanted:
                    containers = await self.docker.containers(self.stack)
                    good = [one for one in containers if one.running and one.health in {"healthy", "none"}]
                    running = {one.service: one.image for one in good}
                    await asyncio.sleep(0.05)
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


def _what_next(stage: Stage, tale: Tale) -> None:
    folder = tale.scene.folder
    work = folder / "work" / tale.stack
    stage.say()
    stage.say("It stays up until Ctrl-C. Try, in another terminal:", style="bold")
    for command, why in (
        (f"export HYTHE_HOME={folder}", "which Hythe is meant"),
        ("./hythe history", "every deployment"),
        ("./hythe events tail -n 40 -f", "everything that happens"),
        (f"./hythe deploy {tale.stack} --follow", "deploy by command"),
        (f"git -C {work} push origin HEAD~1:refs/heads/again", "a push that concerns no stack; then:"),
        ("./hythe deliveries", "every webhook, and what became of it"),
        ("./hythe projections rebuild", "make every table anew from the log"),
    ):
        stage.say(f"  {command}")
        stage.say(f"      {why}", style="dim")
