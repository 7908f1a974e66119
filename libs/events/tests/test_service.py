"""The runner on the real Postgres and NATS: what is appended is heard, and no end of a handler loses a message."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hythe_cli.local.world import World
from hythe_events import streams
from hythe_events.build import BuildStarted, FindLog, FoundLog
from hythe_events.bus import Outgoing
from hythe_events.envelope import Cause, Envelope, to_cloudevent
from hythe_events.errors import BusUnavailable, NotFound, NotNow, Refused
from hythe_events.git import BuildRequested, DeploymentRequested
from hythe_events.language import BlobRef, new_id
from hythe_events.log import (
    Done,
    ListParked,
    Page,
    ReadLog,
    RetryParked,
    Rows,
    ShowDeployment,
    Verdict,
    VerifyLog,
)
from hythe_events.service import answers, on
from hythe_events.telemetry import current_traceparent
from hythe_events.testing import until

CAUSE = Cause(new_id(), None, "cli:test")


def build_requested(deployment: Any, stack: str = "demo") -> BuildRequested:
    source = BlobRef(key="0" * 64, size=1, sha256="0" * 64)
    return BuildRequested(
        deployment=deployment,
        stack=stack,
        commit="a" * 40,
        ref="refs/heads/main",
        message="",
        author="",
        asked_by="cli:test",
        source=source,
        compose_file="compose.yaml",
    )


async def ask_for_build(world: World) -> Envelope[Any]:
    deployment = new_id()
    async with world.store("git") as store:
        [event] = await store.append(
            streams.deployment(deployment), 0, [build_requested(deployment)], because=CAUSE
        )
        return event


async def test_what_one_service_appends_another_hears(world: World) -> None:
    """The log is relayed to the bus, in order, and heard once."""
    heard: list[Envelope[Any]] = []

    async def hear(event: Envelope[BuildRequested]) -> None:
        heard.append(event)

    async with world.running("build", hears=[on(BuildRequested, hear)]):
        sent = [await ask_for_build(world) for _ in range(5)]
        await until(lambda: len(heard) == 5)
    assert [event.id for event in heard] == [event.id for event in sent]
    assert heard[0] == sent[0]


async def test_a_handler_that_cannot_now_hears_it_again(world: World) -> None:
    """An error with retry = True postpones; nothing is parked."""
    tries = 0

    async def hear(event: Envelope[BuildRequested]) -> None:
        nonlocal tries
        tries += 1
        if tries < 2:
            raise NotNow("the engine restarts")

    async with world.running("build", hears=[on(BuildRequested, hear)]), world.bus("client") as bus:
        await ask_for_build(world)
        await until(lambda: tries == 2)
        parked = await bus.ask(ListParked(), Rows, actor="cli:test", service="build")
    assert parked.rows == ()


async def test_what_cannot_be_handled_is_parked_and_can_be_retried(world: World) -> None:
    """A bug in a handler puts its message aside with the reason; others go on, and a command tries it again."""
    broken = True
    heard: list[Any] = []

    async def hear(event: Envelope[BuildRequested]) -> None:
        if broken and event.id == first.id:
            raise KeyError("web")
        heard.append(event.id)

    async with world.running("build", hears=[on(BuildRequested, hear)]) as made, world.bus("client") as bus:
        first = await ask_for_build(world)
        second = await ask_for_build(world)
        await until(lambda: heard == [second.id])
        [row] = (await bus.ask(ListParked(), Rows, actor="cli:test", service="build")).rows
        assert row["event"] == str(first.id)
        assert row["reason"] == "KeyError: 'web'"
        broken = False
        done = await bus.ask(RetryParked(event=first.id), Done, actor="cli:test", service="build")
        await until(lambda: first.id in heard)
        assert (await bus.ask(ListParked(), Rows, actor="cli:test", service="build")).rows == ()
        with pytest.raises(NotFound):
            await bus.ask(RetryParked(event=first.id), Done, actor="cli:test", service="build")
        told = await made.store.read(done.stream)
    assert [event.type for event in told] == ["message.parked", "message.retried"]


async def test_a_message_comes_again_after_a_shutdown_in_its_midst(world: World) -> None:
    """Work that did not end in the grace period is left; the next process does it."""
    begun = asyncio.Event()
    heard: list[Any] = []

    async def hang(event: Envelope[BuildRequested]) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def hear(event: Envelope[BuildRequested]) -> None:
        heard.append(event.id)

    sent = await ask_for_build(world)
    async with world.running("build", more={"grace": 0.1}, hears=[on(BuildRequested, hang)]):
        async with asyncio.timeout(20):
            await begun.wait()
    async with world.running("build", hears=[on(BuildRequested, hear)]):
        await until(lambda: heard == [sent.id])


async def test_a_long_handler_is_not_called_twice(world: World) -> None:
    """Signs of life keep the message from another worker for longer than the bus would wait."""
    calls = 0

    async def slow(event: Envelope[BuildRequested]) -> None:
        nonlocal calls
        calls += 1
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=2.5)

    async with world.running("build", hears=[on(BuildRequested, slow, at_once=2)]) as made:
        sent = await ask_for_build(world)
        await until(lambda: calls == 1)
        marker = await ask_for_build(world)
        await until(lambda: calls == 2)
        await until(lambda: not made.busy)
    assert calls == 2
    assert sent.position < marker.position


async def test_a_forged_message_leads_to_nothing(world: World) -> None:
    """Whoever stole the relay's key can publish, but what is not in the log is not handled."""
    heard: list[Any] = []

    async def hear(event: Envelope[BuildRequested]) -> None:
        heard.append(event.id)

    async with (
        world.running("build", hears=[on(BuildRequested, hear)]),
        world.bus("relay") as thief,
        world.bus("client") as client,
    ):
        real = await ask_for_build(world)
        await until(lambda: heard == [real.id])
        forged = real._replace(id=new_id(), position=real.position)
        await thief.publish([Outgoing(forged.id, forged.type, forged.position, to_cloudevent(forged), None)])

        async def parked() -> tuple[Any, ...]:
            return (await client.ask(ListParked(), Rows, actor="cli:test", service="build")).rows

        async def is_parked() -> bool:
            return bool(await parked())

        await until(is_parked)
        rows = await parked()
    assert "forged" in rows[0]["reason"]
    assert heard == [real.id]


async def test_a_bus_that_was_wiped_is_told_again(world: World) -> None:
    """R10: the log is the truth; a bus that lost everything gets it all again, and hears what came meanwhile."""
    heard: list[Any] = []

    async def hear(event: Envelope[BuildRequested]) -> None:
        heard.append(event.id)

    async with world.running("build", hears=[on(BuildRequested, hear)]):
        first = await ask_for_build(world)
        await until(lambda: heard == [first.id])
    await world.nats.stop()
    await world.nats.wipe()
    await world.nats.start()
    second = await ask_for_build(world)
    async with world.running("build", hears=[on(BuildRequested, hear)]):
        await until(lambda: heard == [first.id, first.id, second.id])


async def test_a_bus_that_restarts_is_waited_for(world: World) -> None:
    """R9: an outage of NATS costs time, not messages."""
    heard: list[Any] = []

    async def hear(event: Envelope[BuildRequested]) -> None:
        heard.append(event.id)

    async with world.running("build", hears=[on(BuildRequested, hear)]):
        await world.nats.kill()
        sent = await ask_for_build(world)
        await world.nats.start()
        await until(lambda: heard == [sent.id], 40)


async def test_answers_and_refusals_reach_the_one_who_asks(world: World) -> None:
    """A wrong field is named; an unknown thing is not found; a silent service is said to be silent."""

    async def answer(asked: FindLog, because: Cause) -> FoundLog:
        if because.actor == "cli:nobody":
            raise NotFound("there is no such deployment", field="deployment")
        return FoundLog(deployment=asked.deployment, running=True, log=None)

    async with world.running("build", serves=[answers(FindLog, answer)]), world.bus("client") as bus:
        asked = FindLog(deployment=new_id())
        assert await bus.ask(asked, FoundLog, actor="cli:test") == FoundLog(
            deployment=asked.deployment, running=True, log=None
        )
        with pytest.raises(NotFound) as missing:
            await bus.ask(asked, FoundLog, actor="cli:nobody")
        assert missing.value.field == "deployment"
        with pytest.raises(Refused) as wrong:
            await bus.ask(ListParked.model_construct(limit=0), Rows, actor="cli:test", service="build")
        assert wrong.value.field == "limit"
        with pytest.raises(BusUnavailable, match="deploy service does not run"):
            await bus.ask(ListParked(), Rows, actor="cli:test", service="deploy")


async def test_the_log_can_be_read_shown_and_verified_over_the_bus(world: World) -> None:
    """Anybody with the client's key may ask what happened, and whether the chain holds."""
    deployment = new_id()
    requested = DeploymentRequested(
        deployment=deployment,
        stack="demo",
        trigger="command",
        ref="refs/heads/main",
        commit=None,
        asked_by="cli:test",
    )
    async with world.store("git") as store:
        await store.append(
            streams.deployment(deployment), 0, [requested, build_requested(deployment)], because=CAUSE
        )
    async with world.running("git"), world.bus("client") as bus:
        page = await bus.ask(ReadLog(), Page, actor="cli:test")
        assert [event["type"] for event in page.events] == ["deployment.requested", "build.requested"]
        then = await bus.ask(ShowDeployment(deployment=deployment, at_version=1), Rows, actor="cli:test")
        now = await bus.ask(ShowDeployment(deployment=deployment), Rows, actor="cli:test")
        assert (then.rows[0]["commit"], now.rows[0]["commit"]) == (None, "a" * 40)
        with pytest.raises(NotFound):
            await bus.ask(ShowDeployment(deployment=new_id()), Rows, actor="cli:test")
        verdict = await bus.ask(VerifyLog(), Verdict, actor="cli:test")
    assert (verdict.finished, verdict.bad, verdict.position) == (True, None, 2)


async def test_live_logs_are_followed_from_the_beginning(world: World) -> None:
    """A reader who comes late gets every line, in order, and stops at the end."""
    deployment = new_id()
    async with world.running("build") as made, world.bus("client") as bus:
        for n in range(50):
            await made.bus.log_line(deployment, b"line %d" % n)
        await made.bus.end_log(deployment)
        async with asyncio.timeout(20):
            lines = [line async for line in bus.follow_log(deployment)]
    assert lines == [b"line %d" % n for n in range(50)]


async def test_blobs_are_kept_by_what_they_are(world: World) -> None:
    """The same content twice is one object; what comes back is what was put."""
    async with world.running("git") as made:
        data = bytes(range(256)) * 8192
        ref = await made.blobs.put(data)
        assert await made.blobs.put(data) == ref
        assert await made.blobs.get(ref) == data
        empty = await made.blobs.put(b"")
        assert await made.blobs.get(empty) == b""
        with pytest.raises(NotFound):
            await made.blobs.get(BlobRef(key="f" * 64, size=1, sha256="f" * 64))


async def test_events_are_watched_without_a_gap(world: World) -> None:
    """Watching begins in the past and goes on into the present."""
    async with world.running("build"), world.bus("client") as bus:
        first = await ask_for_build(world)
        seen: list[Any] = []

        async def watch() -> None:
            async for event in bus.watch(after=0, types=("build",), actor="cli:test"):
                seen.append(event.id)  # noqa: PERF401  it never ends, and is looked at meanwhile

        watching = asyncio.create_task(watch())
        await until(lambda: seen == [first.id])
        second = await ask_for_build(world)
        await until(lambda: seen == [first.id, second.id])
        watching.cancel()


async def test_one_trace_goes_through_log_bus_and_handler(world: World) -> None:
    """What a request began is one trace: its events, the messages that tell of them, the handler, and what that appends."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    begun = f"00-{trace}-b7ad6b7169203331-01"
    seen: list[str | None] = []

    async def hear(event: Envelope[BuildRequested]) -> None:
        seen.append(current_traceparent())
        started = BuildStarted(deployment=event.data.deployment, stack="demo", services=("web",))
        async with world.store("build") as store:
            [appended] = await store.append(event.stream, 1, [started], because=event.cause("hythe:build"))
            seen.append(appended.traceparent)

    async with world.running(
        "build", more={"otlp_endpoint": "http://127.0.0.1:9"}, hears=[on(BuildRequested, hear)]
    ):
        deployment = new_id()
        because = Cause(new_id(), None, "cli:test", begun)
        async with world.store("git") as store:
            await store.append(
                streams.deployment(deployment), 0, [build_requested(deployment)], because=because
            )
        await until(lambda: len(seen) == 2)
    assert [said is not None and said.split("-")[1] for said in seen] == [trace, trace]
    assert seen[0] != begun, "the handler's span is a child of the request's"
