"""The append-only event store: every append durable, in one order, hash-chained.

```
append ─┐                       ┌─ one transaction ─────────────────────────────┐
append ─┼─► what has queued ───►│ log.append_events: locks the head, checks,    │──► an answer for each
append ─┘   while the last      │ numbers without gaps, chains, inserts, commits│
            commit ran          └───────────────────────────────────────────────┘
```

Many appends of one process share a transaction ("natural batching": no timer; alone, an append goes at once), yet
each keeps its own version check and its own answer. A reader's cursor is one integer, the position: positions have no
gaps and their order is the order of commits, so a reader who asks for what is beyond its cursor never skips an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, cast
from uuid import UUID

from hythe_events.catalog import decode
from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import HytheError, StoreUnavailable, VersionConflict
from hythe_events.faults import crash_point
from hythe_events.language import Event, new_id_bytes
from hythe_events.postgres import (
    Connection,
    Pool,
    QuickUuid,
    Record,
    UniqueViolationError,
    connect,
    open_pool,
    our_errors,
)
from hythe_events.telemetry import current_traceparent

BATCH_EVENTS = 512
BATCH_BYTES = 4 * 1024 * 1024
DOORBELL = "hythe_log"

_APPEND = "select * from log.append_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
_APPEND_BATCH = "select * from log.append_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
_APPEND_ONE = "select * from log.append_event($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
_COLUMNS = "id, stream, version, position, type, data, at, correlation, causation, actor, trace, hash, schema"


class Head(NamedTuple):
    """The end of the log: the last position (0 when empty) and the hash that stands for everything up to it."""

    position: int
    hash: bytes


class Raw(NamedTuple):
    """A row as it is stored, for those who check the chain or measure: nothing is decoded."""

    position: int
    stream: str
    version: int
    id: UUID
    type: str
    schema: int
    at: datetime
    correlation: UUID
    causation: UUID | None
    actor: str
    trace: str | None
    data: str
    hash: bytes
    evidence: bytes | None


@dataclass(eq=False, slots=True)
class _Append:
    stream: str
    expected: int | None
    events: Sequence[Event]
    ids: list[UUID]
    texts: list[str]
    because: Cause
    evidence: bytes | None
    size: int
    answer: asyncio.Future[list[Envelope[Event]]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Store:
    """The event store of one process, as one Postgres role. Open it with `Store.open`; it is a context manager.

    May be used by any number of tasks at once. When the connection is lost, appends under way raise StoreUnavailable
    (they may or may not have been stored: read the stream to know), and the next one connects anew.
    """

    def __init__(self, dsn: str, pool: Pool) -> None:
        self._dsn = dsn
        self._pool = pool
        self._waiting: list[_Append] = []
        self._wanted = asyncio.Event()
        self._committed = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._writer: asyncio.Task[None] | None = None
        self._listener: Connection | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, *, readers: int = 4) -> AsyncIterator[Store]:
        """Opens the store at `dsn`, which names role and password. Raises StoreUnavailable, Misconfigured."""
        store = cls(dsn, await open_pool(dsn, size=readers))
        store._writer = asyncio.create_task(store._write())
        try:
            yield store
        finally:
            await store._close()

    # -- writing

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
        """Append `events` to `stream`, all or none; durable when it returns.

        `expected` is the version the stream must be at: 0 for a new one, None for any. `evidence` is kept with the
        first event and hashed into the chain. `ids` makes the append repeatable: appending the same ids again
        changes nothing and returns the first result. Raises VersionConflict, NotPermitted, StoreUnavailable.
        """
        if not events:
            return []
        trace = current_traceparent()
        if trace is not None:
            because = replace(because, traceparent=trace)
        texts = [event.__pydantic_serializer__.to_json(event).decode() for event in events]
        wanted = _Append(
            stream=stream,
            expected=expected,
            events=events,
            ids=[QuickUuid(new_id_bytes()) for _ in events] if ids is None else list(ids),
            texts=texts,
            because=because,
            evidence=evidence,
            size=sum(map(len, texts)) + (len(evidence) if evidence else 0),
        )
        if self._closing:
            raise StoreUnavailable("the event store is closed")
        self._waiting.append(wanted)
        self._wanted.set()
        return await wanted.answer

    async def _write(self) -> None:
        connection: Connection | None = None
        try:
            while not (self._closing and not self._waiting):
                await self._wanted.wait()
                batch = self._take()
                if not batch:
                    self._wanted.clear()
                    continue
                try:
                    if connection is None or connection.is_closed():
                        connection = await connect(self._dsn, application="hythe store")
                    await self._commit(connection, batch)
                except HytheError as error:
                    self._fail(batch, error)
                    if isinstance(error, StoreUnavailable) and connection is not None:
                        connection.terminate()
                        connection = None
                except asyncio.CancelledError:
                    self._fail(batch, StoreUnavailable("the event store is closed"))
                    raise
        finally:
            self._fail(self._waiting, StoreUnavailable("the event store is closed"))
            if connection is not None:
                connection.terminate()

    def _take(self) -> list[_Append]:
        """What waits, oldest first, at most one append per stream and not more than a batch holds."""
        if len(self._waiting) == 1:
            return [self._waiting.pop()]
        batch: list[_Append] = []
        later: list[_Append] = []
        streams: set[str] = set()
        events = size = 0
        for wanted in self._waiting:
            full = bool(batch) and (
                events + len(wanted.events) > BATCH_EVENTS or size + wanted.size > BATCH_BYTES
            )
            if full or wanted.stream in streams:
                later.append(wanted)
                streams.add(wanted.stream)
                continue
            batch.append(wanted)
            streams.add(wanted.stream)
            events += len(wanted.events)
            size += wanted.size
        self._waiting = later
        return batch

    async def _commit(self, connection: Connection, batch: list[_Append]) -> None:
        await crash_point("W5")
        try:
            async with our_errors():
                rows = await _appended(connection, batch)
        except UniqueViolationError as error:
            await self._one_by_one(connection, batch, error)
            return
        except HytheError as error:
            if len(batch) == 1 or isinstance(error, StoreUnavailable):
                raise
            await self._one_by_one(connection, batch, error)  # let only the one at fault fail
            return
        await crash_point("W6")
        for wanted, (verdict, version, position, at, links) in zip(batch, rows, strict=True):
            if wanted.answer.done():  # its caller has gone
                continue
            if verdict == "appended":
                self._committed = max(self._committed, position)
                wanted.answer.set_result(_envelopes(wanted, version, position, at, links))
            elif verdict == "known":
                wanted.answer.set_result(await self._known(connection, wanted))
            else:
                wanted.answer.set_exception(VersionConflict(wanted.stream, wanted.expected or 0, version))
        self._arrived.set()

    async def _one_by_one(self, connection: Connection, batch: list[_Append], error: Exception) -> None:
        if len(batch) == 1:
            known = await self._known(connection, batch[0])
            if len(known) != len(batch[0].ids):
                raise HytheError(f"the event store refused: {error}")
            batch[0].answer.set_result(known)
            return
        for wanted in batch:
            try:
                await self._commit(connection, [wanted])
            except StoreUnavailable:
                raise
            except HytheError as refused:
                self._fail([wanted], refused)

    async def _known(self, connection: Connection, wanted: _Append) -> list[Envelope[Event]]:
        async with our_errors():
            rows = await connection.fetch(
                f"select {_COLUMNS} from log.events where id = any ($1) and stream = $2 order by position",
                wanted.ids,
                wanted.stream,
            )
        return [_decoded(row) for row in rows]

    @staticmethod
    def _fail(batch: Sequence[_Append], error: HytheError) -> None:
        for wanted in batch:
            if not wanted.answer.done():
                wanted.answer.set_exception(error)

    # -- reading

    async def read(
        self, stream: str, *, after: int = 0, until: int | datetime | None = None
    ) -> list[Envelope[Event]]:
        """The events of `stream` beyond version `after`, oldest first; [] when there is none.

        `until` ends it at a version, or at a moment: what the stream held then. Raises StoreUnavailable, UnknownEvent.
        """
        query = f"select {_COLUMNS} from log.events where stream = $1 and version > $2"
        arguments: list[Any] = [stream, after]
        if until is not None:
            query += " and at <= $3" if isinstance(until, datetime) else " and version <= $3"
            arguments.append(until)
        async with our_errors(), self._pool.acquire() as connection:
            rows = await connection.fetch(query + " order by version", *arguments)
        return [_decoded(row) for row in rows]

    async def read_all(self, after: int, limit: int = 1000) -> list[Envelope[Event]]:
        """At most `limit` events of the whole log beyond position `after`, in order. [] at the end."""
        async with our_errors(), self._pool.acquire() as connection:
            rows = await connection.fetch(
                f"select {_COLUMNS} from log.events where position > $1 order by position limit $2",
                after,
                limit,
            )
        return [_decoded(row) for row in rows]

    async def read_category(self, prefix: str) -> list[Envelope[Event]]:
        """The events of every stream whose name begins with `prefix`, stream by stream. For small categories."""
        async with our_errors(), self._pool.acquire() as connection:
            rows = await connection.fetch(
                f"select {_COLUMNS} from log.events where stream >= $1 and stream < $2 order by stream, version",
                prefix,
                prefix[:-1] + chr(ord(prefix[-1]) + 1),
            )
        return [_decoded(row) for row in rows]

    async def replay(self, after: int = 0, *, page: int = 1000) -> AsyncIterator[list[Envelope[Event]]]:
        """The whole log beyond position `after`, page by page, up to its end. Postgres reads ahead by one page."""
        async for rows in self._pages(_COLUMNS, after, page):
            yield [_decoded(row) for row in rows]

    async def replay_raw(self, after: int = 0, *, page: int = 1000) -> AsyncIterator[list[Raw]]:
        """As `replay`, the rows as they are stored, evidence included."""
        async for rows in self._pages(", ".join(Raw._fields), after, page):
            yield [Raw._make(row) for row in rows]

    async def _pages(self, columns: str, after: int, page: int) -> AsyncIterator[list[Record]]:
        query = f"select {columns} from log.events where position > $1 order by position limit $2"
        async with our_errors(), self._pool.acquire() as connection:
            statement = await connection.prepare(query)
            rows = await statement.fetch(after, page)
            while rows:
                ahead = asyncio.ensure_future(statement.fetch(rows[-1]["position"], page))
                await asyncio.sleep(0)  # let the question go out before the answer to the last one is read
                yield rows
                rows = await ahead

    async def read_raw(self, after: int, limit: int = 1000, *, evidence: bool = True) -> list[Raw]:
        """As `read_all`, the rows as they are stored; without `evidence`, that is None."""
        columns = ", ".join(Raw._fields) if evidence else ", ".join((*Raw._fields[:-1], "null::bytea"))
        async with our_errors(), self._pool.acquire() as connection:
            rows = await connection.fetch(
                f"select {columns} from log.events where position > $1 order by position limit $2",
                after,
                limit,
            )
        return [Raw._make(row) for row in rows]

    async def find(self, event_id: UUID) -> Envelope[Event] | None:
        """The event with this id, or None."""
        async with our_errors(), self._pool.acquire() as connection:
            row = await connection.fetchrow(f"select {_COLUMNS} from log.events where id = $1", event_id)
        return None if row is None else _decoded(row)

    async def evidence(self, event_id: UUID) -> bytes | None:
        """What was kept beside the event, as it was given; None when there is none or no such event."""
        async with our_errors(), self._pool.acquire() as connection:
            kept: bytes | None = await connection.fetchval(
                "select evidence from log.events where id = $1", event_id
            )
        return kept

    async def head(self) -> Head:
        """The end of the log now."""
        async with our_errors(), self._pool.acquire() as connection:
            [row] = await connection.fetch("select position, hash from log.head")
        return Head(row["position"], row["hash"])

    async def beyond(self, position: int, timeout: float = 1.0) -> None:
        """Returns once the log may have events beyond `position`, or after `timeout` seconds.

        Woken by Postgres' NOTIFY; the timeout is the safety net for a ring that was lost. Raises StoreUnavailable.
        """
        await self._listen()
        if self._committed > position:
            return
        self._arrived.clear()
        if (await self.head()).position > position:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._committed <= position:
                    await self._arrived.wait()
                    self._arrived.clear()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection of the pool inside a transaction; it commits when the block ends without an error."""
        async with our_errors(), self._pool.acquire() as connection, connection.transaction():
            yield cast("Connection", connection)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """A connection of its own, for what belongs to a session: advisory locks."""
        connection = await connect(self._dsn, application="hythe session")
        try:
            async with our_errors():
                yield connection
        finally:
            connection.terminate()

    # -- the doorbell

    async def _listen(self) -> None:
        if self._listener is not None and not self._listener.is_closed():
            return
        self._listener = await connect(self._dsn, application="hythe listener")
        async with our_errors():
            await self._listener.add_listener(DOORBELL, self._rung)

    def _rung(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._committed = max(self._committed, int(str(payload) or 0))
        self._arrived.set()

    async def _close(self) -> None:
        self._closing = True
        self._wanted.set()
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=10)
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        if self._listener is not None:
            self._listener.terminate()
        self._pool.terminate()


async def _appended(connection: Connection, batch: list[_Append]) -> Sequence[Any]:
    """For each append of `batch`: verdict, version, position, time and hashes; see log.append_events.

    First in good faith, which is quick: every stream is where its writer thinks. Only if one is not, carefully.
    """
    if all(wanted.expected is not None for wanted in batch):
        with suppress(UniqueViolationError):
            if len(batch) == 1 and len(batch[0].events) == 1:
                return [await _append_one(connection, batch[0])]
            return await _append_batch(connection, batch)
    lengths = [len(wanted.events) for wanted in batch]
    expected = [wanted.expected for wanted in batch]
    return await connection.fetch(_APPEND, lengths, expected, *_arrays(batch))


async def _append_batch(connection: Connection, batch: list[_Append]) -> Sequence[Any]:
    versions: list[int] = []
    for wanted in batch:
        first = (wanted.expected or 0) + 1
        versions.extend(range(first, first + len(wanted.events)))
    [(position, at, links)] = await connection.fetch(_APPEND_BATCH, versions, *_arrays(batch))
    answers: list[tuple[Any, ...]] = []
    told = 0
    for wanted in batch:
        before, told = told, told + len(wanted.events)
        answers.append(("appended", versions[told - 1], position + told, at, links[before:told]))
    return answers


async def _append_one(connection: Connection, wanted: _Append) -> tuple[Any, ...]:
    [event] = wanted.events
    because = wanted.because
    [(position, at, link)] = await connection.fetch(
        _APPEND_ONE,
        wanted.expected,
        wanted.stream,
        wanted.ids[0],
        event.type,
        event.schema_number,
        because.correlation,
        because.causation,
        because.actor,
        because.traceparent,
        wanted.texts[0],
        wanted.evidence,
    )
    return "appended", (wanted.expected or 0) + 1, position, at, [link]


def _arrays(batch: list[_Append]) -> tuple[list[Any] | None, ...]:
    """What the functions that append take of each event: one array per column; None for one that holds nothing."""
    streams, ids, types, schemas, texts = [], [], [], [], []
    correlations, causations, actors, traces, evidence = [], [], [], [], []
    for wanted in batch:
        because = wanted.because
        ids += wanted.ids
        texts += wanted.texts
        evidence.append(wanted.evidence)
        evidence += [None] * (len(wanted.events) - 1)
        for event in wanted.events:
            types.append(event.type)
            schemas.append(event.schema_number)
            streams.append(wanted.stream)
            correlations.append(because.correlation)
            causations.append(because.causation)
            actors.append(because.actor)
            traces.append(because.traceparent)
    return (
        streams,
        ids,
        types,
        schemas,
        correlations,
        causations if any(causations) else None,
        actors,
        traces if any(traces) else None,
        texts,
        evidence if any(evidence) else None,
    )


def _envelopes(
    wanted: _Append, version: int, position: int, at: datetime, links: list[bytes]
) -> list[Envelope[Event]]:
    because = wanted.because
    before = len(links)
    return [
        Envelope(
            event_id,
            wanted.stream,
            version - before + n,
            position - before + n,
            event.type,
            event,
            at,
            because.correlation,
            because.causation,
            because.actor,
            because.traceparent,
            link,
        )
        for n, (event_id, event, link) in enumerate(zip(wanted.ids, wanted.events, links, strict=True), 1)
    ]


def _decoded(row: Record) -> Envelope[Event]:
    """The row as an envelope: `_COLUMNS` stand in the order of its fields, `data` still as text, the schema number last."""
    fields = tuple(row)
    event = decode(fields[4], fields[12], fields[5])
    return tuple.__new__(Envelope, (*fields[:5], event, *fields[6:12]))
