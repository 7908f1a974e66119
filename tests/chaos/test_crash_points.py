"""Each service is killed at each named crash point, as `kill -9` does, in the middle of a push becoming a stack.

Whatever the instant, when the service is back: the accepted delivery has led to exactly one deployment with exactly
one end, the app answers as that end says, the log verifies, and every table made anew from it equals the live one.

A crash point is reached because one process is started with `HYTHE_FAULTS`; the next one, after the crash, is not.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID, uuid4

import aiohttp
import pytest

from hythe_cli import asking
from hythe_cli.demo import sample
from hythe_cli.demo.git_server import ZERO, signature
from hythe_cli.demo.scene import App, Scene
from hythe_cli.demo.witness import get
from hythe_cli.local.processes import DidNotStart
from hythe_events import log, streams
from hythe_events.access import SERVICES
from hythe_events.bus import Bus
from hythe_events.deploy import DeployCompleted
from hythe_events.deployment import Deployment
from hythe_events.envelope import Envelope
from hythe_events.errors import NotNow
from hythe_events.git import DeploymentRequested
from hythe_events.installation import RELAYS
from hythe_events.language import Event
from hythe_events.log import ListParked, Page, RebuildProjection, Rebuilt, Rows
from hythe_events.webhooks import DeliveryRouted, WebhookReceived

from .conftest import Arena

PATIENCE = 90.0
HELLO = sample.HELLO.format(version=1)
WHO = "test:chaos"


@dataclass(frozen=True)
class Crash:
    """Kill these services where `point` is; `broken` pushes a version that does not become healthy."""

    point: str
    services: tuple[str, ...]
    broken: bool = False

    def __str__(self) -> str:
        return f"{self.point}-{'-'.join(self.services)}"


CRASHES = (
    Crash("W6", ("webhooks",)),
    Crash("W7", ("webhooks",)),
    Crash("W6", ("git",)),
    Crash("W6", ("build",)),
    Crash("W6", ("deploy",)),
    Crash("R3", RELAYS),
    Crash("R4", RELAYS),
    Crash("C4", ("build",)),
    Crash("C6", ("git",)),
    Crash("C6", ("build",)),
    Crash("C6", ("deploy",)),
    Crash("G5", ("git",)),
    Crash("B5", ("build",)),
    Crash("D3", ("deploy",)),
    Crash("D5", ("deploy",)),
    Crash("D8", ("deploy",), broken=True),
)


@pytest.mark.slow
@pytest.mark.parametrize("crash", CRASHES, ids=str)
async def test_a_push_ends_in_one_deployment_wherever_a_service_is_killed(
    arena: Arena, stack: str, crash: Crash
) -> None:
    """P1, P2, P8: nothing is lost, nothing happens twice, nothing is stuck."""
    scene = arena.scene
    app = await scene.add_app(stack, told_of_pushes=False)
    if crash.broken:
        commit = await scene.commit_first(app)
        await app.work.push()
        assert (await delivered(scene, app, commit)).outcome == "succeeded"
        commit = await scene.commit_broken(app)
    else:
        commit = await scene.commit_first(app)
    await app.work.push()

    async with killed_at(arena, crash):
        state = await delivered(scene, app, commit)

    assert state.outcome == ("rolled_back" if crash.broken else "succeeded"), state.reason
    assert await get(app.url) == HELLO
    await everything_is_right(scene)


@pytest.mark.slow
async def test_a_push_is_not_lost_with_the_bus(arena: Arena, stack: str) -> None:
    """R10: JetStream confirmed the delivery's message, and then its disk was gone. The log tells it again."""
    scene = arena.scene
    app = await scene.add_app(stack, told_of_pushes=False)
    commit = await scene.commit_first(app)
    await app.work.push()
    await scene.system.stop_part("git")  # so that nobody hears it before it is lost
    posted = asyncio.create_task(delivered(scene, app, commit))
    async with asyncio.timeout(PATIENCE):
        while not await arrived(scene, app):
            await asyncio.sleep(0.05)
        await told_to_the_bus(scene, await asking.head(scene.bus))
    await scene.system.stop_part("nats", kill=True)
    await scene.system.nats.wipe()
    await scene.system.start_part("nats")
    await scene.system.start_part("git")
    state = await posted
    assert state.outcome == "succeeded", state.reason
    assert await get(app.url) == HELLO
    await everything_is_right(scene)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["postgres", "nats"])
async def test_a_push_survives_the_crash_of_a_server(arena: Arena, stack: str, part: str) -> None:
    """P8: the database and the bus are processes too. Both are started again, and the work goes on."""
    scene = arena.scene
    app = await scene.add_app(stack, told_of_pushes=False)
    commit = await scene.commit_first(app)
    await app.work.push()
    posted = asyncio.create_task(delivered(scene, app, commit))
    async with asyncio.timeout(PATIENCE):
        while not await arrived(scene, app):
            await asyncio.sleep(0.02)
    await scene.system.crash(part)
    state = await posted
    assert state.outcome == "succeeded", state.reason
    assert await get(app.url) == HELLO
    await everything_is_right(scene)


@asynccontextmanager
async def killed_at(arena: Arena, crash: Crash) -> AsyncIterator[None]:
    """Starts the services anew so that each is killed at the crash point; at the end, at least one was, and all run."""
    system = arena.scene.system
    before = len(arena.told)
    for service in crash.services:
        await system.stop_part(service)
    for service in crash.services:
        # A relay may lead, and be killed, before its service is ready.
        with suppress(DidNotStart):
            await system.start_part(service, HYTHE_FAULTS=crash.point, HYTHE_REHEARSE="false")
    yield
    async with asyncio.timeout(PATIENCE):
        while not any("was killed by SIGKILL" in sentence for sentence in arena.told[before:]):
            await asyncio.sleep(0.02)
        await system.until_ready(PATIENCE)


async def delivered(scene: Scene, app: App, commit: str) -> Deployment:
    """Post the push as GitHub does, again and again until it is accepted; the state of the deployment it led to.

    GitHub itself does not try again: there, a person presses “Redeliver”, which sends the same id.
    """
    headers, body = the_push(app, commit)
    async with asyncio.timeout(PATIENCE):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as forge:
            while not await accepted(forge, app.webhook.url, headers, body):
                await asyncio.sleep(0.1)
        delivery = headers["X-GitHub-Delivery"]
        deployment = await led_to(scene, app, delivery)
        while not (state := await patiently(scene, deployment)).finished:
            await asyncio.sleep(0.05)
    received, opened, ends = await counted(scene, delivery, commit, deployment)
    assert (received, opened, ends) == (1, 1, 1), "one delivery, one deployment, one end"
    return state


async def accepted(forge: aiohttp.ClientSession, url: str, headers: dict[str, str], body: bytes) -> bool:
    """Whether the webhooks service answered that it has the delivery."""
    try:
        async with forge.post(url, data=body, headers=headers) as response:
            return response.status == 202 or (response.status == 200 and "delivery" in await response.json())
    except (aiohttp.ClientError, TimeoutError):
        return False


def the_push(app: App, commit: str) -> tuple[dict[str, str], bytes]:
    """A push event, as GitHub sends it."""
    body = json.dumps(
        {
            "ref": "refs/heads/main",
            "before": ZERO,
            "after": commit,
            "repository": {"full_name": f"test/{app.stack}"},
            "head_commit": {"id": commit, "message": "Say hello", "author": {"name": "Test"}},
            "sender": {"login": "test"},
        }
    ).encode()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": str(uuid4()),
        "X-Hub-Signature-256": signature(app.webhook.secret, body),
    }
    return headers, body


async def led_to(scene: Scene, app: App, delivery: str) -> UUID:
    """The one deployment that git says the delivery led to."""
    while True:
        for event in await stream(scene, streams.delivery(app.stack, delivery)):
            if isinstance(event.data, DeliveryRouted):
                [to] = event.data.deployments
                return to.deployment
        await asyncio.sleep(0.05)


async def arrived(scene: Scene, app: App) -> bool:
    """Whether any delivery of the app's source is in the log."""
    page = await scene.bus.ask(log.ReadLog(limit=50, newest=True), Page, actor=WHO)
    return any(
        isinstance(e.data, WebhookReceived) and e.data.source == app.stack for e in asking.events_of(page)
    )


async def told_to_the_bus(scene: Scene, position: int) -> None:
    """Wait until JetStream has confirmed the event at this position of the log."""
    seed = (scene.system.home.secrets("relay") / "nats_seed").read_text().strip()
    async with Bus.open(scene.system.nats.url, "relay", seed) as relay:
        while (await relay.stream_state()).position < position:
            await asyncio.sleep(0.05)


async def stream(scene: Scene, name: str) -> list[Envelope[Event]]:
    """A stream's events, as soon as somebody answers."""
    while True:
        with suppress(NotNow):
            return await asking.read_stream(scene.bus, name)
        await asyncio.sleep(0.1)


async def patiently(scene: Scene, deployment: UUID) -> Deployment:
    """A deployment's state, as soon as somebody answers."""
    while True:
        with suppress(NotNow):
            return await scene.state_of(deployment)
        await asyncio.sleep(0.1)


async def counted(scene: Scene, delivery: str, commit: str, deployment: UUID) -> tuple[int, int, int]:
    """How often the whole log holds the delivery, a deployment of its commit, and an end of that deployment."""
    received = opened = ends = 0
    after = 0
    while events := asking.events_of(await patient_page(scene, after)):
        for event in events:
            match event.data:
                case WebhookReceived(delivery=told) if told == delivery:
                    received += 1
                case DeploymentRequested(commit=asked) if asked == commit:
                    opened += 1
                case DeployCompleted(deployment=ended) if ended == deployment:
                    ends += 1
                case _:
                    pass
        after = events[-1].position
    return received, opened, ends


async def patient_page(scene: Scene, after: int) -> Page:
    """A page of the log, as soon as somebody answers."""
    while True:
        with suppress(NotNow):
            return await scene.bus.ask(log.ReadLog(after=after, limit=1000), Page, actor=WHO)
        await asyncio.sleep(0.1)


async def everything_is_right(scene: Scene) -> None:
    """The log verifies, nothing is parked, and rebuilt tables equal live ones."""
    await scene.system.until_ready(PATIENCE)
    verdict = await scene.verify()
    assert verdict.bad is None
    for service in SERVICES:
        rebuilt = await scene.bus.ask(RebuildProjection(), Rebuilt, actor=WHO, service=service, timeout=60)
        assert all(rebuilt.equal.values()), f"{service}: {rebuilt}"
        parked = await scene.bus.ask(ListParked(), Rows, actor=WHO, service=service)
        assert parked.rows == ()
