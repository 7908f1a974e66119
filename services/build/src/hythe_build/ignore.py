"""What a `.dockerignore` leaves out. Its rules are Docker's own and differ from `.gitignore`'s: `*.log` matches at the
top only, a leading `/` means nothing, a later `!pattern` brings back what an earlier one left out.

The rules are those of Docker's reference (docs.docker.com/build/concepts/context) and of moby/patternmatcher, which
the engine's own tools use: Go's `filepath.Match` plus `**`, and whatever lies in a matching folder matches too.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from hythe_events.errors import Refused

_NO_SLASH = re.compile("[^/]")


class BadPattern(Refused):
    """A pattern in the .dockerignore cannot be read."""


Matches = Callable[[str], object]


@dataclass(frozen=True)
class _Pattern:
    matches: Matches
    brings_back: bool


class Ignore:
    """The patterns of one `.dockerignore`. An empty one leaves out nothing."""

    def __init__(self, text: bytes = b"") -> None:
        """Raises BadPattern, naming the pattern."""
        self._patterns = tuple(_read(text))
        self._folders: dict[str, tuple[bool, ...]] = {"": (False,) * len(self._patterns)}

    def leaves_out(self, path: str) -> bool:
        """Whether `path`, with `/` and seen from the context, is left out."""
        left_out = False
        for pattern, matched in zip(self._patterns, self._matched(path), strict=True):
            if matched and pattern.brings_back == left_out:
                left_out = not left_out
        return left_out

    def _matched(self, path: str) -> tuple[bool, ...]:
        """For each pattern, whether it matches `path` or a folder that holds it."""
        folder = posixpath.dirname(path)
        if folder not in self._folders:
            self._folders[folder] = self._matched(folder)
        return tuple(
            above or bool(pattern.matches(path))
            for pattern, above in zip(self._patterns, self._folders[folder], strict=True)
        )


def _read(text: bytes) -> Iterator[_Pattern]:
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
        tokens = tuple(_tokens(pattern))
        yield _Pattern(_expression(tokens) if _is_quick(tokens) else partial(_simulated, tokens), brings_back)


@dataclass(frozen=True)
class _Token:
    """One part of a pattern: `one` character, or a wildcard.

    `star` is `*`, any characters of one name; `all` is a final `**`, anything; `folders` is `**/`, any folders or none.
    """

    kind: Literal["one", "star", "all", "folders"]
    one: re.Pattern[str] = _NO_SLASH


def _tokens(pattern: str) -> Iterator[_Token]:
    at = 0
    while at < len(pattern):
        sign = pattern[at]
        at += 1
        if sign == "*" and pattern.startswith("*", at):
            at += 1
            if pattern.startswith("/", at):
                at += 1
            yield _Token("all" if at >= len(pattern) else "folders")
        elif sign == "*":
            yield _Token("star")
        elif sign == "?":
            yield _Token("one")
        elif sign == "\\" and at < len(pattern):
            yield _Token("one", re.compile(re.escape(pattern[at])))
            at += 1
        elif sign == "[":
            end = pattern.find("]", at + 2 if pattern.startswith("^", at) else at + 1)
            if end < 0:
                raise BadPattern(f".dockerignore: the pattern {pattern} has a [ without its ]")
            try:
                yield _Token("one", re.compile(f"[{pattern[at:end].replace('[', chr(92) + '[')}]"))
            except re.error as error:
                raise BadPattern(f".dockerignore: the pattern {pattern} cannot be read: {error}") from error
            at = end + 1
        else:
            yield _Token("one", re.compile(re.escape(sign)))


_QUICK = 3
"""How many wildcards a regular expression may have: the time it takes can grow with that power of a path's length."""


def _is_quick(tokens: Sequence[_Token]) -> bool:
    return sum(token.kind != "one" for token in tokens) <= _QUICK


def _expression(tokens: Sequence[_Token]) -> Matches:
    wildcards = {"star": "[^/]*", "all": ".*", "folders": "(?:.*/)?"}
    made = "".join(token.one.pattern if token.kind == "one" else wildcards[token.kind] for token in tokens)
    return re.compile(made, re.DOTALL).fullmatch


def _simulated(tokens: Sequence[_Token], path: str) -> bool:
    """As the expression would match, in time that only grows with pattern times path: no pattern can hang a build.

    A state is a place in `tokens`; with True it is inside a `**/`, which ends at any slash.
    """

    def reached(places: set[tuple[int, bool]]) -> set[tuple[int, bool]]:
        for start, inside in tuple(places):
            place = start
            while not inside and place < len(tokens) and tokens[place].kind != "one":
                if tokens[place].kind == "folders":
                    places.add((place, True))
                place += 1  # every wildcard may stand for nothing
                places.add((place, False))
        return places

    at = reached({(0, False)})
    for sign in path:
        to: set[tuple[int, bool]] = set()
        for place, inside in at:
            if inside:
                to.add((place, True))
                if sign == "/":
                    to.add((place + 1, False))
            elif place < len(tokens):
                token = tokens[place]
                if token.kind == "one" and token.one.fullmatch(sign):
                    to.add((place + 1, False))
                elif token.kind == "all" or (token.kind == "star" and sign != "/"):
                    to.add((place, False))
        at = reached(to)
    return (len(tokens), False) in at
