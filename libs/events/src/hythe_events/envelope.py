"""An event as it stands in the log and travels on the bus: what happened, in which stream, when, and because of what.

In the store it is a row. On the wire it is a CloudEvent 1.0 in structured JSON (content type
`application/cloudevents+json`), with `type` = NATS subject and `subject` = stream, and these extensions:

| extension | is |
| --- | --- |
| `correlationid` | the id of the first event of the whole story: a delivery or a command |
| `causationid` | the id of the event or command that led to this one |
| `sequence` | the position in the log, which has one order |
| `streamversion` | the version of the stream that this event made |
| `schemanumber` | the shape of `data`, see `hythe_events.language.Event` |
| `actor` | who asked |
| `traceparent` | W3C trace context |

Sources: CloudEvents 1.0.2 (core, JSON format), its distributed-tracing and sequence extensions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from hythe_events import catalog
from hythe_events.access import SAID_BY
from hythe_events.errors import Refused
from hythe_events.language import Event

CONTENT_TYPE = "application/cloudevents+json"

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

E = TypeVar("E", bound=Event, covariant=True)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something is appended. `correlation` is the root of the story, `causation` the step before."""

    correlation: UUID
    causation: UUID | None
    actor: str
    traceparent: str | None = None


class Envelope(NamedTuple, Generic[E]):  # a tuple: a million of them are made in a replay
    """One stored event. `position` is its place in the whole log (1, 2, …), `version` its place in its stream."""

    id: UUID
    stream: str
    version: int
    position: int
    type: str
    data: E
    at: datetime
    correlation: UUID
    causation: UUID | None
    actor: str
    traceparent: str | None
    hash: bytes

    def cause(self, actor: str, traceparent: str | None = None) -> Cause:
        """The cause of whatever this event leads to, said by `actor`."""
        return Cause(self.correlation, self.id, actor, traceparent or self.traceparent)


def to_cloudevent(event: Envelope[Event]) -> bytes:
    """`event` as structured CloudEvents JSON."""
    return wire(
        event.id,
        event.stream,
        event.version,
        event.position,
        event.type,
        event.data.schema_number,
        event.data.__pydantic_serializer__.to_json(event.data),
        event.at,
        event.correlation,
        event.causation,
        event.actor,
        event.traceparent,
        event.hash,
    )


def wire(
    event_id: UUID,
    stream: str,
    version: int,
    position: int,
    kind: str,
    schema_number: int,
    data: bytes,
    at: datetime,
    correlation: UUID,
    causation: UUID | None,
    actor: str,
    traceparent: str | None,
    chain: bytes,
) -> bytes:
    """Structured CloudEvents JSON of an event whose `data` is JSON already: the relay need not decode it."""
    who = actor.removeprefix("hythe:") if actor.startswith("hythe:") else SAID_BY.get(kind, "unknown")
    head: dict[str, Any] = {
        "specversion": "1.0",
        "id": str(event_id),
        "source": f"/hythe/{who}",
        "type": kind,
        "subject": stream,
        "time": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "correlationid": str(correlation),
        "sequence": str(position),
        "streamversion": version,
        "schemanumber": schema_number,
        "actor": actor,
        "chainhash": chain.hex(),
    }
    if causation is not None:
        head["causationid"] = str(causation)
    if traceparent is not None:
        head["traceparent"] = traceparent
    return b"".join((_compact(head).encode()[:-1], b',"data":', data, b"}"))


def from_cloudevent(body: bytes) -> Envelope[Event]:
    """The event in structured CloudEvents JSON `body`. Raises Refused when it is not one of ours, naming the field."""
    try:
        head: dict[str, Any] = json.loads(body)
        return Envelope(
            id=UUID(head["id"]),
            stream=head["subject"],
            version=int(head["streamversion"]),
            position=int(head["sequence"]),
            type=head["type"],
            data=catalog.decode(head["type"], int(head["schemanumber"]), json.dumps(head["data"])),
            at=datetime.fromisoformat(head["time"]),
            correlation=UUID(head["correlationid"]),
            causation=UUID(head["causationid"]) if head.get("causationid") else None,
            actor=head["actor"],
            traceparent=head.get("traceparent"),
            hash=bytes.fromhex(head["chainhash"]),
        )
    except KeyError as error:
        raise Refused(
            f"not an event of Hythe: the field {error} is missing", field=str(error.args[0])
        ) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"not an event of Hythe: {error}") from error
