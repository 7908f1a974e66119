"""Which secret a source signs with: asked of the log once, kept in memory, and asked again after a second.

A source that does not exist has a secret as well: one that nobody knows. So a name that is nobody's and a signature
that is wrong take the same way through the code, and the same time.

What is kept is at most `FRESH` seconds behind the log. Whoever posts to a source makes us look at that source's own
stream, once a second at most, and nobody has to read the whole log to learn that one source was switched off.
"""

from __future__ import annotations

import asyncio
import secrets as random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from hythe_events import streams
from hythe_events.decider import fold
from hythe_events.envelope import Envelope
from hythe_events.language import Event
from hythe_events.secrets import Shredded
from hythe_events.webhooks import Provider
from hythe_webhooks import source as rules

FRESH = 1.0
"""Seconds after which a source is asked for again."""
MOST_KEPT = 4096
"""How many names are remembered, those of sources that do not exist included; the one used longest ago goes first."""


class Place(TypedDict):
    """What a source's secret is sealed for; see `hythe_events.secrets`."""

    kind: str
    owner: str
    name: str
    version: int


def place(name: str, version: int) -> Place:
    """Where the secret number `version` of the source `name` belongs."""
    return Place(kind="source", owner=name, name="webhook-secret", version=version)


class Log(Protocol):
    """What is needed of the event store."""

    async def read(self, stream: str, *, after: int = 0) -> list[Envelope[Event]]: ...


class Seals(Protocol):
    """What is needed of `hythe_events.secrets.Secrets`."""

    async def open(self, *, kind: str, owner: str, name: str, version: int, sealed: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Signer:
    """Who may post to a name: which forge, with which secret. `provider` is None where there is no such source."""

    provider: Provider | None
    secret: bytes = field(repr=False)
    on: bool = True


@dataclass(slots=True)
class _Kept:
    signer: Signer
    state: rules.Source = rules.UNKNOWN
    fresh_until: float = 0.0
    asking: asyncio.Task[None] | None = None


class Sources:
    """The signers of one process. Any number of tasks may ask at once: one of them asks the log, the others wait."""

    def __init__(
        self,
        log: Log,
        seals: Seals,
        *,
        clock: Callable[[], float] = time.monotonic,
        most_kept: int = MOST_KEPT,
    ) -> None:
        self._log = log
        self._seals = seals
        self._clock = clock
        self._most_kept = most_kept
        self.nobody = Signer(None, random.token_bytes(32))
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def known(self, name: str) -> Signer | None:
        """The signer of `name`, if it was asked for within the last second. Costs next to nothing."""
        kept = self._kept.get(name)
        return kept.signer if kept is not None and kept.fresh_until > self._clock() else None

    async def signer(self, name: str) -> Signer:
        """The signer of `name`: of a source, or nobody. Raises StoreUnavailable."""
        known = self.known(name)
        if known is not None:
            return known
        kept = self._kept.setdefault(name, _Kept(self.nobody))
        self._kept.move_to_end(name)
        while len(self._kept) > self._most_kept:
            self._kept.popitem(last=False)
        if kept.asking is None or kept.asking.done():
            kept.asking = asyncio.create_task(self._ask(name, kept))
        await asyncio.shield(kept.asking)  # a client that goes away does not end it for the others
        return kept.signer

    def forget(self, name: str) -> None:
        """Ask the log again the next time: `name` was made or switched by this process."""
        self._kept.pop(name, None)

    async def _ask(self, name: str, kept: _Kept) -> None:
        asked_at = self._clock()
        events = await self._log.read(streams.source(name), after=kept.state.version)
        if events:
            state = fold(rules.evolve, events, kept.state)
            kept.signer = await self._opened(name, state)
            kept.state = state
        kept.fresh_until = asked_at + FRESH

    async def _opened(self, name: str, state: rules.Source) -> Signer:
        if state.provider is None or state.secret is None:
            return self.nobody
        try:
            secret = await self._seals.open(**place(name, state.secret_version), sealed=state.secret)
        except Shredded:
            return self.nobody
        return Signer(state.provider, secret, state.on)
