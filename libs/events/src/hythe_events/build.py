"""What the build service says, and what it may be asked.

```
build.requested ──► build.started ──► build.image_built … ──► build.finished (succeeded | failed | cancelled)
```
"""

from __future__ import annotations

from typing import ClassVar, Literal
from uuid import UUID

from hythe_events.language import Actor, BlobRef, Command, Digest, Event, Line, Query, StackName, Value


class BuildStarted(Event):
    """The build service works on it. `services` are those of the compose file that have something to build."""

    type: ClassVar[str] = "build.started"
    deployment: UUID
    stack: StackName
    services: tuple[str, ...]


class Image(Value):
    """A built image: the name it can be run by, and its id, which is what it *is*."""

    reference: str
    digest: Digest


class ImageBuilt(Event):
    """One service's image is built."""

    type: ClassVar[str] = "build.image_built"
    deployment: UUID
    stack: StackName
    service: str
    image: Image
    seconds: float


class CancelRequested(Event):
    """Somebody asked for the deployment to be stopped before it is deployed."""

    type: ClassVar[str] = "build.cancel_requested"
    deployment: UUID
    stack: StackName
    asked_by: Actor
    reason: Line | None = None


class BuildFinished(Event):
    """The build ended. `images` holds one per service that had something to build, by digest."""

    type: ClassVar[str] = "build.finished"
    deployment: UUID
    stack: StackName
    outcome: Literal["succeeded", "failed", "cancelled"]
    images: dict[str, Image] = {}
    log: BlobRef | None = None
    reason: Line | None = None


class CancelDeployment(Command):
    """Stop a deployment that waits for its build or is being built."""

    subject: ClassVar[str] = "command.build.cancel"
    deployment: UUID
    reason: Line | None = None


class FindLog(Query):
    """Where the finished build log of a deployment is kept."""

    subject: ClassVar[str] = "query.build.log"
    deployment: UUID


class FoundLog(Value):
    """Answer to `FindLog`. While the build runs `log` is None: follow the stream `LOGS`, subject `log.<deployment>`."""

    deployment: UUID
    running: bool
    log: BlobRef | None
