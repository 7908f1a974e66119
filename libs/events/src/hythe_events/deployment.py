"""One deployment's state: the fold over its stream, from request to outcome.

```
requested ──► building ──► built ──► deploying ──► restoring ──► done
    │            │           │            │             │          outcome: succeeded, failed, rolled_back,
    └────────────┴───────────┴────────────┴─────────────┴──────────►        rollback_failed, superseded, cancelled
```

git, build and deploy write the stream in turn; each folds it with `evolve` and decides on the state. A rollback is a
deployment too; its first event is `rollback.requested`, and it has nothing to build.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from hythe_events import build, deploy, git
from hythe_events.envelope import Envelope
from hythe_events.errors import UnknownEvent
from hythe_events.language import BlobRef, Event

Phase = Literal["unknown", "requested", "building", "built", "deploying", "restoring", "done"]


@dataclass(frozen=True)
class StepTaken:
    """A step of the deployment that is done."""

    step: str
    detail: str
    seconds: float
    at: datetime


@dataclass(frozen=True)
class Deployment:
    """What is known of a deployment. `requested_position` is the log position of its first event: who asked first."""

    phase: Phase = "unknown"
    version: int = 0
    id: UUID | None = None
    stack: str = ""
    trigger: Literal["delivery", "command", "rollback"] | None = None
    rollback_to: UUID | None = None
    delivery: str | None = None
    asked_by: str = ""
    requested_at: datetime | None = None
    requested_position: int = 0
    ref: str = ""
    commit: str | None = None
    message: str = ""
    author: str = ""
    source: BlobRef | None = None
    compose_file: str = ""
    cancel_requested: bool = False
    build_outcome: Literal["succeeded", "failed", "cancelled"] | None = None
    images: dict[str, build.Image] = field(default_factory=dict)
    build_log: BlobRef | None = None
    fence: int | None = None
    replaces: UUID | None = None
    steps: tuple[StepTaken, ...] = ()
    health: deploy.DeployHealthChecked | None = None
    manifest: deploy.Manifest | None = None
    outcome: deploy.Outcome | None = None
    reason: str | None = None
    finished_at: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether it has its outcome; nothing happens to it after that."""
        return self.phase == "done"


def evolve(state: Deployment, event: Envelope[Event]) -> Deployment:
    """`state` after `event`. Raises UnknownEvent for an event that has no business in a deployment's stream."""
    state = replace(state, version=event.version)
    match event.data:
        case git.DeploymentRequested() as said:
            return replace(
                state,
                phase="requested",
                id=said.deployment,
                stack=said.stack,
                trigger=said.trigger,
                delivery=said.delivery,
                asked_by=said.asked_by,
                requested_at=event.at,
                requested_position=event.position,
                ref=said.ref,
                commit=said.commit,
                message=said.message,
                author=said.author,
            )
        case deploy.RollbackRequested() as said:
            return replace(
                state,
                phase="built",
                id=said.deployment,
                stack=said.stack,
                trigger="rollback",
                rollback_to=said.to,
                asked_by=said.asked_by,
                requested_at=event.at,
                requested_position=event.position,
                commit=said.commit,
                manifest=said.manifest,
                reason=said.reason,
            )
        case git.BuildRequested() as said:
            return replace(
                state,
                commit=said.commit,
                ref=said.ref,
                message=said.message,
                author=said.author,
                source=said.source,
                compose_file=said.compose_file,
            )
        case build.BuildStarted():
            return replace(state, phase="building")
        case build.ImageBuilt() as said:
            return replace(state, images={**state.images, said.service: said.image})
        case build.CancelRequested():
            return replace(state, cancel_requested=True)
        case build.BuildFinished() as said:
            return replace(
                state,
                phase="built",
                build_outcome=said.outcome,
                images=said.images,
                build_log=said.log,
                reason=said.reason,
            )
        case deploy.DeployStarted() as said:
            return replace(state, phase="deploying", fence=said.fence, replaces=said.replaces)
        case deploy.DeployStepCompleted() as said:
            step = StepTaken(said.step, said.detail, said.seconds, event.at)
            return replace(state, steps=(*state.steps, step), manifest=said.manifest or state.manifest)
        case deploy.DeployHealthChecked() as said:
            return replace(state, health=said)
        case deploy.DeployRollbackStarted() as said:
            return replace(state, phase="restoring", reason=said.reason)
        case deploy.DeployCompleted() as said:
            return replace(
                state,
                phase="done",
                outcome=said.outcome,
                commit=said.commit or state.commit,
                manifest=said.manifest or state.manifest,
                replaces=said.replaced or state.replaces,
                reason=said.reason,
                finished_at=event.at,
            )
        case unexpected:
            raise UnknownEvent(f"{unexpected.type} has no business in the stream of a deployment")
