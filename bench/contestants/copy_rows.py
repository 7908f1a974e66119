"""COPY: the fastest way Postgres takes rows. 100 rows for each transaction, into a table with the columns and indexes of ours.

The table is made by the harness with `like … including all`; what goes into it is said by the columns' names and types, so
that this file need not change with our schema.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import datetime
from typing import Any

import asyncpg
import uvloop

from bench.contestants import stopwatch

COLUMNS = """
    select attname as name, format_type(atttypid, null) as type from pg_attribute
     where attrelid = $1::regclass and attnum > 0 and not attisdropped and attgenerated = '' order by attnum
"""


def filling(column: str, kind: str, sample: dict[str, str]) -> Any:
    """What every row has in this column: what a row of ours has there."""
    text = sample.get(column)
    if text is None:
        return None
    if kind == "bytea":
        return bytes.fromhex(text[2:])
    if kind.startswith("timestamp"):
        return datetime.fromisoformat(text)
    if kind == "uuid":
        return uuid.UUID(text)
    if kind in ("bigint", "integer", "smallint"):
        return int(text)
    return text


async def append(dsn: str, table: str, sample: dict[str, str], seconds: float) -> dict[str, float]:
    connection = await asyncpg.connect(dsn)
    columns = [(row["name"], row["type"]) for row in await connection.fetch(COLUMNS, table)]
    schema, _, name = table.rpartition(".")
    names = [column for column, _ in columns]
    template = [filling(column, kind, sample) for column, kind in columns]
    pos, version, stream, own_id = (names.index(column) for column in ("position", "version", "stream", "id"))

    highest = 0

    async def one(_: int) -> None:
        # Only what differs from row to row is made anew: the time is COPY's, not this loop's.
        nonlocal highest
        in_stream = f"deployment-{uuid.uuid4()}"
        rows = []
        for number in range(1, 101):
            row = template.copy()
            row[pos], row[version], row[stream], row[own_id] = (
                highest + number,
                number,
                in_stream,
                uuid.uuid4(),
            )
            rows.append(row)
        await connection.copy_records_to_table(name, schema_name=schema or None, columns=names, records=rows)
        highest += 100

    await connection.execute(f"truncate {table}")
    return await stopwatch.tasks(one, 1, seconds, each=100)


if __name__ == "__main__":
    parser = stopwatch.arguments("COPY of the same rows")
    parser.add_argument("--table", required=True, help="schema.table to copy into; it is emptied first")
    parser.add_argument("--sample", required=True, help="JSON: column → text of a row of ours, bytea as \\x…")
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stopwatch.say(runner.run(append(asked.dsn, asked.table, json.loads(asked.sample), asked.seconds)))
