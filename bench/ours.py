"""Our own store in the bench's cluster: its schema and roles as the product makes them, and a twin of its table for COPY."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable

from bench.cluster import Cluster
from bench.figures import Reading
from hythe_events.migrate import ROLES, migrate

COPIED = "log.events_copied"


async def install(cluster: Cluster, database: str = "hythe") -> str:
    """Migrate a database of our own; returns the address with the role of the service that says what is measured."""
    owner = cluster.create(database)
    await migrate(owner, {role: secrets.token_hex(16) for role in ROLES})
    return login(cluster, "deploy", database)


def login(cluster: Cluster, service: str, database: str = "hythe") -> str:
    """The same address for one service's role. The bench's socket trusts whoever connects: there is no password."""
    return cluster.dsn(database).replace("postgres@", f"hythe_{service}@")


def copy_table(cluster: Cluster, database: str = "hythe") -> str:
    """A table with every column, default and index of our events, and none of its triggers; returns the owner's address."""
    cluster.sql(database, f"create table if not exists {COPIED} (like log.events including all)")
    return cluster.dsn(database)


async def sample_row(
    cluster: Cluster, store: Callable[[int, float], Awaitable[Reading]], database: str = "hythe"
) -> str:
    """Write some events, and give the newest as JSON: column → text. What COPY writes has the same content."""
    await store(1, 0.1)
    row = cluster.sql(database, "select row_to_json(e) from log.events e order by position desc limit 1")
    return json.dumps(
        {
            column: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            for column, value in json.loads(row).items()
            if value is not None
        }
    )
