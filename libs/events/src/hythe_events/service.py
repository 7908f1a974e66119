"""Runs a service: the deepest module of the project, written once for all of them.

```
            ┌─ consumers ── one worker per message at a time ── handler ── ack
settings ──►│─ endpoints ── commands and queries
            │─ projections, relay, whatever the service runs alongside
            └─ health port ── /livez /readyz /metrics
SIGTERM ──► not ready ──► nothing new is fetched ──► work ends, or is cancelled after the grace period ──► drain
```

What happens to a message depends on how its handler ends:

| the handler | the message |
| --- | --- |
| returns | is acknowledged |
| raises an error with `retry = True` | comes again, later and later, for ever: the handler's own deadline ends it |
| raises anything else | is parked with the reason, and told of as `message.parked`; a command tries it again |
| kills the process, again and again | is parked too, at the fifth time |
| works longer than the bus waits | gives a sign of life, as long as it works |

A message on the bus is a hint; the log is the truth. Before a handler hears an event it is read from the log by its
id and compared: a forged message leads to nothing.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import structlog
import uvloop
from aiohttp import web

from hythe_events import faults, streams
from hythe_events.access import ROLE
from hythe_events.blobs import Blobs
from hythe_events.bus import Bus, Delivery, Endpoint
from hythe_events.chain import Sealer
from hythe_events.envelope import Cause, Envelope, from_cloudevent
from hythe_events.errors import HytheError, Misconfigured, NotFound, NotNow, Refused, UnknownEvent
from hythe_events.inquiry import Inquiry
from hythe_events.language import Event, Request, Value, one_line
from hythe_events.log import (
    Done,
    ListParked,
    MessageParked,
    MessageRetried,
    ReadLog,
    ReadStream,
    RebuildProjection,
    Rebuilt,
    RetryParked,
    Rows,
    ShowDeployment,
    VerifyLog,
)
from hythe_events.postgres import with_login
from hythe_events.projections import Projection, Projector
from hythe_events.relay import Relay
from hythe_events.secrets import PostgresKeys, Secrets, read_master_keys
from hythe_events.settings import ServiceSettings
from hythe_events.store import Store
from hythe_events.telemetry import Telemetry, setup

E = TypeVar("E", bound=Event)
A = TypeVar("A", bound=Request)

CRASHES = 5
"""A message whose handling ended the process this often is parked."""
POSTPONED = (1.0, 5.0, 15.0, 30.0)
"""Seconds until a message comes again that cannot be handled now; the last one for ever."""
CONNECT_AGAIN = 1.0

_log = structlog.get_logger("hythe.service")


@dataclass(frozen=True)
class Hears:
    """An event type, who handles it, and how many at once."""

    event: type[Event]
    handler: Callable[[Envelope[Any]], Awaitable[None]]
    at_once: int


@dataclass(frozen=True)
class Serves:
    """Something that can be asked, and who answers it."""

    asked: type[Request]
    handler: Callable[[Any, Cause], Awaitable[Value]]


def on(event: type[E], handler: Callable[[Envelope[E]], Awaitable[None]], *, at_once: int = 1) -> Hears:
    """`handler` hears every event of this type, at least once. It may be called again for the same event at any time."""
    return Hears(event, handler, at_once)


def answers(asked: type[A], handler: Callable[[A, Cause], Awaitable[Value]]) -> Serves:
    """`handler` answers this command or query. What it raises becomes the answer: Refused with its field, NotFound, …"""
    return Serves(asked, handler)


@dataclass
class _Health:
    """What the health port tells: `troubles` is empty when the service is ready."""

    stopping: bool = False
    troubles: Callable[[], Sequence[str]] = field(default=lambda: ("the service is starting",))


class Service:
    """A service that is connected and ready to run. Made by `service`."""

    def __init__(
        self,
        name: str,
        settings: ServiceSettings,
        *,
        store: Store,
        bus: Bus,
        secrets: Secrets,
        telemetry: Telemetry,
        health: _Health,
    ) -> None:
        self.name = name
        self.settings = settings
        self.store = store
        self.bus = bus
        self.blobs = Blobs(bus)
        self.secrets = secrets
        self.telemetry = telemetry
        self._health = health
        self._relay: Relay | None = None
        self.busy: set[asyncio.Task[Any] | None] = set()
        self._hears: dict[str, Hears] = {}

    async def run(
        self,
        *,
        hears: Sequence[Hears] = (),
        serves: Sequence[Serves] = (),
        projections: Sequence[Projection] = (),
        alongside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
        stop: asyncio.Event | None = None,
    ) -> None:
        """Runs until SIGTERM or SIGINT, or until `stop` is set. `alongside` are coroutines that run as long as it does.

        An error in one of them ends the process; whoever started it starts it again.
        """
        projector = Projector(self.name, self.store, projections)
        if stop is None:
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        self._hears = {each.event.type: each for each in hears}
        await self._own_table()
        async with AsyncExitStack() as stack:
            if self.settings.relay:
                self._relay = await stack.enter_async_context(self._open_relay())
                inquiry = Inquiry(self.store, self.bus)
                asked = [
                    answers(ReadStream, inquiry.read_stream),
                    answers(ReadLog, inquiry.read_log),
                    answers(ShowDeployment, inquiry.show_deployment),
                    answers(VerifyLog, inquiry.verify),
                ]
                await stack.enter_async_context(
                    self.bus.serving("hythe-log", [self._endpoint(each) for each in asked])
                )
            own = [
                *serves,
                answers(ListParked, self._list_parked),
                answers(RetryParked, self._retry_parked),
                answers(RebuildProjection, _rebuilder(projector)),
            ]
            endpoints = [self._endpoint(each) for each in own]
            async with asyncio.TaskGroup() as group:
                background = [group.create_task(each()) for each in alongside]
                background.append(group.create_task(projector.run()))
                if self._relay is not None:
                    background.append(group.create_task(self._relay.run()))
                workers = [
                    group.create_task(self._work(each.event.type), name=f"{each.event.type} {n}")
                    for each in (*hears, Hears(MessageRetried, self._on_retried, 1))
                    for n in range(each.at_once)
                ]
                async with self.bus.serving(f"hythe-{self.name}", endpoints):
                    self._health.troubles = lambda: self._troubles(projector)
                    _log.info("service_runs", service=self.name)
                    await stop.wait()
                    await self._stop(workers)
                for task in (*background, *workers):
                    task.cancel()

    async def _stop(self, workers: Sequence[asyncio.Task[None]]) -> None:
        self._health.stopping = True
        _log.info("service_stops", service=self.name, busy=len(self.busy))
        for worker in workers:
            if worker not in self.busy:
                worker.cancel()
        busy = [worker for worker in workers if worker in self.busy]
        if busy:
            await asyncio.wait(busy, timeout=self.settings.grace)

    async def ready(self) -> None:
        """Returns once the service is ready. Give it an end with `asyncio.timeout`."""
        while self._health.troubles():
            await asyncio.sleep(0.02)

    def _troubles(self, projector: Projector) -> Sequence[str]:
        troubles = list(projector.troubles)
        if not self.bus.connected:
            troubles.append("the bus does not answer")
        if self._relay is not None and self._relay.trouble:
            troubles.append(self._relay.trouble)
        return troubles

    @asynccontextmanager
    async def _open_relay(self) -> AsyncIterator[Relay]:
        settings = self.settings
        dsn = with_login(
            settings.postgres_url, ROLE.format(service="relay"), settings.secret("relay_postgres_password")
        )
        async with (
            Store.open(dsn, readers=2) as store,
            Bus.open(settings.nats_url, "relay", settings.secret("relay_nats_seed")) as bus,
        ):
            yield Relay(
                store,
                bus,
                Sealer(settings.secret("seal_key")),
                ack_wait=settings.ack_wait,
                max_bytes=settings.bus_max_bytes,
                relayed=self.telemetry.relayed,
            )

    # -- hearing

    async def _work(self, kind: str) -> None:
        """One worker: takes a message, has it handled, ends it, takes the next."""
        me = asyncio.current_task()
        async for delivery in self.bus.deliveries(self.name, kind):
            if self._health.stopping:
                return
            if delivery is None:
                continue
            self.busy.add(me)
            try:
                await self._handle(kind, delivery)
            except NotNow as error:  # the log or the bus does not answer: the message comes again by itself
                _log.warning("message_left", kind=kind, reason=str(error))
            finally:
                self.busy.discard(me)

    async def _handle(self, kind: str, delivery: Delivery) -> None:
        await faults.crash_point("C1")
        try:
            told = from_cloudevent(delivery.body)
        except UnknownEvent as error:
            _log.error("message_unknown", kind=kind, reason=str(error))
            await delivery.again(POSTPONED[-1])
            return
        except Refused as error:
            _log.error("message_unreadable", kind=kind, reason=str(error))
            await delivery.never()
            return
        heard = await self.store.find(told.id)
        if heard is None or heard.hash != told.hash:
            await self._park(told, delivery, "the bus holds this event, but the log does not: it was forged")
            return
        if kind == MessageRetried.type:
            await self._ended(heard, delivery, self._on_retried)
            return
        if delivery.deliveries > 1 and await self._begun(heard) > CRASHES:
            await self._park(heard, delivery, f"its handling ended the service {CRASHES} times")
            await self._orderly(heard)
            return
        await self._ended(heard, delivery, self._hears[kind].handler)
        if delivery.deliveries > 1:
            await self._orderly(heard)

    async def _ended(
        self, heard: Envelope[Any], delivery: Delivery, handler: Callable[[Envelope[Any]], Awaitable[None]]
    ) -> None:
        """Has `heard` handled and ends its message as the table above says."""
        began = time.monotonic()
        alive = asyncio.create_task(self._signs_of_life(delivery))
        outcome = "handled"
        try:
            with self.telemetry.span(
                f"handle {heard.type}",
                kind="consumer",
                attributes=_attributes(heard),
                parent=heard.traceparent,
            ):
                await handler(heard)
        except asyncio.CancelledError:
            with suppress(HytheError):
                await delivery.again(0)
            raise
        except Exception as error:  # noqa: BLE001  whatever a handler raises is told, never lost
            if getattr(error, "retry", False):
                outcome = "postponed"
                delay = POSTPONED[min(delivery.deliveries, len(POSTPONED)) - 1]
                _log.warning(
                    "message_postponed",
                    kind=heard.type,
                    stream=heard.stream,
                    seconds=delay,
                    reason=str(error),
                )
                await delivery.again(delay)
            else:
                outcome = "parked"
                _log.error("message_parked", kind=heard.type, stream=heard.stream, exc_info=error)
                await self._park(heard, delivery, one_line(f"{type(error).__name__}: {error}"))
        else:
            await faults.crash_point("C6")
            await delivery.ack()
        finally:
            alive.cancel()
            self.telemetry.message_handled(heard.type, outcome, time.monotonic() - began)

    async def _signs_of_life(self, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(self.settings.ack_wait / 3)
            with suppress(HytheError):
                await delivery.in_progress()

    # -- parking

    async def _park(self, event: Envelope[Any], delivery: Delivery, reason: str) -> None:
        stream = streams.parked(self.name, event.id)
        there = await self.store.read(stream)
        if not there or not isinstance(there[-1].data, MessageParked):
            parked = MessageParked(
                service=self.name,
                event=event.id,
                event_type=event.type,
                stream=event.stream,
                position=event.position,
                deliveries=delivery.deliveries,
                reason=one_line(reason),
            )
            await self.store.append(stream, len(there), [parked], because=event.cause(f"hythe:{self.name}"))
        await faults.crash_point("C10")
        await delivery.never()

    async def _on_retried(self, heard: Envelope[MessageRetried]) -> None:
        if heard.data.service != self.name:
            return
        event = await self.store.find(heard.data.event)
        if event is None or event.type not in self._hears:
            raise Refused(f"the parked event {heard.data.event} is not one that {self.name} hears")
        await self._hears[event.type].handler(event)

    async def _list_parked(self, asked: ListParked, _because: Cause) -> Rows:
        last = {event.stream: event for event in await self.store.read_category(f"parked-{self.name}-")}
        waiting = [event for event in last.values() if isinstance(event.data, MessageParked)]
        rows = [event.data.model_dump(mode="json") | {"at": event.at.isoformat()} for event in waiting]
        return Rows(rows=tuple(rows[-asked.limit :]))

    async def _retry_parked(self, asked: RetryParked, because: Cause) -> Done:
        stream = streams.parked(self.name, asked.event)
        there = await self.store.read(stream)
        if not there or not isinstance(there[-1].data, MessageParked):
            raise NotFound(f"{self.name} has no parked message {asked.event}", field="event")
        retried = MessageRetried(service=self.name, event=asked.event, asked_by=because.actor)
        [event] = await self.store.append(stream, len(there), [retried], because=because)
        return Done(stream=stream, version=event.version)

    # -- messages that end the process

    async def _own_table(self) -> None:
        async with self.store.transaction() as connection:
            await connection.execute(
                "create table if not exists begun (event uuid primary key, times integer not null)"
            )

    async def _begun(self, event: Envelope[Any]) -> int:
        """Notes that a message that came before is being handled; how often that did not end in an orderly way."""
        async with self.store.transaction() as connection:
            times: int = await connection.fetchval(
                """insert into begun values ($1, 2)
                    on conflict (event) do update set times = begun.times + 1 returning times""",
                event.id,
            )
        return times

    async def _orderly(self, event: Envelope[Any]) -> None:
        async with self.store.transaction() as connection:
            await connection.execute("delete from begun where event = $1", event.id)

    # -- answering

    def _endpoint(self, serves: Serves) -> Endpoint:
        subject = serves.asked.subject.format(service=self.name)

        async def answer(body: bytes, because: Cause) -> bytes:
            asked = serves.asked.model_validate_json(body or b"{}")
            attributes = {"messaging.system": "nats", "messaging.destination.name": subject}
            with self.telemetry.span(
                f"answer {subject}", kind="server", attributes=attributes, parent=because.traceparent
            ):
                try:
                    answered = await serves.handler(asked, because)
                except HytheError:
                    raise
                except Exception:  # noqa: BLE001  it is logged here, and the asker gets a sentence
                    _log.exception("answer_failed", subject=subject)
                    raise HytheError(f"{subject} failed inside Hythe; its log says why") from None
            return answered.__pydantic_serializer__.to_json(answered)

        return Endpoint(subject, answer)


def _rebuilder(projector: Projector) -> Callable[[RebuildProjection, Cause], Awaitable[Rebuilt]]:
    async def rebuild(asked: RebuildProjection, _because: Cause) -> Rebuilt:
        done = await projector.rebuild(asked.projection)
        return Rebuilt(
            projections={name: each.rows for name, each in done.items()},
            equal={name: each.equal for name, each in done.items()},
        )

    return rebuild


def _attributes(event: Envelope[Any]) -> dict[str, str | int]:
    return {
        "messaging.system": "nats",
        "messaging.destination.name": event.type,
        "messaging.operation.type": "process",
        "messaging.message.id": str(event.id),
        "hythe.stream": event.stream,
    }


@asynccontextmanager
async def service(name: str, settings: ServiceSettings) -> AsyncIterator[Service]:
    """Opens a service: its health port first, then Postgres and NATS, waiting for them as long as it takes.

    Raises Misconfigured for what waiting does not mend: a wrong password, a bus that does not keep what it confirms.
    """
    _set_up_logging(settings)
    telemetry = setup(name, settings)
    health = _Health()
    dsn = with_login(settings.postgres_url, ROLE.format(service=name), settings.secret("postgres_password"))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_health_port(name, settings, health, telemetry))
        store = await _patiently(stack, health, lambda: Store.open(dsn))
        bus = await _patiently(
            stack, health, lambda: Bus.open(settings.nats_url, name, settings.secret("nats_seed"))
        )
        await _until_ready(health, lambda: _prove_durable(settings))
        secrets = Secrets(PostgresKeys(store), lambda: read_master_keys(settings))
        await _until_ready(health, secrets.check)
        stack.push_async_callback(telemetry.close)
        yield Service(
            name, settings, store=store, bus=bus, secrets=secrets, telemetry=telemetry, health=health
        )


def start(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a service's `main` and ends the process: 0 after a signal, 78 (EX_CONFIG) when it is misconfigured."""
    try:
        uvloop.run(main())
    except Misconfigured as error:
        print(f"hythe: {error}", file=sys.stderr)
        sys.exit(78)
    except KeyboardInterrupt:
        sys.exit(130)


T = TypeVar("T")


async def _patiently(stack: AsyncExitStack, health: _Health, opening: Callable[[], Any]) -> Any:
    opened: list[Any] = []

    async def attempt() -> None:
        opened.append(await stack.enter_async_context(opening()))

    await _until_ready(health, attempt)
    return opened[0]


async def _until_ready(health: _Health, attempt: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await attempt()
        except NotNow as error:
            reason = str(error)
            health.troubles = lambda reason=reason: (reason,)  # type: ignore[misc]
            _log.warning("service_waits", reason=reason)
            await asyncio.sleep(CONNECT_AGAIN)
        else:
            return


async def _prove_durable(settings: ServiceSettings) -> None:
    """A bus that writes to disk only now and then loses what it confirmed in a power cut: it is refused."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(f"{settings.nats_monitor_url}/varz") as response,
        ):
            told = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise NotNow(f"NATS does not tell its settings at {settings.nats_monitor_url}: {error}") from error
    config = (told.get("jetstream") or {}).get("config")
    if not config:
        raise Misconfigured("NATS runs without JetStream: switch it on")
    if not config.get("sync_always"):
        raise Misconfigured("NATS can lose what it confirmed: set jetstream { sync_interval: always }")


@asynccontextmanager
async def _health_port(
    name: str, settings: ServiceSettings, health: _Health, telemetry: Telemetry
) -> AsyncIterator[None]:
    async def livez(_request: web.Request) -> web.Response:
        return web.json_response({"service": name, "status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        troubles = ["the service is stopping"] if health.stopping else list(health.troubles())
        status = {"service": name, "ready": not troubles, "troubles": troubles}
        return web.json_response(status, status=503 if troubles else 200)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(
            body=telemetry.metrics_text(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, settings.health_host, settings.health_port)
    try:
        try:
            await site.start()
        except OSError as error:
            raise Misconfigured(
                f"HYTHE_HEALTH_PORT {settings.health_port} cannot be used: {error.strerror}"
            ) from error
        _log.info("health_port", service=name, address=site.name)
        yield
    finally:
        await runner.cleanup()


def _set_up_logging(settings: ServiceSettings) -> None:
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(
        level=max(level, logging.WARNING), stream=sys.stderr, format="%(name)s %(levelname)s %(message)s"
    )
