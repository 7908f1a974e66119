"""How the signers of sources are remembered: fresh within a second, bounded, and asked for once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hythe_events.errors import StoreUnavailable
from hythe_events.secrets import MasterKeys, Secrets
from hythe_events.testing import MemoryKeys, MemoryStore
from hythe_events.webhooks import CreateSource, SwitchSource
from hythe_webhooks.handlers import Handlers
from hythe_webhooks.rate import Bucket
from hythe_webhooks.sources import FRESH, Sources
from hythe_webhooks.testing import because


class Counted(MemoryStore):
    """Counts what is read."""

    reads = 0
    away = False

    async def read(self, *args: Any, **kwargs: Any) -> Any:
        self.reads += 1
        if self.away:
            raise StoreUnavailable
        return await super().read(*args, **kwargs)


class Desk:
    """A store, its sources, and a clock that the test moves."""

    def __init__(self, most_kept: int = 100) -> None:
        self.now = 0.0
        self.store = Counted("webhooks")
        self.secrets = Secrets(MemoryKeys(), lambda: MasterKeys(b"m" * 32))
        self.sources = Sources(self.store, self.secrets, clock=lambda: self.now, most_kept=most_kept)
        # commands are answered by another process, with sources of its own
        elsewhere: Any = (self.store, self.secrets, Sources(self.store, self.secrets))
        self.elsewhere = Handlers(*elsewhere)


async def test_a_source_is_asked_for_once_a_second() -> None:
    """However many post to it at once."""
    desk = Desk()
    await desk.elsewhere.create_source(CreateSource(source="ferry", secret="s" * 16), because())
    desk.store.reads = 0
    signers = await asyncio.gather(*(desk.sources.signer("ferry") for _ in range(50)))
    assert {signer.secret for signer in signers} == {b"s" * 16}
    assert desk.store.reads == 1
    desk.now = FRESH / 2
    assert desk.sources.known("ferry") is signers[0]
    desk.now = FRESH + 0.01
    assert desk.sources.known("ferry") is None
    await desk.sources.signer("ferry")
    assert desk.store.reads == 2


async def test_what_another_process_switched_is_known_within_a_second() -> None:
    """A source that was switched off must not go on for long."""
    desk = Desk()
    await desk.elsewhere.create_source(CreateSource(source="ferry"), because())
    assert (await desk.sources.signer("ferry")).on
    await desk.elsewhere.switch_source(SwitchSource(source="ferry", on=False), because())
    desk.now = FRESH + 0.01
    assert not (await desk.sources.signer("ferry")).on


async def test_who_does_not_exist_has_a_secret_that_nobody_knows() -> None:
    """It is compared like any other, so that it takes the same time; it differs in every process."""
    one, other = Desk(), Desk()
    nobody = await one.sources.signer("nobody")
    assert nobody.provider is None
    assert len(nobody.secret) == 32
    assert nobody.secret != (await other.sources.signer("nobody")).secret
    assert nobody.secret.hex() not in repr(nobody)


async def test_names_that_nobody_made_do_not_fill_the_memory() -> None:
    """Anybody can post to any name; the oldest is forgotten first."""
    desk = Desk(most_kept=10)
    for number in range(1000):
        await desk.sources.signer(f"name-{number}")
    assert desk.sources.known("name-0") is None
    assert sum(desk.sources.known(f"name-{n}") is not None for n in range(1000)) == 10


async def test_a_shredded_source_is_nobody() -> None:
    """When its key is gone, no signature can be right."""
    desk = Desk()
    await desk.elsewhere.create_source(CreateSource(source="ferry"), because())
    await desk.secrets.shred("ferry")
    assert (await desk.sources.signer("ferry")).provider is None


async def test_a_store_that_does_not_answer_is_not_an_unknown_source() -> None:
    """503, not 401: the forge should send it again. And the next one asks anew."""
    desk = Desk()
    await desk.elsewhere.create_source(CreateSource(source="ferry"), because())
    desk.store.away = True
    with pytest.raises(StoreUnavailable):
        await desk.sources.signer("ferry")
    desk.store.away = False
    assert (await desk.sources.signer("ferry")).provider == "github"


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    """Ten at once, then two a second, and never more than ten however long it rests."""
    bucket = Bucket(rate=2, burst=10)
    assert [bucket.take(100.0) for _ in range(10)] == [0.0] * 10
    assert bucket.take(100.0) == pytest.approx(0.5)
    assert bucket.take(100.5) == 0.0
    assert bucket.take(99.0) > 0  # a clock that steps back gives nothing
    assert [bucket.take(1000.0) for _ in range(10)] == [0.0] * 10
    assert bucket.take(1000.0) > 0
