"""Reading our log as a service does: raw rows, typed events, and one deployment folded from its events."""

from __future__ import annotations

import asyncio
import json
import time

import uvloop

from bench.contestants import stopwatch
from hythe_events.decider import fold
from hythe_events.deployment import Deployment, evolve
from hythe_events.store import Store


async def whole_log(dsn: str, *, typed: bool) -> dict[str, float]:
    """Pages of 1,000 from the first event to the last."""
    async with Store.open(dsn) as store:
        pages = store.replay() if typed else store.replay_raw()
        seen, started = 0, time.perf_counter()
        async for page in pages:
            seen += len(page)
        return {"rate": seen / (time.perf_counter() - started), "events": seen}


async def deployments(dsn: str, streams: list[str]) -> dict[str, float]:
    """Each of `streams` read and folded into a deployment's state, one after the other; the first is not counted."""
    times = []
    async with Store.open(dsn) as store:
        for stream in streams:
            began = time.perf_counter()
            events = await store.read(stream)
            state = fold(evolve, events, Deployment())
            times.append((time.perf_counter() - began) * 1000)
            assert state.finished, "the bench's deployments have their outcome"
            assert len(events) == 30, "the bench's deployments have 30 events"
    ordered = sorted(times[1:])
    return {"p50_ms": ordered[len(ordered) // 2], "p99_ms": ordered[int(len(ordered) * 0.99)]}


if __name__ == "__main__":
    parser = stopwatch.arguments("Hythe's log, read")
    parser.add_argument("--typed", action="store_true", help="decode into typed events")
    parser.add_argument("--deployments", type=json.loads, help="a JSON list of streams to fold instead")
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if asked.deployments:
            stopwatch.say(runner.run(deployments(asked.dsn, asked.deployments)))
        else:
            stopwatch.say(runner.run(whole_log(asked.dsn, typed=asked.typed)))
