"""What the engine tells while it builds: read into log lines, the image's id, and one sentence when it failed.

The engine answers with a stream of JSON objects. The classic builder tells its story in `stream` texts. BuildKit sends
base64 of a protobuf message, `moby.buildkit.v1.StatusResponse` (api/services/control/control.proto of moby/buildkit);
the few fields that are needed are read here by hand:

```
StatusResponse  1 vertexes: Vertex       3 logs: VertexLog
Vertex          1 digest  3 name  4 cached  5 started  6 completed  7 error
VertexLog       1 vertex  4 msg
```
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hythe_build.transcript import Lines
from hythe_events.language import one_line

_KITS_STEP = re.compile(r"^\[(?:\S+ )*(\d+/\d+)\] (.*)", re.DOTALL)
_BASE = re.compile(r"^\[internal\] load metadata for (\S+)$")
_FRONTEND = re.compile(r"^resolve image config for (?:docker-image://)?(\S+)$")
_CLASSIC_STEP = re.compile(r"^Step (\d+/\d+) : (.*)", re.DOTALL)
_CLASSIC_IMAGE = re.compile(r"^ ---> ([0-9a-f]{12})$")
_EXIT_CODE = re.compile(r"(?:exit code: |returned a non-zero code: )(\d+)$")
_WRAPPING = re.compile(
    r"^(?:failed to solve(?: with frontend \S+)?: |failed to create LLB definition: |rpc error: code = \w+ desc = )+"
)
_CLASSIC_STDERR = ("\x1b[91m", "\x1b[0m")


class Progress(Protocol):
    """Reads one build's messages. `image` is the image's id once it was told, `error` what went wrong."""

    image: str | None
    error: str | None

    def read(self, message: Mapping[str, Any]) -> list[bytes]:
        """The log lines that `message` completes."""

    def end(self) -> list[bytes]:
        """The lines that are left when the stream ends."""

    def failure(self) -> str:
        """One sentence: the step that failed, and how."""


@dataclass
class _Vertex:
    name: str = ""
    told: bool = False
    error: str = ""
    lines: Lines = field(default_factory=Lines)


class KitProgress:
    """The progress of a build by BuildKit."""

    def __init__(self) -> None:
        self.image: str | None = None
        self.error: str | None = None
        self._vertexes: dict[bytes, _Vertex] = {}
        self._failed: _Vertex | None = None

    def read(self, message: Mapping[str, Any]) -> list[bytes]:
        match message:
            case {"id": "moby.buildkit.trace", "aux": str(trace)}:
                return self._trace(trace)
            case {"id": "moby.image.id", "aux": {"ID": str(image)}}:
                self.image = image
            case {"error": str(error)}:
                self.error = error
        return []

    def end(self) -> list[bytes]:
        return [line for vertex in self._vertexes.values() for line in vertex.lines.end()]

    @property
    def missing_base(self) -> str | None:
        """The base image that BuildKit could not have; told over plain HTTP, it cannot sign in at any registry."""
        return self._missing(_BASE)

    @property
    def missing_frontend(self) -> str | None:
        """The same for the image that a Dockerfile's `# syntax=` names."""
        return self._missing(_FRONTEND)

    def _missing(self, grammar: re.Pattern[str]) -> str | None:
        named = grammar.match(self._failed.name) if self.error and self._failed else None
        return named[1] if named else None

    def failure(self) -> str:
        said = self.error or (self._failed.error if self._failed else "") or "the engine did not say why"
        return _sentence(self._failed.name if self._failed else "", _KITS_STEP, said)

    def _trace(self, trace: str) -> list[bytes]:
        said: list[bytes] = []
        try:
            for number, value in _fields(base64.b64decode(trace)):
                if number == 1 and isinstance(value, bytes):
                    said += self._vertex(dict(_fields(value)))
                elif number == 3 and isinstance(value, bytes):
                    said += self._log(dict(_fields(value)))
        except (ValueError, binascii.Error, IndexError):
            said.append(b"(a line of the log could not be read)")
        return said

    def _vertex(self, told: Mapping[int, int | bytes]) -> list[bytes]:
        vertex = self._vertexes.setdefault(_bytes(told, 1), _Vertex())
        vertex.name = one_line(_text(told, 3)) or vertex.name
        said: list[bytes] = []
        if (5 in told or 4 in told) and not vertex.told and _KITS_STEP.match(vertex.name):
            vertex.told = True
            said.append(vertex.name.encode() + (b"  (cached)" if told.get(4) else b""))
        if 6 in told:
            said += vertex.lines.end()
        error = _text(told, 7)
        if error and "context canceled" not in error and not vertex.error:
            vertex.error = error
            self._failed = self._failed or vertex
        return said

    def _log(self, told: Mapping[int, int | bytes]) -> list[bytes]:
        vertex = self._vertexes.setdefault(_bytes(told, 1), _Vertex())
        return vertex.lines.feed(_bytes(told, 4))


class ClassicProgress:
    """The progress of a build by the classic builder. `made` are the intermediate images this build made, in order."""

    def __init__(self) -> None:
        self.image: str | None = None
        self.error: str | None = None
        self.made: list[str] = []
        self._step = ""
        self._cached = False
        self._lines = Lines()

    def read(self, message: Mapping[str, Any]) -> list[bytes]:
        match message:
            case {"stream": str(text)}:
                return self._stream(text)
            case {"aux": {"ID": str(image)}}:
                self.image = image
            case {"error": str(error)}:
                self.error = error
            case {"status": str(status)} if not message.get("progressDetail"):
                what = message.get("id")
                return [f"{what}: {status}".encode() if what else status.encode()]
        return []

    def end(self) -> list[bytes]:
        return self._lines.end()

    def failure(self) -> str:
        return _sentence(self._step, _CLASSIC_STEP, self.error or "the engine did not say why")

    def _stream(self, text: str) -> list[bytes]:
        if _CLASSIC_STEP.match(text):
            self._step = one_line(text)
            self._cached = False
        elif text == " ---> Using cache\n":
            self._cached = True
        elif (made := _CLASSIC_IMAGE.match(text.rstrip("\n"))) and self._step and not self._cached:
            self.made.append(made[1])
        before, after = _CLASSIC_STDERR
        if text.startswith(before) and text.endswith(after):
            text = text[len(before) : -len(after)]
        return [line for line in self._lines.feed(text.encode("utf-8", "replace")) if line]


def _sentence(step: str, grammar: re.Pattern[str], said: str) -> str:
    exit_code = _EXIT_CODE.search(said)
    how = f"exit code {exit_code[1]}" if exit_code else _WRAPPING.sub("", said)
    named = grammar.match(step)
    return one_line(f"step {named[1]} {one_line(named[2], 200)}: {how}" if named else how)


def _bytes(fields: Mapping[int, int | bytes], number: int) -> bytes:
    value = fields.get(number, b"")
    return value if isinstance(value, bytes) else b""


def _text(fields: Mapping[int, int | bytes], number: int) -> str:
    return _bytes(fields, number).decode("utf-8", "replace")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: number and value. Raises ValueError or IndexError when it is cut short."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(message, at)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"not a protobuf message: wire type {kind}")
        if at + size > len(message):
            raise ValueError("the protobuf message is cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("not a protobuf message: a number without an end")
