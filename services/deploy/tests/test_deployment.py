"""What may be said about a deployment, and when: given what happened, when this is asked, then that is told."""

from __future__ import annotations

from uuid import UUID

from hythe_deploy.deployment import BeginRestore, Complete, Done, OpenRollback, Record, Start, decider
from hythe_events.build import BuildFinished
from hythe_events.deploy import (
    DeployCompleted,
    DeployHealthChecked,
    DeployRollbackStarted,
    DeployStarted,
    DeployStepCompleted,
    Manifest,
    RollbackRequested,
    ServiceHealth,
    ServiceManifest,
)
from hythe_events.git import DeploymentRequested
from hythe_events.language import BlobRef
from hythe_events.testing import given

ID, OTHER = UUID(int=7), UUID(int=8)
COMMIT = "c" * 40
BLOB = BlobRef(key="f" * 64, size=1, sha256="f" * 64)
MANIFEST = Manifest(
    services={"web": ServiceManifest(image="shop-web", digest=f"sha256:{'a' * 64}")},
    compose=BLOB,
    compose_sha256="f" * 64,
    config_hashes={"web": "h"},
)
REQUESTED = DeploymentRequested(
    deployment=ID, stack="shop", trigger="delivery", ref="main", commit=COMMIT, asked_by="github:me"
)
BUILT = BuildFinished(deployment=ID, stack="shop", outcome="succeeded")
STARTED = DeployStarted(deployment=ID, stack="shop", fence=3, replaces=OTHER)
PULLED = DeployStepCompleted(
    deployment=ID, stack="shop", step="pull", detail="1 image", seconds=0.1, manifest=MANIFEST
)
RESTORING = DeployRollbackStarted(deployment=ID, stack="shop", to=OTHER, reason="web fails")
ROLLBACK = RollbackRequested(
    deployment=ID, stack="shop", to=OTHER, manifest=MANIFEST, commit=COMMIT, asked_by="cli:me"
)
ILL = {"web": ServiceHealth(healthy=False, detail="exited with code 1")}


def ended(outcome: str, reason: str | None = None, **more: object) -> DeployCompleted:
    return DeployCompleted.model_validate(
        {"deployment": ID, "stack": "shop", "outcome": outcome, "commit": COMMIT, "reason": reason, **more}
    )


def start(fence: int = 3, live: UUID | None = OTHER, newest: int = 1, *, rejected: bool = False) -> Start:
    return Start(fence, live, newest, rejected)


def test_a_built_deployment_starts_and_says_what_it_replaces() -> None:
    """The page can say from the first moment what will be put back if it fails."""
    given(decider, REQUESTED, BUILT).when(start()).then(STARTED)


def test_a_start_under_the_same_fence_was_heard_before() -> None:
    """A redelivered message adds nothing."""
    given(decider, REQUESTED, BUILT, STARTED).when(start()).then_nothing()


def test_a_new_holder_tells_its_fence_and_keeps_what_is_replaced() -> None:
    """After a crash behind `stack.live_changed` the stack's live deployment is this one: it does not replace itself."""
    given(decider, REQUESTED, BUILT, STARTED).when(start(fence=4, live=ID)).then(
        DeployStarted(deployment=ID, stack="shop", fence=4, replaces=OTHER)
    )


def test_a_restore_goes_on_as_a_restore() -> None:
    """A crash in the middle of putting back must not lead to deploying the failed version again."""
    given(decider, REQUESTED, BUILT, STARTED, RESTORING).when(start(fence=4)).then_nothing()


def test_an_older_request_is_superseded_by_one_that_was_started() -> None:
    """A slow build must never be applied after a newer commit (D11)."""
    given(decider, REQUESTED, BUILT).when(start(newest=99)).then(
        ended("superseded", "a later request for this stack was started first")
    )


def test_a_commit_that_was_rolled_back_from_is_rejected() -> None:
    """The forge redelivers; the broken commit must not come back by itself (P6)."""
    given(decider, REQUESTED, BUILT).when(start(rejected=True)).then(
        ended("failed", "commit cccccccccccc was rolled back from; push a newer one")
    )


def test_a_rollback_may_return_to_a_rejected_commit() -> None:
    """Somebody asked for exactly that deployment, by hand."""
    given(decider, ROLLBACK).when(start(rejected=True)).then(STARTED)


def test_a_rollback_is_opened_once() -> None:
    """The same command asked again leads to the same deployment."""
    given(decider).when(OpenRollback(ROLLBACK)).then(ROLLBACK)
    given(decider, ROLLBACK).when(OpenRollback(ROLLBACK)).then_nothing()


def test_steps_and_health_are_told_in_order() -> None:
    """What a page shows is what was done."""
    done = Done("up", "done\nwith it", 0.12345)
    given(decider, REQUESTED, BUILT, STARTED).when(Record((done,), ILL)).then(
        DeployStepCompleted(deployment=ID, stack="shop", step="up", detail="done with it", seconds=0.123),
        DeployHealthChecked(deployment=ID, stack="shop", healthy=False, services=ILL),
    )


def test_a_restore_is_begun_once_and_says_why() -> None:
    """D7: never left failed and serving without an event; never begun twice."""
    given(decider, REQUESTED, BUILT, STARTED, PULLED).when(BeginRestore("web fails", ILL)).then(
        DeployHealthChecked(deployment=ID, stack="shop", healthy=False, services=ILL), RESTORING
    )
    given(decider, REQUESTED, BUILT, STARTED, PULLED, RESTORING).when(BeginRestore("again")).then_nothing()


def test_success_carries_the_manifest_and_what_was_replaced() -> None:
    """`deploy.completed` alone is enough for a notifier."""
    given(decider, REQUESTED, BUILT, STARTED, PULLED).when(Complete("succeeded")).then(
        ended("succeeded", manifest=MANIFEST, replaced=OTHER)
    )


def test_a_finished_deployment_changes_no_more() -> None:
    """A late duplicate must not turn a failure into a success, or start anything."""
    done = given(decider, REQUESTED, BUILT, STARTED, ended("failed", "no"))
    for late in (start(fence=9), Record((Done("up", "", 0),)), BeginRestore("x"), Complete("succeeded")):
        done.when(late).then_nothing()
