"""The bus: NATS JetStream, and everything Hythe does with it. Nothing else imports the driver.

| who | does | how |
| --- | --- | --- |
| the relay | publishes events, in the order of the log | atomic batches to the stream `HYTHE`, `Nats-Msg-Id` = event id |
| a service | hears events | durable pull consumers, one message per worker, explicit acks |
| a service | answers commands and queries | NATS micro-service endpoints `command.<service>.…`, `query.<service>.…` |
| a client | asks, and watches | request and reply; an ordered consumer on `HYTHE` |
| build, deploy | say what happens right now | live log lines to `log.<deployment>`, stream `LOGS` |

The log in Postgres is the truth and the bus only tells of it: whatever the bus loses, the relay tells again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.object_store import ObjectStore
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, ServiceConfig
from pydantic import ValidationError

from hythe_events import log
from hythe_events.access import BLOBS, EVENT_SUBJECTS, HEARS, LOGS, SERVICES, STREAM, consumer_name
from hythe_events.envelope import Cause, Envelope, from_cloudevent
from hythe_events.errors import BusUnavailable, HytheError, Misconfigured, NotFound, NotNow, Refused
from hythe_events.faults import armed, crash_point
from hythe_events.language import Event, Value, new_id
from hythe_events.language import Request as Asked

MAX_MESSAGE = 1024 * 1024
DUPLICATE_WINDOW = 24 * 3600.0
LOG_AGE = 7 * 24 * 3600.0
LOG_BYTES = 512 * 1024 * 1024
ALREADY_THERE = 10201  # JetStream: a message of an atomic batch was published before
BATCH_LIMIT = 256
"""Events in one atomic batch; the server's own limit is 1,000."""

T = TypeVar("T")
V = TypeVar("V", bound=Value)

_DRIVER_ERRORS = (nats.errors.Error, nats.js.errors.Error, OSError, asyncio.TimeoutError)


@asynccontextmanager
async def _our_errors(what: str) -> AsyncIterator[None]:
    try:
        yield
    except HytheError:
        raise
    except _DRIVER_ERRORS as error:
        raise BusUnavailable(f"{what}: the bus did not answer ({error or type(error).__name__})") from error


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One event on its way to the stream: subject, structured CloudEvent, and the headers it travels with."""

    id: UUID
    subject: str
    position: int
    body: bytes
    traceparent: str | None

    def headers(self) -> dict[str, str]:
        """The headers of this message on the wire; the position lets a relay see how far the stream got."""
        headers = {
            "Content-Type": "application/cloudevents+json",
            "Nats-Msg-Id": str(self.id),
            "Nats-Expected-Stream": STREAM,
            "Hythe-Position": str(self.position),
        }
        if self.traceparent:
            headers["traceparent"] = self.traceparent
        return headers


class Delivery:
    """A message that a durable consumer delivered. Exactly one of `ack`, `again`, `never` ends it."""

    def __init__(self, message: Msg) -> None:
        self._message = message
        self.body = message.data
        self.deliveries: int = message.metadata.num_delivered
        """How often it has been delivered, this time included."""

    async def ack(self) -> None:
        """It is handled. Waits until the server has noted it. Raises BusUnavailable."""
        async with _our_errors("acknowledging a message"):
            await self._message.ack_sync(timeout=5)

    async def again(self, delay: float) -> None:
        """Deliver it again after `delay` seconds."""
        async with _our_errors("postponing a message"):
            await self._message.nak(delay=delay)

    async def never(self) -> None:
        """Never deliver it again: it was parked."""
        async with _our_errors("ending a message"):
            await self._message.term()

    async def in_progress(self) -> None:
        """It is still being worked on: the server's patience starts anew."""
        async with _our_errors("a sign of life"):
            await self._message.in_progress()


@dataclass(frozen=True)
class StreamState:
    """How the stream of events stands: when it was made, and how far it got. `position` is 0 when it is empty."""

    created: datetime
    position: int


@dataclass(frozen=True)
class Endpoint:
    """Something a service can be asked. `answer` gets the request's JSON and its cause, and gives the answer's JSON."""

    subject: str
    answer: Callable[[bytes, Cause], Awaitable[bytes]]


class Bus:
    """A connection to NATS as one user. Reconnects by itself for ever; `connected` tells how it stands."""

    def __init__(self, client: Client, user: str) -> None:
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=5)
        self.user = user

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, user: str, seed: str) -> AsyncIterator[Bus]:
        """Connects as `user` with the nkey `seed`. Raises BusUnavailable, Misconfigured."""

        async def quiet(_error: Exception) -> None:
            """Errors of the connection show where it is used; the driver would print a traceback for each."""

        try:
            client = await nats.connect(
                url,
                name=f"hythe {user}",
                nkeys_seed_str=seed,
                inbox_prefix=f"_INBOX_{user}",
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,
                connect_timeout=5,
                allow_reconnect=True,
                error_cb=quiet,
            )
        except nats.errors.AuthorizationError as error:
            raise Misconfigured(f"the bus at {url} refused the key of the user {user}") from error
        except _DRIVER_ERRORS as error:
            raise BusUnavailable(f"the bus at {url} does not answer; check that NATS runs") from error
        try:
            yield cls(client, user)
        finally:
            with suppress(*_DRIVER_ERRORS):
                await client.flush(timeout=2)  # what was said goes out; nobody is fetching any more
            await client.close()

    @property
    def connected(self) -> bool:
        """Whether the server can be reached now."""
        return bool(self._client.is_connected)

    # -- streams and consumers: the relay's business

    async def prepare(self, *, ack_wait: float, max_bytes: int) -> None:
        """Makes the streams, the consumers and the object store, or brings them to today's settings.

        A consumer that is ahead of its stream, as after a restored backup, is made anew: it would wait for ever.
        Raises BusUnavailable.
        """
        async with _our_errors("preparing the streams"):
            await self._stream(
                api.StreamConfig(
                    name=STREAM,
                    subjects=list(EVENT_SUBJECTS),
                    storage=api.StorageType.FILE,
                    retention=api.RetentionPolicy.LIMITS,
                    discard=api.DiscardPolicy.NEW,
                    max_bytes=max_bytes,
                    max_msg_size=MAX_MESSAGE,
                    duplicate_window=DUPLICATE_WINDOW,
                    deny_delete=True,
                    deny_purge=True,
                    allow_atomic=True,
                    allow_direct=True,
                )
            )
            await self._stream(
                api.StreamConfig(
                    name=LOGS,
                    subjects=["log.>"],
                    storage=api.StorageType.FILE,
                    discard=api.DiscardPolicy.OLD,
                    max_age=LOG_AGE,
                    max_bytes=LOG_BYTES,
                    max_msg_size=MAX_MESSAGE,
                )
            )
            try:
                await self._js.object_store(BLOBS)
            except nats.js.errors.NotFoundError:
                await self._js.create_object_store(BLOBS)
            for service in SERVICES:
                for kind in (*HEARS[service], log.MessageRetried.type):
                    await self._consumer(service, kind, ack_wait)

    async def _stream(self, wanted: api.StreamConfig) -> None:
        try:
            await self._js.stream_info(str(wanted.name))
        except nats.js.errors.NotFoundError:
            await self._js.add_stream(wanted)
        else:
            await self._js.update_stream(wanted)

    async def _consumer(self, service: str, kind: str, ack_wait: float) -> None:
        name = consumer_name(service, kind)
        wanted = api.ConsumerConfig(
            durable_name=name,
            filter_subject=kind,
            ack_policy=api.AckPolicy.EXPLICIT,
            deliver_policy=api.DeliverPolicy.ALL,
            ack_wait=ack_wait,
            max_ack_pending=64,
            max_deliver=-1,  # the runner counts, and parks with the reason: see docs/decisions
        )
        with suppress(nats.js.errors.NotFoundError):
            info = await self._js.consumer_info(STREAM, name)
            last = (await self._js.stream_info(STREAM)).state.last_seq
            if info.delivered is not None and info.delivered.stream_seq > last:
                await self._js.delete_consumer(STREAM, name)
        await self._js.add_consumer(STREAM, wanted)

    async def stream_state(self) -> StreamState:
        """How the stream of events stands. Raises NotFound when there is none, BusUnavailable."""
        async with _our_errors("reading the stream's state"):
            response = await self._client.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout=5)
            info = json.loads(response.data)
            if "error" in info:
                raise NotFound("the bus has no stream of events")
            if info["state"]["messages"] == 0:
                return StreamState(datetime.fromisoformat(_seconds(info["created"])), 0)
            last = await self._js.get_msg(STREAM, info["state"]["last_seq"], direct=True)
            position = int((last.headers or {}).get("Hythe-Position", "0"))
            return StreamState(datetime.fromisoformat(_seconds(info["created"])), position)

    # -- publishing: the relay's business

    async def publish(self, events: Sequence[Outgoing]) -> None:
        """Publishes `events`, in order: as one atomic batch, or one by one where some were published before.

        Durable when it returns. Publishing the same events again changes nothing within the duplicate window. Raises
        BusUnavailable, which leaves open how many were stored.
        """
        async with _our_errors("publishing events"):
            if len(events) > 1 and await self._publish_batch(events):
                return
            for event in events:
                sent = self._js.publish(event.subject, event.body, timeout=5, headers=event.headers())
                await self._acknowledged(sent)

    async def _publish_batch(self, events: Sequence[Outgoing]) -> bool:
        batch = new_id().hex
        *others, last = events
        for number, event in enumerate(others, 1):
            await self._client.publish(
                event.subject,
                event.body,
                headers={**event.headers(), "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)},
            )
        response = await self._acknowledged(
            self._client.request(
                last.subject,
                last.body,
                timeout=5,
                headers={
                    **last.headers(),
                    "Nats-Batch-Id": batch,
                    "Nats-Batch-Sequence": str(len(events)),
                    "Nats-Batch-Commit": "1",
                },
            )
        )
        answer = json.loads(response.data)
        if "error" not in answer:
            return True
        if answer["error"].get("err_code") == ALREADY_THERE:
            return False
        raise BusUnavailable(f"the bus refused a batch of events: {answer['error'].get('description')}")

    async def _acknowledged(self, sent: Coroutine[Any, Any, T]) -> T:
        """The server's answer to what is sent; between the two a test may end the process."""
        if not armed("R3"):
            return await sent
        answer = asyncio.ensure_future(sent)
        await asyncio.sleep(0)
        await self._client.flush(timeout=5)
        await crash_point("R3")
        return await answer

    # -- hearing

    async def deliveries(
        self, service: str, kind: str, *, patience: float = 5.0
    ) -> AsyncIterator[Delivery | None]:
        """What the durable consumer of `service` for events of type `kind` delivers, one at a time, for ever.

        Yields None now and then when nothing came, so that a worker can see whether it should stop. Survives
        reconnects. Several workers may each iterate: the server shares the messages among them.
        """
        subscription: JetStreamContext.PullSubscription | None = None
        while True:
            try:
                if subscription is None:
                    subscription = await self._js.pull_subscribe_bind(
                        stream=STREAM, consumer=consumer_name(service, kind)
                    )
                [message] = await subscription.fetch(1, timeout=patience)
            except (TimeoutError, nats.errors.TimeoutError):
                yield None
            except _DRIVER_ERRORS:
                subscription = None
                yield None
                await asyncio.sleep(0.25)
            else:
                yield Delivery(message)

    # -- asking and answering

    async def ask(
        self,
        asked: Asked,
        answer: type[V],
        *,
        actor: str,
        service: str | None = None,
        timeout: float = 10.0,
        command_id: UUID | None = None,
        traceparent: str | None = None,
    ) -> V:
        """Asks, and waits for the answer. The same `command_id` again is the same command: it leads to the same event.

        Raises Refused (with the field), NotFound, NotNow as the service answered; BusUnavailable when none did.
        """
        subject = asked.subject.format(service=service)
        headers = {"Hythe-Actor": actor, "Hythe-Command-Id": str(command_id or new_id())}
        if traceparent:
            headers["traceparent"] = traceparent
        try:
            message = await self._client.request(
                subject, asked.__pydantic_serializer__.to_json(asked), timeout=timeout, headers=headers
            )
        except nats.errors.NoRespondersError as error:
            name = subject.split(".")[1]
            raise BusUnavailable(f"nobody answers {subject}: the {name} service does not run") from error
        except _DRIVER_ERRORS as error:
            raise BusUnavailable(f"no answer to {subject} within {timeout:g} s") from error
        failed = (message.headers or {}).get("Nats-Service-Error-Code")
        if failed:
            detail = json.loads(message.data or b"{}")
            text = detail.get("error") or (message.headers or {}).get("Nats-Service-Error", "refused")
            raise _answered(failed, text, detail.get("field"))
        return answer.model_validate_json(message.data)

    @asynccontextmanager
    async def serving(self, name: str, endpoints: Sequence[Endpoint]) -> AsyncIterator[None]:
        """Answers at `endpoints` as the NATS micro-service `name`, until the block ends."""
        async with _our_errors("starting to answer"):
            micro = await add_service(self._client, ServiceConfig(name=name, version="1.0.0"))
            for endpoint in endpoints:
                await micro.add_endpoint(
                    EndpointConfig(
                        name=endpoint.subject.replace(".", "-"),
                        subject=endpoint.subject,
                        handler=partial(_respond, endpoint),
                    )
                )
            await self._client.flush(timeout=10)  # the server knows of them now: whoever asks gets an answer
        try:
            yield
        finally:
            with suppress(*_DRIVER_ERRORS):
                await micro.stop()

    # -- live logs

    async def log_line(self, deployment: UUID, line: bytes) -> None:
        """Tells one line of a deployment's live log. A line that cannot be told now is not worth failing for."""
        with suppress(*_DRIVER_ERRORS):
            await self._client.publish(f"log.{deployment}", line[: MAX_MESSAGE - 1024])

    async def end_log(self, deployment: UUID) -> None:
        """Tells that the live log ends here, so that those who follow it stop."""
        with suppress(*_DRIVER_ERRORS):
            await self._client.publish(f"log.{deployment}", b"", headers={"Hythe-Log": "end"})
            await self._client.flush(timeout=2)

    async def follow_log(self, deployment: UUID) -> AsyncIterator[bytes]:
        """The lines of a deployment's live log, from the first that is still kept, until its end."""
        async with _our_errors("following a log"):
            subscription = await self._js.subscribe(f"log.{deployment}", stream=LOGS, ordered_consumer=True)
        try:
            while True:
                try:
                    message = await subscription.next_msg(timeout=30)
                except (TimeoutError, nats.errors.TimeoutError):
                    continue
                if (message.headers or {}).get("Hythe-Log") == "end":
                    return
                yield message.data
        finally:
            with suppress(*_DRIVER_ERRORS):
                await subscription.unsubscribe()

    # -- watching

    async def watch(
        self, after: int | None = None, types: Sequence[str] = (), *, actor: str
    ) -> AsyncIterator[Envelope[Event]]:
        """Events as they happen, in the order of the log and without a gap, from position `after` on (None: from now).

        `types` keeps those whose type is one of them or begins with one and a dot. What the bus has not yet told is
        read from the log through the services. Raises BusUnavailable.
        """
        async with _our_errors("watching events"):
            subscription = await self._js.subscribe(
                ">", stream=STREAM, ordered_consumer=True, deliver_policy=api.DeliverPolicy.NEW
            )

        def wanted(event: Envelope[Event]) -> bool:
            return not types or any(event.type == kind or event.type.startswith(f"{kind}.") for kind in types)

        async def missed(last: int, until: int | None) -> AsyncIterator[Envelope[Event]]:
            while until is None or last < until:
                page = await self.ask(log.ReadLog(after=last), log.Page, actor=actor)
                for event in (from_cloudevent(json.dumps(body).encode()) for body in page.events):
                    last = event.position
                    yield event
                if last >= page.head or not page.events:
                    return

        try:
            position = (
                (await self.ask(log.ReadLog(after=0, limit=1), log.Page, actor=actor)).head
                if after is None
                else after
            )
            async for event in missed(position, None):
                position = event.position
                if wanted(event):
                    yield event
            while True:
                try:
                    message = await subscription.next_msg(timeout=30)
                except (TimeoutError, nats.errors.TimeoutError):
                    continue
                event = from_cloudevent(message.data)
                if event.position <= position:
                    continue
                async for earlier in missed(position, event.position - 1):
                    if earlier.position < event.position and wanted(earlier):
                        yield earlier
                position = event.position
                if wanted(event):
                    yield event
        finally:
            with suppress(*_DRIVER_ERRORS):
                await subscription.unsubscribe()

    # -- the object store, for hythe_events.blobs

    async def put_object(self, key: str, data: bytes) -> None:
        """Keeps `data` under `key`; again is the same. Raises BusUnavailable."""
        async with _our_errors("storing an object"):
            store = await self._object_store()
            try:
                kept = await store.get_info(key)
            except nats.js.errors.NotFoundError:
                kept = None
            if kept is None or kept.size != len(data):
                await store.put(
                    key, data, api.ObjectMeta(options=api.ObjectMetaOptions(max_chunk_size=512 * 1024))
                )

    async def object_chunks(self, key: str) -> AsyncIterator[bytes]:
        """The chunks of what is kept under `key`. Raises NotFound, BusUnavailable."""
        async with _our_errors("reading an object"):
            store = await self._object_store()
            try:
                info = await store.get_info(key)
            except nats.js.errors.NotFoundError as error:
                raise NotFound(f"the object store does not hold {key}") from error
            left = info.size or 0
            if not left:
                return
            # The driver's own get() joins what it has with every chunk anew: 12 MB/s. This reads each once.
            subscription = await self._js.subscribe(
                f"$O.{BLOBS}.C.{info.nuid}", stream=f"OBJ_{BLOBS}", ordered_consumer=True
            )
            try:
                while left > 0:
                    message = await subscription.next_msg(timeout=10)
                    left -= len(message.data)
                    yield message.data
            finally:
                with suppress(*_DRIVER_ERRORS):
                    await subscription.unsubscribe()

    async def _object_store(self) -> ObjectStore:
        return await self._js.object_store(BLOBS)


def _seconds(timestamp: str) -> str:
    """NATS tells nanoseconds; Python reads microseconds."""
    head, _, fraction = timestamp.rstrip("Z").partition(".")
    return f"{head}.{fraction[:6]:0<6}+00:00"


def _answered(code: str, text: str, field: str | None) -> HytheError:
    match code:
        case "400":
            return Refused(text, field=field)
        case "404":
            return NotFound(text, field=field)
        case "503":
            return NotNow(text)
        case _:
            return HytheError(text)


async def _respond(endpoint: Endpoint, request: Request) -> None:
    headers: Mapping[str, str] = request.headers or {}
    try:
        command_id = UUID(headers.get("Hythe-Command-Id") or str(new_id()))
        actor = headers.get("Hythe-Actor") or "client:unnamed"
        cause = Cause(command_id, None, actor[:200], headers.get("traceparent"))
        await request.respond(await endpoint.answer(request.data, cause))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        await _refuse(request, "400", f"{field}: {first['msg']}" if field else first["msg"], field)
    except NotFound as error:
        await _refuse(request, "404", str(error), error.field)
    except (Refused, ValueError) as error:
        await _refuse(request, "400", str(error), getattr(error, "field", None))
    except HytheError as error:
        await _refuse(request, "503" if error.retry else "500", str(error), None)


async def _refuse(request: Request, code: str, text: str, field: str | None) -> None:
    await request.respond_error(
        code, text.replace("\n", " "), json.dumps({"error": text, "field": field}).encode()
    )
