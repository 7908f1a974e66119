"""One real Hythe to be hurt, apart from the one that the system tests share. Its messages come again after 2 seconds."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from hythe_cli.demo.scene import Scene, set_up
from hythe_cli.local.engine import Engine, static_busybox


@dataclass
class Arena:
    """A scene, and every sentence that its system said about parts that ended."""

    scene: Scene
    told: list[str]


@pytest_asyncio.fixture(scope="session")
async def arena(tmp_path_factory: pytest.TempPathFactory, docker_engine: Engine) -> AsyncIterator[Arena]:
    folder: Path = tmp_path_factory.mktemp("chaos") / "home"
    busybox = await static_busybox(print)
    told: list[str] = []
    settings = {"HYTHE_ACK_WAIT": "2", "HYTHE_LEASE": "2"}
    async with set_up(
        folder, busybox, docker_host=docker_engine.host, settings=settings, tell=told.append
    ) as scene:
        yield Arena(scene, told)


@pytest.fixture
def stack() -> str:
    """A stack's name that nobody else on this machine uses."""
    return f"hythe-chaos-{secrets.token_hex(4)}"
