"""Time what a number of callers get done, each doing one thing after the other, for a fixed time after a warm-up.

Used by ours and by every peer written in Python; imports nothing but the standard library, since they live in different
virtual environments.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

WARM_UP = 0.7
"""Seconds before the clock starts: connections are open, plans cached, pages of the table warm."""


def arguments(what: str) -> argparse.ArgumentParser:
    """The options every contestant takes; a contestant may add its own."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--dsn", required=True, help="postgresql:// address of the contestant's own database")
    parser.add_argument("--clients", type=int, default=1, help="callers at the same time")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time, after the warm-up")
    return parser


def say(reading: dict[str, float]) -> None:
    """Hand the reading to the harness: the one line on standard output."""
    print(json.dumps(reading), flush=True)


def summary(times: Sequence[float], seconds: float, cpu: float, each: int = 1) -> dict[str, float]:
    """Events per second, and p50/p99 of one call in milliseconds. `each` is the number of events in a call."""
    if not times:
        raise SystemExit("nothing was done in the measured time: make --seconds longer")
    ordered = sorted(times)
    return {
        "rate": len(ordered) * each / seconds,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000,
        "client_cpu_us": cpu / (len(ordered) * each) * 1e6,
    }


async def tasks(
    one: Callable[[int], Awaitable[object]], clients: int, seconds: float, each: int = 1
) -> dict[str, float]:
    """`clients` tasks, each awaiting `one(its number)` again and again."""
    gc.collect()
    gc.freeze()
    started = time.perf_counter() + WARM_UP
    ended = started + seconds
    times: list[float] = []
    cpu = [0.0, 0.0]

    async def caller(number: int) -> None:
        before = time.perf_counter()
        while before < ended:
            await one(number)
            after = time.perf_counter()
            if before >= started and after <= ended:
                times.append(after - before)
            before = after

    async def meter() -> None:
        await asyncio.sleep(WARM_UP)
        cpu[0] = time.process_time()
        await asyncio.sleep(max(0.0, ended - time.perf_counter()))
        cpu[1] = time.process_time()

    async with asyncio.timeout(WARM_UP + seconds + 30), asyncio.TaskGroup() as group:
        group.create_task(meter())
        for number in range(clients):
            group.create_task(caller(number))
    return summary(times, seconds, cpu[1] - cpu[0], each)


def threads(one: Callable[[int], object], clients: int, seconds: float, each: int = 1) -> dict[str, float]:
    """The same with threads, for libraries that block."""
    gc.collect()
    gc.freeze()
    started = time.perf_counter() + WARM_UP
    ended = started + seconds
    times: list[list[float]] = [[] for _ in range(clients)]

    def caller(number: int) -> None:
        mine = times[number]
        before = time.perf_counter()
        while before < ended:
            one(number)
            after = time.perf_counter()
            if before >= started and after <= ended:
                mine.append(after - before)
            before = after

    running = [threading.Thread(target=caller, args=(number,), daemon=True) for number in range(clients)]
    for thread in running:
        thread.start()
    time.sleep(WARM_UP)
    before_cpu = time.process_time()
    time.sleep(max(0.0, ended - time.perf_counter()))
    cpu = time.process_time() - before_cpu
    for thread in running:
        thread.join(30)
    return summary([took for mine in times for took in mine], seconds, cpu, each)
