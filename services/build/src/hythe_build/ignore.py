"""What a `.dockerignore` leaves out. Its rules are Docker's own and differ from `.gitignore`'s: `*.log` matches at the
top only, a leading `/` means nothing, a later `!pattern` brings back what an earlier one left out.

The rules are those of Docker's reference (docs.docker.com/build/concepts/context) and of moby/patternmatcher, which
the engine's own tools use: Go's `filepath.Match` plus `**`, and whatever lies in a matching folder matches too.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from hythe_events.errors import Refused


class BadPattern(Refused):
    """A pattern in the .dockerignore cannot be read."""


@dataclass(frozen=True)
class _Pattern:
    matches: re.Pattern[str]
    brings_back: bool


class Ignore:
    """The patterns of one `.dockerignore`. An empty one leaves out nothing."""

    def __init__(self, text: bytes = b"") -> None:
        """Raises BadPattern, naming the line."""
        self._patterns = tuple(_read(text))

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def leaves_out(self, path: str) -> bool:
        """Whether `path`, with `/` and seen from the context, is left out."""
        left_out = False
        parts = path.split("/")
        lineage = [path, *("/".join(parts[:length]) for length in range(1, len(parts)))]
        for pattern in self._patterns:
            if pattern.brings_back == left_out and any(map(pattern.matches.fullmatch, lineage)):
                left_out = not left_out
        return left_out


def _read(text: bytes) -> list[_Pattern]:
    patterns = []
    for line in text.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").split("\n"):
        if line.startswith("#"):
            continue
        pattern = line.strip()
        brings_back = pattern.startswith("!")
        if brings_back:
            pattern = pattern[1:].strip()
            if not pattern:
                raise BadPattern(".dockerignore: a line holds only `!`; name what it brings back")
        if not pattern:
            continue
        pattern = posixpath.normpath(pattern)
        if len(pattern) > 1:
            pattern = pattern.lstrip("/")
        if pattern in {".", "/"}:
            continue  # Docker takes it for "nothing": the context itself is never left out
        patterns.append(_Pattern(_expression(pattern), brings_back))
    return patterns


def _expression(pattern: str) -> re.Pattern[str]:
    made = ""
    at = 0
    while at < len(pattern):
        sign = pattern[at]
        at += 1
        if pattern.startswith("*", at) and sign == "*":
            at += 1
            if pattern.startswith("/", at):
                at += 1
            made += ".*" if at >= len(pattern) else "(?:.*/)?"
        elif sign == "*":
            made += "[^/]*"
        elif sign == "?":
            made += "[^/]"
        elif sign == "\\" and at < len(pattern):
            made += re.escape(pattern[at])
            at += 1
        elif sign == "[":
            end = pattern.find("]", at + 2 if pattern.startswith("^", at) else at + 1)
            if end < 0:
                raise BadPattern(f".dockerignore: the pattern {pattern} has a [ without its ]")
            made += f"[{pattern[at:end].replace('[', chr(92) + '[')}]"
            at = end + 1
        else:
            made += re.escape(sign)
    try:
        return re.compile(made, re.DOTALL)
    except re.error as error:
        raise BadPattern(f".dockerignore: the pattern {pattern} cannot be read: {error}") from error
