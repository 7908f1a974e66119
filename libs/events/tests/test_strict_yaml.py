"""YAML that has two readings, or that would end the parser, is refused with the name of the file."""

from __future__ import annotations

import pytest

from hythe_events.errors import Refused
from hythe_events.strict_yaml import read_mapping


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: 1\na: 2", "the key a stands twice"),
        (b"a: !!python/object:os.system x", "the tag"),
        (b"a: 1\n---\nb: 2", "is not YAML"),
        (b"- a", "must be a mapping"),
        (b"a: [", "is not YAML"),
        (b"a: " + b"[" * 60, "nested deeper"),
        (b"[" * 200_000, "nested deeper"),
        (b"a: &a [x]\nb: [" + b"*a," * 101 + b"]", "aliases"),
        (b"a: " + b"x" * 1_000_001, "larger than 1 MB"),
        (
            b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 10)) for n in range(98, 105)
            ),
            "expands to more",
        ),
    ],
)
def test_what_has_two_readings_is_refused(text: bytes, said: str) -> None:
    """Duplicate keys, tags, several documents, nesting that ends libyaml, and bombs of aliases."""
    with pytest.raises(Refused, match=said):
        read_mapping(text, "compose.yaml")


def test_plain_yaml_is_read() -> None:
    """What everybody writes, anchors and merges included; an empty file holds nothing."""
    assert read_mapping(b"a: &a {x: 1}\nb: {<<: *a, y: 2}", "f") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}
    assert read_mapping(b"# nothing\n", "f") == {}
