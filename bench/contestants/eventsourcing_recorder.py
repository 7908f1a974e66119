"""The `eventsourcing` library's Postgres recorder with its database functions on (the faster of its two modes), in threads.

Each thread inserts into aggregates of 100 events.
"""

from __future__ import annotations

import os
import time
import urllib.parse
import uuid
from typing import Any

from eventsourcing.persistence import InfrastructureFactory, StoredEvent
from eventsourcing.utils import Environment

from bench import samples
from bench.contestants import stopwatch


def recorder(dsn: str, clients: int) -> Any:
    address = urllib.parse.urlsplit(dsn)
    host = urllib.parse.parse_qs(address.query)["host"][0]
    environment = Environment("bench")
    environment.update(
        PERSISTENCE_MODULE="eventsourcing.postgres",
        POSTGRES_DBNAME=address.path.lstrip("/"),
        POSTGRES_HOST=host,
        POSTGRES_PORT=urllib.parse.parse_qs(address.query)["port"][0],
        POSTGRES_USER=address.username or "postgres",
        POSTGRES_PASSWORD="unused: the socket is trusted",
        POSTGRES_POOL_SIZE=str(clients),
        POSTGRES_MAX_OVERFLOW=str(clients),
        POSTGRES_ENABLE_DB_FUNCTIONS="yes",
    )
    return InfrastructureFactory.construct(environment).application_recorder()


def append(dsn: str, clients: int, seconds: float, batch: int) -> dict[str, float]:
    store = recorder(dsn, clients)
    state = samples.EVENT_JSON.encode()
    streams = [uuid.uuid4() for _ in range(clients)]
    versions = [0] * clients

    def one(number: int) -> None:
        stream, version = streams[number], versions[number]
        store.insert_events(
            [StoredEvent(stream, version + i, samples.EVENT_TYPE, state) for i in range(1, batch + 1)]
        )
        if version + batch < 100:
            versions[number] = version + batch
        else:
            streams[number], versions[number] = uuid.uuid4(), 0

    return stopwatch.threads(one, clients, seconds, batch)


def replay(dsn: str) -> dict[str, float]:
    store = recorder(dsn, 1)
    position, seen, started = 1, 0, time.perf_counter()
    while page := store.select_notifications(start=position, limit=1000):
        seen += len(page)
        position = page[-1].id + 1
    return {"rate": seen / (time.perf_counter() - started), "events": seen}


if __name__ == "__main__":
    parser = stopwatch.arguments("eventsourcing's Postgres recorder")
    parser.add_argument("--batch", type=int, default=1, help="events in one insert")
    parser.add_argument("--replay", action="store_true")
    asked = parser.parse_args()
    if asked.replay:
        stopwatch.say(replay(asked.dsn))
    else:
        stopwatch.say(append(asked.dsn, asked.clients, asked.seconds, asked.batch))
    # Its pool keeps threads of its own, which nothing is left to wait for.
    os._exit(0)
