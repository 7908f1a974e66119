"""The rules of one webhook source."""

from __future__ import annotations

import asyncio

import pytest

from hythe_events.errors import NotFound, Refused
from hythe_events.testing import given
from hythe_events.webhooks import CreateSource, SourceCreated, SourceSwitched, SwitchSource
from hythe_webhooks import source
from hythe_webhooks.source import Create
from hythe_webhooks.testing import Receiver, because

SEALED = "v1.a.b.c"
MADE = SourceCreated(source="ferry", provider="github", secret=SEALED)


def test_a_source_is_made_once() -> None:
    """Done, and then refused: a second maker must not replace the secret of the first."""
    given(source.decider).when(Create("ferry", "github", SEALED)).then(MADE)
    given(source.decider, MADE).when(Create("ferry", "github", SEALED)).then_raises(Refused, "already")


def test_a_source_is_switched_off_and_on() -> None:
    """Switching to where it is already is heard before."""
    off, on = SourceSwitched(source="ferry", on=False), SourceSwitched(source="ferry", on=True)
    given(source.decider, MADE).when(SwitchSource(source="ferry", on=False)).then(off)
    given(source.decider, MADE, off).when(SwitchSource(source="ferry", on=False)).then_nothing()
    given(source.decider, MADE, off).when(SwitchSource(source="ferry", on=True)).then(on)


def test_a_source_that_nobody_made_cannot_be_switched() -> None:
    """The answer names what was asked for."""
    given(source.decider).when(SwitchSource(source="ferry", on=True)).then_raises(NotFound, "ferry")


async def test_a_secret_is_made_where_none_is_given(receiver: Receiver) -> None:
    """A source without a secret does not exist: whoever finds the URL could deploy."""
    made = await receiver.handlers.create_source(CreateSource(source="ferry-two"), because())
    assert len(made.secret) >= 40
    assert made.path == "/api/webhooks/github/ferry-two"
    [event] = await receiver.store.read("source-ferry-two")
    assert made.secret not in event.data.model_dump_json()
    assert made.secret not in repr(made)


async def test_asking_again_with_the_same_secret_gets_the_same_answer(receiver: Receiver) -> None:
    """A client whose answer was lost asks again; that is not an error and not a second source."""
    asked = CreateSource(source="again", provider="generic", secret="s" * 20)
    assert await receiver.handlers.create_source(asked, because()) == await receiver.handlers.create_source(
        asked, because()
    )
    with pytest.raises(Refused, match="already"):
        await receiver.handlers.create_source(asked.model_copy(update={"secret": "t" * 20}), because())
    with pytest.raises(Refused, match="already"):
        await receiver.handlers.create_source(asked.model_copy(update={"secret": None}), because())


async def test_of_two_makers_at_once_one_is_refused(receiver: Receiver) -> None:
    """Somebody else was first: the loser is told, and the winner's secret holds."""
    asked = [CreateSource(source="raced", secret=str(n) * 20) for n in range(2)]
    made = await asyncio.gather(
        *(receiver.handlers.create_source(each, because()) for each in asked), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in made) == ["Refused", "SourceMade"]
    assert len(await receiver.store.read("source-raced")) == 1
