"""A whole Hythe for tests, short of the services: a migrated database, a bus with its users, and everybody's secrets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from hythe_cli.home import Home
from hythe_cli.local.nats import NatsServer
from hythe_cli.local.testing import NatsFactory, ScratchPostgres
from hythe_events.access import ROLE, nats_authorization
from hythe_events.bus import Bus
from hythe_events.migrate import migrate
from hythe_events.postgres import with_login
from hythe_events.service import Service, service
from hythe_events.settings import ServiceSettings
from hythe_events.store import Store


class World:
    """The real servers, and a way in for each service and client."""

    def __init__(self, home: Home, server: ScratchPostgres, database: str, nats: NatsServer) -> None:
        self.home = home
        self.server = server
        self.database = database
        self.nats = nats

    @property
    def postgres_url(self) -> str:
        """Host, port and database, without a login."""
        return f"postgresql://127.0.0.1:{self.server.port}/{self.database}"

    @property
    def owner_dsn(self) -> str:
        """The database as its owner: for a test that tampers."""
        return self.server.dsn(database=self.database)

    def told(self, who: str, **more: Any) -> dict[str, Any]:
        """The settings of a service, by the names of `ServiceSettings`."""
        return {
            "postgres_url": self.postgres_url,
            "nats_url": self.nats.url,
            "nats_monitor_url": self.nats.monitor_url,
            "secrets_dir": self.home.secrets(who),
            "relay": who != "webhooks",
            "ack_wait": 1.0,
            "grace": 2.0,
            "bus_max_bytes": 256 * 1024**2,
        } | more

    def store(self, who: str) -> AbstractAsyncContextManager[Store]:
        """The event store as a service's role: `async with world.store("git") as store`."""
        password = (self.home.secrets(who) / "postgres_password").read_text().strip()
        return Store.open(with_login(self.postgres_url, ROLE.format(service=who), password))

    def bus(self, who: str) -> AbstractAsyncContextManager[Bus]:
        """The bus as a user: `async with world.bus("client") as bus`."""
        return Bus.open(self.nats.url, who, (self.home.secrets(who) / "nats_seed").read_text().strip())

    @asynccontextmanager
    async def running(
        self,
        who: str,
        *,
        settings: Callable[..., ServiceSettings] = ServiceSettings,
        more: dict[str, Any] | None = None,
        **run: Any,
    ) -> AsyncIterator[Service]:
        """A service that runs in this process with what `Service.run` is told, until the block ends."""
        async with service(who, settings(**self.told(who, **(more or {})))) as made:
            stop = asyncio.Event()
            task = asyncio.create_task(made.run(stop=stop, **run))
            ready = asyncio.create_task(made.ready())
            try:
                await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED, timeout=20)
                if task.done():
                    await task
                yield made
            finally:
                ready.cancel()
                stop.set()
                await task


@asynccontextmanager
async def made_world(folder: Path, server: ScratchPostgres, nats_server: NatsFactory) -> AsyncIterator[World]:
    """A world of its own: a fresh database on `server`, a bus of its own."""
    home = Home(folder / "home")
    home.prepare()
    database = await server.fresh_database()
    await migrate(server.dsn(database=database), home.role_passwords())
    async with nats_server(authorization=nats_authorization(home.public_keys())) as nats:
        yield World(home, server, database, nats)
    await server.drop_database(database)
