"""Builds one image through the Docker API.

Where the engine has BuildKit it is used over plain HTTP, without buildx and without a session: a request that asks for
the build and streams its log, and beside it a second one that uploads the context:

```
POST /build?version=2&remote=upload-request&buildid=X   (no body)   ──► the log, the image's id
POST /build?version=2&buildid=upload-request:X          (the tar)   ──► nothing
```

Otherwise, and for the few contexts only it gets right, the classic builder does it. Either way the image is named by
what it is, `hythe/<stack>-<service>:<first digits of its id>`, so that a name never moves to another image; and when
the build fails or is cancelled, nothing of it is left in the engine.
"""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiodocker
import aiohttp

from hythe_build.context import Context
from hythe_build.plan import ImageBuild
from hythe_build.progress import ClassicProgress, KitProgress, Progress
from hythe_build.together import together
from hythe_events.build import Image
from hythe_events.errors import HytheError, NotNow
from hythe_events.language import one_line

CONNECT = 5.0
"""Seconds for the engine to answer a short question."""
LINE = 64 * 1024 * 1024
"""Bytes of one message of the engine's; a longer one ends the build."""
TAG_DIGITS = 16
ABANDONED = "1h"

INPUTS = "dev.hythe.inputs"
REVISION = "org.opencontainers.image.revision"

Say = Callable[[bytes], Awaitable[None]]


class EngineUnavailable(NotNow):
    """The Docker engine does not answer; check that dockerd runs and that this service may use its socket."""


class BuildFailed(HytheError):
    """The image could not be built."""


class _NoBuildKit(Exception):
    """The engine would not build by BuildKit."""


class Images:
    """Builds images on one Docker engine. Any number of builds may run at once; `at_once` of them really do."""

    def __init__(self, docker: aiodocker.Docker, *, at_once: int = 2, buildkit: bool = True) -> None:
        self._docker = docker
        self._turn = asyncio.Semaphore(at_once)
        self._buildkit = buildkit

    @classmethod
    @asynccontextmanager
    async def open(cls, host: str, at_once: int = 2, *, buildkit: bool = True) -> AsyncIterator[Images]:
        """Images on the engine at `host` (`unix:///…`, `tcp://…`). The engine need not run yet."""
        docker = aiodocker.Docker(url=host, timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT))
        try:
            yield cls(docker, at_once=at_once, buildkit=buildkit)
        finally:
            await docker.close()

    async def sweep(self) -> None:
        """Remove images of ours that a killed process left without a name; nothing happens when no engine answers."""
        filters = {"dangling": {"true": True}, "label": {INPUTS: True}, "until": {ABANDONED: True}}
        with contextlib.suppress(EngineUnavailable, BuildFailed):
            await self._ask("POST", "images/prune", params={"filters": json.dumps(filters)})

    async def build(
        self, wanted: ImageBuild, context: Context, *, labels: Mapping[str, str], say: Say
    ) -> Image:
        """Build `wanted` from `context`; returns once the image is there, named, and was looked at.

        `labels` are added to the image. When an image with the same inputs is already there, its revision is kept:
        then nothing differs, and the image of a service that a commit did not touch stays the same image.
        `say` is told the log, line by line. Being cancelled stops the build in the engine.
        Raises BuildFailed with one sentence for a person, and EngineUnavailable.
        """
        async with self._turn:
            marked = {**wanted.labels, **labels, INPUTS: context.digest}
            known = await self._revision(context.digest)
            if known is not None and REVISION in labels:
                marked[REVISION] = known
            image_id = await self._built(wanted, context, marked, say)
            return await self._named(wanted, image_id, context.digest)

    async def _built(self, wanted: ImageBuild, context: Context, labels: Mapping[str, str], say: Say) -> str:
        classic_is_right = context.hidden or wanted.pull  # BuildKit, told over plain HTTP, can do neither
        if self._buildkit and (context.only_buildkit or not classic_is_right):
            if context.hidden:
                await say(b"note: the Dockerfile is left out by .dockerignore, but COPY will still see it")
            try:
                return await self._by_buildkit(wanted, context, labels, say)
            except _NoBuildKit as refused:
                await say(f"note: building by the classic builder ({refused})".encode())
        return await self._by_classic(wanted, context, labels, say)

    # -- BuildKit

    async def _by_buildkit(
        self, wanted: ImageBuild, context: Context, labels: Mapping[str, str], say: Say
    ) -> str:
        pulled: set[str] = set()
        while True:
            progress = await self._attempt(wanted, context, labels, say)
            missing = progress.missing_base or progress.missing_frontend
            if missing is None or missing in pulled:
                return _result(wanted, progress)
            pulled.add(missing)
            error = await self._pull(missing, say)
            if error and progress.missing_frontend and not context.only_buildkit:
                raise _NoBuildKit(
                    f"{missing} cannot be pulled"
                )  # the classic builder reads such a file by itself
            if error:
                raise BuildFailed(
                    f"{wanted.service}: the image {missing} cannot be pulled: {one_line(error)}"
                )

    async def _pull(self, image: str, say: Say) -> str | None:
        """Have the engine itself pull an image: it signs in where BuildKit, without a session, cannot.

        What went wrong, or None.
        """
        await say(f"pulling {image}".encode())
        progress = ClassicProgress()
        async with self._request("POST", "images/create", params={"fromImage": image}) as answer:
            if answer.status != 200:
                progress.error = await _complaint(answer)
            else:
                await _read(answer, progress, say)
        return progress.error

    async def _attempt(
        self, wanted: ImageBuild, context: Context, labels: Mapping[str, str], say: Say
    ) -> KitProgress:
        build = uuid4().hex
        params = {
            **_params(wanted, context, labels),
            "version": "2",
            "remote": "upload-request",
            "buildid": build,
        }
        progress = KitProgress()

        async def upload() -> None:
            """The context. What goes wrong here is told by the other request, which waits for it."""
            asked = {"version": "2", "buildid": f"upload-request:{build}"}
            with contextlib.suppress(EngineUnavailable):
                async with self._request(
                    "POST", "build", params=asked, data=_chunks(context), tar=True
                ) as answer:
                    await answer.read()

        try:
            async with together() as tasks:
                uploading = tasks.create_task(upload())
                async with self._request("POST", "build", params=params) as answer:
                    if answer.status != 200:
                        uploading.cancel()
                        raise _NoBuildKit(await _complaint(answer))
                    await _follow(answer, progress, say)
                uploading.cancel()
        except asyncio.CancelledError:
            await self._stop(build)
            raise
        return progress

    async def _stop(self, build: str) -> None:
        """Closing the connection stops a build already; this is for an engine that did not notice."""
        with contextlib.suppress(EngineUnavailable, BuildFailed):
            await self._ask("POST", "build/cancel", params={"id": build}, seconds=1.0)

    # -- the classic builder

    async def _by_classic(
        self, wanted: ImageBuild, context: Context, labels: Mapping[str, str], say: Say
    ) -> str:
        params = {**_params(wanted, context, labels), "version": "1", "rm": "1", "forcerm": "1"}
        progress = ClassicProgress()
        started = time.time()
        try:
            async with self._request(
                "POST", "build", params=params, data=_chunks(context), tar=True
            ) as answer:
                if answer.status != 200:
                    progress.error = await _complaint(answer)
                else:
                    await _follow(answer, progress, say)
            return _result(wanted, progress)
        except BaseException:
            await self._clear(progress.made, started)
            raise

    async def _clear(self, made: list[str], since: float) -> None:
        """Remove the intermediate images of a build that failed, newest first.

        What a build prints could name any image: only what has no name and is as young as the build is removed.
        """
        with contextlib.suppress(EngineUnavailable, BuildFailed, TimeoutError):
            async with asyncio.timeout(CONNECT):
                await self._remove(made, since)

    async def _remove(self, made: list[str], since: float) -> None:
        for image in reversed(made):
            seen = await self._ask("GET", f"images/{image}/json", missing={})
            young = _unix(str(seen.get("Created", ""))) >= since - 5
            if seen and young and not seen.get("RepoTags") and not seen.get("RepoDigests"):
                while await self._delete(image) == "busy":
                    await asyncio.sleep(0.1)  # the engine is still removing the container of the step

    async def _delete(self, image: str) -> str:
        noprune = {"noprune": "1"}
        told = await self._ask("DELETE", f"images/{image}", params=noprune, missing="gone", conflict="busy")
        return told if isinstance(told, str) else "deleted"

    # -- what is there

    async def _revision(self, digest: str) -> str | None:
        filters = json.dumps({"label": [f"{INPUTS}={digest}"]})
        found = await self._ask("GET", "images/json", params={"filters": filters})
        for image in sorted(found, key=lambda image: int(image["Created"])):
            revision = (image.get("Labels") or {}).get(REVISION)
            if revision:
                return str(revision)
        return None

    async def _named(self, wanted: ImageBuild, image_id: str, digest: str) -> Image:
        seen = await self._ask("GET", f"images/{image_id}/json")
        labels = (seen.get("Config") or {}).get("Labels") or {}
        if seen.get("Id") != image_id or labels.get(INPUTS) != digest:
            raise BuildFailed(
                f"{wanted.service}: the engine says it built {image_id}, but that is another image"
            )
        tag = image_id.removeprefix("sha256:")[:TAG_DIGITS]
        await self._ask("POST", f"images/{image_id}/tag", params={"repo": wanted.name, "tag": tag})
        return Image(reference=f"{wanted.name}:{tag}", digest=image_id)

    # -- asking

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        missing: Any = None,
        conflict: Any = None,
        seconds: float = 30.0,
    ) -> Any:
        """The JSON answer to a short question; `missing` for 404 and `conflict` for 409 where they are given."""
        try:
            async with asyncio.timeout(seconds), self._request(method, path, params=params) as answer:
                if answer.status == 404 and missing is not None:
                    return missing
                if answer.status == 409 and conflict is not None:
                    return conflict
                if answer.status >= 400:
                    raise BuildFailed(await _complaint(answer))
                body = await answer.read()
                return json.loads(body) if body.strip() and answer.content_type == "application/json" else {}
        except TimeoutError as error:
            raise EngineUnavailable(f"the Docker engine did not answer within {seconds:.0f} s") from error

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        data: Any = None,
        tar: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            await self._know_version()
            async with self._docker.session.request(
                method,
                f"{self._docker.docker_host}/{self._docker.api_version}/{path}",
                params=params,
                data=data,
                headers={"Content-Type": "application/x-tar"} if tar else {},
                read_bufsize=256 * 1024,
            ) as answer:
                if answer.status in {502, 503, 504}:
                    raise EngineUnavailable(f"the Docker engine answered {answer.status}")
                yield answer
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(
                f"the Docker engine does not answer: {one_line(str(error), 200)}"
            ) from error

    async def _know_version(self) -> None:
        if self._docker.api_version != "auto":
            return
        try:
            async with asyncio.timeout(CONNECT):
                await self._docker.version()
        except (aiodocker.DockerError, TimeoutError, KeyError, ValueError) as error:
            raise EngineUnavailable from error


def _params(wanted: ImageBuild, context: Context, labels: Mapping[str, str]) -> dict[str, str]:
    params = {
        "dockerfile": context.dockerfile,
        "labels": json.dumps(dict(sorted(labels.items()))),
        "buildargs": json.dumps(dict(wanted.args)),
    }
    optional = {
        "target": wanted.target,
        "networkmode": wanted.network,
        "platform": wanted.platform,
        "extrahosts": ",".join(wanted.extra_hosts),
        "shmsize": None if wanted.shm_size is None else str(wanted.shm_size),
        "nocache": "1" if wanted.no_cache else "",
        "pull": "1" if wanted.pull else "",
    }
    return params | {name: value for name, value in optional.items() if value}


async def _chunks(context: Context) -> AsyncIterator[bytes]:
    for chunk in context.chunks():
        yield chunk


async def _follow(answer: aiohttp.ClientResponse, progress: Progress, say: Say) -> None:
    """Read a build's messages to the end. Raises EngineUnavailable when they stop before there is a result."""
    await _read(answer, progress, say)
    if progress.image is None and progress.error is None:
        raise EngineUnavailable("the Docker engine broke off while it was building")


async def _read(answer: aiohttp.ClientResponse, progress: Progress, say: Say) -> None:
    waiting: list[bytes] = []
    size = 0
    async for chunk in answer.content.iter_any():
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            message = b"".join((*waiting, end))
            waiting, size = [], 0
            if message.strip():
                for line in progress.read(json.loads(message)):
                    await say(line)
        if rest:
            waiting.append(rest)
            size += len(rest)
            if size > LINE:
                raise BuildFailed("the engine sent a message that does not end")
    for line in progress.end():
        await say(line)


def _result(wanted: ImageBuild, progress: Progress) -> str:
    if progress.error is not None or progress.image is None:
        raise BuildFailed(f"{wanted.service}: {progress.failure()}")
    return progress.image


async def _complaint(answer: aiohttp.ClientResponse) -> str:
    body = await answer.read()
    try:
        said = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        said = body[:500].decode("utf-8", "replace")
    return one_line(str(said)) or f"the Docker engine answered {answer.status}"


def _unix(created: str) -> float:
    """RFC 3339 as the engine writes it, with up to nine digits of a second."""
    try:
        whole = created.partition(".")[0].removesuffix("Z")
        return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0
