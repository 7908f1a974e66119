"""Named places where a test may kill, stop, delay or fail a process, to prove that nothing is lost there.

A crash point is a line `await crash_point("W7")` in the product. It does nothing unless the environment variable
`HYTHE_FAULTS` names it: `ID[:nth][:kill|stop|raise|delay=SECONDS]`, several separated by commas. `nth` (default 1) is
the passage at which it acts, once; the default act is `kill`, which is SIGKILL to the own process.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass


class Faulted(Exception):
    """A crash point was told to raise."""


@dataclass
class _Fault:
    act: str
    left: int


def _parse(text: str) -> dict[str, _Fault]:
    faults: dict[str, _Fault] = {}
    for part in filter(None, (item.strip() for item in text.split(","))):
        name, *rest = part.split(":")
        nth = int(rest.pop(0)) if rest and rest[0].isdigit() else 1
        faults[name] = _Fault(rest[0] if rest else "kill", nth)
    return faults


_faults = _parse(os.environ.get("HYTHE_FAULTS", ""))


def armed(name: str) -> bool:
    """Whether `HYTHE_FAULTS` names this place: for one that takes something to get to."""
    return name in _faults


async def crash_point(name: str) -> None:
    """Act here if `HYTHE_FAULTS` says so. The names are those of the crash-point table in `docs/operating.md`."""
    fault = _faults.get(name)
    if fault is None:
        return
    fault.left -= 1
    if fault.left != 0:
        return
    match fault.act.partition("="):
        case ("kill", _, _):
            os.kill(os.getpid(), signal.SIGKILL)
        case ("stop", _, _):
            os.kill(os.getpid(), signal.SIGSTOP)
        case ("delay", _, seconds):
            await asyncio.sleep(float(seconds))
        case _:
            raise Faulted(f"crash point {name}")
