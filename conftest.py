"""The real parts that tests run against. A part that is missing makes its tests fail; nothing is skipped.

    postgres_server   one real server per session; `await postgres_server.fresh_database()` names an empty database
    nats_server       `async with nats_server(authorization="…") as nats:` is a real server of one's own
    world             a database of its own, migrated, a bus of its own with its users, and everybody's secrets
    docker_engine     the Docker engine of this machine, started when none answers

Whoever asks for one of them is marked `real`: `pytest -m "not real"` leaves out what needs them.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hythe_cli.local.engine import Engine, ensure_engine
from hythe_cli.local.testing import NatsFactory, ScratchPostgres, nats_factory
from hythe_cli.local.world import World, made_world

REAL_PARTS = {"world", "postgres_server", "nats_server", "docker_engine"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if REAL_PARTS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)


@pytest_asyncio.fixture(scope="session")
async def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScratchPostgres]:
    server = ScratchPostgres(tmp_path_factory.mktemp("postgres"))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> NatsFactory:
    return nats_factory(lambda: tmp_path_factory.mktemp("nats"))


@pytest_asyncio.fixture(scope="session")
async def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    def say(line: str) -> None:
        print(line)

    log: Path = tmp_path_factory.mktemp("docker") / "dockerd.log"
    engine = await ensure_engine(say, log=log, ends_with_us=True)
    yield engine
    await engine.stop()


@pytest_asyncio.fixture
async def world(
    tmp_path: Path, postgres_server: ScratchPostgres, nats_server: NatsFactory
) -> AsyncIterator[World]:
    async with made_world(tmp_path, postgres_server, nats_server) as made:
        yield made
