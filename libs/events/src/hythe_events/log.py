"""What the log says about itself, what every service says about messages it could not handle, and what both may be asked."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from pydantic import Field

from hythe_events.language import Actor, Command, Event, Line, Query, Sha256, Value


class ChainSealed(Event):
    """The head of the log was sealed: an Ed25519 signature over position and hash, so that nobody can rewrite what came before.

    `signature` and `public_key` are hex. The signed bytes are `hythe:<position>:<hash in hex>` in ASCII.
    """

    type: ClassVar[str] = "chain.sealed"
    position: int
    hash: Sha256
    signature: str
    public_key: str


class MessageParked(Event):
    """A message could not be handled and was put aside; `reason` says why. It waits for a command to try it again."""

    type: ClassVar[str] = "message.parked"
    service: str
    event: UUID
    event_type: str
    stream: str
    position: int
    deliveries: int
    reason: Line


class MessageRetried(Event):
    """Somebody asked for a parked message to be handled again."""

    type: ClassVar[str] = "message.retried"
    service: str
    event: UUID
    asked_by: Actor


class ListParked(Query):
    """The messages a service put aside. Asked at `query.<service>.parked`."""

    subject: ClassVar[str] = "query.{service}.parked"
    limit: int = Field(default=100, ge=1, le=1000)


class RetryParked(Command):
    """Handle a parked message again. Asked at `command.<service>.retry`."""

    subject: ClassVar[str] = "command.{service}.retry"
    event: UUID


class RebuildProjection(Command):
    """Build a read model anew beside the live one, then swap. Asked at `command.<service>.rebuild`."""

    subject: ClassVar[str] = "command.{service}.rebuild"
    projection: str | None = None


class Rebuilt(Value):
    """Answer to `RebuildProjection`: rows per read model, and whether the rebuilt rows equalled the live ones."""

    projections: dict[str, int]
    equal: dict[str, bool]


class ReadStream(Query):
    """A stream's events, oldest first, from `after_version` on."""

    subject: ClassVar[str] = "query.log.stream"
    stream: str
    after_version: int = 0
    limit: int = Field(default=500, ge=1, le=1000)


class ReadLog(Query):
    """The whole log's events in their one order: those beyond `after`, or with `newest` the last `limit`."""

    subject: ClassVar[str] = "query.log.read"
    after: int = 0
    limit: int = Field(default=200, ge=1, le=1000)
    newest: bool = False


class Rows(Value):
    """Answer to a question about a read model: one object per row."""

    rows: tuple[dict[str, Any], ...]


class Done(Value):
    """Answer to a command that led to an event: which, where, and the version it made."""

    stream: str
    version: int


class Page(Value):
    """Answer to `ReadStream` and `ReadLog`: CloudEvents, and the log's head position."""

    events: tuple[dict[str, Any], ...]
    head: int


class ShowDeployment(Query):
    """A deployment's state at a version or a time in the past (default: now), as the fold gives it."""

    subject: ClassVar[str] = "query.log.deployment"
    deployment: UUID
    at_version: int | None = Field(default=None, ge=1)
    at_time: datetime | None = None


class VerifyLog(Query):
    """Recompute the hash chain and check the seals, from `after` on, for at most `limit` events."""

    subject: ClassVar[str] = "query.log.verify"
    after: int = 0
    limit: int = Field(default=50_000, ge=1, le=200_000)
    hash: Sha256 | None = None
    """The hash at `after`, as the previous answer gave it; None at the start."""


class Verdict(Value):
    """Answer to `VerifyLog`. `bad` names the first event that does not fit, and how; None when all is well so far."""

    checked: int
    position: int
    hash: Sha256
    head: int
    sealed: int
    finished: bool
    bad: Line | None = None
