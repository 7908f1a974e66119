"""What can be seen without asking Hythe: the app's own answers, and what the Docker engine says of its containers.

The demo and the system tests believe only this, and the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp

from hythe_cli.local.engine import docker_host
from hythe_events.errors import HytheError

PROJECT = "com.docker.compose.project"
SERVICE = "com.docker.compose.service"


class NotSeen(HytheError):
    """Something that should have been seen was not."""

    exit_code = 1


@dataclass(frozen=True)
class Container:
    """A container as `docker inspect` shows it. `image` is the id of the image that it runs."""

    id: str
    service: str
    image: str
    running: bool
    health: str
    restarts: int


class DockerView:
    """Looks at one engine, and clears away what a demo or a test left there. `async with DockerView() as docker:`."""

    def __init__(self, host: str | None = None) -> None:
        self._host = host or docker_host()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> DockerView:
        scheme, _, rest = self._host.partition("://")
        connector = aiohttp.UnixConnector(rest) if scheme == "unix" else None
        base = "http://docker" if scheme == "unix" else f"http://{rest}"
        self._session = aiohttp.ClientSession(
            base, connector=connector, timeout=aiohttp.ClientTimeout(total=60)
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def containers(self, project: str) -> list[Container]:
        """The containers of one Compose project, running or not, by service."""
        seen = []
        for listed in await self._get(f"/containers/json?all=1&filters={_label(PROJECT, project)}"):
            try:
                told = await self._get(f"/containers/{listed['Id']}/json")
            except NotSeen:
                continue  # it went away between the two questions
            state = told["State"]
            seen.append(
                Container(
                    id=told["Id"],
                    service=told["Config"]["Labels"].get(SERVICE, ""),
                    image=told["Image"],
                    running=bool(state["Running"]),
                    health=state.get("Health", {}).get("Status", "none"),
                    restarts=int(told.get("RestartCount", 0)),
                )
            )
        return sorted(seen, key=lambda container: container.service)

    async def remove_stack(self, stack: str) -> None:
        """Remove a stack's containers, networks, volumes, and the images that were built or kept for it, by name."""
        for container in await self._get(f"/containers/json?all=1&filters={_label(PROJECT, stack)}"):
            await self._delete(f"/containers/{container['Id']}?force=1&v=1")
        for network in await self._get(f"/networks?filters={_label(PROJECT, stack)}"):
            await self._delete(f"/networks/{network['Id']}")
        for volume in (await self._get(f"/volumes?filters={_label(PROJECT, stack)}")).get("Volumes") or []:
            await self._delete(f"/volumes/{volume['Name']}")
        names = {"reference": [f"hythe/{stack}-*", "hythe/kept"]}
        for image in await self._get(f"/images/json?filters={quote(json.dumps(names))}"):
            for tag in image.get("RepoTags") or []:
                if tag.startswith((f"hythe/{stack}-", f"hythe/kept:{stack}.")):
                    await self._delete(f"/images/{quote(tag, safe=':/')}")

    async def _get(self, path: str) -> Any:
        assert self._session is not None
        try:
            async with self._session.get(path) as response:
                body = await response.read()
                if response.status != 200:
                    raise NotSeen(f"Docker answered {response.status} to {path.partition('?')[0]}")
                return json.loads(body)
        except aiohttp.ClientError as error:
            raise NotSeen(f"Docker does not answer: {error}") from error

    async def _delete(self, path: str) -> None:
        assert self._session is not None
        with contextlib.suppress(aiohttp.ClientError):
            async with self._session.delete(path) as response:
                await response.read()


def _label(name: str, value: str) -> str:
    return quote(json.dumps({"label": [f"{name}={value}"]}))


async def get(url: str, *, seconds: float = 5.0) -> str:
    """The text at `url`. Raises NotSeen when the answer is not 200, or there is none."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.get(url) as response,
        ):
            text = await response.text()
            if response.status != 200:
                raise NotSeen(f"{url} answered {response.status}")
            return text
    except (aiohttp.ClientError, TimeoutError) as error:
        raise NotSeen(f"{url} did not answer: {error or 'time was up'}") from error


@dataclass
class Visits:
    """What a visitor got who asked again and again: how often each answer, and how often none."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    longest_gap: float = 0.0
    """Seconds of the longest time without a good answer."""

    def __str__(self) -> str:
        got = ", ".join(f"{count} × “{answer.strip()}”" for answer, count in self.answers.items())
        gap = f", the longest time without an answer was {self.longest_gap:.2f} s" if self.failures else ""
        return f"{got or 'no answer'}, {self.failures} failed{gap}"


@contextlib.asynccontextmanager
async def visiting(url: str, *, every: float = 0.02) -> AsyncIterator[Visits]:
    """Ask for `url` again and again as long as the block runs, each time on a connection of its own."""
    visits = Visits()
    clock = asyncio.get_running_loop().time
    last_good = clock()

    async def ask_on(session: aiohttp.ClientSession) -> None:
        nonlocal last_good
        while True:
            try:
                async with session.get(url) as response:
                    text = await response.text()
                    if response.status != 200:
                        visits.failures += 1
                    else:
                        visits.answers[text] += 1
                        last_good = clock()
            except (aiohttp.ClientError, TimeoutError):
                visits.failures += 1
            visits.longest_gap = max(visits.longest_gap, clock() - last_good)
            await asyncio.sleep(every)

    timeout = aiohttp.ClientTimeout(total=2)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)
    ) as session:
        asking = asyncio.create_task(ask_on(session), name=f"visit {url}")
        try:
            yield visits
        finally:
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
