"""The rules of a build, as given, when, then."""

from __future__ import annotations

from uuid import UUID

import pytest

from hythe_build import build
from hythe_build.build import CancelBuild, FinishBuild, RecordImage, StartBuild
from hythe_events.build import BuildFinished, BuildStarted, CancelRequested, Image, ImageBuilt
from hythe_events.deploy import DeployCompleted, DeployStarted, Manifest, RollbackRequested
from hythe_events.errors import NotFound, Refused
from hythe_events.git import BuildRequested, DeploymentRequested
from hythe_events.language import BlobRef, Event
from hythe_events.testing import given

ID = UUID(int=1)
LOG = BlobRef(key="log", size=1, sha256="0" * 64)
WEB = Image(reference="hythe/app-web:00", digest="sha256:" + "0" * 64)
OTHER = Image(reference="hythe/app-web:11", digest="sha256:" + "1" * 64)

OPENED = DeploymentRequested(
    deployment=ID, stack="app", trigger="command", ref="refs/heads/main", commit="a" * 40, asked_by="cli:ada"
)
REQUESTED = BuildRequested(
    deployment=ID,
    stack="app",
    commit="a" * 40,
    ref="refs/heads/main",
    message="",
    author="",
    asked_by="cli:ada",
    source=BlobRef(key="source", size=1, sha256="0" * 64),
    compose_file="compose.yaml",
)
STARTED = BuildStarted(deployment=ID, stack="app", services=("web",))
BUILT = ImageBuilt(deployment=ID, stack="app", service="web", image=WEB, seconds=1.5)
CANCEL = CancelRequested(deployment=ID, stack="app", asked_by="cli:ada", reason="wrong branch")
QUEUED: tuple[Event, ...] = (OPENED, REQUESTED)
RUNNING: tuple[Event, ...] = (*QUEUED, STARTED)


def finished(outcome: str = "succeeded", **more: object) -> BuildFinished:
    said = {"deployment": str(ID), "stack": "app", "outcome": outcome, **more}
    return BuildFinished.model_validate(said, strict=False)


def test_a_build_that_was_asked_for_starts() -> None:
    """The first time it is heard, it is work."""
    given(build.decider, *QUEUED).when(StartBuild(("web",))).then(STARTED)


@pytest.mark.parametrize("since", [(STARTED,), (STARTED, finished()), (finished("failed", reason="no"),)])
def test_a_build_heard_of_again_is_not_started_twice(since: tuple[Event, ...]) -> None:
    """A redelivered message must leave no trace."""
    given(build.decider, *QUEUED, *since).when(StartBuild(("web",))).then_nothing()


def test_a_build_cancelled_before_it_started_ends_when_it_is_heard() -> None:
    """Whoever cancelled it while git still fetched must not see it run."""
    given(build.decider, OPENED, CANCEL, REQUESTED).when(StartBuild(("web",))).then(
        finished("cancelled", reason="cancelled before it was built")
    )


def test_an_image_is_recorded_once() -> None:
    """After a crash all images are built again; the log tells of each only once."""
    given(build.decider, *RUNNING).when(RecordImage("web", WEB, 1.5)).then(BUILT)
    given(build.decider, *RUNNING, BUILT).when(RecordImage("web", WEB, 9.9)).then_nothing()


def test_an_image_that_came_out_different_is_recorded_again() -> None:
    """The digest that is deployed must stand in the log."""
    again = ImageBuilt(deployment=ID, stack="app", service="web", image=OTHER, seconds=2.0)
    given(build.decider, *RUNNING, BUILT).when(RecordImage("web", OTHER, 2.0)).then(again)


def test_a_build_ends_with_its_images_and_its_log() -> None:
    """That is all that deploy needs."""
    images = {"web": WEB}
    given(build.decider, *RUNNING).when(FinishBuild("succeeded", images, LOG)).then(
        finished(images={"web": WEB.model_dump()}, log=LOG.model_dump())
    )


def test_a_failed_build_names_no_images() -> None:
    """Half of a stack's images must never look like something that could be deployed."""
    given(build.decider, *RUNNING, BUILT).when(FinishBuild("failed", {"web": WEB}, LOG, "web: no")).then(
        finished("failed", log=LOG.model_dump(), reason="web: no")
    )


@pytest.mark.parametrize(
    "late", [FinishBuild("failed", reason="late"), FinishBuild("succeeded"), RecordImage("web", OTHER, 1)]
)
def test_a_finished_build_cannot_change(late: build.BuildCommand) -> None:
    """A late duplicate must not turn a success into a failure."""
    given(build.decider, *RUNNING, finished()).when(late).then_nothing()


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_a_build_that_was_cancelled_just_in_time_ends_cancelled(outcome: build.Ending) -> None:
    """Whoever was told that it will be cancelled is not told afterwards that it succeeded."""
    given(build.decider, *RUNNING, CANCEL).when(FinishBuild(outcome, {"web": WEB}, LOG)).then(
        finished("cancelled", log=LOG.model_dump(), reason="cancelled while it was being built")
    )


def test_a_running_build_can_be_cancelled() -> None:
    """The event keeps who asked, and why."""
    given(build.decider, *RUNNING).when(CancelBuild("cli:ada", "wrong branch")).then(CANCEL)


def test_a_build_that_waits_for_its_turn_ends_at_once() -> None:
    """It must not wait behind another build only to be told that it is not wanted."""
    given(build.decider, *QUEUED).when(CancelBuild("cli:ada", "wrong branch")).then(
        CANCEL, finished("cancelled", reason="cancelled by cli:ada: wrong branch")
    )


def test_a_deployment_whose_source_is_being_fetched_can_be_cancelled() -> None:
    """git sees the request and ends the deployment itself."""
    given(build.decider, OPENED).when(CancelBuild("cli:ada", "wrong branch")).then(CANCEL)


@pytest.mark.parametrize("since", [(STARTED, CANCEL), (STARTED, CANCEL, finished("cancelled"))])
def test_cancelling_twice_is_cancelling_once(since: tuple[Event, ...]) -> None:
    """A command that is sent again gets the same answer."""
    given(build.decider, *QUEUED, *since).when(CancelBuild("cli:ada")).then_nothing()


def test_a_deployment_that_nobody_asked_for_cannot_be_cancelled() -> None:
    """A mistyped id is not a success."""
    given(build.decider).when(CancelBuild("cli:ada")).then_raises(NotFound, "no deployment with this id")


def test_a_cancellation_that_comes_too_late_says_what_happened() -> None:
    """ "Too late" alone would leave the asker guessing whether it runs."""
    deploying = DeployStarted(deployment=ID, stack="app", fence=1, replaces=None)
    done = DeployCompleted(deployment=ID, stack="app", outcome="rolled_back")
    late = given(build.decider, *RUNNING, finished(), deploying).when(CancelBuild("cli:ada"))
    late.then_raises(Refused, "already ended: succeeded")
    over = given(build.decider, *RUNNING, finished(), deploying, done).when(CancelBuild("cli:ada"))
    over.then_raises(Refused, "already ended: rolled_back")


def test_a_rollback_has_nothing_to_cancel() -> None:
    """It goes straight to deploy; the builder has no say in it."""
    manifest = Manifest(services={}, compose=LOG, compose_sha256="0" * 64)
    rollback = RollbackRequested(
        deployment=ID, stack="app", to=UUID(int=2), manifest=manifest, commit=None, asked_by="cli:ada"
    )
    given(build.decider, rollback).when(CancelBuild("cli:ada")).then_raises(Refused, "rollback")
