"""`hythe bench`: what is measured, beside what. The benches themselves are in the folder `bench` of the checkout."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

from cyclopts import Parameter

from hythe_cli.checks import checkout
from hythe_cli.home import default_home
from hythe_cli.local.engine import ensure_engine, ensure_packages, static_busybox
from hythe_cli.shown import complain

BenchArguments = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
NEEDS_DOCKER = {"pipeline", "all"}


async def bench(*arguments: BenchArguments) -> int:
    """Measure Hythe beside its peers: append, replay, webhooks, relay, pipeline or all; one JSON line per figure."""
    engine = None
    if NEEDS_DOCKER.intersection(arguments):
        await ensure_packages({"git": "git"}, complain)
        await static_busybox(complain)
        engine = await ensure_engine(complain, log=default_home() / "log" / "dockerd.log", ends_with_us=True)
    try:
        measuring = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench", *arguments, cwd=checkout()
        )
        try:
            return await measuring.wait()
        finally:
            # On Ctrl-C it heard it too, and puts its servers away first.
            await asyncio.shield(measuring.wait())
    finally:
        if engine is not None:
            await engine.stop()
