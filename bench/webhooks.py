"""Receiving signed GitHub pushes of 7 to 8 kB over 64 connections: ours stores each before it answers, the others store nothing."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from pathlib import Path

from bench import provision, receivers
from bench.figures import Figure, Reading, Turn, median, take_turns

SECONDS = 4


async def run(rounds: int) -> list[Figure]:
    provision.commands("webhook", "wrk")
    python = provision.peers() / "python"
    secret = secrets.token_hex(20).encode()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hythe-bench-")))
        pushes = receivers.write_pushes(folder, secret)

        def loaded(receiver: receivers.Receiver) -> Turn:
            async def turn() -> Reading:
                return await receivers.load(receiver, pushes, SECONDS)

            return turn

        go = await stack.enter_async_context(receivers.debian_webhook(folder, secret))
        bare = await stack.enter_async_context(receivers.bare_aiohttp(python, folder, secret))
        got = await take_turns(rounds, {"webhook (Debian)": loaded(go), "aiohttp bare": loaded(bare)})
    beside = [("ingest_64", "webhook", "webhook (Debian)"), ("ingest_64", "aiohttp-bare", "aiohttp bare")]
    return [
        Figure("webhooks", figure, None, name, median(got[turn]), "requests/s") for figure, name, turn in beside
    ]
