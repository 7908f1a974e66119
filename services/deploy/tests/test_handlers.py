"""The order of a deploy, and what a message that comes again finds: in memory, with an engine that is a list."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from hythe_deploy import policy
from hythe_deploy.handlers import Handlers
from hythe_deploy.lease import Hold, LeaseKept, Superseded
from hythe_deploy.stacks import DeployFailed, DockerUnavailable, Pinned, Release, Unhealthy
from hythe_events import streams
from hythe_events.build import BuildFinished, BuildStarted, Image
from hythe_events.decider import fold
from hythe_events.deploy import (
    DeployRollbackStarted,
    GrantStack,
    Manifest,
    Rollback,
    ServiceHealth,
    ServiceManifest,
)
from hythe_events.deployment import Deployment, evolve
from hythe_events.envelope import Cause
from hythe_events.errors import NotFound, Refused
from hythe_events.git import BuildRequested, DeploymentRequested
from hythe_events.language import new_id
from hythe_events.testing import MemoryBlobs, MemoryStore


class Crash(BaseException):
    """The process dies here."""


ILL = Unhealthy(
    {"web": ServiceHealth(healthy=False, detail="exited with code 1; its last log line: no config")}
)


@dataclass
class Ground:
    """An engine and its leases: `did` is what was done, `breaks` raises at the nth time something is done."""

    did: list[str] = field(default_factory=list)
    breaks: dict[tuple[str, int], BaseException] = field(default_factory=dict)
    sick: set[str] = field(default_factory=set)
    gone: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    fence: int = 0
    newest: int = 0
    model: dict[str, Any] = field(default_factory=lambda: {"services": {"web": {"image": "x"}}})

    def does(self, what: str) -> None:
        self.did.append(what)
        nth = sum(one == what for one in self.did)
        if (error := self.breaks.get((what, nth))) is not None:
            raise error

    @asynccontextmanager
    async def hold(
        self, stack: str, deployment: UUID, asked: int, *, wait: float = 60.0, force: bool = False
    ) -> AsyncIterator[Hold]:
        if asked < self.newest:
            raise Superseded
        if stack in self.kept and not force:
            raise LeaseKept
        self.newest = asked
        self.fence += 1
        yield _Held(stack, self.fence, asked, self)

    @asynccontextmanager
    async def work_on(self, hold: Hold) -> AsyncIterator[Ground]:
        yield self

    async def missing_images(self, manifest: Manifest) -> list[str]:
        return self.gone

    async def render(self, archive: bytes, compose_file: str) -> dict[str, Any]:
        self.does("render")
        return self.model

    async def surroundings(self) -> policy.Surroundings:
        return policy.Surroundings("shop", "/opt/stacks/shop")

    async def pin(self, model: dict[str, Any], built: Mapping[str, Image], archive: bytes) -> Pinned:
        self.does("pin")
        services = {name: ServiceManifest(image=i.reference, digest=i.digest) for name, i in built.items()}
        text = f"services: {{web: {{image: '{next(iter(services.values())).digest}'}}}}"
        return Pinned(Release(text.encode(), b"A=1", archive), services)

    async def config_hashes(self, release: Release) -> dict[str, str]:
        return {"web": "h"}

    async def have(self, manifest: Manifest) -> None:
        self.does("have")

    async def rehearse(self, release: Release, before: Release | None) -> list[str]:
        self.does("rehearse")
        return ["web"] if before else []

    async def up(self, release: Release) -> None:
        self.does(f"up {release.compose.decode()[-4:-3]}")

    async def wait_healthy(self, names: Iterable[str]) -> dict[str, ServiceHealth]:
        self.does("health")
        if [one for one in self.did if one.startswith("up ")][-1].removeprefix("up ") in self.sick:
            raise ILL
        return dict.fromkeys(names, ServiceHealth(healthy=True, detail="fine"))

    async def verify(self, manifest: Manifest) -> None:
        self.does("verify")

    async def take_down(self) -> None:
        self.does("take down")


@dataclass
class _Held:
    stack: str
    fence: int
    newest: int
    ground: Ground

    async def check(self) -> None:
        return

    async def note(self, pid: int) -> None:
        return

    def keep(self) -> None:
        self.ground.kept.add(self.stack)


@dataclass
class Town:
    """Somebody asks for deployments of the stack `shop`, whose images are called a, b, c, …"""

    ground: Ground = field(default_factory=Ground)
    store: MemoryStore = field(default_factory=MemoryStore)
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)

    def __post_init__(self) -> None:
        self.handlers = Handlers(self.store.of("deploy"), self.blobs, self.ground, self.ground)

    async def built(self, letter: str, outcome: str = "succeeded", reason: str | None = None) -> UUID:
        deployment, stack, commit = new_id(), "shop", letter * 40
        because = Cause(deployment, None, "test")
        source = await self.blobs.put(b"source of " + letter.encode())
        image = Image(reference="shop-web", digest=f"sha256:{letter * 64}")
        events = [
            DeploymentRequested(
                deployment=deployment,
                stack=stack,
                trigger="command",
                ref="main",
                commit=commit,
                asked_by="test",
            ),
            BuildRequested(
                deployment=deployment,
                stack=stack,
                commit=commit,
                ref="main",
                message="",
                author="",
                asked_by="test",
                source=source,
                compose_file="compose.yaml",
            ),
            BuildStarted(deployment=deployment, stack=stack, services=("web",)),
            BuildFinished.model_validate(
                {
                    "deployment": deployment,
                    "stack": stack,
                    "outcome": outcome,
                    "images": {"web": image},
                    "reason": reason,
                }
            ),
        ]
        await self.store.append(streams.deployment(deployment), 0, events, because=because)
        return deployment

    async def heard(self, deployment: UUID) -> Deployment:
        stream = streams.deployment(deployment)
        heard = next(
            e for e in await self.store.read(stream) if e.type in {"build.finished", "rollback.requested"}
        )
        if heard.type == "build.finished":
            await self.handlers.on_build_finished(heard)  # type: ignore[arg-type]
        else:
            await self.handlers.on_rollback_requested(heard)  # type: ignore[arg-type]
        return await self.state(deployment)

    async def state(self, deployment: UUID) -> Deployment:
        return fold(evolve, await self.store.read(streams.deployment(deployment)), Deployment())

    async def deployed(self, letter: str) -> Deployment:
        return await self.heard(await self.built(letter))

    async def says(self, stream: str) -> list[str]:
        return [event.type for event in await self.store.read(stream)]

    async def rolled_back(self, to: UUID | None = None) -> Deployment:
        opened = await self.handlers.rollback(Rollback(stack="shop", to=to), Cause(new_id(), None, "cli:me"))
        return await self.heard(opened.deployment)


@pytest.fixture
def town() -> Town:
    return Town()


async def test_everything_that_can_fail_comes_before_anything_is_touched(town: Town) -> None:
    """Render, policy, images, rehearsal, and only then `up` (P3)."""
    ended = await town.deployed("a")
    assert ended.outcome == "succeeded"
    assert town.ground.did[:2] == ["render", "pin"]
    assert sorted(town.ground.did[2:4]) == ["have", "rehearse"]  # side by side
    assert town.ground.did[4:] == ["up a", "health", "verify"]
    assert await town.says("stack-shop") == ["stack.live_changed"]


async def test_the_same_message_again_changes_nothing(town: Town) -> None:
    """C6: heard, done, and heard again."""
    ended = await town.deployed("a")
    assert ended.id is not None
    did, log = list(town.ground.did), await town.store.read_all(0)
    await town.heard(ended.id)
    assert town.ground.did == did
    assert await town.store.read_all(0) == log


@pytest.mark.parametrize(("outcome", "word"), [("failed", "failed"), ("cancelled", "cancelled")])
async def test_what_was_not_built_is_not_deployed(town: Town, outcome: str, word: str) -> None:
    """It ends with the build's own reason, and Docker is never asked."""
    ended = await town.heard(await town.built("a", outcome, "line 3: no such file"))
    assert (ended.outcome, ended.reason) == (word, "line 3: no such file")
    assert town.ground.did == []


@pytest.mark.parametrize("where", ["render", "pin", "have"])
async def test_a_failure_before_the_manifest_is_settled_touches_nothing(town: Town, where: str) -> None:
    """The outcome is `failed`, with the reason, and nothing has to be put back."""
    await town.deployed("a")
    town.ground.breaks[where, 2] = DeployFailed("services.web.image is not there")
    ended = await town.deployed("b")
    assert (ended.outcome, ended.reason) == ("failed", "services.web.image is not there")
    assert "up b" not in town.ground.did


async def test_the_policy_is_asked_about_the_rendered_model(town: Town) -> None:
    """The reason names the key, the service and the grant; with the grant it goes through."""
    town.ground.model = {"services": {"web": {"image": "x", "privileged": True}}}
    ended = await town.deployed("a")
    assert ended.outcome == "failed"
    assert "services.web.privileged" in (ended.reason or "")
    assert "needs the grant privileged" in (ended.reason or "")
    await town.handlers.grant(
        GrantStack(stack="shop", grants=("privileged",)), Cause(new_id(), None, "cli:me")
    )
    assert (await town.deployed("a")).outcome == "succeeded"


@pytest.mark.parametrize("where", ["rehearse", "up b", "health", "verify"])
async def test_a_failed_deployment_is_put_back_and_says_why(town: Town, where: str) -> None:
    """What ran before runs again, verified; the log says what failed and what was done about it."""
    first = await town.deployed("a")
    town.ground.breaks[where, 1 if where == "up b" else 2] = ILL
    ended = await town.deployed("b")
    assert ended.outcome == "rolled_back"
    assert "web exited with code 1; its last log line: no config" in (ended.reason or "")
    assert town.ground.did[-4:] == ["have", "up a", "health", "verify"]
    assert ended.replaces == first.id
    assert [step.step for step in ended.steps][-3:] == ["restore", "restore_health", "verify"]
    assert await town.says("stack-shop") == ["stack.live_changed"]


async def test_a_first_deployment_that_fails_leaves_nothing(town: Town) -> None:
    """There is nothing to go back to: its containers are removed, and it has failed."""
    town.ground.breaks["health", 1] = ILL
    ended = await town.deployed("a")
    assert ended.outcome == "failed"
    assert town.ground.did[-1] == "take down"


async def test_a_restore_that_fails_is_said_loudly_and_holds_the_stack(town: Town) -> None:
    """Both reasons are told; the next push is not deployed on top; a rollback by hand is (D8)."""
    first = await town.deployed("a")
    town.ground.breaks["health", 2] = ILL
    town.ground.breaks["up a", 2] = DeployFailed("port 80 is taken")
    ended = await town.deployed("b")
    assert ended.outcome == "rollback_failed"
    assert "no config" in (ended.reason or "")
    assert "port 80 is taken" in (ended.reason or "")
    assert (await town.deployed("c")).outcome == "failed"
    assert (await town.rolled_back(first.id)).outcome == "succeeded"


@pytest.mark.parametrize("where", ["render", "pin", "have", "rehearse", "up a", "health", "verify"])
async def test_a_crash_at_any_step_is_made_good_when_the_message_comes_again(town: Town, where: str) -> None:
    """D2-D4: what was settled stays settled, the rest is done again, health from zero."""
    town.ground.breaks[where, 1] = Crash()
    deployment = await town.built("a")
    with pytest.raises(Crash):
        await town.heard(deployment)
    ended = await town.heard(deployment)
    assert ended.outcome == "succeeded"
    assert town.ground.did[-3:] == ["up a", "health", "verify"]
    assert town.ground.did.count("render") == (2 if where in {"render", "pin", "have"} else 1)
    assert (await town.says(streams.deployment(deployment))).count("deploy.completed") == 1


@dataclass
class Dies:
    """A store that dies before or after it has written an event of a type."""

    store: MemoryStore
    event: str
    after: bool

    async def read(self, stream: str) -> Any:
        return await self.store.read(stream)

    async def append(
        self, stream: str, expected: int | None, events: Any, *, because: Cause, **more: Any
    ) -> Any:
        hit = any(event.type == self.event for event in events)
        if hit and not self.after:
            raise Crash
        appended = await self.store.append(stream, expected, events, because=because)
        if hit:
            raise Crash
        return appended


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "event",
    [
        *("deploy.started", "deploy.step_completed", "deploy.health_checked", "stack.live_changed"),
        *("deploy.completed", "deploy.rollback_started"),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
async def test_a_crash_around_any_event_leaves_one_outcome(
    town: Town, event: str, after: bool, fails: bool
) -> None:
    """D5, D7, D9: whatever was told stays told, and exactly one outcome follows."""
    await town.deployed("a")
    deployment = await town.built("b")
    town.ground.sick = {"b"} if fails else set()
    whole = town.handlers
    town.handlers = Handlers(Dies(town.store, event, after), town.blobs, town.ground, town.ground)
    with contextlib.suppress(Crash):  # not every event is told in each of the two stories
        await town.heard(deployment)
    town.handlers = whole
    ended = await town.heard(deployment)
    said = await town.says(streams.deployment(deployment))
    assert said.count("deploy.completed") == 1
    assert said.count("deploy.rollback_started") <= 1
    assert ended.outcome == ("rolled_back" if fails else "succeeded")
    assert [one for one in town.ground.did if one.startswith("up")][-1] == ("up a" if fails else "up b")
    live = [e.data for e in await town.store.read("stack-shop") if e.type == "stack.live_changed"]
    assert (live[-1].deployment == deployment) == (not fails)  # type: ignore[attr-defined]


async def test_a_crash_in_the_middle_of_a_restore_restores(town: Town) -> None:
    """D8: the failed version is never tried once more."""
    await town.deployed("a")
    town.ground.breaks["health", 2] = ILL
    town.ground.breaks["up a", 2] = Crash()
    deployment = await town.built("b")
    with pytest.raises(Crash):
        await town.heard(deployment)
    assert (await town.state(deployment)).phase == "restoring"
    ended = await town.heard(deployment)
    assert ended.outcome == "rolled_back"
    assert town.ground.did.count("up b") == 1


async def test_what_failed_after_it_went_live_is_taken_out_of_the_log_again(town: Town) -> None:
    """D5: health is looked at anew after a crash; when it is gone, what ran before is live again."""
    first = await town.deployed("a")
    deployment = await town.built("b")
    whole = town.handlers
    town.handlers = Handlers(
        Dies(town.store, "deploy.completed", after=False), town.blobs, town.ground, town.ground
    )
    with pytest.raises(Crash):
        await town.heard(deployment)
    town.handlers = whole
    town.ground.breaks["health", 3] = ILL
    assert (await town.heard(deployment)).outcome == "rolled_back"
    live = (await town.store.read("stack-shop"))[-1].data
    assert live.deployment == first.id  # type: ignore[attr-defined]


async def test_an_engine_that_is_away_is_waited_for(town: Town) -> None:
    """Nothing is told, and the message comes again: P8."""
    town.ground.breaks["up a", 1] = DockerUnavailable()
    deployment = await town.built("a")
    with pytest.raises(DockerUnavailable):
        await town.heard(deployment)
    assert not (await town.state(deployment)).finished
    assert (await town.heard(deployment)).outcome == "succeeded"


@pytest.mark.parametrize(("where", "finished"), [("render", True), ("up a", False)])
async def test_an_engine_that_stays_away_ends_what_has_touched_nothing(
    town: Town, where: str, finished: bool
) -> None:
    """Nothing waits for ever; but what may have been touched is made good, however long it takes."""
    town.store = MemoryStore(clock=lambda: datetime.now(UTC) - timedelta(hours=1))
    town.handlers = Handlers(town.store, town.blobs, town.ground, town.ground)
    town.ground.breaks[where, 1] = DockerUnavailable()
    deployment = await town.built("a")
    with contextlib.suppress(DockerUnavailable):
        await town.heard(deployment)
    state = await town.state(deployment)
    assert (state.finished, state.outcome) == (finished, "failed" if finished else None)


async def test_an_older_deployment_is_never_applied_after_a_newer_one(town: Town) -> None:
    """D11: its build took longer; it ends as superseded."""
    old = await town.built("a")
    await town.deployed("b")
    ended = await town.heard(old)
    assert ended.outcome == "superseded"
    assert "up a" not in town.ground.did


async def test_a_rollback_runs_the_kept_manifest_without_a_build(town: Town) -> None:
    """The same digests, files and environment; a new deployment on the log; the commit left is rejected (P6)."""
    first, second = await town.deployed("a"), await town.deployed("b")
    town.ground.did.clear()
    ended = await town.rolled_back()
    assert (ended.outcome, ended.trigger, ended.rollback_to) == ("succeeded", "rollback", first.id)
    assert town.ground.did == ["have", "rehearse", "up a", "health", "verify"]
    assert ended.manifest == first.manifest
    assert ended.replaces == second.id
    assert await town.says("stack-shop") == [
        *("stack.live_changed", "stack.live_changed", "stack.live_changed", "stack.commit_rejected"),
    ]
    again = await town.deployed("b")
    assert (again.outcome, again.reason) == (
        "failed",
        "commit bbbbbbbbbbbb was rolled back from; push a newer one",
    )
    assert (await town.deployed("c")).outcome == "succeeded"
    assert (await town.deployed("b")).outcome == "succeeded"


async def test_a_rollback_that_fails_is_rolled_back_itself(town: Town) -> None:
    """A rollback is a deployment like any other (RB4)."""
    await town.deployed("a")
    second = await town.deployed("b")
    town.ground.breaks["health", 3] = ILL
    ended = await town.rolled_back()
    assert ended.outcome == "rolled_back"
    assert town.ground.did[-3] == "up b"
    assert ended.replaces == second.id


async def test_a_rollback_to_images_that_are_gone_is_refused_up_front(town: Town) -> None:
    """RB2: it names the image, and no deployment is opened."""
    await town.deployed("a")
    await town.deployed("b")
    town.ground.gone = ["web"]
    head = await town.store.head()
    with pytest.raises(Refused, match=r"the image of service web \(shop-web, sha256:aaaa") as refused:
        await town.handlers.rollback(Rollback(stack="shop"), Cause(new_id(), None, "cli:me"))
    assert refused.value.field == "to"
    assert await town.store.head() == head


async def test_a_rollback_of_an_unknown_stack_says_so(town: Town) -> None:
    """One plain sentence."""
    with pytest.raises(NotFound, match="nothing was ever deployed to stack shop"):
        await town.handlers.rollback(Rollback(stack="shop"), Cause(new_id(), None, "cli:me"))


async def test_the_same_command_opens_one_rollback(town: Town) -> None:
    """The client asked again because the answer was lost."""
    await town.deployed("a")
    await town.deployed("b")
    because = Cause(new_id(), None, "cli:me")
    one = await town.handlers.rollback(Rollback(stack="shop"), because)
    other = await town.handlers.rollback(Rollback(stack="shop"), because)
    assert one == other
    assert (await town.says(streams.deployment(one.deployment))) == ["rollback.requested"]


async def test_a_rollback_started_says_where_to(town: Town) -> None:
    """The event names the deployment that is being put back."""
    first = await town.deployed("a")
    town.ground.breaks["health", 2] = ILL
    ended = await town.deployed("b")
    assert ended.id is not None
    told = [e.data for e in await town.store.read(streams.deployment(ended.id))]
    (started,) = [one for one in told if isinstance(one, DeployRollbackStarted)]
    assert started.to == first.id
