"""Building images on the real engine, by both builders."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from hythe_build.images import BuildFailed, EngineUnavailable, Images

BASE = "hythe-test-build/base:1"


def unique() -> str:
    """Something that no cache has seen."""
    return uuid4().hex


async def test_an_image_is_built_named_by_what_it_is_and_labelled(bench: Any, docker: Any) -> None:
    """The name never moves to another image, and the digest is the one Docker will report for the container."""
    page = unique()
    image = await bench.build(
        {"Dockerfile": f"FROM {BASE}\nARG WHO\nRUN echo hello $WHO\nCOPY page /page\n", "page": page},
        args={"WHO": "Ada"},
        labels={"team": "blue"},
    )
    seen = await docker.get(f"images/{image.reference}/json")
    assert seen["Id"] == image.digest
    assert image.reference == f"hythe/{bench.stack}-web:{image.digest.removeprefix('sha256:')[:16]}"
    labels = seen["Config"]["Labels"]
    assert labels["org.opencontainers.image.revision"] == "1" * 40
    assert labels["dev.hythe.stack"] == bench.stack
    assert labels["team"] == "blue"
    assert (await docker.files(image.digest))["page"] == page.encode()
    assert any(b"hello Ada" in line for line in bench.lines)


async def test_a_service_that_a_commit_did_not_touch_keeps_its_image(bench: Any) -> None:
    """Otherwise every push would restart every service."""
    files = {"Dockerfile": f"FROM {BASE}\nCOPY page /\n", "page": unique()}
    first = await bench.build(files, commit="1" * 40)
    assert await bench.build(files, commit="2" * 40) == first
    assert await bench.build({**files, "page": unique()}, commit="2" * 40) != first


async def test_a_step_that_fails_is_named_in_one_line_and_leaves_nothing(bench: Any, docker: Any) -> None:
    """The reason is read at night; the rest is in the log."""
    before = await docker.leftovers()
    files = {
        "Dockerfile": f"FROM {BASE}\nENV X={unique()}\nRUN echo {unique()} > /made\nRUN echo loud; echo err >&2; exit 3\n"
    }
    with pytest.raises(BuildFailed) as failed:
        await bench.build(files)
    assert str(failed.value).startswith("web: step ")
    assert "RUN echo loud; echo err >&2; exit 3" in str(failed.value)
    assert str(failed.value).endswith(": exit code 3")
    assert b"loud" in bench.lines
    assert b"err" in bench.lines
    assert await docker.leftovers() == before


@pytest.mark.parametrize(
    ("dockerfile", "says"),
    [
        ("FRUM x\n", "unknown instruction"),
        ("FROM scratch\nCOPY nothing /\n", "not found"),
        ("", "empty"),
        ("FROM hythe-test-build/no-such-image:1\n", "hythe-test-build|registry"),
        (f"FROM {BASE} AS run\n", "no-such-target|nothing"),
    ],
)
async def test_a_dockerfile_that_cannot_be_built_is_refused_with_the_reason(
    bench: Any, docker: Any, dockerfile: str, says: str
) -> None:
    """In the engine's words, without its wrapping."""
    before = await docker.leftovers()
    with pytest.raises(BuildFailed, match=says) as failed:
        await bench.build({"Dockerfile": dockerfile}, target="nothing" if " AS " in dockerfile else None)
    assert "\n" not in str(failed.value)
    assert "LLB" not in str(failed.value)
    assert await docker.leftovers() == before


async def processes(text: str) -> int:
    """How many processes of this machine have `text` in their command line."""

    def count() -> int:
        found = 0
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found += text.encode() in file.read_bytes()
            except OSError:
                continue
        return found

    return await asyncio.to_thread(count)


async def gone(text: str) -> None:
    """Returns when no process with `text` is left."""
    while await processes(text):
        await asyncio.sleep(0.05)


async def test_a_cancelled_build_is_gone_within_seconds(bench: Any, docker: Any) -> None:
    """Its processes too: a build that runs on unseen would eat the machine."""
    before = await docker.leftovers()
    mark = f"600.{uuid4().int % 10**9}"
    files = {
        "Dockerfile": f"FROM {BASE}\nRUN echo {unique()} > /made\nRUN echo begun; sleep {mark}; echo ended\n"
    }
    async with asyncio.TaskGroup() as tasks:
        building = tasks.create_task(bench.build(files))
        await bench.until(b"begun")
        async with asyncio.timeout(5):
            while not await processes(mark):
                await asyncio.sleep(0.02)
        building.cancel()
    assert building.cancelled()
    async with asyncio.timeout(5):
        await gone(mark)
        while await docker.leftovers() != before:
            await asyncio.sleep(0.05)


async def test_what_a_build_prints_cannot_make_us_remove_an_image(bench: Any, docker: Any) -> None:
    """The classic builder names the images it made in the same stream as the build's own output."""
    base = await docker.get(f"images/{BASE}/json")
    short = base["Id"].removeprefix("sha256:")[:12]
    with pytest.raises(BuildFailed):
        await bench.build(
            {"Dockerfile": f"FROM {BASE}\nRUN echo {unique()}; printf ' ---> {short}\\n'; exit 1\n"}
        )
    assert (await docker.get(f"images/{BASE}/json"))["Id"] == base["Id"]


async def test_raw_bytes_of_the_output_are_kept(bench: Any) -> None:
    """Whoever shows a log escapes it; what was printed is not changed before. (The classic builder's own answer is
    JSON text, in which bytes that are not UTF-8 are replaced by the engine.)"""
    await bench.build({"Dockerfile": f"FROM {BASE}\nRUN printf 'a\\033[31mb\\377\\376c\\007{unique()}'\n"})
    [line] = [line for line in bench.lines if line.startswith(b"a\x1b[31m")]
    assert b"\x07" in line
    assert line.startswith(b"a\x1b[31mb\xff\xfec") or "�".encode() in line


async def test_ten_megabytes_on_one_line_are_taken_in_pieces(bench: Any) -> None:
    """Neither the engine's message nor ours may grow with it. (BuildKit itself cuts a step's output after a while.)"""
    await bench.build(
        {"Dockerfile": f"FROM {BASE}\nRUN head -c 10000000 /dev/zero | tr '\\0' x; echo; echo {unique()}\n"}
    )
    long = [line for line in bench.lines if line.startswith(b"xxx")]
    assert max(map(len, long)) <= 32 * 1024
    clipped = any(b"clipped" in line for line in bench.lines)
    assert clipped or sum(map(len, long)) == 10_000_000


async def test_a_dockerfile_that_its_ignore_file_leaves_out_is_not_copied(bench: Any, docker: Any) -> None:
    """Docker's own template ignores it; an image by hand would not hold it."""
    image = await bench.build(
        {
            "Dockerfile": "FROM scratch\nCOPY . /all/\n",
            ".dockerignore": "Dockerfile\n.dockerignore",
            "a": unique(),
        }
    )
    assert {path for path in await docker.files(image.digest) if path.startswith("all/")} == {"all/a"}


async def test_a_dockerfile_in_the_compose_file_is_not_copied(bench: Any, docker: Any) -> None:
    """It is not one of the repository's files."""
    image = await bench.build({"a": unique()}, dockerfile="", inline="FROM scratch\nCOPY . /all/\n")
    assert {path for path in await docker.files(image.digest) if path.startswith("all/")} == {"all/a"}


async def test_a_dockerfile_beside_the_context_is_used(bench: Any, docker: Any) -> None:
    """`dockerfile: ../docker/Dockerfile` is common where several services share one."""
    image = await bench.build(
        {"docker/Dockerfile": "FROM scratch\nCOPY . /all/\n", "web/a": unique()},
        context="web",
        dockerfile="docker/Dockerfile",
    )
    assert {path for path in await docker.files(image.digest) if path.startswith("all/")} == {"all/a"}


async def test_a_target_and_build_arguments_choose_what_is_built(bench: Any, docker: Any) -> None:
    """One Dockerfile for several services."""
    stages = f"FROM {BASE} AS one\nARG A=none\nRUN echo $A > /it\nFROM one AS two\nRUN echo two > /it\n"
    image = await bench.build({"Dockerfile": stages, "x": unique()}, target="one", args={"A": '$x `y` "z" ü'})
    assert (await docker.files(image.digest))["it"] == '$x `y` "z" ü\n'.encode()


async def test_a_context_of_many_megabytes_is_sent_as_it_is(bench: Any, docker: Any) -> None:
    """It is cut out of the archive in pieces, and put together again on the other side."""
    big = uuid4().bytes * 2_000_000
    image = await bench.build({"Dockerfile": "FROM scratch\nCOPY big /\n", "big": big})
    assert (await docker.files(image.digest))["big"] == big


# -- base images from a registry


@asynccontextmanager
async def registry(name: str) -> AsyncIterator[str]:
    """A registry on this machine that asks for a token, as Docker Hub does; it holds `<name>:1`, one file `/base`."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        file = tarfile.TarInfo("base")
        file.size = len(name)
        archive.addfile(file, io.BytesIO(name.encode()))
    unpacked = layer.getvalue()
    packed = gzip.compress(unpacked)

    def digest(content: bytes) -> str:
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    rootfs = {"type": "layers", "diff_ids": [digest(unpacked)]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(config),
                "digest": digest(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    "size": len(packed),
                    "digest": digest(packed),
                }
            ],
        }
    ).encode()
    blobs = {digest(content): content for content in (config, packed)}

    async def answer_it(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.json_response({"token": "let-me-in", "expires_in": 300})
        if request.headers.get("Authorization") != "Bearer let-me-in":
            realm = (
                f'Bearer realm="http://{request.host}/token",service="test",scope="repository:{name}:pull"'
            )
            return web.Response(status=401, headers={"WWW-Authenticate": realm})
        what = request.path.rsplit("/", 1)[-1]
        if "/manifests/" in request.path and what in {"1", digest(manifest)}:
            return web.Response(
                body=manifest, content_type=kind, headers={"Docker-Content-Digest": digest(manifest)}
            )
        if what in blobs:
            return web.Response(body=blobs[what], content_type="application/octet-stream")
        return web.Response(status=200 if request.path == "/v2/" else 404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer_it)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("more", ["", "RUN --mount=type=cache,target=/x true\n"])
async def test_a_base_image_is_pulled_from_a_registry_that_asks_for_a_token(
    bench: Any, docker: Any, more: str
) -> None:
    """Docker Hub does, even for public images, and BuildKit without a session has no way to ask for one."""
    name = f"hythe-test-build-{unique()[:8]}"
    stage = f"FROM {BASE} AS tools\n{more}FROM %s\nCOPY page /\n"
    async with registry(name) as host:
        image = f"{host}/{name}:1"
        if more and not bench.images._buildkit:
            with pytest.raises(BuildFailed, match="web: "):
                await bench.build({"Dockerfile": stage % image, "page": unique()})
            return
        built = await bench.build({"Dockerfile": stage % image, "page": unique()})
    assert (await docker.files(built.digest))["base"] == name.encode()
    assert any(b"Pulling from" in line for line in bench.lines)
    await docker.remove(image)


async def test_base_images_are_pulled_anew_where_the_compose_file_says_so(bench: Any, docker: Any) -> None:
    """`pull: true` asks the registry even when the image is there."""
    name = f"hythe-test-build-{unique()[:8]}"
    async with registry(name) as host:
        image = f"{host}/{name}:1"
        for _ in range(2):
            await bench.build({"Dockerfile": f"FROM {image}\nCOPY page /\n", "page": unique()}, pull=True)
    with pytest.raises(BuildFailed):
        await bench.build({"Dockerfile": f"FROM {image}\nCOPY page /\n", "page": unique()}, pull=True)
    await docker.remove(image)


async def test_a_dockerfile_that_names_dockers_frontend_is_built_where_nothing_can_be_pulled(
    bench: Any,
) -> None:
    """Many begin with that line and need nothing of it."""
    await bench.build(
        {"Dockerfile": "# syntax=docker/dockerfile:99\nFROM scratch\nCOPY page /\n", "page": unique()}
    )


# -- an engine that misbehaves: a real unix socket in front of the real engine


@asynccontextmanager
async def engine_that(
    behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], path: Path
) -> AsyncIterator[str]:
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await behave(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix://{path}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def answer(status: str, body: object) -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    return head.encode() + text


VERSION = answer("200 OK", {"ApiVersion": "1.41", "Version": "20.10"})


async def build_on(host: str, open_source: Any, *, buildkit: bool = True) -> Any:
    from hythe_build.context import context
    from hythe_build.plan import ImageBuild

    wanted = ImageBuild(service="web", name="hythe/hythe-test-build-x", context="", dockerfile="Dockerfile")
    sent = context(wanted, await open_source({"Dockerfile": f"FROM {BASE}\nRUN echo {unique()}; sleep 60\n"}))

    async def unheard(_line: bytes) -> None:
        """Nobody reads this log."""

    async with Images.open(host, buildkit=buildkit) as images:
        return await images.build(wanted, sent, labels={}, say=unheard)


async def test_an_engine_that_is_not_there_is_tried_again_later(tmp_path: Path, open_source: Any) -> None:
    """It may be restarting; a build must not fail for that."""
    with pytest.raises(EngineUnavailable) as gone_away:
        await build_on(f"unix://{tmp_path}/none.sock", open_source)
    assert gone_away.value.retry


async def test_an_engine_that_never_answers_is_not_waited_for_for_ever(
    tmp_path: Path, open_source: Any
) -> None:
    """A hanging engine must be told apart from a long build."""

    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass

    async with engine_that(hang, tmp_path / "engine.sock") as host, asyncio.timeout(20):
        with pytest.raises(EngineUnavailable):
            await build_on(host, open_source)


@pytest.mark.parametrize("buildkit", [True, False])
async def test_what_an_engine_refuses_is_told_in_its_words(
    tmp_path: Path, open_source: Any, buildkit: bool
) -> None:
    """500 is what Docker answers to many a mistake in a Dockerfile; trying again would not mend it."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/version" in head:
            writer.write(VERSION)
        elif b"images/json" in head:
            writer.write(answer("200 OK", []))
        else:
            writer.write(answer("500 Internal Server Error", {"message": "no space left on device"}))
        await writer.drain()

    async with engine_that(refuse, tmp_path / "engine.sock") as host, asyncio.timeout(20):
        with pytest.raises(BuildFailed, match="web: no space left on device"):
            await build_on(host, open_source, buildkit=buildkit)


@pytest.mark.parametrize("buildkit", [True, False])
async def test_an_engine_that_stops_in_the_middle_is_tried_again_later(
    tmp_path: Path, open_source: Any, docker: Any, buildkit: bool
) -> None:
    """A restarted daemon breaks every build off; that says nothing about the Dockerfile."""
    real = docker.host.removeprefix("unix://")
    before = await docker.leftovers()

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(real)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, until: bytes) -> None:
            while chunk := await source.read(65536):
                sink.write(chunk)
                await sink.drain()
                if until and until in chunk:
                    return

        try:
            async with asyncio.TaskGroup() as tasks:
                upward = tasks.create_task(pump(reader, up_writer, b""))
                # "RUN" as the classic builder writes it, and as it stands in BuildKit's base64
                await pump(up_reader, writer, b"sleep 60" if not buildkit else b"moby.buildkit.trace")
                upward.cancel()
        finally:
            up_writer.close()

    async with engine_that(break_off, tmp_path / "engine.sock") as host, asyncio.timeout(30):
        with pytest.raises(EngineUnavailable):
            await build_on(host, open_source, buildkit=buildkit)
    async with asyncio.timeout(10):
        while await docker.leftovers() != before:
            await asyncio.sleep(0.05)
