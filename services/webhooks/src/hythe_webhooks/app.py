"""What happens to a webhook, in order: prove who sent it, understand it, store it, answer.

```
request ──► path? 404 ──► method? 405 ──► kind? 415 ──► size? 413 ──► signed? 401 ──► understood? 400
        ──► on? 403 ──► too many? 429 ──► stored? 503, 409 ──► 202 or 200
```

Nothing is answered 2xx that is not stored, and nothing is stored that is not authentic.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

import structlog
from aiohttp.web import BaseRequest
from prometheus_client import Counter

from hythe_events import streams
from hythe_events.decider import fold
from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import HytheError, Refused, VersionConflict
from hythe_events.faults import crash_point
from hythe_events.language import Event, new_id
from hythe_events.telemetry import Telemetry, current_traceparent
from hythe_events.webhooks import WebhookReceived
from hythe_webhooks import answers, delivery, forges
from hythe_webhooks.answers import Answer
from hythe_webhooks.delivery import Delivery, Keep, Told
from hythe_webhooks.forges import Forge
from hythe_webhooks.forges.reading import Headers, NotAuthentic
from hythe_webhooks.rate import Bucket
from hythe_webhooks.server import Body
from hythe_webhooks.settings import WebhooksSettings
from hythe_webhooks.sources import Sources

_log = structlog.get_logger("hythe.webhooks")

_SPAN = {"http.request.method": "POST", "http.route": "/api/webhooks"}


class Log(Protocol):
    """What is needed of the event store."""

    async def read(self, stream: str) -> list[Envelope[Event]]: ...

    async def append(
        self,
        stream: str,
        expected: int | None,
        events: Sequence[Event],
        *,
        because: Cause,
        evidence: bytes | None = None,
        ids: Sequence[UUID] | None = None,
    ) -> list[Envelope[Event]]: ...


class Seals(Protocol):
    """What is needed of `hythe_events.secrets.Secrets`."""

    async def sealed_bytes(self, *, kind: str, owner: str, name: str, version: int, body: bytes) -> bytes: ...


class Webhooks:
    """The webhooks of one process. `receive` may run any number of times at once."""

    def __init__(
        self,
        log: Log,
        seals: Seals,
        sources: Sources,
        telemetry: Telemetry,
        body: Body,
        settings: WebhooksSettings,
    ) -> None:
        self._log = log
        self._seals = seals
        self._sources = sources
        self._telemetry = telemetry
        self._body = body
        self._rate, self._burst = settings.rate, settings.burst
        self._buckets: dict[str, Bucket] = {}
        self._answered = telemetry.counter(
            "hythe_webhooks_answered", "Requests, by the status of the answer.", "status"
        )
        self._by_status: dict[int, Counter] = {}

    async def receive(self, request: BaseRequest) -> Answer:
        """The answer to `request`; errors of ours are answers too."""
        answer = await self._answer(request)
        counted = self._by_status.get(answer.status)
        if counted is None:
            counted = self._by_status[answer.status] = self._answered.labels("webhooks", str(answer.status))
        counted.inc()
        return answer

    async def _answer(self, request: BaseRequest) -> Answer:
        place = forges.at(request.raw_path)
        if place is None:
            return answers.NOTHING_HERE
        if request.method != "POST":
            return answers.ONLY_POST
        forge, source = place
        body = await self._body.of(request, forge.CONTENT_TYPES)
        if isinstance(body, Answer):
            return body
        try:
            with self._telemetry.span("POST /api/webhooks", kind="server", attributes=_SPAN) as span:
                answer = await self._deliver(forge, source, request.headers, body)
                span.set("http.response.status_code", answer.status)
                return answer
        except NotAuthentic:
            return answers.not_authentic(forge.SIGNATURE)
        except Refused as error:
            return answers.refused(error)
        except HytheError as error:
            _log.error("webhook_not_stored", source=source, reason=str(error), again=error.retry)
            return answers.not_stored(error)

    async def _deliver(self, forge: Forge, source: str, headers: Headers, body: bytes) -> Answer:
        signer = self._sources.known(source) or await self._sources.signer(source)
        if signer.provider != forge.PROVIDER:
            signer = self._sources.nobody
        told = forge.parse(source, headers, body, signer.secret)
        if not signer.on:
            return answers.switched_off(source)
        bucket = self._buckets.get(source)
        if bucket is None:
            bucket = self._buckets[source] = Bucket(self._rate, self._burst)
        if wait := bucket.take(time.monotonic()):
            return answers.too_many(source, wait)
        kept = await self._keep(told, body)
        await crash_point("W7")
        return answers.kept(kept)

    async def _keep(self, told: Told, body: bytes) -> Delivery:
        """The delivery as it is stored: by us now, or by whoever came first with the same id.

        Nearly always we are first, so nothing is read before the log says that somebody else was.
        """
        stream = streams.delivery(told.source, told.delivery)
        evidence = await self._seals.sealed_bytes(
            kind="evidence", owner=told.source, name=told.delivery, version=1, body=body
        )
        state = delivery.UNHEARD
        event_id = new_id()
        trace = current_traceparent() if self._telemetry.exporting else None
        because = Cause(event_id, None, _actor(told), trace)
        for _ in range(2):
            decided = delivery.decide(Keep(told), state)
            if not decided:
                return state
            try:
                [first] = await self._log.append(
                    stream, state.version, decided, because=because, evidence=evidence, ids=[event_id]
                )
            except VersionConflict:
                state = fold(delivery.evolve, await self._log.read(stream), delivery.UNHEARD)
            else:
                return Delivery(told, first.id, first.version)
        raise AssertionError("a stream that was written to holds a delivery")


def _actor(told: Told) -> str:
    sender = told.sender[:100] if type(told) is WebhookReceived else ""
    return f"{told.provider}:{sender or told.source}"
