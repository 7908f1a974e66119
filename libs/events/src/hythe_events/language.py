"""The grammar every message follows: what an event is, what a command is, and the small values they are made of.

An *event* happened; it is named in the past tense and never changes once it is stored. A *command* asks for
something and may be refused. Both are frozen and strict: a number is not a string, an unknown field is an error.

An event class carries its `type`, which is at the same time its NATS subject and the name to grep for, and the
`schema` number of its shape. When a shape must change, the number goes up and `lifts` says how an older shape is
read today; what is stored is never rewritten.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, StringConstraints

type_of_lift = Callable[[dict[str, Any]], dict[str, Any]]


class Value(BaseModel):
    """A value inside a message: frozen, strict, nothing unknown."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", ser_json_bytes="base64")


class Event(Value):
    """Something that happened. Subclasses set `type` and, once the shape has changed, `schema_number` and `lifts`."""

    type: ClassVar[str]
    schema_number: ClassVar[int] = 1
    lifts: ClassVar[Mapping[int, type_of_lift]] = {}
    """From an older schema number to the function that turns its JSON object into the next number's."""


class Request(Value):
    """What may be asked over NATS request and reply. `subject` is where."""

    subject: ClassVar[str]


class Command(Request):
    """Something asked for; it may be refused."""


class Query(Request):
    """A question; it changes nothing."""


StackName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
"""A Compose project name, as Compose itself accepts it."""

SourceId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
"""A webhook source; it stands in the URL that a forge posts to."""

CommitId = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")]
"""A whole Git object id, SHA-1 or SHA-256, in lower-case hex. Never abbreviated, never a name."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""What Docker calls an image by: its id, or a manifest's digest in a registry."""

Line = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line of text for a person: no control characters."""

Text = Annotated[str, StringConstraints(max_length=20_000)]

Actor = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Who asked: `cli:root`, `github:octocat`, `hythe:deploy`."""

Sealed = Annotated[str, StringConstraints(pattern=r"^v1\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$")]
"""A secret, encrypted by `hythe_events.secrets`: `v1.<data key id>.<nonce>.<ciphertext>`, each base64url."""


class BlobRef(Value):
    """Where something too large for an event is kept: in the object store, under its own SHA-256."""

    key: str
    size: int
    sha256: Sha256


def one_line(text: str, limit: int = 500) -> str:
    """`text` as a `Line`: control characters become spaces, and what is too long is cut with an ellipsis."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


_random = bytearray()


def new_id() -> UUID:
    """A UUIDv7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, then random bits, so that ids sort by age."""
    return UUID(bytes=new_id_bytes())


def new_id_bytes() -> bytes:
    """The 16 bytes of a new UUIDv7, for whoever makes many."""
    if not _random:
        _random.extend(os.urandom(4090))  # a system call for each id costs more than all the rest
    made = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + _random[-10:])
    del _random[-10:]
    made[6] = made[6] & 0x0F | 0x70
    made[8] = made[8] & 0x3F | 0x80
    return bytes(made)


def _forget_random() -> None:
    _random.clear()


os.register_at_fork(after_in_child=_forget_random)
