"""What anybody may ask of the log: streams, pages, a deployment as it was at any time, and whether the chain holds."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from hythe_events import chain, deployment, streams
from hythe_events.bus import Bus
from hythe_events.decider import fold
from hythe_events.deployment import Deployment
from hythe_events.envelope import Cause, Envelope, to_cloudevent
from hythe_events.errors import BusUnavailable, NotFound, Refused
from hythe_events.language import Event
from hythe_events.log import Page, ReadLog, ReadStream, Rows, ShowDeployment, Verdict, VerifyLog
from hythe_events.store import Store

_deployment = TypeAdapter(Deployment)
PAGE = 1000


class Inquiry:
    """Answers questions about the log; changes nothing."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self._store = store
        self._bus = bus

    async def read_stream(self, asked: ReadStream, _because: Cause) -> Page:
        """A page of one stream. An unknown stream is an empty one: nothing has happened in it."""
        events = await self._store.read(asked.stream, after=asked.after_version)
        return Page(events=_shown(events[: asked.limit]), head=(await self._store.head()).position)

    async def read_log(self, asked: ReadLog, _because: Cause) -> Page:
        """A page of the whole log, in its one order."""
        head = (await self._store.head()).position
        after = max(asked.after, head - asked.limit) if asked.newest else asked.after
        return Page(events=_shown(await self._store.read_all(after, asked.limit)), head=head)

    async def show_deployment(self, asked: ShowDeployment, _because: Cause) -> Rows:
        """A deployment's state as the fold gives it, now or at a version or time in the past: one row."""
        if asked.at_version is not None and asked.at_time is not None:
            raise Refused("at_version and at_time: give one of them", field="at_time")
        state = await state_at(self._store, asked.deployment, asked.at_version or asked.at_time)
        if state.version == 0:
            when = "" if asked.at_time is None else f" at {asked.at_time.isoformat()}"
            raise NotFound(f"there was no deployment {asked.deployment}{when}", field="deployment")
        row: dict[str, Any] = _deployment.dump_python(state, mode="json")
        return Rows(rows=(row,))

    async def verify(self, asked: VerifyLog, _because: Cause) -> Verdict:
        """Check a stretch of the chain. At its end, what the bus remembers is held against it: a cut tail shows."""
        if asked.after and asked.hash is None:
            raise Refused(
                "hash: to go on from a position, give the hash that the last answer ended with", field="hash"
            )
        start = chain.START if asked.hash is None else bytes.fromhex(asked.hash)
        checked = chain.Checked(asked.after, start)
        seen = 0
        at_end = False
        while checked.bad is None and seen < asked.limit and not at_end:
            events = await self._store.read_raw(checked.position, min(PAGE, asked.limit - seen))
            at_end = not events
            seen += len(events)
            checked = chain.check(checked, events)
        head = await self._store.head()
        bad = checked.bad
        if bad is None and at_end:
            bad = await self._end_of(checked, head.position, head.hash)
        return Verdict(
            checked=seen,
            position=checked.position,
            hash=checked.hash.hex(),
            head=head.position,
            sealed=checked.sealed,
            finished=at_end or bad is not None,
            bad=bad,
        )

    async def _end_of(self, checked: chain.Checked, head: int, tip: bytes) -> str | None:
        if head > checked.position and not await self._store.read_raw(checked.position, 1):
            return f"event {checked.position + 1} is missing: the log's head says {head} were appended"
        if head == checked.position and tip != checked.hash:
            return f"event {head} is the last, but the log's head names another hash"
        try:
            told = (await self._bus.stream_state()).position
        except (BusUnavailable, NotFound):
            return None
        if told > max(head, checked.position):
            return f"event {checked.position + 1} is missing: the bus told of events up to {told}"
        return None


async def state_at(store: Store, deployment_id: UUID, until: int | datetime | None = None) -> Deployment:
    """The state of a deployment at a version or a moment (None: now); `version` 0 when it had not begun."""
    events = await store.read(streams.deployment(deployment_id), until=until)
    return fold(deployment.evolve, events, Deployment())


def _shown(events: list[Envelope[Event]]) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(to_cloudevent(event)) for event in events)
