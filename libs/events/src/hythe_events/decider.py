"""How a rule meets the log: read the stream, fold it, decide, append at the version that was read.

A decider is three plain values: the state before anything happened, `evolve`, which folds an event into the state
and holds no rules, and `decide`, which answers a command with the events it leads to. `execute` is the only code
that joins them to the store. A decision has four answers, and they look different:

- it happened: one or more events;
- it was heard before: `[]`;
- not now: an error with `retry = True`;
- impossible: `assert`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Generic, Protocol, TypeVar

from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import VersionConflict
from hythe_events.language import Event

State = TypeVar("State")
Asked = TypeVar("Asked", contravariant=True)

ATTEMPTS = 8
"""How often a decision is made anew because somebody else wrote first; the last conflict is raised."""


@dataclass(frozen=True)
class Decider(Generic[State, Asked]):
    """The rules of one kind of stream."""

    initial: State
    evolve: Callable[[State, Envelope[Event]], State]
    decide: Callable[[Asked, State], Sequence[Event]]


def fold(
    evolve: Callable[[State, Envelope[Event]], State], events: Iterable[Envelope[Event]], initial: State
) -> State:
    """The state after `events`. Pure: no clock, no IO, so replaying it never repeats a side effect."""
    return reduce(evolve, events, initial)


class Streams(Protocol):
    """What `execute` needs of an event store; `hythe_events.store.Store` is the real one."""

    async def read(self, stream: str) -> list[Envelope[Event]]: ...

    async def append(
        self,
        stream: str,
        expected: int | None,
        events: Sequence[Event],
        *,
        because: Cause,
        evidence: bytes | None = None,
    ) -> list[Envelope[Event]]: ...


async def execute(
    store: Streams, decider: Decider[State, Asked], stream: str, command: Asked, *, because: Cause
) -> State:
    """Decide `command` on `stream` and append what follows; return the state it leaves.

    Somebody else writing first makes the decision start anew from what they wrote. Raises what `decide` raises.
    """
    for attempt in range(ATTEMPTS):
        events = await store.read(stream)
        state = fold(decider.evolve, events, decider.initial)
        decided = decider.decide(command, state)
        if not decided:
            return state
        try:
            appended = await store.append(stream, len(events), decided, because=because)
        except VersionConflict:
            if attempt == ATTEMPTS - 1:
                raise
            continue
        return fold(decider.evolve, appended, state)
    raise AssertionError("unreachable")
