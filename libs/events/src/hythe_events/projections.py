"""Read models: tables that say what the log says, kept up to date while the log grows, and made anew at any time.

```
log ──events beyond the checkpoint──► apply ──rows and checkpoint, one transaction──► schema <service>
log ──events from 1 on─────────────► apply ──────────────────────────────────────► schema <service>_rebuild
                                                          same position, compared, swapped in one transaction ┘
```

A read model may hold only what events say: no clock, no random value, no default that the database makes up. Then
rebuilding it gives the same rows, which `rebuild` checks.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable
from uuid import UUID, uuid4

from hythe_events.envelope import Envelope
from hythe_events.errors import HytheError, NotFound, NotNow
from hythe_events.faults import crash_point
from hythe_events.language import Event, one_line
from hythe_events.postgres import Connection, our_errors
from hythe_events.store import Head

BATCH = 1000
"""Events per transaction."""
PASSES = 3
"""How often a rebuild catches up with the log before it does so for the last time, while the live model waits."""
RESTS, LONGEST_REST = 4, 1.0
"""After a batch a model rests four times as long as it worked, and never longer than this many seconds: in a flood it
applies large batches now and then, instead of one event at a time, and leaves the processor to what cannot wait."""
STANDBY = 0.5
"""Seconds between two looks of a process that finds another one applying."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before an event that could not be applied is tried again: from the first, doubling, to the longest."""

_log = logging.getLogger(__name__)


class Projection(Protocol):
    """One read model, owned by one service.

    `apply` is called once for every event in `hears`, in the order of the log, inside the transaction that also moves
    the checkpoint. It names tables without a schema: the search path decides whether the live ones are meant or those
    of a rebuild. When it raises, the read model stops there and says so; it never skips an event.
    """

    @property
    def name(self) -> str:
        """What the read model is called in commands and checkpoints."""

    @property
    def tables(self) -> tuple[str, ...]:
        """Every table that `ddl` makes."""

    @property
    def ddl(self) -> str:
        """`create table if not exists …` and indexes, no schema named. Changing it rebuilds the model at next start."""

    @property
    def hears(self) -> frozenset[str]:
        """The event types it folds."""

    async def apply(self, connection: Connection, event: Envelope[Event]) -> None:
        """Change the rows as `event` says."""


@runtime_checkable
class AppliesMany(Protocol):
    """A read model that events come to in floods: many rows in one round trip cost a tenth of one by one.

    It is a `Projection` that also has `apply_all`, which leaves the same rows as `apply` for each event in order.
    """

    async def apply_all(self, connection: Connection, events: Sequence[Envelope[Event]]) -> None:
        """Change the rows as `events` say; all or, when it raises, none."""


class Log(Protocol):
    """What a projector needs of the event store; `hythe_events.store.Store` is the real one."""

    async def read_all(self, after: int, limit: int = 1000) -> list[Envelope[Event]]: ...

    async def head(self) -> Head: ...

    async def beyond(self, position: int, timeout: float = 1.0) -> None: ...

    def transaction(self) -> AbstractAsyncContextManager[Connection]: ...

    def session(self) -> AbstractAsyncContextManager[Connection]: ...


class NotApplied(HytheError):
    """An event could not be applied to a read model, which stays as it was before it."""


class Rebuild(NamedTuple):
    """What a rebuild came to: rows in all tables of the model, and whether they equalled the live ones."""

    rows: int
    equal: bool


@dataclass
class _Follower:
    """Where one projection is. `trouble` says why it stands still; None while it goes on."""

    projection: Projection
    position: int = 0
    trouble: str | None = None
    ready: bool = False
    aside: bool = False
    """Whether another process applies: this one only looks whether it still does."""


class Projector:
    """Keeps a service's read models up to date. One per process; of several processes one applies at a time.

    `run` never returns by itself. Applying, checkpoint and swap are each one transaction: a process may be killed
    anywhere. Needs a store whose role owns the schemas `<service>` and `<service>_rebuild`.
    """

    def __init__(self, service: str, store: Log, projections: Sequence[Projection]) -> None:
        self.service = service
        self._store = store
        self._followers = {projection.name: _Follower(projection) for projection in projections}
        self._moved = asyncio.Condition()
        self._rebuilding = asyncio.Lock()
        assert len(self._followers) == len(projections), "two projections of one name"

    @property
    def names(self) -> tuple[str, ...]:
        """The read models, by name."""
        return tuple(self._followers)

    @property
    def troubles(self) -> tuple[str, ...]:
        """Why the service is not ready: a sentence for each read model that is not being kept up to date."""
        return tuple(
            follower.trouble or f"the read model {name} is being set up"
            for name, follower in self._followers.items()
            if follower.trouble or not follower.ready
        )

    def position(self, name: str) -> int:
        """Up to which position of the log the read model is known to be. Raises NotFound."""
        return self._follower(name).position

    async def reached(self, name: str, position: int) -> None:
        """Returns once the read model holds everything up to `position`. Give it an end with `asyncio.timeout`."""
        follower = self._follower(name)
        async with self._moved:
            await self._moved.wait_for(lambda: follower.position >= position)

    async def run(self) -> None:
        """Sets the tables up, then follows the log until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for follower in self._followers.values():
                group.create_task(self._follow(follower), name=f"projection {follower.projection.name}")

    async def rebuild(self, name: str | None = None) -> dict[str, Rebuild]:
        """Make one read model, or all, anew from the first event, beside the live one; then swap them.

        The live tables serve until the swap and stay as they are when this fails or is killed. Raises NotFound for an
        unknown name, NotNow when another rebuild of the model began meanwhile, NotApplied when an event cannot be
        applied, StoreUnavailable.
        """
        names = self.names if name is None else (self._follower(name).projection.name,)
        async with self._rebuilding:
            return {each: await self._rebuild(self._followers[each]) for each in names}

    def _follower(self, name: str) -> _Follower:
        if name not in self._followers:
            raise NotFound(
                f"{self.service} has no read model {name}; it has: {', '.join(self.names)}",
                field="projection",
            )
        return self._followers[name]

    # -- following

    async def _follow(self, follower: _Follower) -> None:
        """Applies what comes. What cannot be applied is tried again, later and later, and says so; never skipped."""
        pause = FIRST_PAUSE
        while True:
            try:
                if not follower.ready:
                    await self._set_up(follower)
                began = time.monotonic()
                if await self._step(follower):
                    follower.trouble, pause = None, FIRST_PAUSE
                    await asyncio.sleep(min(RESTS * (time.monotonic() - began), LONGEST_REST))
                    await self._store.beyond(follower.position)
                else:
                    await asyncio.sleep(STANDBY)
            except Exception as error:  # noqa: BLE001 - whatever it is, the model stands still and says why
                self._stand_still(follower, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _stand_still(self, follower: _Follower, error: Exception) -> None:
        reason = one_line(str(error) or type(error).__name__)
        trouble = f"the read model {follower.projection.name} stands still: {reason}"
        if trouble != follower.trouble:
            _log.error("%s", trouble)
        follower.trouble = trouble

    async def _set_up(self, follower: _Follower) -> None:
        """Makes the tables; a model whose `ddl` has changed since they were made is made anew instead."""
        projection = follower.projection
        async with self._writing(self.service) as connection:
            await _lock(connection, self.service)
            await connection.execute(_CHECKPOINTS)
            made_as = await connection.fetchval(
                "select ddl from checkpoints where projection = $1", projection.name
            )
            if made_as is None:
                await _create(connection, projection)
            follower.position = await _checkpoint(connection, projection.name)
        if made_as not in (None, _shape(projection)):
            _log.info("the read model %s has a new shape; it is made anew", projection.name)
            async with self._rebuilding:
                await self._rebuild(follower)
        follower.ready = True

    async def _step(self, follower: _Follower) -> bool:
        """Applies one batch; whether it was ours to apply."""
        projection = follower.projection
        if follower.aside and await self._is_moved(follower):
            return False
        events = await self._store.read_all(follower.position, BATCH)
        if not events:
            follower.aside = False  # nobody applies anything: whoever is woken first does it next
            return True
        async with self._writing(self.service) as connection:
            ours = await _try_lock(connection, self.service, projection.name)
            found = await _checkpoint(connection, projection.name)
            ours = ours and found == follower.position
            if ours:
                await _apply(connection, projection, events)
        follower.aside = not ours
        await self._arrive(follower, events[-1].position if ours else found)
        return ours

    async def _is_moved(self, follower: _Follower) -> bool:
        """Whether another process has moved the read model on since the last look; it goes on doing so, we look on."""
        async with self._writing(self.service) as connection:
            found = await _checkpoint(connection, follower.projection.name)
        moved = found != follower.position
        await self._arrive(follower, found)
        return moved

    async def _arrive(self, follower: _Follower, position: int) -> None:
        if position != follower.position:
            async with self._moved:
                follower.position = position
                self._moved.notify_all()

    @asynccontextmanager
    async def _writing(self, *schemas: str) -> AsyncIterator[Connection]:
        """A transaction in which unqualified tables are those of `schemas`."""
        async with self._store.transaction() as connection:
            await _search(connection, *schemas)
            yield connection

    # -- rebuilding

    async def _rebuild(self, follower: _Follower) -> Rebuild:
        projection, beside = follower.projection, f"{self.service}_rebuild"
        async with self._store.session() as session:  # its lock ends with it, however it ends
            keys = _lock_keys(beside, projection.name)
            if not await session.fetchval("select pg_try_advisory_lock($1, $2)", *keys):
                raise NotNow(f"the read model {projection.name} is being rebuilt already")
            return await self._build_beside(follower, uuid4())

    async def _build_beside(self, follower: _Follower, token: UUID) -> Rebuild:
        projection, beside = follower.projection, f"{self.service}_rebuild"
        async with self._writing(beside) as connection:
            await _lock(connection, beside)
            await connection.execute(_CHECKPOINTS)
            await _drop(connection, beside, projection)
            await connection.execute("delete from checkpoints where projection = $1", projection.name)
            await _create(connection, projection, token)
        position = 0
        for _ in range(PASSES):
            async for events in self._events(position, (await self._store.head()).position):
                async with self._writing(beside) as connection:
                    await _still_ours(connection, projection, token)
                    await _apply(connection, projection, events)
                position = events[-1].position
                await crash_point("P2")
        return await self._swap(follower, position, token)

    async def _events(self, after: int, until: int) -> AsyncIterator[list[Envelope[Event]]]:
        """The log beyond `after` in batches, and no further than `until`: it may grow faster than it is applied."""
        while after < until and (events := await self._store.read_all(after, min(BATCH, until - after))):
            yield events
            after = events[-1].position

    async def _swap(self, follower: _Follower, position: int, token: UUID) -> Rebuild:
        """Brings both to the same position while nobody else writes, compares them, and puts the new in place."""
        projection, live, beside = follower.projection, self.service, f"{self.service}_rebuild"
        async with self._writing(beside) as connection:
            await connection.execute("set local lock_timeout = '30s'")
            await _lock(connection, live, projection.name)
            await _still_ours(connection, projection, token)
            async for events in self._events(position, (await self._store.head()).position):
                await _apply(connection, projection, events)
                position = events[-1].position
            comparable = await self._bring_up(connection, projection, position)
            equal = comparable and await _equal(connection, projection, live, beside)
            rows = sum([await _count(connection, beside, table) for table in projection.tables])
            await _drop(connection, live, projection)
            await _search(connection, beside)
            for table in projection.tables:
                await connection.execute(f"alter table {_quoted(table)} set schema {_quoted(live)}")
            await connection.execute("delete from checkpoints where projection = $1", projection.name)
            await _search(connection, live)
            await connection.execute(
                "update checkpoints set position = $2, ddl = $3, tables = $4 where projection = $1",
                projection.name,
                position,
                _shape(projection),
                projection.tables,
            )
        await self._arrive(follower, position)
        return Rebuild(rows, equal)

    async def _bring_up(self, connection: Connection, projection: Projection, position: int) -> bool:
        """Applies to the live tables what they miss up to `position`; False when that cannot be done.

        A model that stands still, or whose shape has changed, is what a rebuild mends: it is replaced all the same.
        """
        await _search(connection, self.service)
        made_as = await connection.fetchval(
            "select ddl from checkpoints where projection = $1", projection.name
        )
        if made_as != _shape(projection):
            return False
        try:
            async with connection.transaction():
                done = await _checkpoint(connection, projection.name)
                async for events in self._events(done, position):
                    await _apply(connection, projection, events)
                    done = events[-1].position
        except NotApplied as error:
            _log.warning("the live read model %s could not be brought up to date: %s", projection.name, error)
            return False
        return done == position


_CHECKPOINTS = """
    create table if not exists checkpoints (
        projection text primary key,
        position   bigint not null default 0,
        ddl        text not null,
        tables     text[] not null,
        token      uuid
    )
"""


def _shape(projection: Projection) -> str:
    return hashlib.sha256(projection.ddl.encode()).hexdigest()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def _search(connection: Connection, *schemas: str) -> None:
    await connection.execute("select set_config('search_path', $1, true)", ", ".join(map(_quoted, schemas)))


def _lock_keys(schema: str, what: str) -> tuple[int, int]:
    digest = hashlib.sha256(f"hythe projection {schema} {what}".encode()).digest()
    return int.from_bytes(digest[:4], signed=True), int.from_bytes(digest[4:8], signed=True)


async def _lock(connection: Connection, schema: str, what: str = "") -> None:
    await connection.execute("select pg_advisory_xact_lock($1, $2)", *_lock_keys(schema, what))


async def _try_lock(connection: Connection, schema: str, what: str) -> bool:
    return bool(
        await connection.fetchval("select pg_try_advisory_xact_lock($1, $2)", *_lock_keys(schema, what))
    )


async def _create(connection: Connection, projection: Projection, token: UUID | None = None) -> None:
    await connection.execute(projection.ddl)
    await connection.execute(
        "insert into checkpoints (projection, ddl, tables, token) values ($1, $2, $3, $4)",
        projection.name,
        _shape(projection),
        projection.tables,
        token,
    )


async def _drop(connection: Connection, schema: str, projection: Projection) -> None:
    """Drops the model's tables in `schema`, those too that it had when it was made and has no more."""
    checkpoints = f"{_quoted(schema)}.checkpoints"
    had = await connection.fetchval(
        f"select tables from {checkpoints} where projection = $1",
        projection.name,
    )
    tables = ", ".join(f"{_quoted(schema)}.{_quoted(table)}" for table in {*projection.tables, *(had or ())})
    await connection.execute(f"drop table if exists {tables}")


async def _count(connection: Connection, schema: str, table: str) -> int:
    query = f"select count(*) from {_quoted(schema)}.{_quoted(table)}"
    return int(await connection.fetchval(query))


async def _checkpoint(connection: Connection, name: str) -> int:
    return int(await connection.fetchval("select position from checkpoints where projection = $1", name))


async def _still_ours(connection: Connection, projection: Projection, token: UUID) -> None:
    found = await connection.fetchval(
        "select token from checkpoints where projection = $1 for update", projection.name
    )
    if found != token:
        raise NotNow(f"another rebuild of the read model {projection.name} began; this one ends")


async def _apply(connection: Connection, projection: Projection, events: Sequence[Envelope[Event]]) -> None:
    """Applies a batch and moves the checkpoint of the schema that the search path names."""
    heard = [event for event in events if event.type in projection.hears]
    if len(heard) > 1 and isinstance(projection, AppliesMany):
        heard = await _apply_many(connection, projection, heard)
    for event in heard:
        try:
            async with our_errors():
                await projection.apply(connection, event)
        except Exception as error:
            if getattr(error, "retry", False):
                raise
            raise NotApplied(
                f"event {event.position} ({event.type} of {event.stream}) could not be applied: "
                f"{type(error).__name__}: {one_line(str(error), 200)}"
            ) from error
    await crash_point("P1")
    await connection.execute(
        "update checkpoints set position = $2 where projection = $1", projection.name, events[-1].position
    )


async def _apply_many(
    connection: Connection, projection: AppliesMany, events: list[Envelope[Event]]
) -> list[Envelope[Event]]:
    """Applies `events` at once; those that are left to be applied one by one, so that the one at fault is named."""
    try:
        async with our_errors(), connection.transaction():
            await projection.apply_all(connection, events)
    except Exception as error:
        if getattr(error, "retry", False):
            raise
        return events
    return []


async def _equal(connection: Connection, projection: Projection, live: str, beside: str) -> bool:
    """Whether both hold the same rows, as canonical JSON (jsonb), each as often."""
    for table in map(_quoted, projection.tables):
        differing = await connection.fetchval(
            f"""
            with live as (select to_jsonb(t) as row from {_quoted(live)}.{table} t),
                 made as (select to_jsonb(t) as row from {_quoted(beside)}.{table} t)
            select exists ((select row from live except all select row from made)
                           union all
                           (select row from made except all select row from live))
            """
        )
        if differing:
            return False
    return True
