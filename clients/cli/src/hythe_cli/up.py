"""`hythe up`: the whole system on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hythe_cli import shown
from hythe_cli.home import default_home
from hythe_cli.local.engine import ensure_engine
from hythe_cli.system import System

Folder = Annotated[
    Path | None,
    Parameter(help="Where Hythe keeps everything. [default: $HYTHE_HOME or ~/.local/share/hythe]"),
]


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, whoever supervises us, and a terminal that was closed."""


async def up(
    *,
    home: Folder = None,
    stacks_dir: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> int:
    """Run Hythe on this machine until Ctrl-C.

    Everything is kept in one folder; stop it and start it again whenever you like.

    Parameters
    ----------
    stacks_dir
        Where the stacks' folders are, one each, as Dockge has them. [default: $STACKS_DIR; or as last time; or /opt/stacks
        where we may write there; or <home>/stacks]
    host
        The address that forges post to; 0.0.0.0 is every address of this machine.
    port
        Its port. [default: any free one the first time, then always that one]
    """
    directory = (home or default_home()).expanduser().absolute()
    async with until_told_to_stop() as told:
        await ensure_engine(shown.complain, log=directory / "log" / "docker.log")
        system = System(
            directory, stacks=stacks_dir, webhooks_host=host, webhooks_port=port, tell=shown.complain
        )
        async with system:
            banner(system)
            await told.wait()
            shown.say("Stopping …", style="dim")
    shown.say("Stopped. Everything is kept; ./hythe up goes on from here.", style="dim")
    return shown.GOOD


def banner(system: System) -> None:
    """What somebody who just started Hythe wants to know."""
    shown.say(f"Hythe is ready ({system.seconds_to_ready:.1f} s).", style="bold green")
    shown.say()
    for name, value in (
        ("webhooks", f"{system.webhooks_url}/api/webhooks/github/<source>"),
        ("stacks", str(system.stacks)),
        ("logs", str(system.home.directory / "log")),
    ):
        shown.say(f"  {name:<9} {value}")
    shown.say()
    shown.say("  add a stack   ./hythe stack add NAME https://github.com/you/repository.git")
    shown.say("  bring it up   ./hythe deploy NAME --follow")
    shown.say("  what happened ./hythe history")
    shown.say("  stop          Ctrl-C")
    shown.say()


@contextlib.asynccontextmanager
async def until_told_to_stop() -> AsyncIterator[asyncio.Event]:
    """Gives an event that is set by the first of STOPPING; while nobody waits for it, it cancels the task.

    A second Ctrl-C is not heard any more: what stops, stops in order, and within the parts' own limits.
    """
    loop = asyncio.get_running_loop()
    told = _Told()
    owner = asyncio.current_task()
    assert owner is not None

    def hear(number: signal.Signals) -> None:
        if told.is_set():
            return
        told.set()
        if not told.waited_for:
            owner.cancel(f"{number.name}")

    for number in STOPPING:
        loop.add_signal_handler(number, hear, number)
    try:
        yield told
    except asyncio.CancelledError:
        if told.is_set() and owner.uncancel() == 0:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in STOPPING:
            loop.remove_signal_handler(number)


class _Told(asyncio.Event):
    waited_for = False

    async def wait(self) -> bool:  # type: ignore[override]  # narrower than Literal[True]
        self.waited_for = True
        return await super().wait()
