"""The peers that live in Postgres: how each is installed in the bench's cluster, and how a turn of each is run."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from bench import samples
from bench.cluster import BINARIES, Cluster
from bench.figures import Reading
from bench.provision import HERE, ROOT

POSTGRES = (
    "/usr/lib/postgresql/15/bin/postgres",
    "/usr/lib/postgresql/15/bin/pgbench",
    "/usr/share/postgresql/15/extension/pgcrypto.control",
)


async def contestant(
    python: Path, module: str, dsn: str, clients: int, seconds: float, *more: str
) -> Reading:
    """Run one of `bench/contestants` to its end and read the line it prints."""
    command = [
        *(str(python), "-m", f"bench.contestants.{module}"),
        *("--dsn", dsn, "--clients", str(clients), "--seconds", str(seconds)),
        *more,
    ]
    return _reading(module, await _output(command, seconds + 300))


async def _output(command: list[str], seconds: float) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(seconds):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ended with {process.returncode}; what it said is above.")
    return out.decode()


def _reading(name: str, printed: str) -> Reading:
    lines = printed.strip().splitlines()
    if not lines:
        raise SystemExit(f"{name} printed no reading")
    reading: Reading = json.loads(lines[-1])
    return reading


def install_message_db(cluster: Cluster, sql: Path) -> str:
    """Run message-db's own installer; returns the address of its database."""
    path = f"{BINARIES}:/usr/local/bin:/usr/bin:/bin"
    cluster.run("bash", str(sql / "install.sh"), DATABASE_NAME="message_store", PATH=path)
    return cluster.dsn("message_store")


def install_plain_table(cluster: Cluster) -> str:
    """A table with the least an event store needs; returns the database's name."""
    cluster.create("plain")
    cluster.sql(
        "plain",
        "create table plain_events (pos bigint generated always as identity primary key, stream uuid not null,"
        " version int not null, type text not null, data json not null, unique (stream, version))",
    )
    return "plain"


async def pgbench(cluster: Cluster, database: str, clients: int, seconds: float) -> Reading:
    """Single-row inserts, each its own commit, prepared."""
    printed = await asyncio.to_thread(
        cluster.run,
        *(
            str(BINARIES / "pgbench"),
            "-n",
            "-M",
            "prepared",
            "-f",
            str(HERE / "contestants" / "append_rows.sql"),
        ),
        *("-D", f"event={samples.EVENT_JSON}", "-c", str(clients), "-j", "2"),
        *("-T", str(max(1, round(seconds))), database),
    )
    return {
        "rate": _found(r"tps = ([\d.]+)", printed),
        "mean_ms": _found(r"latency average = ([\d.]+) ms", printed),
    }


def _found(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"pgbench printed no {pattern!r}: {text[-500:]}")
    return float(match.group(1))
