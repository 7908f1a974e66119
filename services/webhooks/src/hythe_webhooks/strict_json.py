"""JSON as RFC 8259 means it, and nothing else: what two readers could take differently is refused.

A signature proves who sent the bytes, not what they mean. Of `{"ref": "main", "ref": "evil"}` one parser believes the
first, another the last; some read NaN, some a lone surrogate. Such a body is refused with a sentence that says why.

It runs for every push, so the proof that no key stands twice has to be cheap. Written back, a document that was read
into dicts has lost the twins, and with each one exactly one comma between members; commas inside strings are
kept as they are. So if nothing was lost, either the bytes are the same again, or the commas are as many.
Only what fails both is read a second time, slowly, to name the key.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from hythe_events.errors import Refused

DEEPEST = 64
"""How many objects and arrays may stand inside one another."""

_BOM = b"\xef\xbb\xbf"
_TOO_DEEP = b"\n" + b"  " * (DEEPEST + 1)
"""Indented by two spaces a level, a line that begins so stands inside more than `DEEPEST` containers."""


class NotStrictJson(Refused):
    """The body is not JSON as RFC 8259 has it."""


def load(body: bytes) -> Any:
    """The value in `body`, UTF-8 with or without a byte order mark. Raises NotStrictJson.

    Refused are: anything that is not JSON, NaN and Infinity, a key that stands twice in one object, a lone surrogate,
    bytes that are not UTF-8, and nesting deeper than `DEEPEST`.
    """
    if body[:3] == _BOM:
        body = body[3:]
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotStrictJson(f"the body is not JSON: {error}", field="body") from None
    if _is_too_deep(value):
        raise NotStrictJson(f"the body nests objects and arrays more than {DEEPEST} deep", field="body")
    written = orjson.dumps(value)
    if written != body and not _has_as_many_commas(body, written):
        _refuse_twins(body)
    return value


def _is_too_deep(value: Any) -> bool:
    try:
        return _TOO_DEEP in orjson.dumps(value, option=orjson.OPT_INDENT_2)
    except orjson.JSONEncodeError:  # it refuses to write what nests deeper than 254
        return True


def _has_as_many_commas(body: bytes, written: bytes) -> bool:
    """Whether `written` lost none. An escaped comma would come back as one more, and is left to the slow way."""
    return body.count(b",") == written.count(b",") and b"\\u002" not in body


def _refuse_twins(body: bytes) -> None:
    # Only the keys matter here, and Python refuses to read an integer of more than 4,300 digits.
    json.loads(body, object_pairs_hook=_without_twins, parse_int=len, parse_float=len)


def _without_twins(members: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in members:
        if key in seen:
            raise NotStrictJson(
                f"the body has the key {json.dumps(key)[:200]} twice in one object", field="body"
            )
        seen.add(key)
