"""One delivery of a forge: told once, kept once, answered always the same.

```
unheard ──► received   a push: a deployment may follow
        └─► ignored    authentic, and asks for no deployment; the reason is kept
```

A forge that did not get our answer, or a person who presses "redeliver", sends the same id and the same body again and
gets the first answer. The same id with another body is two things of one name: it is refused, and the first one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from hythe_events.decider import Decider
from hythe_events.envelope import Envelope
from hythe_events.errors import Refused, UnknownEvent
from hythe_events.language import Event
from hythe_events.webhooks import DeliveryIgnored, DeliveryRouted, WebhookReceived

Told = WebhookReceived | DeliveryIgnored


class SameIdOtherBody(Refused):
    """A delivery with this id was kept before, with another body; the first one stays as it is."""


@dataclass(frozen=True)
class Keep:
    """Keep what an authentic delivery told."""

    told: Told


@dataclass(frozen=True)
class Delivery:
    """What is known of a delivery: what it told, and as which event that was kept."""

    told: Told | None = None
    event: UUID | None = None
    version: int = 0


UNHEARD = Delivery()


def evolve(state: Delivery, event: Envelope[Event]) -> Delivery:
    """`state` after `event`. Raises UnknownEvent for an event that has no business in a delivery's stream."""
    match event.data:
        case WebhookReceived() | DeliveryIgnored() as told:
            return Delivery(told, event.id, event.version)
        case DeliveryRouted():
            return replace(state, version=event.version)
        case unexpected:
            raise UnknownEvent(f"{unexpected.type} has no business in the stream of a delivery")


def decide(asked: Keep, state: Delivery) -> Sequence[Event]:
    """What keeping a delivery leads to. Raises SameIdOtherBody."""
    if state.told is None:
        return [asked.told]
    if state.told.body_sha256 != asked.told.body_sha256:
        raise SameIdOtherBody(
            f"delivery {asked.told.delivery} was kept before with another body, whose SHA-256 is "
            f"{state.told.body_sha256}; send another body under another id",
            field="body",
        )
    return []


decider = Decider(UNHEARD, evolve, decide)
