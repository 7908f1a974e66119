"""One webhook source: a name in a URL, the forge that posts there, and the secret it signs with.

```
unknown ──create──► on ◄──switch──► off
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hythe_events.decider import Decider
from hythe_events.envelope import Envelope
from hythe_events.errors import NotFound, Refused, UnknownEvent
from hythe_events.language import Event, Sealed
from hythe_events.webhooks import Provider, SourceCreated, SourceSwitched, SwitchSource


@dataclass(frozen=True)
class Source:
    """What is known of a source; `provider` and `secret` are None as long as nobody made it."""

    provider: Provider | None = None
    secret: Sealed | None = None
    secret_version: int = 0
    on: bool = False
    version: int = 0


UNKNOWN = Source()


@dataclass(frozen=True)
class Create:
    """Make the source `source`; its secret is sealed already, as `secret_version` 1."""

    source: str
    provider: Provider
    secret: Sealed


def evolve(state: Source, event: Envelope[Event]) -> Source:
    """`state` after `event`. Raises UnknownEvent for an event that has no business in a source's stream."""
    match event.data:
        case SourceCreated() as said:
            return Source(said.provider, said.secret, said.secret_version, True, event.version)
        case SourceSwitched() as said:
            return replace(state, on=said.on, version=event.version)
        case unexpected:
            raise UnknownEvent(f"{unexpected.type} has no business in the stream of a source")


def decide(asked: Create | SwitchSource, state: Source) -> Sequence[Event]:
    """What a command leads to. Raises Refused, NotFound."""
    match asked:
        case Create():
            if state.provider is None:
                return [SourceCreated(source=asked.source, provider=asked.provider, secret=asked.secret)]
            raise Refused(
                f"there is a webhook source {asked.source} already; choose another name", field="source"
            )
        case SwitchSource():
            if state.provider is None:
                raise NotFound(f"there is no webhook source {asked.source}", field="source")
            return [] if state.on == asked.on else [SourceSwitched(source=asked.source, on=asked.on)]


decider = Decider(UNKNOWN, evolve, decide)
