"""One build: a stack's images for one commit.

```
build.requested ──► build.started ──► build.image_built … ──► build.finished (succeeded | failed | cancelled)
                └──────────────────────────────────────────►
```

A commit is built once per deployment; hearing about it again changes nothing, so a redelivered message is harmless.
There is exactly one `build.finished`, and whoever was told that the build will be cancelled is not told afterwards
that it succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from uuid import UUID

from hythe_events.build import BuildFinished, BuildStarted, CancelRequested, Image, ImageBuilt
from hythe_events.decider import Decider
from hythe_events.deployment import Deployment, evolve
from hythe_events.errors import NotFound, Refused
from hythe_events.language import BlobRef, Event, one_line

Ending: TypeAlias = Literal["succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class StartBuild:
    """The compose file was read; `services` are those that have something to build."""

    services: tuple[str, ...]


@dataclass(frozen=True)
class RecordImage:
    """An image is there, and was looked at."""

    service: str
    image: Image
    seconds: float


@dataclass(frozen=True)
class FinishBuild:
    """The work ended, one way or another. `reason` is one line for a person; None when it succeeded."""

    outcome: Ending
    images: Mapping[str, Image] = field(default_factory=dict)
    log: BlobRef | None = None
    reason: str | None = None


@dataclass(frozen=True)
class CancelBuild:
    """Somebody asks for the build to be stopped."""

    asked_by: str
    reason: str | None = None


BuildCommand: TypeAlias = StartBuild | RecordImage | FinishBuild | CancelBuild


def decide(asked: BuildCommand, state: Deployment) -> Sequence[Event]:
    """What `asked` leads to. Raises Refused and NotFound for a cancellation that comes too late, or for nothing."""
    match asked:
        case StartBuild():
            return _start(asked, state)
        case RecordImage():
            return _record(asked, state)
        case FinishBuild():
            return _finish(asked, state)
        case CancelBuild():
            return _cancel(asked, state)


def is_over(state: Deployment) -> bool:
    """Whether there is nothing left to build: it was built, or the deployment ended before."""
    return state.build_outcome is not None or state.phase in {"built", "deploying", "restoring", "done"}


def _start(asked: StartBuild, state: Deployment) -> Sequence[Event]:
    assert state.source is not None, "a build is asked for only once its source was fetched"
    if is_over(state) or state.phase == "building":
        return []
    if state.cancel_requested:
        return [_ended(state, "cancelled", reason="cancelled before it was built")]
    return [BuildStarted(deployment=_id(state), stack=state.stack, services=asked.services)]


def _record(asked: RecordImage, state: Deployment) -> Sequence[Event]:
    if is_over(state) or state.images.get(asked.service) == asked.image:
        return []
    return [
        ImageBuilt(
            deployment=_id(state),
            stack=state.stack,
            service=asked.service,
            image=asked.image,
            seconds=asked.seconds,
        )
    ]


def _finish(asked: FinishBuild, state: Deployment) -> Sequence[Event]:
    if is_over(state):
        return []
    if state.cancel_requested and asked.outcome != "cancelled":
        return [_ended(state, "cancelled", log=asked.log, reason="cancelled while it was being built")]
    return [_ended(state, asked.outcome, images=asked.images, log=asked.log, reason=asked.reason)]


def _cancel(asked: CancelBuild, state: Deployment) -> Sequence[Event]:
    if state.phase == "unknown":
        raise NotFound("there is no deployment with this id", field="deployment")
    if state.trigger == "rollback":
        raise Refused("a rollback has nothing to build, so there is nothing to cancel", field="deployment")
    if state.build_outcome == "cancelled" or state.outcome == "cancelled":
        return []
    if state.finished:
        raise Refused(f"the deployment has already ended: {state.outcome}", field="deployment")
    if state.build_outcome is not None:
        raise Refused(
            f"the build has already ended: {state.build_outcome}; the deployment can no longer be cancelled",
            field="deployment",
        )
    if state.cancel_requested:
        return []
    requested = CancelRequested(
        deployment=_id(state), stack=state.stack, asked_by=asked.asked_by, reason=asked.reason
    )
    waits_for_a_builder = state.phase == "requested" and state.source is not None
    if waits_for_a_builder:
        return [requested, _ended(state, "cancelled", reason=cancelled_by(requested))]
    return [requested]


def cancelled_by(request: CancelRequested) -> str:
    """Why a build that was cancelled ended, in one line."""
    return one_line(f"cancelled by {request.asked_by}" + (f": {request.reason}" if request.reason else ""))


def _ended(
    state: Deployment,
    outcome: Ending,
    *,
    images: Mapping[str, Image] | None = None,
    log: BlobRef | None = None,
    reason: str | None = None,
) -> BuildFinished:
    return BuildFinished(
        deployment=_id(state),
        stack=state.stack,
        outcome=outcome,
        images=dict(images or {}) if outcome == "succeeded" else {},
        log=log,
        reason=None if reason is None else one_line(reason),
    )


def _id(state: Deployment) -> UUID:
    assert state.id is not None
    return state.id


decider: Decider[Deployment, BuildCommand] = Decider(Deployment(), evolve, decide)
