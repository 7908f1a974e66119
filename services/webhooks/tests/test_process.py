"""The webhooks service as a process of its own: it starts, is asked, is stopped, is killed, and shares its port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from hythe_cli.local.world import World
from hythe_events import streams
from hythe_events.webhooks import CreateSource, SourceMade
from hythe_webhooks.testing import SECRET, sign

DELIVERY = "0b989ba4-242f-11e5-81e1-c7b6966d2516"


@dataclass
class Process:
    """A running `python -m hythe_webhooks`."""

    process: asyncio.subprocess.Process
    port: int

    async def post(self, body: bytes, delivery: str = DELIVERY) -> tuple[int, dict[str, Any]]:
        """Post a push to the source `ferry`, on a connection of its own."""
        headers = {
            "Content-Type": "application/json",
            "X-GitHub-Event": "push",
            "X-GitHub-Delivery": delivery,
            "X-Hub-Signature-256": sign(body),
        }
        async with (
            asyncio.timeout(20),
            aiohttp.ClientSession() as http,
            http.post(
                f"http://127.0.0.1:{self.port}/api/webhooks/github/ferry", data=body, headers=headers
            ) as answered,
        ):
            return answered.status, await answered.json(content_type=None)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        async with asyncio.timeout(20):
            return await self.process.wait()


@asynccontextmanager
async def started(world: World, **settings: object) -> AsyncIterator[Process]:
    """The service as a process, until the block ends; it listens and answers when the block begins."""
    told = {
        f"HYTHE_{name.upper()}": str(value)
        for name, value in ({"port": 0} | world.told("webhooks", **settings)).items()
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hythe_webhooks"),
        env={**os.environ, **told},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    said = []
    try:
        async with asyncio.timeout(30):
            async for line in process.stderr:
                said.append(line.decode())
                if b"service_runs" in line:
                    break
            else:
                raise AssertionError("it ended instead of listening: " + "".join(said))
        reading = asyncio.create_task(process.stderr.read())
        yield Process(process, _port(said))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await reading


def _port(said: list[str]) -> int:
    [port] = [each["port"] for each in map(json.loads, said) if each["event"] == "webhooks_listen"]
    return int(port)


async def create_source(world: World) -> SourceMade:
    """Make the source `ferry`, as the command line does."""
    async with world.bus("client") as bus:
        asked = CreateSource(source="ferry", secret=SECRET)
        return await bus.ask(asked, SourceMade, actor="cli:test")


async def test_a_process_makes_a_source_takes_a_push_and_ends_when_it_is_asked_to(
    world: World, push_body: bytes
) -> None:
    """SIGTERM is how every supervisor says it: nothing is lost, and the exit code is 0."""
    async with started(world) as running:
        made = await create_source(world)
        assert made.path == "/api/webhooks/github/ferry"
        assert (await running.post(push_body))[0] == 202
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0


async def test_killed_before_it_answered_it_gives_the_same_answer_afterwards(
    world: World, push_body: bytes
) -> None:
    """W7: the event was stored, the answer was not sent, the forge sends it again: one event, and its id."""
    async with started(world, faults="W7:1:kill") as running:
        await create_source(world)
        with pytest.raises(aiohttp.ClientError):
            await running.post(push_body)
        assert await running.ended() == -signal.SIGKILL
    async with world.store("git") as store:
        [event] = await store.read(streams.delivery("ferry", DELIVERY))
    async with started(world) as again:
        status, told = await again.post(push_body)
        assert (status, told["event"]) == (202, str(event.id))
    async with world.store("git") as store:
        assert len(await store.read(streams.delivery("ferry", DELIVERY))) == 1


async def test_two_processes_share_one_port(world: World, push_body: bytes) -> None:
    """More cores, more pushes: the kernel spreads the connections, and every push is stored once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with (
        started(world, reuse_port=True, port=port) as one,
        started(world, reuse_port=True, port=port) as two,
    ):
        await create_source(world)
        assert one.port == two.port == port
        answered = await asyncio.gather(*(one.post(push_body, f"delivery-{n}") for n in range(64)))
        assert {status for status, _ in answered} == {202}
        assert len({told["event"] for _, told in answered}) == 64
        one.process.send_signal(signal.SIGTERM)
        assert await one.ended() == 0
        assert (await two.post(push_body, "afterwards"))[0] == 202


async def test_a_port_that_is_taken_is_said_in_one_line(world: World) -> None:
    """The setting is named, and there is no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AssertionError) as said:
            async with started(world, port=taken.getsockname()[1]):
                pass
        assert "HYTHE_PORT" in str(said.value)
        assert "Traceback" not in str(said.value)
