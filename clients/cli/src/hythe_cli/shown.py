"""What a command shows: lines and tables for a person, JSON for a program.

Much of what is shown was written by somebody else: commit messages, build logs, names. On a terminal a few bytes can
change the window's title, fill the clipboard or paint a false line over a true one, so whatever could is made
harmless first: each control character is written out as an escape that can be read.

| exit code | means |
| --- | --- |
| 0 | it was done, and the result is good |
| 1 | it was done, and the result is bad: a deployment that failed, a log that does not verify |
| 2 | the command line cannot be understood |
| 3 | refused, or what was named does not exist |
| 4 | Hythe, or something it needs, cannot be reached or started now |
| 130 | stopped with Ctrl-C |
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hythe_events.errors import HytheError, Misconfigured, NotNow, Refused

GOOD, BAD, USAGE, REFUSED, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead, for programs.")]
"""The switch that every command has."""

_risky = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
# C0 and C1 controls but for tab and line feed; what hides or turns text round; lone surrogates.


def harmless(text: str) -> str:
    """`text` with everything a terminal could take for an order written out, as in `\\x1b`."""
    return _risky.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_harmless_line(text: str) -> str:
    """The first line of `text` that is not empty, harmless; an ellipsis says that more follows."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return harmless(lines[0].replace("\t", " ")) + (" …" if len(lines) > 1 else "")


def log_bytes(chunk: bytes, *, raw: bool) -> str:
    """A piece of a build's log as text. `raw` keeps every character; what is not UTF-8 is replaced either way.

    Carriage returns are how programs redraw a progress bar: here each becomes a line of its own.
    """
    text = chunk.decode("utf-8", errors="replace")
    return text if raw else harmless(text.replace("\r\n", "\n").replace("\r", "\n"))


def console(*, stderr: bool = False) -> Console:
    """A console that never reads markup or finds things to colour in what it is given."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(line: str = "", style: str = "") -> None:
    """One line for a person, on standard output."""
    console().print(Text(line, style=style))


def complain(line: str) -> None:
    """One line about what went wrong, on standard error."""
    console(stderr=True).print(Text(f"hythe: {harmless(line)}"))


def show_json(value: object, *, in_one_line: bool = False) -> None:
    """One JSON document; what a terminal could take for an order is escaped, which JSON can say as well.

    `in_one_line` is for commands that print a document per line as things happen.
    """
    indent = 2 if sys.stdout.isatty() and not in_one_line else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    sys.stdout.write(_risky.sub(_json_escape, text) + "\n")
    sys.stdout.flush()


def _json_escape(found: re.Match[str]) -> str:
    # Everything JSON demands is escaped already; these are the letters that only a terminal minds.
    return "".join(
        f"\\u{unit:04x}" for unit in memoryview(found[0].encode("utf-16-le", "surrogatepass")).cast("H")
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table without frames; what is None stays empty. Every cell is one harmless line."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(
            column, overflow="fold", no_wrap=column in {"deployment", "when", "outcome", "commit"}
        )
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 200).print(
        made
    )


def _cell(value: object) -> Text:
    text = "" if value is None else one_harmless_line(str(value))
    return Text(text, style=outcome_style(text))


def outcome_style(outcome: str) -> str:
    """The colour of an outcome; none for any other word."""
    if outcome in {"succeeded", "ok", "healthy"}:
        return "green"
    if outcome in {"failed", "rollback_failed", "unhealthy"}:
        return "red"
    return "yellow" if outcome in {"rolled_back", "cancelled", "superseded", "ignored"} else ""


def local_time(moment: datetime | str | None) -> str:
    """A moment as this machine's clock has it, to the second; the text as it is when it is no moment."""
    if moment is None:
        return ""
    try:
        when = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    except ValueError:
        return str(moment)
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def short(identifier: object) -> str:
    """An id as short as it may be typed: up to its second dash for a UUID, 8 letters of anything else."""
    text = str(identifier or "")
    return text[:13] if len(text) == 36 and text.count("-") == 4 else text.removeprefix("sha256:")[:8]


def exit_code(error: HytheError) -> int:
    """The exit code that tells a program what kind of trouble it was."""
    match error:
        case Refused() | Misconfigured():
            return REFUSED
        case NotNow():
            return UNAVAILABLE
        case _:
            return getattr(error, "exit_code", UNAVAILABLE)


def told(error: HytheError) -> str:
    """An error as the one line that is printed, with the field it is about."""
    field = getattr(error, "field", None)
    text = " ".join(str(error).splitlines()) if not hasattr(error, "exit_code") else str(error)
    return f"{field}: {text}" if field and field not in text else text
