"""Read models: never ahead of or behind their checkpoint, never skipping, and the same when made anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from hythe_events import faults
from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import NotFound, NotNow
from hythe_events.language import Event
from hythe_events.postgres import Connection, connect
from hythe_events.projections import NotApplied, Projection, Projector, Rebuild
from hythe_events.store import Store
from hythe_events.testing import MigratedDatabase, until
from hythe_events.webhooks import SourceCreated, SourceSwitched

DEADLINE = 20.0


def nothing(_event: Envelope[Event]) -> None:
    """Does not interfere."""


@dataclass
class Sources:
    """A read model of webhook sources. `meddle` is called at each event, after its rows were written."""

    name: str = "sources"
    tables: tuple[str, ...] = ("sources", "switchings")
    hears: frozenset[str] = frozenset({"source.created", "source.switched"})
    ddl: str = """
        create table if not exists sources (name text primary key, active boolean not null, changed timestamptz);
        create table if not exists switchings (source text references sources, active boolean not null);
    """
    meddle: Callable[[Envelope[Event]], Any] = nothing
    applied: list[int] = field(default_factory=list)

    async def apply(self, connection: Connection, event: Envelope[Event]) -> None:
        match event.data:
            case SourceCreated() as said:
                await connection.execute("insert into sources values ($1, true, $2)", said.source, event.at)
            case SourceSwitched() as said:
                await connection.execute("insert into switchings values ($1, $2)", said.source, said.on)
                await connection.execute(
                    "update sources set active = $2, changed = $3 where name = $1",
                    said.source,
                    said.on,
                    event.at,
                )
        self.applied.append(event.position)
        self.meddle(event)


@pytest_asyncio.fixture
async def store(database: MigratedDatabase) -> AsyncIterator[Store]:
    async with Store.open(database.dsn("webhooks")) as opened:
        yield opened


async def created(store: Store, *names: str) -> int:
    """Sources were created; the position of the last event."""
    position = 0
    for name in names:
        because = Cause(uuid4(), None, "cli:test")
        made = SourceCreated(source=name, provider="github", secret="v1.a.b.c")
        [event] = await store.append(f"source-{name}", 0, [made], because=because)
        position = event.position
    return position


async def switched(store: Store, name: str, on: bool) -> int:
    """A source was switched; the position of the event."""
    because = Cause(uuid4(), None, "cli:test")
    [event] = await store.append(
        f"source-{name}", None, [SourceSwitched(source=name, on=on)], because=because
    )
    return event.position


@asynccontextmanager
async def following(store: Store, *projections: Projection) -> AsyncIterator[Projector]:
    """A projector that runs, as in a service's process."""
    projector = Projector("webhooks", store, projections)
    running = asyncio.create_task(projector.run())
    try:
        yield projector
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def reached(projector: Projector, position: int, name: str = "sources") -> None:
    async with asyncio.timeout(DEADLINE):
        await projector.reached(name, position)


async def rows(store: Store, table: str = "sources", schema: str = "webhooks") -> list[tuple[object, ...]]:
    async with store.transaction() as connection:
        found = await connection.fetch(f"select * from {schema}.{table}")
    return sorted(tuple(row.values()) for row in found)


async def names(store: Store) -> list[object]:
    return [row[0] for row in await rows(store)]


async def checkpoint(store: Store) -> int:
    async with store.transaction() as connection:
        return int(
            await connection.fetchval(
                "select position from webhooks.checkpoints where projection = 'sources'"
            )
        )


# -- following


async def test_a_read_model_follows_the_log(store: Store) -> None:
    """What was there before it began, and what comes while it runs."""
    await created(store, "github", "gitlab")
    async with following(store, Sources()) as projector:
        await reached(projector, 2)
        assert await names(store) == ["github", "gitlab"]
        await reached(projector, await switched(store, "github", False))
        assert [row[:2] for row in await rows(store)] == [("github", False), ("gitlab", True)]
        assert projector.troubles == ()


async def test_a_read_model_goes_on_where_it_was(store: Store) -> None:
    """A restart applies only what is new."""
    async with following(store, Sources()) as projector:
        await reached(projector, await created(store, "a"))
    again = Sources()
    async with following(store, again) as projector:
        await reached(projector, await created(store, "b"))
    assert again.applied == [2]


async def test_events_it_does_not_hear_move_the_checkpoint_only(store: Store) -> None:
    """Else every start would read the whole log again."""
    deaf = Sources(hears=frozenset({"source.switched"}))
    async with following(store, deaf) as projector:
        await reached(projector, await created(store, "a"))
    assert deaf.applied == []
    assert await checkpoint(store) == 1


async def test_rows_and_checkpoint_change_together_or_not_at_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash point P1: killed between the two, neither is there; the event is applied again, once."""
    seen: list[list[object]] = []
    monkeypatch.setitem(faults._faults, "P1", faults._Fault("raise", 1))
    sources = Sources()
    projector = Projector("webhooks", store, [sources])
    position = await created(store, "a")
    running = asyncio.create_task(projector.run())
    await until(lambda: bool(projector.troubles and "crash point P1" in projector.troubles[0]))
    seen.append(await names(store))
    await reached(projector, position)
    running.cancel()
    assert seen in ([[]], [["a"]])  # it may have been tried again already, never half
    assert sources.applied == [1, 1]
    assert await names(store) == ["a"]
    assert await checkpoint(store) == 1


async def test_an_event_that_cannot_be_applied_stops_the_read_model_and_is_never_skipped(
    store: Store,
) -> None:
    """A read model that skipped would be wrong for ever; it stands still, says why, and goes on once it is mended."""
    broken = [True]

    def meddle(event: Envelope[Event]) -> None:
        if broken and event.position == 2:
            raise ValueError("no such column")

    await created(store, "a", "b", "c")
    async with following(store, Sources(meddle=meddle)) as projector:
        await until(lambda: bool(projector.troubles and "event 2" in projector.troubles[0]))
        [trouble] = projector.troubles
        assert "sources stands still" in trouble
        assert "source.created of source-b" in trouble
        assert "no such column" in trouble
        assert await names(store) == []
        assert await checkpoint(store) == 0
        broken.clear()
        await reached(projector, 3)
        await until(lambda: projector.troubles == ())
        assert await names(store) == ["a", "b", "c"]


async def test_one_read_model_that_stands_still_does_not_stop_another(store: Store) -> None:
    """They have nothing to do with each other."""

    def refuse(_event: Envelope[Event]) -> None:
        raise ValueError("broken")

    ddl = "create table if not exists other (name text primary key)"
    broken = Sources(name="broken", tables=("other",), ddl=ddl, meddle=refuse)
    broken.hears = frozenset({"source.switched"})
    position = await created(store, "a")
    async with following(store, Sources(), broken) as projector:
        await reached(projector, position)
        await reached(projector, await switched(store, "a", False))
        await until(lambda: len(projector.troubles) == 1)
        assert [row[:2] for row in await rows(store)] == [("a", False)]


async def test_a_read_model_is_not_ready_before_its_tables_are_made(store: Store) -> None:
    """Whoever asks before that would be told that there is nothing."""
    assert Projector("webhooks", store, [Sources()]).troubles == ("the read model sources is being set up",)


async def test_two_processes_apply_each_event_once(database: MigratedDatabase, store: Store) -> None:
    """A service may run any number of times; `switchings` would hold twice what was applied twice."""
    await created(store, "a")
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(Store.open(database.dsn("webhooks")))
        ours, theirs = Sources(), Sources()
        one = await stack.enter_async_context(following(store, ours))
        two = await stack.enter_async_context(following(other, theirs))
        position = 0
        for n in range(40):
            position = await switched(store, "a", bool(n % 2))
            await asyncio.sleep(0)
        await reached(one, position)
        await reached(two, position)
    assert len(await rows(store, "switchings")) == 40
    assert sorted({*ours.applied, *theirs.applied}) == list(range(1, 42))


async def test_the_other_process_takes_over(database: MigratedDatabase, store: Store) -> None:
    """No lock outlives its transaction, so nothing has to expire."""
    async with Store.open(database.dsn("webhooks")) as other, following(store, Sources()) as standby:
        async with following(other, Sources()) as first:
            await reached(first, await created(store, "a"))
        await reached(standby, await created(store, "b"))
    assert await names(store) == ["a", "b"]


@dataclass
class ManyAtOnce(Sources):
    """The same read model, written for floods of events."""

    batches: list[int] = field(default_factory=list)

    async def apply_all(self, connection: Connection, events: Sequence[Envelope[Event]]) -> None:
        made = [(event.data.source, event.at) for event in events if isinstance(event.data, SourceCreated)]
        await connection.executemany("insert into sources values ($1, true, $2)", made)
        for event in events:
            self.meddle(event)
        self.batches.append(len(events))


async def test_a_flood_of_events_may_be_applied_at_once(store: Store) -> None:
    """With the same rows as one by one."""
    position = await created(store, *(f"s{n}" for n in range(30)))
    flooded = ManyAtOnce()
    async with following(store, flooded) as projector:
        await reached(projector, position)
    assert flooded.batches == [30]
    assert flooded.applied == []
    together = await rows(store)
    one_by_one = Projector("webhooks", store, [Sources()])
    assert (await one_by_one.rebuild())["sources"] == Rebuild(rows=30, equal=True)
    assert await rows(store) == together


async def test_in_a_flood_the_event_at_fault_is_named_all_the_same(store: Store) -> None:
    """What was written together is taken back, and applied one by one up to the event that cannot be."""

    def meddle(event: Envelope[Event]) -> None:
        if event.position == 3:
            raise ValueError("too odd")

    await created(store, "a", "b", "c", "d")
    async with following(store, ManyAtOnce(meddle=meddle)) as projector:
        await until(lambda: bool(projector.troubles and "event 3" in projector.troubles[0]))
        assert "too odd" in projector.troubles[0]
        assert await names(store) == []


# -- rebuilding


async def test_a_rebuilt_read_model_equals_the_live_one(store: Store) -> None:
    """Promise P5: every read model can be dropped and made anew to the same rows."""
    await created(store, *(f"s{n}" for n in range(20)))
    async with following(store, Sources()) as projector:
        position = await switched(store, "s3", False)
        await reached(projector, position)
        before = await rows(store), await rows(store, "switchings")
        assert await projector.rebuild() == {"sources": Rebuild(rows=21, equal=True)}
        assert (await rows(store), await rows(store, "switchings")) == before
        assert await checkpoint(store) == position
        await reached(projector, await switched(store, "s4", False))
        assert len(await rows(store, "switchings")) == 2


@pytest.mark.parametrize(
    "tampering",
    [
        "update webhooks.sources set active = false where name = 'a'",
        "insert into webhooks.switchings values ('a', true)",
        "delete from webhooks.switchings",
        "insert into webhooks.sources values ('ghost', true, null)",
    ],
)
async def test_a_rebuild_tells_when_the_live_rows_were_wrong(store: Store, tampering: str) -> None:
    """Rows that are there too often count as well; afterwards they are right."""
    await created(store, "a")
    async with following(store, Sources()) as projector:
        await reached(projector, await switched(store, "a", True))
        right = await rows(store), await rows(store, "switchings")
        async with store.transaction() as connection:
            await connection.execute(tampering)
        assert (await projector.rebuild("sources"))["sources"].equal is False
        assert (await rows(store), await rows(store, "switchings")) == right
        assert (await projector.rebuild("sources"))["sources"].equal is True


async def test_a_rebuild_that_dies_half_way_leaves_the_live_tables_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash point P2. What it left behind does not hinder the next one."""
    monkeypatch.setattr("hythe_events.projections.BATCH", 2)
    position = await created(store, "a", "b", "c", "d", "e")
    async with following(store, Sources()) as projector:
        await reached(projector, position)
        monkeypatch.setitem(faults._faults, "P2", faults._Fault("raise", 2))
        with pytest.raises(faults.Faulted):
            await projector.rebuild()
        assert len(await rows(store, schema="webhooks_rebuild")) == 4
        assert await names(store) == ["a", "b", "c", "d", "e"]
        await reached(projector, await created(store, "f"))
        assert await projector.rebuild() == {"sources": Rebuild(rows=6, equal=True)}
        assert await names(store) == ["a", "b", "c", "d", "e", "f"]


async def test_a_rebuild_while_events_arrive_misses_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash point P3: between the last batch and the swap the log goes on growing."""
    monkeypatch.setattr("hythe_events.projections.BATCH", 20)
    await created(store, "a")
    equal: list[bool] = []

    async def pushes() -> None:
        for n in range(200):
            await switched(store, "a", bool(n % 2))

    async with following(store, Sources()) as projector, asyncio.TaskGroup() as group:
        pushing = group.create_task(pushes())
        while not pushing.done():
            equal.append((await projector.rebuild())["sources"].equal)
        await reached(projector, 201)
    assert all(equal)
    assert len(await rows(store, "switchings")) == 200


async def test_a_rebuild_mends_a_read_model_that_stands_still(store: Store) -> None:
    """After a mistake in `apply` was corrected, the rows that it had made must go too."""

    def wrong(event: Envelope[Event]) -> None:
        if event.position == 2:
            raise ValueError("broken")

    await created(store, "a", "b")
    sources = Sources(meddle=wrong)
    async with following(store, sources) as projector:
        await until(lambda: bool(projector.troubles and "event 2" in projector.troubles[0]))
        with pytest.raises(NotApplied, match=r"event 2 \(source.created of source-b\)"):
            await projector.rebuild()
        sources.meddle = nothing
        assert (await projector.rebuild())["sources"].rows == 2
        await until(lambda: projector.troubles == ())
    assert await names(store) == ["a", "b"]


async def test_a_read_model_with_a_new_shape_is_made_anew_at_the_next_start(store: Store) -> None:
    """`create table if not exists` alone would keep the old columns without a word."""
    async with following(store, Sources()) as projector:
        await reached(projector, await created(store, "a", "b"))

    class Slim(Sources):
        async def apply(self, connection: Connection, event: Envelope[Event]) -> None:
            match event.data:
                case SourceCreated() as said:
                    await connection.execute("insert into sources values ($1)", said.source)

    slim = Slim(tables=("sources",), ddl="create table if not exists sources (name text primary key)")
    async with following(store, slim) as projector:
        await reached(projector, await created(store, "c"))
        await until(lambda: projector.troubles == ())
    assert await rows(store) == [("a",), ("b",), ("c",)]
    async with store.transaction() as connection:
        assert await connection.fetchval("select to_regclass('webhooks.switchings')") is None


async def test_a_second_rebuild_of_the_same_read_model_has_to_wait(
    database: MigratedDatabase, store: Store
) -> None:
    """Two builders in one place would spoil each other's rows."""
    position = await created(store, "a", "b")
    async with Store.open(database.dsn("webhooks")) as other:
        refused: list[BaseException | None] = []
        theirs = Projector("webhooks", other, [Sources()])

        class Impatient(Sources):
            async def apply(self, connection: Connection, event: Envelope[Event]) -> None:
                await super().apply(connection, event)
                if len(self.applied) == 4:  # the second event of the rebuild
                    refused.extend(await asyncio.gather(theirs.rebuild(), return_exceptions=True))  # type: ignore[arg-type]

        async with following(store, Impatient()) as projector:
            await reached(projector, position)
            await projector.rebuild()
        assert [type(each) for each in refused] == [NotNow]


async def test_a_read_model_that_is_not_there_cannot_be_rebuilt(store: Store) -> None:
    """The answer names those that are."""
    with pytest.raises(NotFound, match="no read model stacks; it has: sources") as refused:
        await Projector("webhooks", store, [Sources()]).rebuild("stacks")
    assert refused.value.field == "projection"


async def test_a_service_owns_its_read_models_and_no_others(database: MigratedDatabase, store: Store) -> None:
    """Schemas are a service's own, so another one reads nothing by accident."""
    async with following(store, Sources()) as projector:
        await reached(projector, await created(store, "a"))
    connection = await connect(database.dsn("git"))
    with pytest.raises(Exception, match="permission denied for schema webhooks"):
        await connection.fetch("select * from webhooks.sources")
    await connection.close()
