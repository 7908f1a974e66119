"""A deployment's state is what its events say: at every version, for every legal life, and for no other events."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hythe_events import build, deploy, git
from hythe_events.access import SAYS
from hythe_events.catalog import EVENTS
from hythe_events.decider import fold
from hythe_events.deployment import Deployment, evolve
from hythe_events.envelope import from_cloudevent, to_cloudevent
from hythe_events.errors import UnknownEvent
from hythe_events.language import BlobRef, Event
from hythe_events.log import MessageRetried
from hythe_events.testing import told
from hythe_events.webhooks import SourceSwitched

ID, EARLIER = UUID(int=100), UUID(int=99)
STREAM = f"deployment-{ID}"
COMMIT, SHA = "a" * 40, "b" * 64
IMAGE = build.Image(reference="hythe/shop-web", digest=f"sha256:{SHA}")
BLOB = BlobRef(key=SHA, size=1, sha256=SHA)
MANIFEST = deploy.Manifest(
    services={"web": deploy.ServiceManifest(image=f"web@sha256:{SHA}", digest=f"sha256:{SHA}")},
    compose=BLOB,
    compose_sha256=SHA,
)

requested = git.DeploymentRequested(
    deployment=ID,
    stack="shop",
    trigger="delivery",
    ref="refs/heads/main",
    commit=None,
    asked_by="github:octocat",
)
rollback_requested = deploy.RollbackRequested(
    deployment=ID, stack="shop", to=EARLIER, manifest=MANIFEST, commit=COMMIT, asked_by="cli:root"
)
build_requested = git.BuildRequested(
    deployment=ID, stack="shop", commit=COMMIT, ref="refs/heads/main", message="m", author="a",
    asked_by="github:octocat", source=BLOB, compose_file="compose.yaml",
)  # fmt: skip
build_started = build.BuildStarted(deployment=ID, stack="shop", services=("web",))
image_built = build.ImageBuilt(deployment=ID, stack="shop", service="web", image=IMAGE, seconds=1.0)
cancel_requested = build.CancelRequested(deployment=ID, stack="shop", asked_by="cli:root")
deploy_started = deploy.DeployStarted(deployment=ID, stack="shop", fence=7, replaces=EARLIER)
rollback_started = deploy.DeployRollbackStarted(deployment=ID, stack="shop", to=EARLIER, reason="unhealthy")


def build_finished(outcome: str) -> build.BuildFinished:
    images = {"web": IMAGE} if outcome == "succeeded" else {}
    return build.BuildFinished.model_validate(
        {"deployment": ID, "stack": "shop", "outcome": outcome, "images": images, "log": BLOB}
    )


def step(name: str) -> deploy.DeployStepCompleted:
    return deploy.DeployStepCompleted.model_validate(
        {
            "deployment": ID,
            "stack": "shop",
            "step": name,
            "detail": name,
            "seconds": 0.5,
            "manifest": MANIFEST if name == "pull" else None,
        }
    )


def health(healthy: bool) -> deploy.DeployHealthChecked:
    checked = {"web": deploy.ServiceHealth(healthy=healthy, detail="watched")}
    return deploy.DeployHealthChecked(deployment=ID, stack="shop", healthy=healthy, services=checked)


def completed(outcome: str) -> deploy.DeployCompleted:
    return deploy.DeployCompleted.model_validate({"deployment": ID, "stack": "shop", "outcome": outcome})


@dataclass(frozen=True)
class Life:
    """What happened, in order, and how it should end."""

    events: tuple[Event, ...]
    outcome: str


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """Any legal life of a deployment, ended or not: cut anywhere, tried again anywhere that a crash would."""
    happened: list[Event] = []

    def ends(outcome: str) -> Life:
        return Life((*happened, completed(outcome)), outcome)

    if draw(st.booleans(), label="a rollback"):
        happened.append(rollback_requested)
    else:
        happened.append(requested)
        if draw(st.booleans(), label="no source"):
            return ends("failed")
        happened.append(build_requested)
        if draw(st.booleans(), label="superseded while it waits"):
            return ends("superseded")
        happened += [build_started] * draw(st.integers(1, 3), label="starts")
        happened += [image_built] * draw(st.integers(0, 3), label="images")
        if draw(st.booleans(), label="cancelled"):
            happened.append(cancel_requested)
        built = draw(st.sampled_from(["succeeded", "failed", "cancelled"]))
        happened.append(build_finished(built))
        if built != "succeeded":
            return ends("failed" if built == "failed" else "cancelled")
    happened += [deploy_started] * draw(st.integers(1, 2), label="takes the lease")
    forward = ["render", "policy", "pull", "up", "health", "verify"]
    taken = draw(st.integers(0, len(forward)), label="steps")
    happened += [step(name) for name in forward[:taken]]
    if taken == len(forward):
        happened.append(health(True))
        return ends("succeeded")
    if taken < 3:
        return ends("failed")
    happened += [health(False), rollback_started]
    happened += [step(name) for name in ("restore", "restore_health")[: draw(st.integers(0, 2))]]
    return ends(draw(st.sampled_from(["rolled_back", "rollback_failed"])))


def state_of(*events: Event) -> Deployment:
    return fold(evolve, told(STREAM, *events), Deployment())


@settings(max_examples=300)
@given(lives())
def test_any_legal_life_ends_with_its_outcome(life: Life) -> None:
    """Whatever happened on the way, the last event decides."""
    state = state_of(*life.events)
    assert state.finished
    assert state.outcome == life.outcome
    assert (state.id, state.stack) == (ID, "shop")
    assert state.version == len(life.events)


@given(lives(), st.data())
def test_the_state_at_a_version_is_the_fold_up_to_it(life: Life, data: st.DataObject) -> None:
    """Time travel and going on from a known state give the same: the fold has no memory of its own."""
    events = told(STREAM, *life.events)
    version = data.draw(st.integers(0, len(events)))
    then = fold(evolve, events[:version], Deployment())
    seen = repr(then)
    assert then.version == version
    assert fold(evolve, events[version:], then) == fold(evolve, events, Deployment())
    assert repr(then) == seen  # what was known then is not changed by what came later
    assert then.finished == (version == len(events))


@given(lives())
def test_the_state_is_the_same_after_a_journey_over_the_bus(life: Life) -> None:
    """What a client folds is what the service folded."""
    travelled = [from_cloudevent(to_cloudevent(event)) for event in told(STREAM, *life.events)]
    assert fold(evolve, travelled, Deployment()) == state_of(*life.events)


def test_the_phases_follow_the_work() -> None:
    """As the picture on top of the module has them."""
    life = (
        *(
            requested,
            build_requested,
            build_started,
            image_built,
            build_finished("succeeded"),
            deploy_started,
        ),
        *(step("up"), health(False), rollback_started, step("restore"), completed("rolled_back")),
    )
    phases = [state_of(*life[:n]).phase for n in range(len(life) + 1)]
    assert phases == [
        *("unknown", "requested", "requested", "building", "building", "built", "deploying"),
        *("deploying", "deploying", "restoring", "restoring", "done"),
    ]


def test_a_deployment_tells_what_it_was_told() -> None:
    """Each fact ends up under its own name."""
    state = state_of(
        *(
            requested,
            build_requested,
            build_started,
            image_built,
            cancel_requested,
            build_finished("succeeded"),
        ),
        *(deploy_started, step("pull"), health(True)),
    )
    assert state.trigger == "delivery"
    assert (state.ref, state.commit, state.message, state.author) == ("refs/heads/main", COMMIT, "m", "a")
    assert (state.source, state.compose_file) == (BLOB, "compose.yaml")
    assert state.cancel_requested
    assert (state.build_outcome, state.images, state.build_log) == ("succeeded", {"web": IMAGE}, BLOB)
    assert (state.fence, state.replaces) == (7, EARLIER)
    assert [taken.step for taken in state.steps] == ["pull"]
    assert state.manifest == MANIFEST
    assert state.health is not None
    assert state.health.healthy
    assert state.requested_position == 1
    assert state.requested_at == told(STREAM, requested)[0].at
    assert state.finished_at is None


def test_a_rollback_knows_what_it_goes_back_to() -> None:
    """It has nothing to build: its manifest is there from the beginning."""
    state = state_of(rollback_requested)
    assert (state.trigger, state.rollback_to, state.manifest) == ("rollback", EARLIER, MANIFEST)
    assert state.phase == "built"


def test_every_event_of_a_deployments_stream_can_be_folded() -> None:
    """Whatever a service may write there; a new one without a case in the fold fails here."""
    allowed = {kind for says in SAYS.values() for kind in says.get("deployment", ())}
    folded = {
        each.type
        for each in (
            *(requested, rollback_requested, build_requested, build_started, image_built, cancel_requested),
            *(build_finished("failed"), deploy_started, step("up"), health(True), rollback_started),
            completed("failed"),
        )
        if state_of(each)
    }
    assert folded == allowed
    assert allowed <= set(EVENTS)


@pytest.mark.parametrize(
    "stranger",
    [SourceSwitched(source="a", on=True), MessageRetried(service="git", event=ID, asked_by="cli:root")],
    ids=lambda event: event.type,
)
def test_an_event_that_has_no_business_there_stops_the_fold(stranger: Event) -> None:
    """Skipping it would give a state that is wrong without a word."""
    with pytest.raises(UnknownEvent, match=stranger.type):
        state_of(requested, stranger)
