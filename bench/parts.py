"""Hythe's own Postgres and NATS, as `hythe up` starts them, in a folder that is thrown away, and its services as processes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bench import processes
from hythe_cli.local.testing import ScratchPostgres, nats_factory
from hythe_cli.local.world import World, made_world

ACK_WAIT = 30.0


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """A migrated database, a bus that syncs always, and everybody's secrets; no service runs yet."""
    with processes.folder() as folder:
        server = ScratchPostgres(
            folder / "postgres", settings={"shared_buffers": "1GB", "max_wal_size": "8GB"}
        )
        await server.start()
        try:
            async with made_world(folder, server, nats_factory(lambda: folder / "nats")) as made:
                yield made
        finally:
            await server.stop()


@asynccontextmanager
async def service(world: World, name: str, log: Path, **settings: object) -> AsyncIterator[int]:
    """One of the four services as a process of its own, ready; yields its process id."""
    port = processes.free_port()
    told = world.told(name, ack_wait=ACK_WAIT, health_port=port, log_level="warning", **settings)
    env = {f"HYTHE_{key.upper()}": str(value) for key, value in told.items()}
    command = (sys.executable, "-m", f"hythe_{name}")
    async with processes.running(*command, log=log, env=env) as process:
        await processes.until(process, lambda: processes.answers(port, "/readyz"))
        yield process.pid


def server_pids(world: World) -> Callable[[], list[int]]:
    """The processes of Postgres and NATS, backends included, as they are when asked."""

    def now() -> list[int]:
        servers = [pid for pid in (world.server.pid, world.nats.pid) if pid]
        found = list(servers)
        for server in servers:
            with contextlib.suppress(OSError):
                found += processes.below(server)
        return found

    return now
