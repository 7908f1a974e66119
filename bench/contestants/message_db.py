"""message-db's `write_message` and `get_category_messages`, called through asyncpg: one connection for each caller.

Each caller writes streams of 100 messages in the category `deployment`, with the expected version, as ours does.
"""

from __future__ import annotations

import asyncio
import time
import uuid

import asyncpg
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
        await writes[number].fetchval(str(uuid.uuid4()), streams[number], samples.EVENT_TYPE, samples.EVENT_JSON, version)
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


async def connect(dsn: str) -> asyncpg.Connection:
    # Their functions name each other without a schema: the README has the search path set like this.
    return await asyncpg.connect(dsn, server_settings={"search_path": "message_store,public"})


if __name__ == "__main__":
    parser = stopwatch.arguments("message-db, through asyncpg")
    parser.add_argument("--replay", action="store_true")
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stopwatch.say(
            runner.run(replay(asked.dsn) if asked.replay else append(asked.dsn, asked.clients, asked.seconds))
        )
