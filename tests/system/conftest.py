"""One real Hythe for all system tests: four processes, Postgres, NATS, a forge, and this machine's Docker engine.

Each test brings up stacks of its own, under names of its own; all of them are removed at the end.
"""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hythe_cli.demo.scene import Scene, set_up
from hythe_cli.local.engine import Engine, static_busybox


@pytest_asyncio.fixture(scope="session")
async def scene(tmp_path_factory: pytest.TempPathFactory, docker_engine: Engine) -> AsyncIterator[Scene]:
    folder: Path = tmp_path_factory.mktemp("system") / "home"
    busybox = await static_busybox(print)
    async with set_up(folder, busybox, docker_host=docker_engine.host, tell=print) as made:
        yield made


@pytest.fixture
def stack() -> str:
    """A stack's name that nobody else on this machine uses."""
    return f"hythe-test-{secrets.token_hex(4)}"
