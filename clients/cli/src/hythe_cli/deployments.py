"""Bringing stacks up, taking them back, and what became of it: `deploy`, `cancel`, `rollback`, `history`, `show`, `logs`, `deliveries`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import TypeAdapter

from hythe_cli import asking, shown, story
from hythe_cli.asking import HomeFolder, actor, running_hythe
from hythe_cli.shown import AsJson
from hythe_events import deploy as deploying
from hythe_events import streams
from hythe_events.blobs import Blobs
from hythe_events.build import CancelDeployment, FindLog, FoundLog
from hythe_events.bus import Bus
from hythe_events.decider import fold
from hythe_events.deploy import DeployCompleted
from hythe_events.deployment import Deployment, evolve
from hythe_events.envelope import Envelope, to_cloudevent
from hythe_events.errors import NotFound
from hythe_events.git import DeploymentOpened, RequestDeployment
from hythe_events.language import Event, one_line
from hythe_events.log import Done, Rows
from hythe_events.webhooks import ListDeliveries

Follow = Annotated[
    bool, Parameter(name=["--follow", "-f"], negative="", help="Show what happens, until it ends.")
]
Limit = Annotated[int, Parameter(name=["--limit", "-n"])]


async def deploy(
    stack: str,
    *,
    commit: str | None = None,
    branch: str | None = None,
    follow: Follow = False,
    json: AsJson = False,
    home: HomeFolder = None,
) -> int:
    """Bring a stack to a commit, or to the tip of its branch.

    Parameters
    ----------
    commit
        The whole id of a commit. [default: the tip of the branch]
    branch
        Another branch than the repository's own.
    """
    asked = RequestDeployment(stack=stack, commit=commit, branch=branch)
    async with running_hythe(home) as bus:
        since = await asking.head(bus)
        opened = await bus.ask(asked, DeploymentOpened, actor=actor())
        return await _opened(bus, opened, since, follow=follow, json=json)


async def rollback(
    stack: str,
    *,
    to: str | None = None,
    reason: str | None = None,
    follow: Follow = False,
    json: AsJson = False,
    home: HomeFolder = None,
) -> int:
    """Take a stack back to an earlier deployment: its images by digest, its compose file and its files together.

    Parameters
    ----------
    to
        That deployment. [default: the one before what runs now]
    reason
        Why; it is kept.
    """
    async with running_hythe(home) as bus:
        target = await asking.find_deployment(bus, to) if to else None
        since = await asking.head(bus)
        asked = deploying.Rollback(stack=stack, to=target, reason=reason)
        opened = await bus.ask(asked, DeploymentOpened, actor=actor())
        return await _opened(bus, opened, since, follow=follow, json=json)


async def cancel(
    deployment: str, *, reason: str | None = None, json: AsJson = False, home: HomeFolder = None
) -> int:
    """Stop a deployment that waits for its build or is being built.

    Parameters
    ----------
    deployment
        Its id, or the first letters of it.
    reason
        Why; it is kept.
    """
    async with running_hythe(home) as bus:
        which = await asking.find_deployment(bus, deployment)
        done = await bus.ask(CancelDeployment(deployment=which, reason=reason), Done, actor=actor())
    if json:
        shown.show_json(done.model_dump(mode="json"))
    else:
        shown.say(f"deployment {shown.short(which)} is being cancelled")
    return shown.GOOD


async def history(
    stack: str | None = None, *, limit: Limit = 20, json: AsJson = False, home: HomeFolder = None
) -> int:
    """The latest deployments, newest first.

    Parameters
    ----------
    stack
        Only those of this stack.
    """
    asked = deploying.ListDeployments(stack=stack, limit=limit)
    async with running_hythe(home) as bus:
        rows = (await bus.ask(asked, Rows, actor=actor())).rows
    if json:
        shown.show_json(rows)
    elif not rows:
        shown.say("No deployments yet.")
    else:
        history_table(rows)
    return shown.GOOD


async def show(
    deployment: str,
    *,
    at: str | None = None,
    json: AsJson = False,
    home: HomeFolder = None,
) -> int:
    """One deployment: its state now or at any moment of its past, and everything that happened to it until then.

    Parameters
    ----------
    deployment
        Its id, or the first letters of it.
    at
        A version of its stream (3), or a time (2026-11-30T12:00:00).
    """
    version, moment = asking.version_or_time(at) if at else (None, None)
    async with running_hythe(home) as bus:
        which = await asking.find_deployment(bus, deployment)
        events = await asking.read_stream(bus, streams.deployment(which))
    until = [
        event
        for event in events
        if (version is None or event.version <= version) and (moment is None or event.at <= moment)
    ]
    if not until:
        raise NotFound(
            f"deployment {shown.short(which)} did not exist then; its first event is of {shown.local_time(events[0].at)}"
            if events
            else f"there is no deployment {which}"
        )
    state = fold(evolve, until, Deployment())
    if json:
        shown.show_json({"state": state_as_json(state), "events": [as_json(event) for event in until]})
    else:
        show_state(state)
        shown.say()
        show_timeline(until)
    return shown.BAD if state.finished and state.outcome != "succeeded" else shown.GOOD


async def logs(
    deployment: str,
    *,
    follow: Follow = False,
    raw: Annotated[
        bool, Parameter(negative="", help="Print a terminal's control characters as they are.")
    ] = False,
    json: AsJson = False,
    home: HomeFolder = None,
) -> int:
    """The log of a deployment's build: live while it runs, from the store once it is done.

    Parameters
    ----------
    deployment
        Its id, or the first letters of it.
    """
    as_it_is = raw or not sys.stdout.isatty()
    async with running_hythe(home) as bus:
        which = await asking.find_deployment(bus, deployment)
        found = await bus.ask(FindLog(deployment=which), FoundLog, actor=actor())
        if found.log is not None:
            whole = await Blobs(bus).get(found.log)
            _print_log(whole, raw=as_it_is, json=json)
        elif follow or found.running:
            async for line in bus.follow_log(which):
                _print_log(line + b"\n", raw=as_it_is, json=json)
        else:
            raise NotFound(
                f"deployment {shown.short(which)} has no log: it has not been built, or there was nothing to build"
            )
    return shown.GOOD


async def deliveries(
    source: str | None = None, *, limit: Limit = 20, json: AsJson = False, home: HomeFolder = None
) -> int:
    """The latest webhook deliveries, newest first, and what became of each.

    Parameters
    ----------
    source
        Only those of this webhook source.
    """
    async with running_hythe(home) as bus:
        rows = (await bus.ask(ListDeliveries(source=source, limit=limit), Rows, actor=actor())).rows
    if json:
        shown.show_json(rows)
    elif not rows:
        shown.say("No deliveries yet.")
    else:
        deliveries_table(rows)
    return shown.GOOD


async def _opened(bus: Bus, opened: DeploymentOpened, since: int, *, follow: bool, json: bool) -> int:
    if not follow:
        if json:
            shown.show_json(opened.model_dump(mode="json"))
        else:
            shown.say(f"deployment {opened.deployment}")
            shown.say(f"watch it with ./hythe show {shown.short(opened.deployment)}", style="dim")
        return shown.GOOD
    outcome: deploying.Outcome | None = None
    first: Envelope[Event] | None = None
    async for event in asking.follow(bus, opened.deployment, since):
        first = first or event
        if json:
            shown.show_json(as_json(event), in_one_line=True)
        else:
            told = story.tell(event.data)
            shown.say(f"{(event.at - first.at).total_seconds():7.2f} s  {told.text}", style=told.style)
        if isinstance(event.data, DeployCompleted):
            outcome = event.data.outcome
    return shown.GOOD if outcome == "succeeded" else shown.BAD


def _print_log(lines: bytes, *, raw: bool, json: bool) -> None:
    if json:
        for line in lines.decode("utf-8", errors="replace").splitlines():
            shown.show_json({"line": line}, in_one_line=True)
        return
    sys.stdout.write(shown.log_bytes(lines, raw=raw))
    sys.stdout.flush()


def as_json(event: Envelope[Event]) -> dict[str, Any]:
    """An event as a CloudEvent."""
    import json

    shape: dict[str, Any] = json.loads(to_cloudevent(event))
    return shape


_state = TypeAdapter(Deployment)


def state_as_json(state: Deployment) -> dict[str, Any]:
    """A deployment's state, every field of it."""
    shape: dict[str, Any] = _state.dump_python(state, mode="json")
    return shape


def show_state(state: Deployment) -> None:
    """A deployment's state, for a person."""
    seconds = story.took(state)
    what = state.outcome or state.phase
    shown.say(
        f"deployment {state.id}  {state.stack}  {what}", style=f"bold {shown.outcome_style(what)}".strip()
    )
    commit = f"{state.commit[:12]}  {shown.one_harmless_line(state.message)}" if state.commit else None
    by = f"{state.asked_by}, by {_trigger(state)}"
    for name, value in (
        ("commit", commit),
        ("author", state.author),
        ("asked by", by),
        ("asked at", shown.local_time(state.requested_at)),
        ("took", f"{seconds:.1f} s" if seconds is not None else None),
        ("reason", state.reason),
        ("replaces", state.replaces),
    ):
        if value:
            shown.say(f"  {name:<9} {shown.harmless(str(value))}")
    did = "ran" if state.outcome == "succeeded" else "wanted"
    for service, image in state.manifest.services.items() if state.manifest else ():
        shown.say(f"  {did:<9} {shown.harmless(service)}: {shown.harmless(image.image)} = {image.digest}")


def show_timeline(events: list[Envelope[Event]]) -> None:
    """A stream's events as lines: version, time, seconds since the first, what happened."""
    for version, at, seconds, told in story.timeline(events):
        clock = at.astimezone().strftime("%H:%M:%S.%f")[:-3]
        shown.say(f"  {version:>3}  {clock}  {seconds:8.3f} s  {told.text}", style=told.style)


def history_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Deployments as a table."""
    shown.table(
        ("deployment", "when", "stack", "outcome", "commit", "asked by", "reason"),
        [
            (
                shown.short(row["id"]),
                shown.local_time(row["requested_at"]),
                row["stack"],
                row["outcome"] or row["phase"],
                shown.short(row["commit"]),
                row["asked_by"],
                one_line(row["reason"] or "", 100),
            )
            for row in rows
        ],
    )


def deliveries_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Webhook deliveries as a table."""
    shown.table(
        ("when", "source", "delivery", "outcome", "commit", "led to"),
        [
            (
                shown.local_time(row["at"]),
                row["source"],
                row["delivery"],
                row["status"],
                shown.short(row["after"]),
                ", ".join(f"{to['stack']} {shown.short(to['deployment'])}" for to in row["deployments"] or ())
                or row["reason"],
            )
            for row in rows
        ],
    )


def _trigger(state: Deployment) -> str:
    match state.trigger:
        case "delivery":
            return f"delivery {state.delivery}"
        case "rollback":
            return f"rollback to {shown.short(state.rollback_to)}"
        case _:
            return "command"
