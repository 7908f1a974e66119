"""What the bus and the object store promise: the same tests against the real ones on NATS, and against their doubles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import pytest
import pytest_asyncio

from hythe_cli.local.world import World
from hythe_events.blobs import BlobDamaged, Blobs
from hythe_events.build import FindLog, FoundLog
from hythe_events.bus import Bus
from hythe_events.envelope import Cause
from hythe_events.errors import BusUnavailable, HytheError, NotFound, NotNow, Refused
from hythe_events.language import BlobRef, new_id
from hythe_events.service import answers
from hythe_events.testing import MemoryBlobs, MemoryBus, MemoryStore

DEADLINE = 20.0
DEPLOYMENT = new_id()
ASKED = FindLog(deployment=DEPLOYMENT)
ANSWER = FoundLog(deployment=DEPLOYMENT, running=False, log=BlobRef(key="k", size=1, sha256="0" * 64))

Handler = Callable[[FindLog, Cause], Awaitable[FoundLog]]


@dataclass
class Bench:
    """A bus as a client has it, as the build service has it, and a build service that answers with a handler."""

    client: Bus | MemoryBus
    build: Bus | MemoryBus
    answering: Callable[[Handler], AbstractAsyncContextManager[None]]
    blobs: Blobs | MemoryBlobs


@pytest_asyncio.fixture
async def real_bench(world: World) -> AsyncIterator[Bench]:
    @asynccontextmanager
    async def answering(handler: Handler) -> AsyncIterator[None]:
        async with world.running("build", serves=[answers(FindLog, handler)]):
            yield

    async with AsyncExitStack() as stack, world.running("git"):  # its relay makes the streams
        client = await stack.enter_async_context(world.bus("client"))
        build = await stack.enter_async_context(world.bus("build"))
        yield Bench(client, build, answering, Blobs(build))


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.real)])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param == "nats":
        real: Bench = request.getfixturevalue("real_bench")
        return real
    bus = MemoryBus(MemoryStore())

    @asynccontextmanager
    async def answering(handler: Handler) -> AsyncIterator[None]:
        bus.serve(FindLog, handler)
        yield

    return Bench(bus, bus, answering, MemoryBlobs())


async def test_a_question_is_answered_and_its_cause_travels(bench: Bench) -> None:
    """Who asked is kept in the event it leads to; the same command again has the same id."""
    seen: list[Cause] = []

    async def handler(asked: FindLog, because: Cause) -> FoundLog:
        assert asked == ASKED
        seen.append(because)
        return ANSWER

    command, trace = new_id(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with bench.answering(handler):
        for _ in range(2):
            answer = await bench.client.ask(
                ASKED, FoundLog, actor="cli:root", command_id=command, traceparent=trace
            )
            assert answer == ANSWER
        await bench.client.ask(ASKED, FoundLog, actor="cli:other")
    assert [(each.correlation, each.causation, each.actor) for each in seen[:2]] == [
        (command, None, "cli:root")
    ] * 2
    assert seen[0].traceparent == trace
    assert seen[2].correlation != command


async def test_a_refusal_reaches_whoever_asked_with_its_kind_and_its_field(bench: Bench) -> None:
    """A person has to know what to change, and a program whether to try again."""
    raised: list[HytheError] = [
        Refused("the log was thrown away", field="deployment"),
        NotFound("there is no such deployment", field="deployment"),
        NotNow("the disk is full"),
        HytheError("something else"),
    ]
    left = iter(raised)

    async def handler(_asked: FindLog, _because: Cause) -> FoundLog:
        raise next(left)

    async with bench.answering(handler):
        for error in raised:
            with pytest.raises(HytheError, match=str(error)) as answered:
                await bench.client.ask(ASKED, FoundLog, actor="cli:root")
            assert type(answered.value) is type(error)
            assert answered.value.retry == error.retry
            assert getattr(answered.value, "field", None) == getattr(error, "field", None)


async def test_a_question_that_nobody_answers_says_who_does_not_run(bench: Bench) -> None:
    """At once, not after a timeout."""
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(BusUnavailable, match="the build service does not run"):
            await bench.client.ask(ASKED, FoundLog, actor="cli:root", timeout=600)


async def test_an_answer_that_does_not_come_in_time_is_not_waited_for(bench: Bench) -> None:
    """Every wait has its end."""
    forever = asyncio.Event()

    async def handler(_asked: FindLog, _because: Cause) -> FoundLog:
        await forever.wait()
        return ANSWER

    async with bench.answering(handler):
        with pytest.raises(BusUnavailable, match="no answer"):
            await bench.client.ask(ASKED, FoundLog, actor="cli:root", timeout=0.1)
        forever.set()


async def test_a_live_log_is_followed_from_its_beginning_to_its_end(bench: Bench) -> None:
    """By whoever comes early and by whoever comes late, each line once and in order; another log is not in it."""
    lines = [f"line {n}".encode() for n in range(50)]

    async def read(deployment: UUID) -> list[bytes]:
        return [line async for line in bench.client.follow_log(deployment)]

    async with asyncio.timeout(DEADLINE):
        early = asyncio.create_task(read(DEPLOYMENT))
        for line in lines:
            await bench.build.log_line(DEPLOYMENT, line)
            await bench.build.log_line(UUID(int=1), b"of another")
        await bench.build.end_log(DEPLOYMENT)
        assert await early == lines
        assert await read(DEPLOYMENT) == lines


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
async def test_a_blob_is_kept_by_what_it_is(bench: Bench, size: int) -> None:
    """Once, however often it is put, and whole, however large."""
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    ref = await bench.blobs.put(data)
    assert await bench.blobs.put(data) == ref
    assert (ref.size, ref.key) == (size, ref.sha256)
    assert await bench.blobs.get(ref) == data
    assert b"".join([piece async for piece in bench.blobs.read(ref)]) == data


async def test_a_blob_that_is_not_there_or_not_the_same_is_an_error(bench: Bench) -> None:
    """A reference in an event means these bytes and no others."""
    ref = await bench.blobs.put(b"data")
    with pytest.raises(NotFound, match="0000"):
        await bench.blobs.get(BlobRef(key="0" * 64, size=1, sha256="0" * 64))
    with pytest.raises(BlobDamaged):
        await bench.blobs.get(ref.model_copy(update={"sha256": "0" * 64}))
