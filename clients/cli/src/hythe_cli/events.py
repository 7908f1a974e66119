"""The log itself: `events`, `verify`, `projections rebuild`, `parked`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from cyclopts import App, Parameter

from hythe_cli import asking, shown, story
from hythe_cli.asking import HomeFolder, actor, running_hythe
from hythe_cli.deployments import Follow, as_json
from hythe_cli.shown import AsJson
from hythe_events import log
from hythe_events.access import SERVICES
from hythe_events.envelope import Envelope
from hythe_events.errors import NotFound
from hythe_events.language import Event
from hythe_events.log import Done, Page, Rebuilt, Rows, Verdict

app = App(name="events", help="What happened, event by event.")
projections = App(name="projections", help="The tables that are made from the log.")
parked = App(name="parked", help="Messages that could not be handled and were put aside.")


@app.command
async def tail(
    *types: str,
    follow: Follow = False,
    number: Annotated[int, Parameter(name=["--number", "-n"])] = 20,
    json: AsJson = False,
    home: HomeFolder = None,
) -> int:
    """The newest events of the whole log, oldest first.

    Parameters
    ----------
    types
        Only events whose type begins so, such as deploy. or build.finished.
    number
        How many of the newest to begin with.
    """
    async with running_hythe(home) as bus:
        page = await bus.ask(log.ReadLog(limit=max(1, min(number, 1000)), newest=True), Page, actor=actor())
        events = asking.events_of(page)[-number:] if number else []
        for event in events:
            _print(event, types, json=json)
        if follow:
            async for event in bus.watch(page.head, actor=actor()):
                _print(event, types, json=json)
    return shown.GOOD


@app.command
async def stream(name: str, *, after: int = 0, json: AsJson = False, home: HomeFolder = None) -> int:
    """One stream's events, oldest first.

    Parameters
    ----------
    name
        The stream: deployment-<id>, stack-<name>, repository-<stack>, source-<name>, delivery-<source>-<id>.
    after
        Leave out events up to this version.
    """
    async with running_hythe(home) as bus:
        events = await asking.read_stream(bus, name, after)
    if not events and not after:
        raise NotFound(f"there is no stream {name}")
    for event in events:
        _print(event, (), json=json)
    return shown.GOOD


async def verify(*, json: AsJson = False, home: HomeFolder = None) -> int:
    """Recompute the log's chain of hashes from its first event and check every seal.

    Says the first event that was changed, removed or reordered; then the exit code is 1.
    """
    async with running_hythe(home) as bus:
        verdict = await bus.ask(log.VerifyLog(), Verdict, actor=actor(), timeout=120)
        checked = verdict.checked
        while not verdict.finished and verdict.bad is None:
            asked = log.VerifyLog(after=verdict.position, hash=verdict.hash)
            verdict = await bus.ask(asked, Verdict, actor=actor(), timeout=120)
            checked += verdict.checked
    if json:
        shown.show_json({**verdict.model_dump(mode="json"), "checked": checked})
    elif verdict.bad is None:
        shown.say(
            f"ok: {checked} events, each hashed onto the one before; sealed up to {verdict.sealed} of {verdict.head}",
            style="green",
        )
    else:
        shown.say(f"BAD: {shown.harmless(verdict.bad)}", style="bold red")
    return shown.GOOD if verdict.bad is None else shown.BAD


@projections.command
async def rebuild(*names: str, json: AsJson = False, home: HomeFolder = None) -> int:
    """Build read models anew from the log beside the live ones, compare them, then swap.

    Parameters
    ----------
    names
        Only those of these services, or SERVICE/PROJECTION. [default: all]
    """
    wanted = names or SERVICES
    answers: dict[str, Rebuilt] = {}
    async with running_hythe(home) as bus:
        for name in wanted:
            service, _, projection = name.partition("/")
            if service not in SERVICES:
                raise asking.Usage(
                    f"expected one of {', '.join(SERVICES)}, or SERVICE/PROJECTION; got {name!r}"
                )
            asked = log.RebuildProjection(projection=projection or None)
            answers[service] = await bus.ask(asked, Rebuilt, actor=actor(), timeout=600, service=service)
    rows = [
        (service, projection, count, "yes" if answer.equal.get(projection, True) else "NO")
        for service, answer in answers.items()
        for projection, count in answer.projections.items()
    ]
    if json:
        shown.show_json({service: answer.model_dump(mode="json") for service, answer in answers.items()})
    else:
        shown.table(("service", "read model", "rows", "equal to the live one"), rows)
    return shown.GOOD if all(row[3] == "yes" for row in rows) else shown.BAD


@parked.command(name="list")
async def list_parked(*, json: AsJson = False, home: HomeFolder = None) -> int:
    """The messages that were put aside, and why."""
    async with running_hythe(home) as bus:
        rows = await _parked_rows(bus)
    if json:
        shown.show_json(rows)
    elif not rows:
        shown.say("Nothing is parked.")
    else:
        shown.table(
            ("service", "event", "type", "stream", "reason"),
            [
                (row["service"], row["event"], row.get("event_type"), row.get("stream"), row.get("reason"))
                for row in rows
            ],
        )
    return shown.GOOD


@parked.command
async def retry(event: str, *, json: AsJson = False, home: HomeFolder = None) -> int:
    """Handle a parked message again.

    Parameters
    ----------
    event
        The event's id as `parked list` shows it, or the first letters of it; `all` for every one.
    """
    async with running_hythe(home) as bus:
        rows = await _parked_rows(bus)
        chosen = [row for row in rows if event == "all" or str(row["event"]).startswith(event.lower())]
        if not chosen and event != "all":
            raise NotFound(
                f"no parked message has an id that begins with {event}; ./hythe parked list shows them"
            )
        done = [
            await bus.ask(
                log.RetryParked(event=UUID(str(row["event"]))), Done, actor=actor(), service=row["service"]
            )
            for row in chosen
        ]
    if json:
        shown.show_json([one.model_dump(mode="json") for one in done])
    else:
        shown.say(f"{len(done)} to be handled again" if done else "Nothing is parked.")
    return shown.GOOD


async def _parked_rows(bus: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for service in SERVICES:
        answer = await bus.ask(log.ListParked(), Rows, actor=actor(), service=service)
        rows += [{"service": service, **row} for row in answer.rows]
    return rows


def _print(event: Envelope[Event], types: Sequence[str], *, json: bool) -> None:
    if types and not event.type.startswith(tuple(types)):
        return
    if json:
        shown.show_json(as_json(event), in_one_line=True)
        return
    told = story.tell(event.data)
    clock = event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    shown.say(
        f"{event.position:>6}  {clock}  {event.type:<24}  {shown.harmless(event.stream)}  {told.text}",
        style=told.style,
    )
