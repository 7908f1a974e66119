"""The hash chain: how each event stands on the one before, and how to find the first that does not.

```
hash(n) = SHA-256( hash(n-1) ‖ position ␟ stream ␟ version ␟ id ␟ type ␟ schema ␟ microseconds ␟ correlation
                   ␟ causation ␟ actor ␟ trace ␟ data [ ‖ SHA-256(evidence) ] )        hash(0) = SHA-256("hythe")
```

Postgres computes it when an event is appended (`log.link`); this module computes it again, independently, from the
rows. A *seal* is an Ed25519 signature (RFC 8032) over a position and its hash. It is an event itself, and travels on
the bus, so the removal of the newest rows shows as well: somebody else has seen the seal, or the events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hythe_events.catalog import decode
from hythe_events.errors import Misconfigured
from hythe_events.log import ChainSealed
from hythe_events.store import Raw

START = hashlib.sha256(b"hythe").digest()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Checked:
    """How far the chain was found right: the last position and its hash, and what is wrong with the next event."""

    position: int
    hash: bytes
    sealed: int = 0
    bad: str | None = None


def link(before: bytes, event: Raw) -> bytes:
    """The hash of `event` on top of `before`, 32 bytes."""
    fields = (
        event.position,
        event.stream,
        event.version,
        event.id,
        event.type,
        event.schema,
        (event.at - _EPOCH) // _MICROSECOND,
        event.correlation,
        event.causation or "",
        event.actor,
        event.trace or "",
        event.data,
    )
    evidence = b"" if event.evidence is None else hashlib.sha256(event.evidence).digest()
    return hashlib.sha256(before + "\x1f".join(map(str, fields)).encode() + evidence).digest()


def check(checked: Checked, events: Sequence[Raw]) -> Checked:
    """Check `events`, which follow `checked` in the log, and name the first that does not fit."""
    position, tip, sealed = checked.position, checked.hash, checked.sealed
    tips = {position: tip}
    for event in events:
        if event.position != position + 1:
            gone = (
                f"event {position + 1} is missing"
                if event.position > position
                else f"event {event.position} stands twice"
            )
            return Checked(position, tip, sealed, gone)
        if link(tip, event) != event.hash:
            return Checked(
                position,
                tip,
                sealed,
                f"event {event.position} ({event.type} in {event.stream}) is not what was appended",
            )
        position, tip = event.position, event.hash
        tips[position] = tip
        if event.type == ChainSealed.type:
            seal = decode(event.type, event.schema, event.data)
            assert isinstance(seal, ChainSealed)
            if not seal_holds(seal) or tips.get(seal.position, bytes.fromhex(seal.hash)) != bytes.fromhex(
                seal.hash
            ):
                return Checked(
                    position - 1,
                    tip,
                    sealed,
                    f"the seal in event {event.position} does not fit what it seals",
                )
            sealed = seal.position
    return Checked(position, tip, sealed)


class Sealer:
    """Seals the head of the log. The key is 32 bytes in hex, from the secret file `seal_key`."""

    def __init__(self, key: str) -> None:
        try:
            self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))
        except ValueError as error:
            raise Misconfigured("the secret file seal_key must hold 32 bytes in hex") from error

    def seal(self, position: int, tip: bytes) -> ChainSealed:
        """The seal of everything up to `position`, whose hash is `tip`."""
        return ChainSealed(
            position=position,
            hash=tip.hex(),
            signature=self._key.sign(_sealed_bytes(position, tip.hex())).hex(),
            public_key=self._key.public_key().public_bytes_raw().hex(),
        )


def seal_holds(seal: ChainSealed) -> bool:
    """Whether the signature is that of the named key over the named position and hash."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(seal.public_key))
        key.verify(bytes.fromhex(seal.signature), _sealed_bytes(seal.position, seal.hash))
    except (InvalidSignature, ValueError):
        return False
    return True


def _sealed_bytes(position: int, tip: str) -> bytes:
    return f"hythe:{position}:{tip}".encode("ascii")
