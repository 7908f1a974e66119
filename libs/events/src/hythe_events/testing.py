"""Doubles for tests: an event store, data keys, a bus and blobs in memory, and `given(…).when(…).then(…)` for rules.

They behave as the real ones do, and the same tests prove it: `libs/events/tests/test_store_conformance.py` runs
against `MemoryStore` and against Postgres. None of them sleeps, and none needs a network.

```python
given(build.decider, requested, started).when(FinishBuild(…)).then(BuildFinished(…))

store = MemoryStore()
bus = MemoryBus(store)
bus.hear("build", BuildRequested, handlers.on_build_requested)
await store.of("git").append(…)
await bus.settle()
```
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NoReturn, TypeVar
from uuid import UUID

from hythe_events.access import ROLE, SAYS
from hythe_events.blobs import BlobDamaged
from hythe_events.catalog import decode
from hythe_events.chain import START, link
from hythe_events.decider import Decider, fold
from hythe_events.envelope import Cause, Envelope, from_cloudevent, to_cloudevent
from hythe_events.errors import BusUnavailable, HytheError, NotFound, NotPermitted, VersionConflict
from hythe_events.language import BlobRef, Command, Event, Query, Value, new_id
from hythe_events.migrate import ROLES, migrate
from hythe_events.postgres import connect, with_login
from hythe_events.secrets import WrappedKey
from hythe_events.store import Head, Raw
from hythe_events.telemetry import current_traceparent

LOOK_AGAIN = 0.01

E = TypeVar("E", bound=Event)
A = TypeVar("A", bound=Command | Query)
V = TypeVar("V", bound=Value)
State = TypeVar("State")
Asked = TypeVar("Asked")

NO_HASH = bytes(32)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


# -- the event store


@dataclass
class _Log:
    """What all stores on one log share."""

    rows: list[Raw] = field(default_factory=list)
    by_id: dict[UUID, Raw] = field(default_factory=dict)
    streams: defaultdict[str, list[Raw]] = field(default_factory=lambda: defaultdict(list))
    grown: asyncio.Event = field(default_factory=asyncio.Event)


_STREAM = re.compile(r"[a-z]+-[^\x00-\x1f\x7f]+")
_NO_CONTROL = re.compile(r"[^\x00-\x1f\x7f]*")


class MemoryStore:
    """The event store of `hythe_events.store`, in memory. `of` gives another service's store on the same log.

    With `service`, only what `access.SAYS` allows that service can be written; without, anything. `clock` is asked
    for the time of each append. There is no SQL in it: read models need the real one.
    """

    def __init__(
        self,
        service: str | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        log: _Log | None = None,
    ) -> None:
        self.service = service
        self._clock = clock
        self._log = log or _Log()

    def of(self, service: str | None) -> MemoryStore:
        """The same log, written as `service`."""
        return MemoryStore(service, clock=self._clock, log=self._log)

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
        """As `Store.append`."""
        await asyncio.sleep(0)  # others get their turn here, as they do while Postgres works
        if not events:
            return []
        because = replace(because, traceparent=current_traceparent() or because.traceparent)
        ids = [new_id() for _ in events] if ids is None else list(ids)
        assert len(ids) == len(events), "as many ids as events"
        log, version = self._log, len(self._log.streams[stream])
        if expected != version:
            known = log.by_id.get(ids[-1])
            if known is not None and known.stream == stream:
                return self._known(stream, ids)
            if expected is not None:
                raise VersionConflict(stream, expected, version)
        self._check(stream, events, because)
        if any(event_id in log.by_id for event_id in ids) or len(set(ids)) < len(ids):
            known_events = self._known(stream, ids)
            if len(known_events) != len(ids):
                raise HytheError("the event store refused: an event with this id is in the log already")
            return known_events
        at = self._clock()
        for number, (event_id, event) in enumerate(zip(ids, events, strict=True)):
            self._add(stream, event_id, event, at, because, None if number else evidence)
        log.grown.set()
        log.grown = asyncio.Event()
        return [_decoded(row) for row in log.streams[stream][version:]]

    def _check(self, stream: str, events: Sequence[Event], because: Cause) -> None:
        if self.service is not None:
            allowed = SAYS[self.service].get(stream.partition("-")[0], ())
            for event in events:
                if event.type not in allowed:
                    raise NotPermitted(
                        f"Postgres refused: hythe_{self.service} may not write {event.type} to stream {stream}"
                    )
        plain = _NO_CONTROL.fullmatch(because.actor) and _NO_CONTROL.fullmatch(because.traceparent or "")
        if not _STREAM.fullmatch(stream) or not plain:
            raise HytheError(
                f"the event store refused: stream {stream!r} or its actor or trace is not plain text"
            )

    def _add(
        self, stream: str, event_id: UUID, event: Event, at: datetime, because: Cause, evidence: bytes | None
    ) -> None:
        log = self._log
        row = Raw(
            position=len(log.rows) + 1,
            stream=stream,
            version=len(log.streams[stream]) + 1,
            id=event_id,
            type=event.type,
            schema=event.schema_number,
            at=at,
            correlation=because.correlation,
            causation=because.causation,
            actor=because.actor,
            trace=because.traceparent,
            data=event.__pydantic_serializer__.to_json(event).decode(),
            hash=NO_HASH,
            evidence=evidence,
        )
        row = row._replace(hash=link(log.rows[-1].hash if log.rows else START, row))
        log.rows.append(row)
        log.by_id[event_id] = row
        log.streams[stream].append(row)

    def _known(self, stream: str, ids: Sequence[UUID]) -> list[Envelope[Event]]:
        wanted = set(ids)
        return [_decoded(row) for row in self._log.streams[stream] if row.id in wanted]

    async def read(
        self, stream: str, *, after: int = 0, until: int | datetime | None = None
    ) -> list[Envelope[Event]]:
        """As `Store.read`."""
        await asyncio.sleep(0)
        rows = self._log.streams.get(stream, [])
        if isinstance(until, datetime):
            rows = [row for row in rows if row.at <= until]
        elif until is not None:
            rows = rows[:until]
        return [_decoded(row) for row in rows[after:]]

    async def read_all(self, after: int, limit: int = 1000) -> list[Envelope[Event]]:
        """As `Store.read_all`."""
        return [_decoded(row) for row in await self.read_raw(after, limit)]

    async def read_raw(self, after: int, limit: int = 1000, *, evidence: bool = True) -> list[Raw]:
        """As `Store.read_raw`."""
        await asyncio.sleep(0)
        rows = self._log.rows[after : after + limit]
        return rows if evidence else [row._replace(evidence=None) for row in rows]

    async def read_category(self, prefix: str) -> list[Envelope[Event]]:
        """As `Store.read_category`."""
        await asyncio.sleep(0)
        streams = sorted(name for name in self._log.streams if name.startswith(prefix))
        return [_decoded(row) for name in streams for row in self._log.streams[name]]

    async def replay(self, after: int = 0, *, page: int = 1000) -> AsyncIterator[list[Envelope[Event]]]:
        """As `Store.replay`."""
        while events := await self.read_all(after, page):
            yield events
            after = events[-1].position

    async def find(self, event_id: UUID) -> Envelope[Event] | None:
        """As `Store.find`."""
        await asyncio.sleep(0)
        row = self._log.by_id.get(event_id)
        return None if row is None else _decoded(row)

    async def evidence(self, event_id: UUID) -> bytes | None:
        """As `Store.evidence`."""
        await asyncio.sleep(0)
        row = self._log.by_id.get(event_id)
        return None if row is None else row.evidence

    async def head(self) -> Head:
        """As `Store.head`."""
        await asyncio.sleep(0)
        rows = self._log.rows
        return Head(len(rows), rows[-1].hash) if rows else Head(0, START)

    async def beyond(self, position: int, timeout: float = 1.0) -> None:
        """As `Store.beyond`."""
        try:
            async with asyncio.timeout(timeout):
                while len(self._log.rows) <= position:
                    await self._log.grown.wait()
        except TimeoutError:
            return

    def transaction(self) -> NoReturn:
        """There is none: a test that needs SQL asks for the real Postgres."""
        raise AssertionError("the store in memory has no SQL; a test of a read model uses the real Postgres")


def _decoded(row: Raw) -> Envelope[Event]:
    return Envelope(
        id=row.id,
        stream=row.stream,
        version=row.version,
        position=row.position,
        type=row.type,
        data=decode(row.type, row.schema, row.data),
        at=row.at,
        correlation=row.correlation,
        causation=row.causation,
        actor=row.actor,
        traceparent=row.trace,
        hash=row.hash,
    )


# -- a real database


@dataclass(frozen=True)
class MigratedDatabase:
    """A real Postgres database that was migrated for a test. `owner` is the address with the migrating role's login."""

    owner: str = field(repr=False)
    password: str = field(default="a-password-of-the-tests", repr=False)

    def dsn(self, service: str) -> str:
        """The address for a service's role, or the relay's."""
        return with_login(self.owner, ROLE.format(service=service), self.password)

    async def migrate(self) -> MigratedDatabase:
        """Migrate it. A copy of a migrated database needs `let_in` at most, which is a good deal quicker."""
        await migrate(self.owner, dict.fromkeys(ROLES, self.password))
        return self

    async def let_in(self) -> MigratedDatabase:
        """Give the roles this password: they belong to the whole server, and another test may have changed it."""
        connection = await connect(self.owner, application="hythe tests")
        roles = (f"alter role {ROLE.format(service=name)} password '{self.password}'" for name in ROLES)
        await connection.execute("; ".join(roles))
        await connection.close()
        return self


# -- data keys


class MemoryKeys:
    """Data keys in memory; see `hythe_events.secrets.Keys` for what it promises."""

    def __init__(self) -> None:
        self._kept: dict[UUID, WrappedKey] = {}
        self._retired: set[UUID] = set()

    async def in_use(self, owner: str) -> WrappedKey | None:
        await asyncio.sleep(0)
        return self._in_use(owner)

    async def by_id(self, key_id: UUID) -> WrappedKey | None:
        await asyncio.sleep(0)
        return self._kept.get(key_id)

    async def keep(self, key: WrappedKey, *, replaces: UUID | None = None) -> WrappedKey:
        await asyncio.sleep(0)
        if replaces is not None:
            self._retired.add(replaces)
        if (first := self._in_use(key.owner)) is not None:
            return first
        self._kept[key.key_id] = key
        return key

    async def shred(self, owner: str) -> int:
        await asyncio.sleep(0)
        gone = [key for key in self._kept.values() if key.owner == owner and key.wrapped is not None]
        self._kept.update({key.key_id: key._replace(wrapped=None) for key in gone})
        return len(gone)

    async def masters(self) -> Mapping[str, int]:
        await asyncio.sleep(0)
        counts: defaultdict[str, int] = defaultdict(int)
        for key in self._kept.values():
            counts[key.master_id] += key.wrapped is not None
        return {name: count for name, count in counts.items() if count}

    async def to_rewrap(self, master_id: str, limit: int) -> Sequence[WrappedKey]:
        await asyncio.sleep(0)
        return [k for k in self._kept.values() if k.wrapped is not None and k.master_id != master_id][:limit]

    async def rewrap(self, key: WrappedKey, master_id: str, wrapped: bytes) -> bool:
        await asyncio.sleep(0)
        now = self._kept.get(key.key_id)
        if now is None or now.wrapped is None or now.master_id != key.master_id:
            return False
        self._kept[key.key_id] = now._replace(master_id=master_id, wrapped=wrapped)
        return True

    def _in_use(self, owner: str) -> WrappedKey | None:
        usable = (k for k in self._kept.values() if k.wrapped is not None and k.key_id not in self._retired)
        return next((key for key in usable if key.owner == owner), None)


# -- blobs


class MemoryBlobs:
    """The object store of `hythe_events.blobs`, in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    async def put(self, data: bytes) -> BlobRef:
        """As `Blobs.put`."""
        await asyncio.sleep(0)
        digest = hashlib.sha256(data).hexdigest()
        self._kept[digest] = data
        return BlobRef(key=digest, size=len(data), sha256=digest)

    async def get(self, ref: BlobRef) -> bytes:
        """As `Blobs.get`."""
        whole = b"".join([piece async for piece in self.read(ref)])
        if hashlib.sha256(whole).hexdigest() != ref.sha256:
            raise BlobDamaged(f"the object {ref.key} does not have the content it is named by")
        return whole

    async def read(self, ref: BlobRef) -> AsyncIterator[bytes]:
        """As `Blobs.read`."""
        await asyncio.sleep(0)
        if ref.key not in self._kept:
            raise NotFound(f"the object store does not hold {ref.key}")
        whole = self._kept[ref.key]
        for start in range(0, len(whole), 512 * 1024):
            yield whole[start : start + 512 * 1024]


# -- the bus

_Heard = Callable[[Envelope[Any]], Awaitable[None]]
_Served = Callable[[Any, Cause], Awaitable[Value]]


@dataclass(frozen=True)
class Parked:
    """A message that a handler could not handle."""

    service: str
    event: Envelope[Event]
    error: Exception


class MemoryBus:
    """The bus in memory, on a `MemoryStore`: what is in the log is heard by who said they hear it, in order.

    Nothing moves by itself: `settle` delivers until nobody has anything left to hear. Events, commands and answers go
    through their JSON on the way, as on the wire. A handler that raises an error with `retry = True` hears the same
    message again, up to `deliveries` times; then, or at any other error, the message is parked.
    """

    def __init__(self, store: MemoryStore, *, deliveries: int = 5) -> None:
        self._store = store
        self._deliveries = deliveries
        self._hears: list[tuple[str, str, _Heard]] = []
        self._serves: dict[str, _Served] = {}
        self._delivered = 0
        self._logs: defaultdict[UUID, list[bytes | None]] = defaultdict(list)
        self._said = asyncio.Condition()
        self.parked: list[Parked] = []

    def hear(self, service: str, event: type[E], handler: Callable[[Envelope[E]], Awaitable[None]]) -> None:
        """`service` hears `event` with `handler`, as `on(event, handler)` does in a running service."""
        self._hears.append((service, event.type, handler))

    def serve(
        self, asked: type[A], handler: Callable[[A, Cause], Awaitable[Value]], *, service: str | None = None
    ) -> None:
        """`handler` answers `asked`, as `answers(asked, handler)` does; `service` where the subject leaves it open."""
        self._serves[asked.subject.format(service=service)] = handler

    async def settle(self) -> int:
        """Deliver everything that was appended, and what that leads to, until it is quiet; how many were delivered."""
        first = self._delivered
        while events := await self._store.read_all(self._delivered):
            for event in events:
                self._delivered = event.position
                await self._deliver(event)
        return self._delivered - first

    async def deliver_again(self, event: Envelope[Event]) -> None:
        """Deliver a message once more, as a bus does that never got the acknowledgement."""
        await self._deliver(event)

    async def _deliver(self, event: Envelope[Event]) -> None:
        for service, kind, handler in self._hears:
            if kind != event.type:
                continue
            for delivery in range(1, self._deliveries + 1):
                try:
                    await handler(from_cloudevent(to_cloudevent(event)))
                    break
                except Exception as error:  # noqa: BLE001 - whatever a handler raises parks its message
                    if not getattr(error, "retry", False) or delivery == self._deliveries:
                        self.parked.append(Parked(service, event, error))
                        break
        async with self._said:
            self._said.notify_all()

    async def ask(
        self,
        asked: Command | Query,
        answer: type[V],
        *,
        actor: str,
        service: str | None = None,
        timeout: float = 10.0,
        command_id: UUID | None = None,
        traceparent: str | None = None,
    ) -> V:
        """As `Bus.ask`: raises what the handler raises; BusUnavailable when nobody answers."""
        subject = asked.subject.format(service=service)
        handler = self._serves.get(subject)
        if handler is None:
            name = subject.split(".")[1]
            raise BusUnavailable(f"nobody answers {subject}: the {name} service does not run")
        cause = Cause(command_id or new_id(), None, actor, traceparent)
        received = type(asked).model_validate_json(asked.model_dump_json())
        try:
            async with asyncio.timeout(timeout):
                answered = await handler(received, cause)
        except TimeoutError as error:
            raise BusUnavailable(f"no answer to {subject} within {timeout:g} s") from error
        return answer.model_validate_json(answered.model_dump_json())

    async def log_line(self, deployment: UUID, line: bytes) -> None:
        """As `Bus.log_line`."""
        await self._say(deployment, line)

    async def end_log(self, deployment: UUID) -> None:
        """As `Bus.end_log`."""
        await self._say(deployment, None)

    async def _say(self, deployment: UUID, line: bytes | None) -> None:
        async with self._said:
            self._logs[deployment].append(line)
            self._said.notify_all()

    async def follow_log(self, deployment: UUID) -> AsyncIterator[bytes]:
        """As `Bus.follow_log`."""
        lines, at = self._logs[deployment], 0
        while True:
            async with self._said:
                while len(lines) <= at:
                    await self._said.wait()
            line = lines[at]
            at += 1
            if line is None:
                return
            yield line

    async def watch(
        self,
        after: int | None = None,
        types: Sequence[str] = (),
        *,
        actor: str,  # noqa: ARG002
    ) -> AsyncIterator[Envelope[Event]]:
        """As `Bus.watch`: what was delivered, as it is delivered."""
        position = self._delivered if after is None else after
        while True:
            async with self._said:
                while self._delivered <= position:
                    await self._said.wait()
            for event in await self._store.read_all(position, self._delivered - position):
                position = event.position
                if not types or any(
                    event.type == kind or event.type.startswith(f"{kind}.") for kind in types
                ):
                    yield event


# -- rules


def told(
    stream: str, *events: Event, at: datetime = LONG_AGO, first_position: int = 1
) -> list[Envelope[Event]]:
    """`events` as they would stand in `stream` from version 1 on, one second apart."""
    root = UUID(int=0)
    return [
        Envelope(
            id=UUID(int=first_position + number),
            stream=stream,
            version=number + 1,
            position=first_position + number,
            type=event.type,
            data=event,
            at=at + timedelta(seconds=number),
            correlation=root,
            causation=None,
            actor="hythe:test",
            traceparent=None,
            hash=NO_HASH,
        )
        for number, event in enumerate(events)
    ]


@dataclass(frozen=True)
class Decided(Generic[State]):
    """What a rule answered: events, or an error. `state` is the state it decided on."""

    state: State
    events: Sequence[Event]
    error: Exception | None

    def then(self, *expected: Event) -> None:
        """It happened: exactly these events, in this order."""
        self._not_an_error()
        assert list(self.events) == list(expected), f"decided {list(self.events)}, expected {list(expected)}"

    def then_nothing(self) -> None:
        """It was heard before: no events."""
        self.then()

    def then_raises(self, error: type[Exception], says: str = "") -> None:
        """It was refused, or is not possible now: an error of this kind whose sentence holds `says`."""
        assert self.error is not None, f"decided {list(self.events)}, expected {error.__name__}"
        assert isinstance(self.error, error), f"raised {self.error!r}, expected {error.__name__}"
        assert says in str(self.error), f"said {str(self.error)!r}, expected {says!r} in it"

    def _not_an_error(self) -> None:
        if self.error is not None:
            raise self.error


@dataclass(frozen=True)
class Given(Generic[State, Asked]):
    """A stream's events so far, as `given` was told them."""

    decider: Decider[State, Asked]
    events: tuple[Event, ...]

    def when(self, command: Asked) -> Decided[State]:
        """Decide `command` on the state that the events leave."""
        state = fold(self.decider.evolve, told("test-1", *self.events), self.decider.initial)
        try:
            return Decided(state, self.decider.decide(command, state), None)
        except Exception as error:  # noqa: BLE001 - an error is one of the four answers of a decision
            return Decided(state, [], error)


def given(decider: Decider[State, Asked], *events: Event) -> Given[State, Asked]:
    """The rules to test, and what happened so far in the stream they rule."""
    return Given(decider, events)


async def until(happened: Callable[[], bool | Awaitable[bool]], seconds: float = 20.0) -> None:
    """Returns once `happened()` holds: for what tells nobody when it happens. Raises TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            answer = happened()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(LOOK_AGAIN)
