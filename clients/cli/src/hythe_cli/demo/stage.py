"""How the demo is shown: chapters of steps with a spinner and a clock on a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hythe_cli.shown import harmless


@dataclass
class _Step:
    name: str
    detail: str = ""
    began: float | None = None
    ended: float | None = None
    good: bool = True


class Stage:
    """Shows what happens. `seen` keeps every statement that was checked, and whether it held."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, markup=False, emoji=False)
        self._lively = self._console.is_terminal and not self._console.is_dumb_terminal
        self._steps: list[_Step] = []
        self._live: Live | None = None
        self._since = time.monotonic()
        self.seen: list[tuple[str, bool]] = []

    @contextlib.contextmanager
    def chapter(self, title: str, steps: Sequence[str] = ()) -> Iterator[None]:
        """A part of the story, with the steps that are expected in it. Without a title it goes on with the last one."""
        if title:
            self.say()
            self.say(title, style="bold")
        self._steps = [_Step(name) for name in steps]
        if self._steps:
            self._steps[0].began = time.monotonic()
        if self._lively and self._steps:
            with Live(
                get_renderable=self._picture, console=self._console, refresh_per_second=12
            ) as self._live:
                try:
                    yield
                finally:
                    for step in self._steps:
                        step.began = step.began if step.ended else None
            self._live = None
        else:
            yield
        self._steps = []

    def done(self, name: str, detail: str = "", *, good: bool = True) -> None:
        """A step happened; the next one is awaited."""
        now = time.monotonic()
        step = next((step for step in self._steps if step.name == name), None)
        if step is None or step.ended is not None:
            return
        step.began, step.ended = step.began or now, now
        step.detail, step.good = harmless(detail), good
        waiting = next((other for other in self._steps if other.ended is None), None)
        if waiting is not None and waiting.began is None:
            waiting.began = now
        if self._live is None:
            self._console.print(
                Text(f"  {self._clock()} {'ok ' if good else 'NO '} {name:<18} {step.detail}"), soft_wrap=True
            )

    def doing(self, detail: str) -> None:
        """What goes on in the step that is awaited; shown on a terminal only."""
        waiting = next((step for step in self._steps if step.ended is None), None)
        if waiting is not None:
            waiting.detail = harmless(detail)

    def say(self, line: str = "", style: str = "") -> None:
        """One line, above whatever moves."""
        self._console.print(Text(line, style=style), soft_wrap=True)

    def check(self, statement: str, held: bool) -> bool:
        """Keep and show whether something was seen to be true."""
        self.seen.append((statement, held))
        self.say(
            f"  {'✓' if held else '✗ NOT SEEN:'} {harmless(statement)}", style="green" if held else "bold red"
        )
        return held

    @property
    def all_seen(self) -> bool:
        """Whether everything that was checked held."""
        return bool(self.seen) and all(held for _, held in self.seen)

    def _clock(self) -> str:
        return f"{time.monotonic() - self._since:6.1f} s"

    def _picture(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1), expand=True)
        for width in (3, 18, 8):
            grid.add_column(
                width=width, min_width=width, no_wrap=True, justify="left" if width == 18 else "right"
            )
        grid.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
        now = time.monotonic()
        for step in self._steps:
            if step.ended is not None and step.began is not None:
                mark: RenderableType = Text("✓" if step.good else "✗", style="green" if step.good else "red")
                seconds = f"{step.ended - step.began:.2f} s"
            elif step.began is not None:
                mark, seconds = Spinner("dots", style="cyan"), f"{now - step.began:.1f} s"
            else:
                mark, seconds = Text("·", style="dim"), ""
            style = "dim" if step.began is None else ""
            grid.add_row(
                mark, Text(step.name, style=style), Text(seconds, style="dim"), Text(step.detail, style=style)
            )
        return grid


def progress(line: str) -> None:
    """A line about setting something up."""
    sys.stderr.write(f"hythe: {line}\n")
    sys.stderr.flush()
