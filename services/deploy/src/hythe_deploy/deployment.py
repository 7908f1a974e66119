"""One deployment, from built to its outcome: what may be said about it, and when.

```
built ──Start──► deploying ──Record…──► Complete(succeeded)
  │                  └──BeginRestore──► restoring ──► Complete(rolled_back | failed | rollback_failed)
  └──► superseded, cancelled, failed: nothing was touched
```

A message may come again at any time. What was said stays said: a finished deployment changes no more, a start by a
new holder of the lease is told with its fence, a restore goes on as a restore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from hythe_events.decider import Decider
from hythe_events.deploy import (
    DeployCompleted,
    DeployHealthChecked,
    DeployRollbackStarted,
    DeployStarted,
    DeployStepCompleted,
    Manifest,
    Outcome,
    RollbackRequested,
    ServiceHealth,
    Step,
)
from hythe_events.deployment import Deployment, evolve
from hythe_events.language import Event, one_line


@dataclass(frozen=True)
class OpenRollback:
    """Somebody asked for a rollback; `opens` is what that leads to, complete."""

    opens: RollbackRequested


@dataclass(frozen=True)
class Start:
    """The lease is held under `fence`.

    `live` is the deployment the stack runs; `newest` is the log position of the newest request that was ever started
    on the stack; `rejected` says that the commit was rolled back from.
    """

    fence: int
    live: UUID | None
    newest: int
    rejected: bool


@dataclass(frozen=True)
class Done:
    """One step, as it will be told."""

    step: Step
    detail: str
    seconds: float
    manifest: Manifest | None = None


@dataclass(frozen=True)
class Record:
    """Steps that were done, in order, and how the services fared if that was looked at."""

    steps: tuple[Done, ...] = ()
    health: dict[str, ServiceHealth] | None = None


@dataclass(frozen=True)
class BeginRestore:
    """It failed after something may have been touched."""

    reason: str
    health: dict[str, ServiceHealth] = field(default_factory=dict)


@dataclass(frozen=True)
class Complete:
    """It ended."""

    outcome: Outcome
    reason: str | None = None


Asked = OpenRollback | Start | Record | BeginRestore | Complete


def decide(asked: Asked, state: Deployment) -> Sequence[Event]:
    """What `asked` leads to; `[]` when it was said before."""
    if isinstance(asked, OpenRollback):
        return [] if state.phase != "unknown" else [asked.opens]
    assert state.id is not None, "a deployment is requested before it is deployed"
    if state.finished:
        return []
    match asked:
        case Start():
            return _start(asked, state)
        case Record():
            steps = [
                DeployStepCompleted(
                    deployment=state.id,
                    stack=state.stack,
                    step=done.step,
                    detail=one_line(done.detail),
                    seconds=round(done.seconds, 3),
                    manifest=done.manifest,
                )
                for done in asked.steps
            ]
            return [*steps, *_health(asked.health, state)]
        case BeginRestore():
            if state.phase == "restoring":
                return []
            reason = one_line(asked.reason)
            started = DeployRollbackStarted(
                deployment=state.id, stack=state.stack, to=state.replaces, reason=reason
            )
            return [*_health(asked.health or None, state), started]
        case Complete():
            return [_completed(state, asked.outcome, asked.reason)]


def _start(asked: Start, state: Deployment) -> Sequence[Event]:
    assert state.id is not None
    if asked.newest > state.requested_position:
        return [_completed(state, "superseded", "a later request for this stack was started first")]
    if state.phase == "restoring" or (state.phase == "deploying" and state.fence == asked.fence):
        return []
    if asked.rejected and state.trigger != "rollback" and state.phase == "built":
        commit = (state.commit or "")[:12]
        return [_completed(state, "failed", f"commit {commit} was rolled back from; push a newer one")]
    first = state.phase == "built"
    replaces = asked.live if first else state.replaces
    return [DeployStarted(deployment=state.id, stack=state.stack, fence=asked.fence, replaces=replaces)]


def _health(services: dict[str, ServiceHealth] | None, state: Deployment) -> list[Event]:
    if services is None:
        return []
    assert state.id is not None
    healthy = all(service.healthy for service in services.values())
    return [DeployHealthChecked(deployment=state.id, stack=state.stack, healthy=healthy, services=services)]


def _completed(state: Deployment, outcome: Outcome, reason: str | None) -> DeployCompleted:
    assert state.id is not None
    return DeployCompleted(
        deployment=state.id,
        stack=state.stack,
        outcome=outcome,
        commit=state.commit,
        manifest=state.manifest,
        replaced=state.replaces,
        reason=None if reason is None else one_line(reason),
    )


decider: Decider[Deployment, Asked] = Decider(Deployment(), evolve, decide)
