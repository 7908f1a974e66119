"""The relay: tells the bus what the log holds, in the log's order, and never forgets where it was.

```
        advisory lock                    log.relay (position, epoch)
follow ──► lead ──► prepare streams ──► compare bus and cursor ──► read on ──► publish ──► move the cursor ──┐
   ▲        │ lost                                                   ▲──────── woken by NOTIFY, or 1 s ◄──────┘
   └────────┘
```

The events table is the outbox; no row is ever marked. Any number of processes may run a relay, one leads: whoever
holds the advisory lock. Taking over raises the epoch, and the cursor moves only for the epoch that owns it, so a
leader that was asleep cannot move it back. What was published twice is dropped by `Nats-Msg-Id`, and what gets
through is harmless, because handlers read the log.

A bus that lost its data (a new stream, or one that ends before the cursor) is told again from where it ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import structlog

from hythe_events import streams
from hythe_events.bus import BATCH_LIMIT, Bus, Outgoing
from hythe_events.chain import Sealer
from hythe_events.envelope import Cause, wire
from hythe_events.errors import HytheError, NotNow
from hythe_events.faults import crash_point
from hythe_events.language import new_id
from hythe_events.log import ChainSealed
from hythe_events.postgres import Connection
from hythe_events.store import Raw, Store

LOCK = 0x48595252  # "HYRR"
CANDIDACY = 1.0
"""Seconds between two attempts to lead: how long the log may stay untold when a leader dies."""
LOOK_AGAIN = 1.0
"""Seconds after which the leader looks at the log even though nothing rang."""
COMPARE = 15.0
"""Seconds between two comparisons of the bus with the cursor."""
BATCH_BYTES = 4 * 1024 * 1024
SEAL_EVENTS = 1000
SEAL_SECONDS = 60.0

_log = structlog.get_logger("hythe.relay")


class LogWentBack(HytheError):
    """The log holds less than it has told: it was cut, or restored from an older copy."""


class Relay:
    """Publishes the log. `store` and `bus` are open as the relay's own role and user."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        sealer: Sealer,
        *,
        ack_wait: float,
        max_bytes: int,
        relayed: Callable[[int, int], None] = lambda _position, _head: None,
    ) -> None:
        """`relayed` is told, now and then, how far the log has been told and where it ends."""
        self._store = store
        self._bus = bus
        self._sealer = sealer
        self._relayed = relayed
        self._ack_wait = ack_wait
        self._max_bytes = max_bytes
        self.leading = False
        self.trouble: str | None = "the relay has not yet seen the bus"
        """Why the log cannot be told now, for the readiness of the service; None when all is well or another leads."""
        self.position = 0
        """How far the log has been told, as this process knows; 0 while it does not lead."""
        self._sealed = 0
        self._sealed_at = time.monotonic()

    async def run(self) -> None:
        """Leads whenever nobody else does, for ever. Outages of Postgres or NATS are waited out."""
        while True:
            try:
                async with self._store.session() as session:
                    while not await session.fetchval("select pg_try_advisory_lock($1)", LOCK):
                        self.trouble = None
                        await asyncio.sleep(CANDIDACY)
                    await self._lead(session)
            except NotNow as error:
                self.trouble = f"the relay waits: {error}"
                _log.warning("relay_waits", reason=str(error))
            except HytheError as error:
                self.trouble = f"the relay cannot go on: {error}"
                _log.error("relay_failed", reason=str(error))
            finally:
                self.leading = False
            await asyncio.sleep(CANDIDACY)

    async def _lead(self, session: Connection) -> None:
        epoch = await session.fetchval("update log.relay set epoch = epoch + 1 returning epoch")
        await crash_point("R1")
        await self._bus.prepare(ack_wait=self._ack_wait, max_bytes=self._max_bytes)
        cursor = await self._compare(session, epoch)
        self.leading, self.trouble = True, None
        self._sealed, self._sealed_at = cursor, time.monotonic()
        compared = time.monotonic()
        _log.info("relay_leads", epoch=epoch, position=cursor)
        while True:
            events = await self._store.read_raw(cursor, BATCH_LIMIT, evidence=False)
            if time.monotonic() - compared > COMPARE:
                cursor, compared = await self._compare(session, epoch), time.monotonic()
                continue
            self._relayed(cursor, events[-1].position if events else cursor)
            if not events:
                self.position = cursor
                await self._seal_if_due(cursor)
                waited = time.monotonic()
                await self._store.beyond(cursor, LOOK_AGAIN)
                idle = time.monotonic() - waited >= LOOK_AGAIN  # otherwise moving the cursor will tell
                if idle and not await session.fetchval("select epoch = $1 from log.relay", epoch):
                    return
                continue
            for batch in _batches(events):
                await crash_point("R2")
                await self._bus.publish(batch)
            await crash_point("R4")
            cursor = events[-1].position
            if not await self._move(session, epoch, cursor):
                _log.warning("relay_deposed", epoch=epoch)
                return
            self.position = cursor

    async def _move(
        self, session: Connection, epoch: int, position: int, created: datetime | None = None
    ) -> bool:
        moved = await session.execute(
            "update log.relay set position = $1, stream_created = coalesce($3, stream_created) where epoch = $2",
            position,
            epoch,
            created,
        )
        return bool(moved == "UPDATE 1")

    async def _compare(self, session: Connection, epoch: int) -> int:
        """Where to go on from: the cursor, or where the bus ends if it has lost something."""
        told: int = await session.fetchval("select position from log.relay")
        remembered: datetime | None = await session.fetchval("select stream_created from log.relay")
        bus = await self._bus.stream_state()
        head = await self._store.head()
        if bus.position > head.position:
            raise LogWentBack(
                f"the bus tells of events up to {bus.position}, but the log ends at {head.position}: the database was cut "
                "or restored from an older copy; restore the newer one, or wipe the bus to accept the loss"
            )
        if bus.created == remembered and bus.position >= told:
            return told
        if remembered is not None:
            _log.warning("bus_lost_data", told=told, bus_ends_at=bus.position)
        go_on = min(told, bus.position)
        await self._move(session, epoch, go_on, bus.created)
        return go_on

    async def _seal_if_due(self, cursor: int) -> None:
        age = time.monotonic() - self._sealed_at
        if cursor - self._sealed < (1 if age > SEAL_SECONDS else SEAL_EVENTS):
            return
        head = await self._store.head()
        newest = await self._store.read_raw(head.position - 1, 1)
        self._sealed, self._sealed_at = head.position, time.monotonic()
        if newest and newest[0].type == ChainSealed.type:
            return  # nothing but our own seal is new
        root = new_id()
        with suppress(HytheError):
            [sealed] = await self._store.append(
                streams.CHAIN,
                None,
                [self._sealer.seal(head.position, head.hash)],
                because=Cause(root, None, "hythe:relay"),
            )
            self._sealed = sealed.position


def _batches(events: list[Raw]) -> list[list[Outgoing]]:
    """`events` as they go out, cut so that no batch is too large for the bus to take at once."""
    batches: list[list[Outgoing]] = [[]]
    size = 0
    for event in events:
        body = wire(
            event.id,
            event.stream,
            event.version,
            event.position,
            event.type,
            event.schema,
            event.data.encode(),
            event.at,
            event.correlation,
            event.causation,
            event.actor,
            event.trace,
            event.hash,
        )
        size += len(body)
        if batches[-1] and size > BATCH_BYTES:
            batches.append([])
            size = len(body)
        batches[-1].append(Outgoing(event.id, event.type, event.position, body, event.trace))
    return batches
