"""Receiving signed GitHub pushes of 7 to 8 kB over 64 connections: ours stores each before it answers, the others store nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bench import parts, processes, provision, receivers
from bench.figures import Figure, Reading, Turn, median, take_turns
from hythe_cli.local.world import World
from hythe_events.webhooks import CreateSource, SourceMade

SECONDS = 4

BESIDE = [
    ("ingest_64", "hythe", "webhook", "webhook (Debian)", "rate", "requests/s"),
    ("ingest_64_two_processes", "hythe, 2 processes", "webhook", "webhook (Debian)", "rate", "requests/s"),
    ("ingest_64", "hythe", "aiohttp-bare", "aiohttp, nothing stored", "rate", "requests/s"),
    ("ingest_64_p99", "hythe", "webhook", "webhook (Debian)", "p99_ms", "ms"),
    ("ingest_64_p99_two_processes", "hythe, 2 processes", "webhook", "webhook (Debian)", "p99_ms", "ms"),
    ("ingest_64_p50", "hythe", "webhook", "webhook (Debian)", "p50_ms", "ms"),
    ("ingest_64_cpu", "hythe", "aiohttp-bare", "aiohttp, nothing stored", "cpu_us", "us CPU/request"),
]
"""Figure, our turn, the peer's name, its turn, what is compared, its unit."""


async def run(rounds: int) -> list[Figure]:
    provision.commands("webhook", "wrk")
    python = provision.peers() / "python"
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(processes.folder())
        world = await stack.enter_async_context(parts.world())
        path, secret = await _source(world, folder / "hythe.log")
        pushes = receivers.write_pushes(folder, secret)
        go = await stack.enter_async_context(receivers.debian_webhook(folder, secret))
        bare = await stack.enter_async_context(receivers.bare_aiohttp(python, folder, secret))

        def theirs(receiver: receivers.Receiver) -> Turn:
            async def turn() -> Reading:
                return await receivers.load(receiver, pushes, SECONDS)

            return turn

        def ours(count: int) -> Turn:
            async def turn() -> Reading:
                before = await _stored(world)
                async with receivers.hythe(world, folder / "hythe.log", path, count) as receiver:
                    reading = await receivers.load(receiver, pushes, SECONDS)
                kept = await _stored(world) - before
                if kept < reading["requests"]:
                    raise SystemExit(
                        f"{reading['requests']:.0f} were answered 2xx, and only {kept} are in the log"
                    )
                return reading

            return turn

        got = await take_turns(
            rounds,
            {
                "hythe": ours(1),
                "webhook (Debian)": theirs(go),
                "hythe, 2 processes": ours(2),
                "aiohttp, nothing stored": theirs(bare),
            },
        )
    return [
        Figure("webhooks", figure, median(got[mine], what), name, median(got[other], what), unit)
        for figure, mine, name, other, what, unit in BESIDE
    ]


async def _source(world: World, log: Path) -> tuple[str, bytes]:
    """Make a webhook source, as `hythe stack add` does; returns its path and its secret."""
    async with parts.service(world, "webhooks", log, port=processes.free_port()), world.bus("client") as bus:
        made = await bus.ask(CreateSource(source="bench"), SourceMade, actor="cli:bench")
        return made.path, made.secret.encode()


async def _stored(world: World) -> int:
    """Pushes in the log."""
    counted = await world.server.run_sql(
        "select count(*) from log.events where type = 'webhook.received'", database=world.database
    )
    return int(counted)
