"""A real forge on loopback, served by git itself, and mirrors that may fetch from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from hythe_cli.demo.git_server import GitServer, Hosted, WorkTree
from hythe_git import address
from hythe_git.address import Allowed
from hythe_git.mirror import Login, Mirrors, Origin
from hythe_git.tree import Limits

HERE: Allowed = frozenset({"http", "private"})
COMPOSE = "services:\n  web:\n    build: .\n"


@pytest_asyncio.fixture
async def forge(tmp_path: Path) -> AsyncIterator[GitServer]:
    async with GitServer(tmp_path / "forge") as server:
        yield server


@pytest_asyncio.fixture
async def hosted(forge: GitServer) -> Hosted:
    return await forge.create_repository("app")


@pytest_asyncio.fixture
async def tree(hosted: Hosted, tmp_path: Path) -> WorkTree:
    """A clone with one commit that is pushed: a compose file and nothing else."""
    clone = await WorkTree.of(hosted, tmp_path / "clone")
    await clone.commit({"compose.yaml": COMPOSE}, "first")
    await clone.push()
    return clone


MakeMirrors = Callable[..., Mirrors]


@pytest.fixture
def make_mirrors(tmp_path: Path) -> MakeMirrors:
    def make(*, limits: Limits | None = None, seconds: float = 20.0, allow: Allowed = HERE) -> Mirrors:
        return Mirrors(tmp_path / "git", limits=limits or Limits(), allow=allow, seconds=seconds)

    return make


@pytest.fixture
def mirrors(make_mirrors: MakeMirrors) -> Mirrors:
    return make_mirrors()


def origin(
    url: str,
    *,
    branch: str = "main",
    login: Login | None = None,
    known_host: str | None = None,
    stack: str = "app",
) -> Origin:
    return Origin(stack, address.parse(url, HERE), branch, login, known_host)


@pytest.fixture
def origin_of() -> Callable[..., Origin]:
    return origin
