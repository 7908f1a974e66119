"""What several tests of the build service need: source archives, a real engine with a base image, a finished build."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
import pytest_asyncio

from hythe_build.context import Context, context
from hythe_build.images import Images
from hythe_build.plan import ImageBuild
from hythe_build.source import Source, Workshop
from hythe_cli.local.engine import Engine
from hythe_events.testing import MemoryBlobs

BASE = "hythe-test-build/base:1"


def make_tar(files: Mapping[str, bytes | str], *, mtime: int = 1_700_000_000) -> bytes:
    """A source archive as git hands it over. A value that begins with `->` is a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mtime = mtime
            body = content.encode() if isinstance(content, str) else content
            if body.startswith(b"->"):
                entry.type, entry.linkname = tarfile.SYMTYPE, body[2:].strip().decode()
                archive.addfile(entry)
                continue
            entry.size, entry.mode = len(body), 0o755 if body.startswith(b"\x7fELF") else 0o644
            archive.addfile(entry, io.BytesIO(body))
    return out.getvalue()


@pytest.fixture
def tar() -> Callable[..., bytes]:
    return make_tar


@pytest_asyncio.fixture
async def open_source(
    tmp_path: Path,
) -> AsyncIterator[Callable[[Mapping[str, bytes | str]], Awaitable[Source]]]:
    """Opens files as a source, which is there until the test ends."""
    async with asyncio.timeout(60):
        blobs = MemoryBlobs()
        opened: list[Any] = []
        async with Workshop.open(tmp_path / "work") as workshop:

            async def open_it(files: Mapping[str, bytes | str]) -> Source:
                fetching = workshop.fetch(blobs, await blobs.put(make_tar(files)))
                opened.append(fetching)
                return await fetching.__aenter__()

            yield open_it
            for each in opened:
                await each.__aexit__(None, None, None)


@dataclass
class Docker:
    """The real engine, for looking at what the build service left in it."""

    host: str
    http: aiohttp.ClientSession
    made: list[str] = field(default_factory=list)

    async def get(self, path: str) -> Any:
        async with self.http.get(f"http://engine/v1.41/{path}") as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def build(self, files: Mapping[str, bytes | str], name: str) -> None:
        """An image for a test to begin with, by the plainest of requests."""
        params = {"t": name, "rm": "1", "forcerm": "1"}
        async with self.http.post("http://engine/v1.41/build", params=params, data=make_tar(files)) as answer:
            said = await answer.text()
        assert "Successfully tagged" in said, said

    async def remove(self, image: str) -> None:
        async with self.http.delete(f"http://engine/v1.41/images/{image}", params={"force": "1"}) as answer:
            await answer.read()

    async def leftovers(self) -> tuple[set[str], set[str]]:
        """The ids of containers, and of images without a name, that were made from the base image of these tests.

        Others may use the engine at the same time; what is theirs is not looked at.
        """
        base = (await self.get(f"images/{BASE}/json"))["RootFS"]["Layers"]
        ours = json.dumps({"ancestor": [BASE]})
        containers = {each["Id"] for each in await self.get(f"containers/json?all=1&filters={ours}")}
        images = set()
        for each in await self.get(f"images/json?filters={json.dumps({'dangling': ['true']})}"):
            async with self.http.get(f"http://engine/v1.41/images/{each['Id']}/json") as answer:
                layers = (await answer.json()).get("RootFS", {}).get("Layers") or []
            if layers[: len(base)] == base:
                images.add(each["Id"])
        return containers, images

    async def files(self, image: str) -> dict[str, bytes]:
        """Every file of an image, by path, from a container that is never started."""
        body = {"Image": image, "Cmd": ["none"]}
        async with self.http.post("http://engine/v1.41/containers/create", json=body) as answer:
            container = (await answer.json())["Id"]
        try:
            async with self.http.get(f"http://engine/v1.41/containers/{container}/export") as answer:
                packed = io.BytesIO(await answer.read())
        finally:
            await self.http.delete(f"http://engine/v1.41/containers/{container}", params={"force": "1"})
        with tarfile.open(fileobj=packed) as archive:
            read = {each.name: archive.extractfile(each) for each in archive if each.isreg()}
            return {name: file.read() for name, file in read.items() if file is not None}


@pytest_asyncio.fixture(scope="session")
async def docker(docker_engine: Engine) -> AsyncIterator[Docker]:
    connector = aiohttp.UnixConnector(docker_engine.host.removeprefix("unix://"))
    async with aiohttp.ClientSession(connector=connector) as http:
        real = Docker(docker_engine.host, http)
        busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
        dockerfile = (
            'FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\nENV PATH=/bin\nCMD ["sh"]\n'
        )
        await real.build({"Dockerfile": dockerfile, "busybox": busybox}, BASE)
        yield real
        ours = await real.get(f"images/json?filters={json.dumps({'reference': ['hythe/hythe-test-build*']})}")
        for name in [name for image in ours for name in image["RepoTags"]]:
            await real.remove(name)
        await real.remove(BASE)


@dataclass
class Bench:
    """Builds one image the way the service does, and keeps what was said."""

    images: Images
    stack: str
    open_source: Callable[[Mapping[str, bytes | str]], Awaitable[Source]]
    lines: list[bytes] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def say(self, line: bytes) -> None:
        self.lines.append(line)
        self.heard.set()

    async def until(self, said: bytes) -> None:
        async with asyncio.timeout(30):
            while said not in self.lines:
                self.heard.clear()
                await self.heard.wait()

    async def prepared(self, files: Mapping[str, bytes | str], **asked: Any) -> tuple[ImageBuild, Context]:
        wanted = ImageBuild(
            **{
                "service": "web",
                "name": f"hythe/{self.stack}-web",
                "context": "",
                "dockerfile": "Dockerfile",
                **asked,
            }
        )
        return wanted, context(wanted, await self.open_source(files))

    async def build(self, files: Mapping[str, bytes | str], *, commit: str = "1" * 40, **asked: Any) -> Any:
        wanted, sent = await self.prepared(files, **asked)
        labels = {"org.opencontainers.image.revision": commit, "dev.hythe.stack": self.stack}
        return await self.images.build(wanted, sent, labels=labels, say=self.say)


@pytest_asyncio.fixture(params=["buildkit", "classic"])
async def bench(
    request: pytest.FixtureRequest, docker: Docker, open_source: Callable[..., Awaitable[Source]]
) -> AsyncIterator[Bench]:
    """A bench for each of the two builders."""
    async with Images.open(docker.host, buildkit=request.param == "buildkit") as images:
        yield Bench(images, f"hythe-test-build-{uuid4().hex[:8]}", open_source)
