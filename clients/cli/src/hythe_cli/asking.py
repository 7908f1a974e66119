"""How a command finds the running Hythe and speaks to it: over NATS, as the user `client`, and in no other way.

`HYTHE_NATS_URL` and `HYTHE_NATS_SEED_FILE` say where; without them it is the Hythe of this machine, which wrote its
place into `system.json` in `HYTHE_HOME`.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID

from cyclopts import Parameter
from pydantic import ValidationError

from hythe_cli.home import Home, default_home
from hythe_events import log
from hythe_events.bus import Bus
from hythe_events.deploy import DeployCompleted, ListDeployments
from hythe_events.envelope import Envelope, from_cloudevent
from hythe_events.errors import BusUnavailable, HytheError, Misconfigured, NotFound, Refused
from hythe_events.language import Event
from hythe_events.log import Page, Rows

PAGE = 500
CONNECTING = 5.0
"""Seconds that the bus may take to answer."""

HomeFolder = Annotated[
    Path | None,
    Parameter(
        name="--home",
        help="Which Hythe: the folder it keeps everything in. [default: $HYTHE_HOME or ~/.local/share/hythe]",
    ),
]
"""The option that every command has which speaks to a running Hythe."""


class NotRunning(HytheError):
    """Hythe is not running: start it with ./hythe up"""

    exit_code = 4


class Usage(HytheError):
    """The command line cannot be understood."""

    exit_code = 2


def actor() -> str:
    """Who asks: the user of this machine."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"cli:{os.getuid()}"


@asynccontextmanager
async def running_hythe(home: Path | None = None) -> AsyncIterator[Bus]:
    """The bus of the running Hythe. Raises NotRunning when there is none, Misconfigured when its key cannot be read."""
    url, seed_file = where(home)
    try:
        seed = seed_file.read_text().strip()
    except OSError as error:
        raise Misconfigured(f"the key {seed_file} cannot be read: {error.strerror}") from error
    opened = AsyncExitStack()
    try:
        async with asyncio.timeout(CONNECTING):
            bus = await opened.enter_async_context(Bus.open(url, "client", seed))
    except (BusUnavailable, TimeoutError) as error:
        raise BusUnavailable(f"the bus at {url} does not answer: check that Hythe runs there") from error
    async with opened:
        yield bus


def where(home: Path | None = None) -> tuple[str, Path]:
    """The address of the bus and the file with the key to it. Raises NotRunning."""
    url = os.environ.get("HYTHE_NATS_URL")
    if url and home is None:
        seed_file = os.environ.get("HYTHE_NATS_SEED_FILE")
        if not seed_file:
            raise Misconfigured(
                "HYTHE_NATS_URL is set: set HYTHE_NATS_SEED_FILE too, to the file with the client's seed"
            )
        return url, Path(seed_file)
    place = Home(home or default_home()).place()
    if place is None:
        raise NotRunning
    return place.nats_url, place.seed_file


def webhooks_url(home: Path | None = None) -> str:
    """Where forges post to: `HYTHE_WEBHOOKS_URL`, or the running Hythe's own address as this machine sees it."""
    told = os.environ.get("HYTHE_WEBHOOKS_URL")
    if told:
        return told.rstrip("/")
    place = Home(home or default_home()).place()
    return place.webhooks_url if place else "https://<where the webhooks service is reached>"


def field_error(error: ValidationError) -> Usage:
    """What the command line said wrongly, by the name of the field and what was expected."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "value"
    expected = {
        "stack": "a name of lower-case letters, digits, - and _, beginning with a letter or a digit",
        "source": "a name of lower-case letters, digits, - and _, beginning with a letter or a digit",
        "commit": "a whole commit id: 40 hexadecimal digits in lower case",
        "url": "https://…, http://…, ssh://… or git@host:path",
        "branch": "the name of a branch, such as main",
    }.get(name)
    return Usage(f"{name}: {'expected ' + expected if expected else first['msg']}")


async def find_deployment(bus: Bus, text: str) -> UUID:
    """The deployment whose id begins with `text`. Raises Usage, NotFound, or Refused when several do."""
    wanted = text.strip().lower()
    if len(wanted) == 36:
        try:
            return UUID(wanted)
        except ValueError:
            pass
    if not re.fullmatch(r"[0-9a-f][0-9a-f-]{1,34}", wanted):
        raise Usage(
            f"deployment: expected an id, or its first letters, as ./hythe history shows them; got {text!r}"
        )
    found: set[UUID] = set()
    before: UUID | None = None
    while True:
        answer = await bus.ask(ListDeployments(limit=1000, before=before), Rows, actor=actor())
        ids = [UUID(str(row["id"])) for row in answer.rows]
        found.update(one for one in ids if str(one).startswith(wanted))
        if len(ids) < 1000:
            break
        before = ids[-1]
    if not found:
        raise NotFound(f"there is no deployment whose id begins with {wanted}; ./hythe history lists them")
    if len(found) > 1:
        some = ", ".join(sorted(str(one) for one in found)[:3])
        raise Refused(f"{len(found)} deployments begin with {wanted}: {some}; type more of the id")
    return found.pop()


def events_of(page: Page) -> list[Envelope[Event]]:
    """The events of an answer, typed."""
    return [from_cloudevent(json.dumps(event).encode()) for event in page.events]


async def read_stream(bus: Bus, stream: str, after: int = 0) -> list[Envelope[Event]]:
    """All events of a stream, oldest first."""
    events: list[Envelope[Event]] = []
    while True:
        page = await bus.ask(
            log.ReadStream(stream=stream, after_version=after, limit=PAGE), Page, actor=actor()
        )
        events += events_of(page)
        if len(page.events) < PAGE:
            return events
        after = events[-1].version


async def head(bus: Bus) -> int:
    """The position of the newest event."""
    return (await bus.ask(log.ReadLog(limit=1, newest=True), Page, actor=actor())).head


async def follow(bus: Bus, deployment: UUID, after: int) -> AsyncIterator[Envelope[Event]]:
    """The events of one deployment that come after a position of the log, until its last one."""
    stream = f"deployment-{deployment}"
    async for event in bus.watch(after, actor=actor()):
        if event.stream == stream:
            yield event
            if isinstance(event.data, DeployCompleted):
                return


def version_or_time(text: str) -> tuple[int | None, datetime | None]:
    """`--at`: a version of the stream (a number) or a moment (ISO 8601; this machine's clock where it names no zone)."""
    if text.isdigit():
        if int(text) < 1:
            raise Usage("--at: versions begin at 1")
        return int(text), None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Usage(
            f"--at: expected a version, such as 3, or a time, such as 2026-11-30T12:00:00; got {text!r}"
        ) from error
    return None, moment.astimezone()
