"""How a rule meets the log: its four answers, and somebody else being first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID, uuid4

import pytest

from hythe_events.decider import ATTEMPTS, Decider, execute, fold
from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import NotNow, Refused, VersionConflict
from hythe_events.language import Event
from hythe_events.testing import MemoryStore, given, told
from hythe_events.webhooks import SourceCreated, SourceSwitched

BECAUSE = Cause(uuid4(), None, "cli:test")
made = SourceCreated(source="a", provider="github", secret="v1.a.b.c")
on, off = (SourceSwitched(source="a", on=value) for value in (True, False))


@dataclass(frozen=True)
class Switch:
    """Asks for a source to be switched."""

    on: bool


@dataclass(frozen=True)
class State:
    """A source, as far as this rule cares."""

    exists: bool = False
    on: bool = False
    switched: int = 0


def evolve(state: State, event: Envelope[Event]) -> State:
    match event.data:
        case SourceCreated():
            return State(exists=True, on=True)
        case SourceSwitched() as said:
            return State(state.exists, said.on, state.switched + 1)
        case _:
            raise AssertionError(event)


def decide(asked: Switch, state: State) -> Sequence[Event]:
    assert state.switched < 100, "impossible"
    if not state.exists:
        raise Refused("there is no such source", field="source")
    if state.switched == 7:
        raise NotNow("it is being repaired")
    return [] if asked.on == state.on else [SourceSwitched(source="a", on=asked.on)]


rule: Decider[State, Switch] = Decider(State(), evolve, decide)


# -- the four answers, with `given … when … then`


def test_it_happened() -> None:
    """One or more events."""
    given(rule, made).when(Switch(on=False)).then(off)


def test_it_was_heard_before() -> None:
    """No events, and no error: hearing it again is harmless."""
    given(rule, made, off).when(Switch(on=False)).then_nothing()


def test_it_is_refused_or_not_now() -> None:
    """The error says which: only one of them is worth trying again."""
    given(rule).when(Switch(on=True)).then_raises(Refused, "no such source")
    given(rule, made, *[off] * 7).when(Switch(on=True)).then_raises(NotNow, "repaired")


def test_the_words_for_tests_notice_when_they_do_not_hold() -> None:
    """A test of a rule that could not fail would be worth nothing."""
    with pytest.raises(AssertionError):
        given(rule, made).when(Switch(on=False)).then(on)
    with pytest.raises(AssertionError):
        given(rule, made).when(Switch(on=False)).then_nothing()
    with pytest.raises(AssertionError):
        given(rule, made).when(Switch(on=False)).then_raises(Refused)
    with pytest.raises(AssertionError):
        given(rule).when(Switch(on=False)).then_raises(Refused, "another reason")
    with pytest.raises(AssertionError):
        given(rule).when(Switch(on=False)).then_raises(NotNow)
    with pytest.raises(Refused):
        given(rule).when(Switch(on=False)).then_nothing()


def test_a_fold_starts_from_what_was_before_anything_happened() -> None:
    """And from nothing else."""
    assert fold(evolve, [], State()) == State()
    assert fold(evolve, told("source-a", made, off, on), State()) == State(exists=True, on=True, switched=2)


# -- on a store


class Meddled(MemoryStore):
    """A store in which somebody else switches the source just before each of the first `times` appends."""

    times = 0

    async def append(
        self,
        stream: str,
        expected: int | None,
        events: Sequence[Event],
        *,
        because: Cause,
        evidence: bytes | None = None,
        ids: Sequence[UUID] | None = None,
    ) -> list[Envelope[Event]]:
        if self.times and expected:
            self.times -= 1
            await super().append(stream, None, [off if self.times % 2 else on], because=BECAUSE)
        return await super().append(stream, expected, events, because=because, evidence=evidence, ids=ids)


async def test_a_command_is_decided_appended_and_answered_with_the_state_it_leaves() -> None:
    """The event carries the cause."""
    store = MemoryStore()
    await store.append("source-a", 0, [made], because=BECAUSE)
    because = Cause(uuid4(), uuid4(), "cli:root")
    assert await execute(store, rule, "source-a", Switch(on=False), because=because) == State(True, False, 1)
    last = (await store.read("source-a"))[-1]
    assert (last.data, last.version, last.actor) == (off, 2, "cli:root")
    assert (last.correlation, last.causation) == (because.correlation, because.causation)


async def test_a_command_that_was_heard_before_appends_nothing() -> None:
    """It answers with the state that is there."""
    store = MemoryStore()
    await store.append("source-a", 0, [made], because=BECAUSE)
    for _ in range(3):
        assert await execute(store, rule, "source-a", Switch(on=False), because=BECAUSE) == State(
            True, False, 1
        )
    assert (await store.head()).position == 2


async def test_a_refused_command_appends_nothing() -> None:
    """The refusal reaches whoever asked."""
    store = MemoryStore()
    with pytest.raises(Refused):
        await execute(store, rule, "source-a", Switch(on=False), because=BECAUSE)
    assert (await store.head()).position == 0


@pytest.mark.parametrize("times", [1, 2, 3, ATTEMPTS - 1])
async def test_when_somebody_else_was_first_it_is_decided_anew_on_what_they_did(times: int) -> None:
    """Never on what was read before: the decision fits the events it stands on."""
    store = Meddled()
    await store.append("source-a", 0, [made], because=BECAUSE)
    store.times = times
    state = await execute(store, rule, "source-a", Switch(on=times % 2 == 0), because=BECAUSE)
    events = await store.read("source-a")
    assert state == fold(evolve, events, State())
    assert state.on == (times % 2 == 0)


async def test_a_stream_that_others_never_leave_alone_gives_up_and_may_be_tried_again() -> None:
    """The last conflict is an error with `retry`: the message comes again by itself."""

    async def always_off(asked: Switch, store: Meddled) -> State:
        contrary: Decider[State, Switch] = Decider(
            State(), evolve, lambda asked, _state: [on if asked.on else off]
        )
        return await execute(store, contrary, "source-a", asked, because=BECAUSE)

    store = Meddled()
    await store.append("source-a", 0, [made], because=BECAUSE)
    store.times = ATTEMPTS
    with pytest.raises(VersionConflict) as conflict:
        await always_off(Switch(on=True), store)
    assert conflict.value.retry


async def test_many_at_once_leave_one_history_in_which_each_fits_the_one_before() -> None:
    """Eight tasks switch to and fro; no two of the same follow each other."""
    store = MemoryStore()
    await store.append("source-a", 0, [made], because=BECAUSE)
    wanted = [Switch(on=bool(n % 2)) for n in range(6)]
    await asyncio.gather(*(execute(store, rule, "source-a", each, because=BECAUSE) for each in wanted))
    history = [True] + [
        event.data.on for event in await store.read("source-a") if isinstance(event.data, SourceSwitched)
    ]
    assert all(before != after for before, after in pairwise(history))
