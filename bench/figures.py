"""A figure is ours beside somebody else's, measured in turns in one run: ours, other, ours, other …

A machine's speed drifts by the minute; a ratio of medians of turns taken close together does not.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

Reading = dict[str, float]
"""One turn of one contestant: `rate`, `p50_ms` … whatever it can say."""

Turn = Callable[[], Awaitable[Reading]]


quiet = False


def progress(words: str) -> None:
    """Tell whoever waits; figures alone go to standard output."""
    if not quiet:
        print(words, file=sys.stderr, flush=True)


def short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


async def take_turns(
    rounds: int, contestants: Mapping[str, Turn], settle: Callable[[], object] = lambda: None
) -> dict[str, list[Reading]]:
    """`rounds` rounds; in each, after `settle`, every contestant has one turn, in the order given."""
    readings: dict[str, list[Reading]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        await asyncio.to_thread(settle)
        for name, turn in contestants.items():
            reading = await turn()
            readings[name].append(reading)
            told = "  ".join(f"{what} {short(value)}" for what, value in reading.items())
            progress(f"round {number}/{rounds}  {name:<28} {told}")
    return readings


def median(readings: list[Reading], what: str = "rate") -> float:
    return statistics.median(reading[what] for reading in readings)


@dataclass(frozen=True)
class Figure:
    """One line of a bench's result. `ratio` is ours / other whatever the unit; for times smaller is better."""

    bench: str
    figure: str
    ours: float | None
    other_name: str
    other: float | None
    unit: str = "events/s"

    @property
    def ratio(self) -> float | None:
        if self.ours is None or not self.other:
            return None
        return self.ours / self.other

    def line(self) -> str:
        def rounded(value: float | None) -> float | None:
            return None if value is None else float(f"{value:.4g}")

        return json.dumps(
            {
                "bench": self.bench,
                "figure": self.figure,
                "ours": rounded(self.ours),
                "other": {"name": self.other_name, "value": rounded(self.other)},
                "ratio": rounded(self.ratio),
                "unit": self.unit,
            }
        )
