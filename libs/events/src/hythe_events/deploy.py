"""What the deploy service says, and what it may be asked.

```
build.finished ───────┐
rollback.requested ───┴► deploy.started ──► deploy.step_completed … ──► deploy.health_checked ──► deploy.completed
                                                                    └► deploy.rollback_started ─┘   (succeeded | failed |
                                                                                                    rolled_back | …)
```
"""

from __future__ import annotations

from typing import ClassVar, Literal
from uuid import UUID

from pydantic import Field

from hythe_events.language import (
    Actor,
    BlobRef,
    Command,
    CommitId,
    Digest,
    Event,
    Line,
    Query,
    Sha256,
    StackName,
    Value,
)

Outcome = Literal["succeeded", "failed", "rolled_back", "rollback_failed", "superseded", "cancelled"]


class ServiceManifest(Value):
    """What one service runs: the reference in the compose file, and the digest Docker must report for it."""

    image: str
    digest: Digest


class Manifest(Value):
    """What a deployment runs, exactly: enough to run it again, and to check that it runs.

    `compose` is the rendered compose file with every image pinned; `files` is the source archive the stack's other
    files come from; `config_hashes` are Compose's own, per service, and equal the running containers' labels.
    """

    services: dict[str, ServiceManifest]
    compose: BlobRef
    compose_sha256: Sha256
    environment: BlobRef | None = None
    files: BlobRef | None = None
    config_hashes: dict[str, str] = {}
    strategy: Literal["standard"] = "standard"


class RollbackRequested(Event):
    """Somebody asked for a stack to be taken back to an earlier deployment. The first event of a deployment.

    `manifest` is the one of that deployment, copied here so that this stream alone says what will run.
    """

    type: ClassVar[str] = "rollback.requested"
    deployment: UUID
    stack: StackName
    to: UUID
    manifest: Manifest
    commit: CommitId | None
    asked_by: Actor
    reason: Line | None = None


class DeployStarted(Event):
    """The deploy service holds the stack's lease, and works on it. `replaces` is the deployment that runs now."""

    type: ClassVar[str] = "deploy.started"
    deployment: UUID
    stack: StackName
    fence: int
    replaces: UUID | None


Step = Literal["render", "policy", "pull", "rehearse", "up", "health", "verify", "restore", "restore_health"]


class DeployStepCompleted(Event):
    """One step of a deployment is done. `manifest` is told by the step that settles it: `pull`."""

    type: ClassVar[str] = "deploy.step_completed"
    deployment: UUID
    stack: StackName
    step: Step
    detail: Line
    seconds: float
    manifest: Manifest | None = None


class ServiceHealth(Value):
    """How one service fares; `detail` says why in one line."""

    healthy: bool
    detail: Line


class DeployHealthChecked(Event):
    """The new containers were watched until they were healthy, or were not."""

    type: ClassVar[str] = "deploy.health_checked"
    deployment: UUID
    stack: StackName
    healthy: bool
    services: dict[str, ServiceHealth]


class DeployRollbackStarted(Event):
    """The deployment failed after containers were touched; what ran before is being put back."""

    type: ClassVar[str] = "deploy.rollback_started"
    deployment: UUID
    stack: StackName
    to: UUID | None
    reason: Line


class DeployCompleted(Event):
    """The end of a deployment; there is exactly one in its stream.

    Said by deploy; by git when the source could not be had. `succeeded` means that the digests of `manifest` are the
    ones Docker runs, and that they were seen to be healthy. `replaced` is the deployment that ran before.
    """

    type: ClassVar[str] = "deploy.completed"
    deployment: UUID
    stack: StackName
    outcome: Outcome
    commit: CommitId | None = None
    manifest: Manifest | None = None
    replaced: UUID | None = None
    reason: Line | None = None


class StackLiveChanged(Event):
    """What a stack runs has changed. `requested_position` orders deployments by when they were asked for."""

    type: ClassVar[str] = "stack.live_changed"
    stack: StackName
    deployment: UUID
    manifest: Manifest
    commit: CommitId | None
    requested_position: int


class CommitRejected(Event):
    """A commit was rolled back from; it is not deployed again until a newer one arrives."""

    type: ClassVar[str] = "stack.commit_rejected"
    stack: StackName
    commit: CommitId
    reason: Line | None = None


Grant = Literal["host-files", "privileged", "host-namespaces", "docker-socket"]
"""What a stack's compose file may not ask for unless it was granted to that stack."""


class StackGranted(Event):
    """What a stack's compose file is allowed beyond the ordinary, from now on."""

    type: ClassVar[str] = "stack.granted"
    stack: StackName
    grants: tuple[Grant, ...]


class Rollback(Command):
    """Take a stack back to an earlier succeeded deployment (default: the one before what runs now)."""

    subject: ClassVar[str] = "command.deploy.rollback"
    stack: StackName
    to: UUID | None = None
    reason: Line | None = None


class GrantStack(Command):
    """Say what a stack's compose file is allowed beyond the ordinary: the whole list, which replaces the last one."""

    subject: ClassVar[str] = "command.deploy.grant"
    stack: StackName
    grants: tuple[Grant, ...]


class ListDeployments(Query):
    """Deployments, newest first: answered with the rows of the read model `deployments`."""

    subject: ClassVar[str] = "query.deploy.history"
    stack: StackName | None = None
    limit: int = Field(default=50, ge=1, le=1000)
    before: UUID | None = None


class ListStacks(Query):
    """The stacks and what each runs: answered with the rows of the read model `stacks`."""

    subject: ClassVar[str] = "query.deploy.stacks"
    stack: StackName | None = None
