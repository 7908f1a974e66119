"""From the log to a handler: how long after an append has returned, and how many events a second the relay can tell.

The bus syncs every message to disk (`sync_interval: always`). The writer, the service that relays and hears, Postgres and
NATS are processes of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import nats

from bench import parts, processes, samples
from bench.figures import Figure, Reading, median, progress, take_turns
from hythe_cli.local.nats import NatsServer
from hythe_cli.local.world import World
from hythe_events import streams
from hythe_events.envelope import Cause
from hythe_events.postgres import connect
from hythe_events.store import Store
from hythe_events.webhooks import Commit, WebhookReceived

RATE = 200
SECONDS = 8.0
WARM_UP = 1.5
BACKLOG = 40_000
POLL = 0.1

EVENT = WebhookReceived(
    source="bench",
    provider="github",
    delivery="0199f3a4-6f2e-7c31-9a55-1c7f0be2d9a4",
    repository="quay/shop",
    ref="refs/heads/main",
    before="2c26b46b" * 5,
    after="9f86d081" * 5,
    commit=Commit(
        id="9f86d081" * 5, message="Round the ledger's totals once, at the end", author="Maren Vik"
    ),
    sender="marenvik",
    changed_paths=("storefront/totals.py", "compose.yaml"),
    body_sha256="2c26b46b" * 8,
)


async def run(rounds: int) -> list[Figure]:
    async with parts.world() as world:

        async def drained() -> Reading:
            async with (
                parts.world() as another
            ):  # whoever hears in `world` must not find this backlog before it
                return await _drain(another)

        got = await take_turns(
            rounds,
            {"hythe": lambda: _delays(world), "hythe backlog": drained, "js.publish": _published_singly},
        )
    heard, told, singly = got["hythe"], got["hythe backlog"], got["js.publish"]
    polling = f"polling every {POLL * 1000:.0f} ms"
    return [
        Figure("relay", "delay_p50", median(heard, "p50_ms"), polling, median(heard, "polled_p50_ms"), "ms"),
        Figure("relay", "delay_p99", median(heard, "p99_ms"), polling, median(heard, "polled_p99_ms"), "ms"),
        Figure(
            "relay",
            "delay_to_append",
            median(heard, "p50_ms"),
            "append itself",
            median(heard, "append_p50_ms"),
            "ms",
        ),
        Figure("relay", "sustained", median(told), "js.publish one by one", median(singly)),
    ]


@contextlib.asynccontextmanager
async def _hearing(world: World, log: Path, *more: str) -> AsyncIterator[None]:
    """The service, ready; what it prints goes to `log`."""
    port = processes.free_port()
    told = world.told("git", ack_wait=parts.ACK_WAIT, health_port=port, log_level="error", relay=True)
    env = {f"HYTHE_{key.upper()}": str(value) for key, value in told.items()}
    command = (sys.executable, "-m", "bench.contestants.hythe_hearing", *more)
    async with processes.running(*command, log=log, env=env) as process:
        await processes.until(process, lambda: processes.answers(port, "/readyz"))
        yield


async def _delays(world: World) -> Reading:
    """Append `RATE` events a second for a while; when was each returned, heard, and seen by who polls?"""
    log = world.home.directory / "heard.log"
    log.unlink(missing_ok=True)
    returned: dict[UUID, float] = {}
    appends: list[float] = []
    polled: dict[UUID, float] = {}

    async with world.store("webhooks") as store, world.store("build") as reader, _hearing(world, log):

        async def append() -> None:
            root = uuid4()
            began = time.monotonic()
            [stored] = await store.append(
                streams.delivery("bench", str(root)), 0, [EVENT], because=Cause(root, None, "github:marenvik")
            )
            returned[stored.id] = time.monotonic()
            appends.append(returned[stored.id] - began)

        async def poll() -> None:
            position = (await reader.head()).position
            while True:
                while page := await reader.read_raw(position, 1000):
                    now = time.monotonic()
                    polled.update((row.id, now) for row in page)
                    position = page[-1].position
                await asyncio.sleep(POLL)

        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(SECONDS + WARM_UP + 60):
            polling = asyncio.create_task(poll())
            async with asyncio.TaskGroup() as group:
                began = clock()
                for number in range(round((SECONDS + WARM_UP) * RATE)):
                    await asyncio.sleep(max(0.0, began + number / RATE - clock()))
                    group.create_task(append())
            while not returned.keys() <= (heard := _heard(log)).keys() & polled.keys():
                await asyncio.sleep(0.05)
            polling.cancel()
    counted = list(returned)[round(WARM_UP * RATE) :]
    delays = sorted((heard[event] - returned[event]) * 1000 for event in counted)
    seen = sorted((polled[event] - returned[event]) * 1000 for event in counted)
    took = sorted(appends[round(WARM_UP * RATE) :])
    return {
        "p50_ms": delays[len(delays) // 2],
        "p99_ms": delays[int(len(delays) * 0.99)],
        "polled_p50_ms": seen[len(seen) // 2],
        "polled_p99_ms": seen[int(len(seen) * 0.99)],
        "append_p50_ms": took[len(took) // 2] * 1000,
    }


def _heard(log: Path) -> dict[UUID, float]:
    """When each event's handler was first entered."""
    found: dict[UUID, float] = {}
    for line in log.read_text().splitlines():
        event, _, at = line.partition(" ")
        with contextlib.suppress(ValueError):  # the service's own log lines go the same way
            found.setdefault(UUID(event), float(at))
    return found


async def _drain(world: World) -> Reading:
    """Write a backlog while nobody relays, then see how fast a relay tells it."""
    root = uuid4()
    because = Cause(root, None, "github:marenvik")
    async with world.store("webhooks") as store:
        await _write_backlog(store, because)
        head = (await store.head()).position
    watch = await connect(world.owner_dsn, application="bench")
    try:
        start: int = await watch.fetchval("select position from log.relay")
        if head - start < BACKLOG:
            raise SystemExit(f"only {head - start} of {BACKLOG} events wait for the relay")
        async with _hearing(world, world.home.directory / "relay.log", "--deaf"), asyncio.timeout(300):
            first: tuple[float, int] | None = None
            while True:
                position: int = await watch.fetchval("select position from log.relay")
                now = time.perf_counter()
                if first is None and position > start:
                    first = (now, position)
                if first is not None and position >= head:
                    return {"rate": (position - first[1]) / (now - first[0]), "events": position - first[1]}
                await asyncio.sleep(0.005)
    finally:
        await watch.close()


async def _write_backlog(store: Store, because: Cause) -> None:
    progress(f"writing a backlog of {BACKLOG:,} events")

    async def writer() -> None:
        for _ in range(BACKLOG // 800):
            await store.append(streams.delivery("bench", str(uuid4())), 0, [EVENT] * 100, because=because)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(writer())


async def _published_singly() -> Reading:
    """What a relay without batches would do: `await js.publish` for one event after the other, on a server of its own."""
    with processes.folder() as folder:
        server = NatsServer(folder / "nats")
        await server.start()
        try:
            client = await nats.connect(server.url)
            jetstream = client.jetstream()
            await jetstream.add_stream(name="BENCH", subjects=["bench.>"])
            body = samples.EVENT_JSON.encode()
            published, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < 3.0:
                await jetstream.publish("bench.event", body, headers={"Nats-Msg-Id": str(uuid4())})
                published += 1
            await client.close()
            return {"rate": published / took, "events": published}
        finally:
            await server.stop()
