"""What tests of real deploys stand on: a folder of stacks, images made from nothing, and somebody who asks for deploys.

yard          `await yard.deploy("shop", compose)` takes a compose file from built to its outcome on the real engine
database      a migrated database on the real Postgres
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import aiodocker
import pytest
import pytest_asyncio
from aiodocker.exceptions import DockerError

from hythe_cli.local.engine import Engine, static_busybox
from hythe_cli.local.testing import ScratchPostgres
from hythe_deploy.handlers import Handlers
from hythe_deploy.lease import Hold, StackBusy, Superseded
from hythe_deploy.settings import DeploySettings
from hythe_deploy.stacks import Stacks
from hythe_events import streams
from hythe_events.build import BuildFinished, BuildStarted, Image
from hythe_events.decider import fold
from hythe_events.deploy import Rollback
from hythe_events.deployment import Deployment, evolve
from hythe_events.envelope import Cause
from hythe_events.git import BuildRequested, DeploymentRequested
from hythe_events.language import new_id
from hythe_events.postgres import with_login
from hythe_events.testing import MemoryBlobs, MemoryStore, MigratedDatabase

HEALTHY = '{test: ["CMD", "/bin/busybox", "test", "-e", "/www/index.html"], interval: 300ms, retries: 2, timeout: 2s}'
"""A healthcheck that passes in an image that `Yard.image` made."""


@dataclass
class LeasesInMemory:
    """Leases as `hythe_deploy.lease` gives them, for one process; `taken` lists every fence that was ever given."""

    taken: list[tuple[str, int]] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    newest: dict[str, int] = field(default_factory=dict)
    holders: set[str] = field(default_factory=set)

    @asynccontextmanager
    async def hold(
        self, stack: str, deployment: UUID, asked: int, *, wait: float = 60.0, force: bool = False
    ) -> AsyncIterator[Hold]:
        if asked < self.newest.get(stack, 0):
            raise Superseded
        if stack in self.holders:
            raise StackBusy
        self.newest[stack] = asked
        self.taken.append((stack, len(self.taken) + 1))
        self.holders.add(stack)
        held = _HeldInMemory(stack, len(self.taken), asked, self.kept)
        try:
            yield held
        finally:
            self.holders.discard(stack)


@dataclass
class _HeldInMemory:
    stack: str
    fence: int
    newest: int
    kept: set[str]

    async def check(self) -> None:
        return

    async def note(self, pid: int) -> None:
        return

    def keep(self) -> None:
        self.kept.add(self.stack)


@dataclass
class Yard:
    """A small world with a real engine: stacks are deployed to `stacks_dir`, under names of this test's own."""

    docker: aiodocker.Docker
    busybox: bytes
    settings: DeploySettings
    prefix: str
    store: MemoryStore = field(default_factory=MemoryStore)
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)
    leases: LeasesInMemory = field(default_factory=LeasesInMemory)
    images: dict[str, Image] = field(default_factory=dict)
    """Those that were made before: one is made once per session."""

    def __post_init__(self) -> None:
        self.handlers = Handlers(self.store, self.blobs, Stacks(self.settings), self.leases)

    def stack(self, name: str) -> str:
        """The real name of a stack that a test calls `name`."""
        return f"{self.prefix}-{name}"

    def folder(self, name: str) -> Path:
        """The stack's folder."""
        return self.settings.stacks_dir / self.stack(name)

    async def image(self, word: str, command: str = "httpd -f -p 8080 -h /www") -> Image:
        """An image made from nothing, whose `/www/index.html` says `word`."""
        script = command.removeprefix("sh -c ")
        argv = ["sh", "-c", script] if script != command else command.split()
        dockerfile = (
            "FROM scratch\nCOPY busybox /bin/busybox\nCOPY index.html /www/index.html\n"
            f"CMD {json.dumps(['/bin/busybox', *argv])}\n"
        )
        reference = f"hd-{hashlib.sha256((word + command).encode()).hexdigest()[:16]}"
        if reference not in self.images:
            context = archive(
                {"Dockerfile": dockerfile.encode(), "busybox": self.busybox, "index.html": word.encode()},
                executable={"busybox"},
            )
            await self.docker.images.build(fileobj=io.BytesIO(context), encoding="identity", tag=reference)
            shown = await self.docker.images.inspect(reference)
            self.images[reference] = Image(reference=reference, digest=shown["Id"])
        return self.images[reference]

    async def forget(self, image: Image) -> None:
        """Removes an image from the engine with all its names."""
        await self.docker.images.delete(image.digest, force=True)
        del self.images[image.reference]

    async def deploy(
        self,
        name: str,
        compose: str,
        images: dict[str, Image] | None = None,
        files: dict[str, bytes] | None = None,
        *,
        commit: str | None = None,
        run: bool = True,
    ) -> Deployment:
        """A deployment of `name`, from requested to its outcome; without `run` only up to built."""
        stack, deployment = self.stack(name), new_id()
        commit = commit or hashlib.sha1(f"{compose}{images}{files}".encode()).hexdigest()
        because = Cause(deployment, None, "test")
        source = await self.blobs.put(archive({"compose.yaml": compose.encode(), **(files or {})}))
        stream = streams.deployment(deployment)
        requested = DeploymentRequested(
            deployment=deployment, stack=stack, trigger="command", ref="main", commit=commit, asked_by="test"
        )
        fetched = BuildRequested(
            deployment=deployment,
            stack=stack,
            commit=commit,
            ref="main",
            message="",
            author="",
            asked_by="test",
            source=source,
            compose_file="compose.yaml",
        )
        started = BuildStarted(deployment=deployment, stack=stack, services=tuple(images or {}))
        built = BuildFinished(deployment=deployment, stack=stack, outcome="succeeded", images=images or {})
        await self.store.append(stream, 0, [requested, fetched, started, built], because=because)
        return await self.go_on(deployment) if run else await self.state(deployment)

    async def go_on(self, deployment: UUID) -> Deployment:
        """The message of `deployment` is delivered, once or once more."""
        events = await self.store.read(streams.deployment(deployment))
        heard = next(e for e in events if e.type in {"build.finished", "rollback.requested"})
        if heard.type == "build.finished":
            await self.handlers.on_build_finished(heard)  # type: ignore[arg-type]
        else:
            await self.handlers.on_rollback_requested(heard)  # type: ignore[arg-type]
        return await self.state(deployment)

    async def rollback(self, name: str, to: UUID | None = None) -> Deployment:
        """A rollback, asked for and carried out."""
        because = Cause(new_id(), None, "test")
        opened = await self.handlers.rollback(Rollback(stack=self.stack(name), to=to), because)
        return await self.go_on(opened.deployment)

    async def state(self, deployment: UUID) -> Deployment:
        """What the log says of `deployment`."""
        return fold(evolve, await self.store.read(streams.deployment(deployment)), Deployment())

    async def containers(self, name: str) -> dict[str, dict[str, Any]]:
        """What Docker says of the stack's containers, by service (the newest of each)."""
        label = f"com.docker.compose.project={self.stack(name)}"
        listed = await self.docker.containers.list(all=True, filters=json.dumps({"label": [label]}))
        shown = [await container.show() for container in listed]
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in shown}

    async def leftovers(self) -> list[str]:
        """Containers of rehearsals that nobody removed."""
        listed = await self.docker.containers.list(
            all=True, filters=json.dumps({"label": ["hythe.rehearsal"]})
        )
        return [name for one in listed for name in one["Names"] if self.prefix in name]

    async def clean(self) -> None:
        """Removes everything this yard made from the engine."""
        for container in await self.docker.containers.list(all=True):
            if any(self.prefix in name for name in container["Names"]) or self.prefix in (
                (container["Labels"] or {}).get("com.docker.compose.project", "")
            ):
                with contextlib.suppress(DockerError):
                    await container.delete(force=True, v=True)
        for network in await self.docker.networks.list():
            if self.prefix in network["Name"]:
                with contextlib.suppress(DockerError):
                    await (await self.docker.networks.get(network["Id"])).delete()
        volumes: Any = self.docker.volumes  # has no types
        for volume in (await volumes.list())["Volumes"] or ():
            if self.prefix in volume["Name"]:
                with contextlib.suppress(DockerError):
                    await (await volumes.get(volume["Name"])).delete()
        for image in self.images.values():
            for tag in (await self.docker.images.inspect(image.digest))["RepoTags"]:
                if self.prefix in tag:
                    with contextlib.suppress(DockerError):
                        await self.docker.images.delete(tag, force=True)


def archive(files: dict[str, bytes], *, executable: set[str] | frozenset[str] = frozenset()) -> bytes:
    """A tar of `files`, as the git service makes them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755 if name in executable else 0o644
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest_asyncio.fixture(scope="session")
async def busybox() -> bytes:
    path = await static_busybox(print)
    return await asyncio.to_thread(path.read_bytes)


@pytest_asyncio.fixture(scope="session")
async def images(docker_engine: Engine) -> AsyncIterator[dict[str, Image]]:
    made: dict[str, Image] = {}
    yield made
    async with aiodocker.Docker(docker_engine.host) as docker:
        for image in made.values():
            with contextlib.suppress(DockerError):
                await docker.images.delete(image.digest, force=True)


@pytest_asyncio.fixture
async def yard(
    docker_engine: Engine, busybox: bytes, images: dict[str, Image], tmp_path: Path
) -> AsyncIterator[Yard]:
    settings = DeploySettings(
        stacks_dir=tmp_path / "stacks", docker_host=docker_engine.host, settle=0.5, deadline=20, relay=False
    )
    async with aiodocker.Docker(docker_engine.host) as docker:
        made = Yard(docker, busybox, settings, f"hd{new_id().hex[-8:]}", images=images)
        yield made
        await made.clean()


@pytest.fixture
def healthy() -> str:
    return HEALTHY


@pytest_asyncio.fixture
async def database(postgres_server: ScratchPostgres) -> AsyncIterator[MigratedDatabase]:
    name = await postgres_server.fresh_database()
    owner = with_login(
        f"postgresql://127.0.0.1:{postgres_server.port}/{name}",
        "postgres",
        postgres_server.superuser_password(),
    )
    yield await MigratedDatabase(owner).migrate()
    await postgres_server.drop_database(name)
