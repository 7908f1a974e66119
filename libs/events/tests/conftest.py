"""A migrated database of its own for each test that asks for one, on the session's real Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from hypothesis import HealthCheck, settings

from hythe_cli.local.testing import ScratchPostgres
from hythe_events.testing import MigratedDatabase

# A busy machine must not make a test fail: how long an example takes is not what is tested.
settings.register_profile("hythe", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hythe")


@pytest_asyncio.fixture(scope="session")
async def migrated(postgres_server: ScratchPostgres) -> str:
    """The name of a migrated database to copy: copying takes a tenth of the time of migrating."""
    name = await postgres_server.fresh_database()
    await MigratedDatabase(postgres_server.dsn(database=name)).migrate()
    return name


@pytest_asyncio.fixture
async def database(postgres_server: ScratchPostgres, migrated: str) -> AsyncIterator[MigratedDatabase]:
    """A migrated database that nobody else uses."""
    name = await postgres_server.fresh_database(migrated)
    yield await MigratedDatabase(postgres_server.dsn(database=name)).let_in()
    await postgres_server.drop_database(name)
