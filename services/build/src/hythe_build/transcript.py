"""The log of one build: every line goes out live, and is kept for good, byte for byte as the build wrote it.

Each line begins with the service it is about: `web | [2/3] RUN make`. What a build prints is not trusted: a line that
does not end is cut into pieces, and after `LIMIT` bytes the rest is left out, with a notice in its place. Control
characters are kept; whoever shows a log escapes them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

LIMIT = 10_000_000
"""Bytes of a build's output that are kept."""

PIECE = 32 * 1024
"""Bytes after which a line that does not end is cut."""

LEFT_OUT = b"hythe | the log is longer than 10 MB; the rest of it is left out"


class Transcript:
    """The log of one build. `live` is told each line, without its end, while the build runs."""

    def __init__(self, live: Callable[[bytes], Awaitable[None]]) -> None:
        self._live = live
        self._kept = bytearray()
        self._left_out = False

    async def say(self, service: str, line: bytes) -> None:
        """A line of the build's output; it must hold no line end."""
        if self._left_out:
            return
        for piece in _pieces(line):
            whole = b"%s | %s" % (service.encode(), piece)
            if len(self._kept) + len(whole) >= LIMIT:
                self._left_out = True
                await self._write(LEFT_OUT)
                return
            await self._write(whole)

    async def note(self, text: str) -> None:
        """A line of Hythe's own; never left out."""
        await self._write(b"hythe | " + text.encode("utf-8", "replace"))

    def kept(self) -> bytes:
        """All that is kept so far."""
        return bytes(self._kept)

    async def _write(self, line: bytes) -> None:
        self._kept += line + b"\n"
        await self._live(line)


class Lines:
    """Cuts a stream of chunks into lines; `\\r\\n` counts as a line end, a lone `\\r` does not."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes. A line longer than `PIECE` comes in pieces."""
        *ended, rest = chunk.split(b"\n")
        lines: list[bytes] = []
        for end in ended:
            lines += _pieces(b"".join((*self._parts, end)).removesuffix(b"\r"))
            self._parts, self._size = [], 0
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
        if self._size > PIECE:
            *pieces, last = _pieces(b"".join(self._parts))
            lines += pieces
            self._parts, self._size = [last], len(last)
        return lines

    def end(self) -> list[bytes]:
        """What is left when the stream ends without a line end."""
        rest = b"".join(self._parts)
        self._parts, self._size = [], 0
        return [rest] if rest else []


def _pieces(line: bytes) -> list[bytes]:
    return [line[start : start + PIECE] for start in range(0, max(len(line), 1), PIECE)]
