"""Real servers for tests: the same Postgres and NATS that `hythe up` starts, in folders that are thrown away."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from hythe_cli.local.nats import NatsServer
from hythe_cli.local.postgres import PostgresServer
from hythe_cli.local.processes import DidNotStart, run_to_end

NatsFactory = Callable[..., AbstractAsyncContextManager[NatsServer]]
"""`async with factory(authorization="…") as nats:` starts a server of its own and stops it afterwards."""


class ScratchPostgres(PostgresServer):
    """A Postgres server for one test session, where each test takes a database of its own."""

    _numbers = itertools.count(1)

    async def fresh_database(self, template: str = "template0") -> str:
        """Make an empty database, or a copy of `template` (nobody may be connected to that one); returns its name."""
        name = f"test_{next(self._numbers)}"
        await self.run_sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    async def drop_database(self, name: str) -> None:
        """Remove a database, and throw out whoever is connected to it."""
        await self.run_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def run_sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement as the superuser; returns what psql printed, unaligned and without headers."""
        environment = {**os.environ, "PGPASSWORD": self.superuser_password(), "PGCONNECT_TIMEOUT": "5"}
        code, output = await run_to_end(
            str(self.bin_dir / "psql"),
            *("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"),
            *("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database, "-c", statement),
            env=environment,
        )
        if code != 0:
            raise DidNotStart(f"psql could not run {statement!r}: {output.strip()}")
        return output.strip()


def nats_factory(make_folder: Callable[[], Path]) -> NatsFactory:
    """Give each server that is asked for a folder of its own."""

    @contextlib.asynccontextmanager
    async def started(
        authorization: str = "", max_file_store: int = 2 * 1024**3
    ) -> AsyncIterator[NatsServer]:
        server = NatsServer(make_folder(), authorization=authorization, max_file_store=max_file_store)
        await server.start()
        try:
            yield server
        finally:
            await server.stop()

    return started
