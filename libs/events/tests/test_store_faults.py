"""The store while its server dies under it: every call ends in an answer or in the one error that says to try again."""

from __future__ import annotations

import asyncio

from hythe_cli.local.world import World
from hythe_events import streams
from hythe_events.deploy import StackGranted
from hythe_events.envelope import Cause
from hythe_events.errors import StoreUnavailable
from hythe_events.language import new_id
from hythe_events.store import Store

CAUSE = Cause(new_id(), None, "cli:test")
KILLS = 4


async def test_a_server_that_dies_again_and_again_costs_no_append_that_was_confirmed(world: World) -> None:
    """Readers and writers run on while Postgres is killed four times; what was confirmed is there, in order."""
    kept: list[int] = []
    refused = 0
    done = asyncio.Event()
    moved = asyncio.Event()

    async def write(store: Store, writer: int) -> None:
        nonlocal refused
        while not done.is_set():
            try:
                granted = StackGranted(stack="demo", grants=())
                [event] = await store.append(streams.stack(f"w{writer}"), None, [granted], because=CAUSE)
                kept.append(event.position)
                await store.read(event.stream, after=event.version - 1)
                assert await store.find(event.id) is not None
                moved.set()
            except StoreUnavailable:
                refused += 1

    async with world.store("deploy") as store, asyncio.timeout(60):
        writers = [asyncio.create_task(write(store, n)) for n in range(6)]
        for _ in range(KILLS):
            moved.clear()
            await moved.wait()
            await world.server.kill()
            await world.server.start()
        moved.clear()
        await moved.wait()
        done.set()
        await asyncio.gather(*writers)
        positions = [event.position for page in [await store.read_all(0, 100_000)] for event in page]
    assert refused
    assert set(kept) <= set(positions)
    assert positions == list(range(1, len(positions) + 1))
