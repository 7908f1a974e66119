"""JSON that two readers could take differently is refused, and everything else is read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hythe_webhooks.strict_json import DEEPEST, NotStrictJson, load

TWINS = [
    b'{"ref":"refs/heads/main","ref":"refs/heads/evil"}',
    b'{ "ref" : 1 , "ref" : 2 }',
    b'{"a":{"b":1,"b":1}}',
    b'[[{"b":[],"b":[]}]]',
    b'{"ref":1,"\\u0072ef":2}',
    b'{"a,b":1,"a,b":2}',
    b'{"a":1,"a":2,"x":"\\u002c"}',
    b'{"a":1,"a":2,"x":"\\u002C"}',
    b'{"a":"\\u002c\\u002c","a":",,","b":"\\u002c"}',
    b'{"":1,"":2}',
    b'{"a":{"x":[1,2,3]},"a":"\\u002c\\u002c\\u002c"}',
]

NOT_JSON = [
    b"",
    b"  ",
    b"nul",
    b'{"a":1',
    b'{"a":1}}',
    b"{'a':1}",
    b"[1,]",
    b'{"a":1,}',
    b"NaN",
    b'{"a":NaN}',
    b'{"a":Infinity}',
    b'{"a":-Infinity}',
    b"1e999",
    b"01",
    b"+1",
    b".5",
    b'"\x01"',
    b'"\xff"',
    b'"\xed\xa0\x80"',
    b'"\\ud800"',
    b'"\\ud800\\u0041"',
    b'"\\udc00"',
    b'{"\\ud800":1}',
    b"\xff\xfe{\x00}\x00",
    b"\x00",
    b"{}\x00",
    b"// no\n{}",
    b'{"a":1}{"b":2}',
]

GOOD = [
    b"{}",
    b'{"a":1}',
    b' {"a" : [ 1 , 2.50 , -0.0, 1e3 , true, null ] }\r\n',
    b'{"a":"\\u00e9","b":"\xc3\xa9","c":"\\ud83d\\ude00"}',
    b'{"a":"x,y","b":"\\u002c"}',
    b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}',
    b'{"a":"\\u0000"}',
    b"[]",
    b'"text"',
]


@pytest.mark.parametrize("body", TWINS)
def test_a_key_that_stands_twice_is_refused_and_named(body: bytes) -> None:
    """One reader believes the first, another the last: a push to main could be one to another branch."""
    with pytest.raises(NotStrictJson, match="twice") as refused:
        load(body)
    assert refused.value.field == "body"


@pytest.mark.parametrize("body", NOT_JSON)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """Python's own parser would take NaN, and lone surrogates, which fail only when they are written."""
    with pytest.raises(NotStrictJson, match="not JSON"):
        load(body)


@pytest.mark.parametrize("body", GOOD)
def test_json_is_read(body: bytes) -> None:
    """Spaces, escapes and large numbers are all right, and so is a byte order mark before them."""
    assert load(body) == json.loads(body)
    assert load(b"\xef\xbb\xbf" + body) == load(body)


@pytest.mark.parametrize("deep", [2, DEEPEST - 1, DEEPEST])
def test_nesting_up_to_the_limit_is_read(deep: int) -> None:
    """No forge nests deeper than ten or so."""
    load(b"[" * deep + b"1" + b"]" * deep)
    load(b'{"a":' * deep + b"1" + b"}" * deep)


@pytest.mark.parametrize("deep", [DEEPEST + 1, 200, 254, 255, 256, 1000])
def test_nesting_beyond_the_limit_is_refused(deep: int) -> None:
    """What reads it later may run out of stack."""
    for body in (b"[" * deep + b"1" + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep):
        with pytest.raises(NotStrictJson, match="64 deep"):
            load(body)


@pytest.mark.parametrize("deep", [1500, 100_000, 1_000_000])
def test_absurd_nesting_is_refused_without_a_crash(deep: int) -> None:
    """Two files of JSONTestSuite end many parsers with a stack overflow."""
    for body in (b"[" * deep, b"[" * deep + b"]" * deep, b'{"a":' * deep):
        with pytest.raises(NotStrictJson):
            load(body)


def test_a_number_of_a_million_digits_is_only_a_number() -> None:
    """Python refuses to make an int of it; that is not the sender's business."""
    assert load(b'{"a":123456789012345678901234567890,"b":1}')["b"] == 1
    assert load(b'{"a":0.' + b"1" * 1_000_000 + b',"b" : 1}')["b"] == 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inside, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES, st.booleans(), st.booleans())
def test_whatever_is_written_as_json_is_read(value: Any, ascii_only: bool, spaced: bool) -> None:
    """However a sender spells it, nothing that is right is taken for a twin."""
    separators = (" , ", " : ") if spaced else (",", ":")
    assert load(json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode()) == value


PIECES = st.sampled_from(
    [
        '"a"',
        '"b"',
        '"\\u0061"',
        '"a,b"',
        '"\\u002c"',
        '"x\\u002C,"',
        '"\\"a\\":1,"',
        "1",
        "[]",
        "{}",
        '{"a":1,"a":2}',
    ]
)


@given(
    st.recursive(
        PIECES,
        lambda inside: (
            st.lists(st.tuples(PIECES.filter(lambda p: p[0] == '"'), inside), max_size=4).map(
                lambda members: "{" + ",".join(f"{key}:{value}" for key, value in members) + "}"
            )
            | st.lists(inside, max_size=3).map(lambda items: "[" + " ,".join(items) + "]")
        ),
        max_leaves=12,
    )
)
def test_the_quick_proof_agrees_with_the_slow_one(text: str) -> None:
    """Counting commas must find exactly what comparing all keys finds."""

    def honest(members: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in members}) == len(members)
        return dict(members)

    try:
        expected = json.loads(text, object_pairs_hook=honest)
    except AssertionError:
        with pytest.raises(NotStrictJson, match="twice"):
            load(text.encode())
    else:
        assert load(text.encode()) == expected


def test_the_sentence_names_the_key_shortly() -> None:
    """The answer goes back over the wire, and a key can be megabytes long."""
    key = "k" * 100_000
    with pytest.raises(NotStrictJson) as refused:
        load(json.dumps({key: 1})[:-1].encode() + f',"{key}":2}}'.encode())
    assert re.search("kkk", str(refused.value))
    assert len(str(refused.value)) < 400
