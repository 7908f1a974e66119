"""message-db's `write_message` and `get_category_messages`, called through asyncpg: one connection for each caller.

Each caller writes streams of 100 messages in the category `deployment`, with the expected version, as ours does.
"""

from __future__ import annotations

import asyncio
import time
import uuid

import asyncpg
import orjson
import uvloop

from bench import samples
from bench.contestants import stopwatch

WRITE = "select message_store.write_message($1, $2, $3, $4, null, $5)"
READ = "select * from message_store.get_category_messages('deployment', $1, 1000)"


async def append(dsn: str, clients: int, seconds: float) -> dict[str, float]:
    connections = [await connect(dsn) for _ in range(clients)]
    writes = [await connection.prepare(WRITE) for connection in connections]
    streams = [f"deployment-{uuid.uuid4()}" for _ in range(clients)]
    versions = [-1] * clients

    async def one(number: int) -> None:
        version = versions[number]
        await writes[number].fetchval(
            str(uuid.uuid4()), streams[number], samples.EVENT_TYPE, samples.EVENT_JSON, version
        )
        if version < 98:
            versions[number] = version + 1
        else:
            streams[number], versions[number] = f"deployment-{uuid.uuid4()}", -1

    return await stopwatch.tasks(one, clients, seconds)


async def replay(dsn: str) -> dict[str, float]:
    connection = await connect(dsn)
    read = await connection.prepare(READ)
    position, seen, started = 1, 0, time.perf_counter()
    while rows := await read.fetch(position):
        seen += len(rows)
        position = rows[-1]["global_position"] + 1
    return {"rate": seen / (time.perf_counter() - started), "events": seen}


async def read_streams(dsn: str, count: int) -> dict[str, float]:
    """Streams of 30 messages, each read whole and its JSON parsed; the first is not counted."""
    connection = await connect(dsn)
    read = await connection.prepare("select * from message_store.get_stream_messages($1, 0, 1000)")
    times = []
    for number in range(count):
        began = time.perf_counter()
        rows = await read.fetch(f"deployment-bench{number}")
        events = [orjson.loads(row["data"]) for row in rows]
        times.append((time.perf_counter() - began) * 1000)
        assert len(events) == 30, "the harness wrote 30"
    ordered = sorted(times[1:])
    return {"p50_ms": ordered[len(ordered) // 2], "p99_ms": ordered[int(len(ordered) * 0.99)]}


async def connect(dsn: str) -> asyncpg.Connection:
    # Their functions name each other without a schema: the README has the search path set like this.
    return await asyncpg.connect(dsn, server_settings={"search_path": "message_store,public"})


if __name__ == "__main__":
    parser = stopwatch.arguments("message-db, through asyncpg")
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--streams", type=int, default=0, help="read this many streams of 30 instead")
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if asked.replay:
            stopwatch.say(runner.run(replay(asked.dsn)))
        elif asked.streams:
            stopwatch.say(runner.run(read_streams(asked.dsn, asked.streams)))
        else:
            stopwatch.say(runner.run(append(asked.dsn, asked.clients, asked.seconds)))
