"""Compose files as values: read strictly, pinned, and written so that every reader reads the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hythe_deploy import compose
from hythe_events.errors import Refused


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"services: {a: {privileged: false}, a: {privileged: true}}", "the key a stands twice"),
        (b"a: &x [1]\nb: [" + b"*x, " * 101 + b"]", "more than 100 aliases"),
        (
            b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + b"".join(
                f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n".encode()
                for n in range(9)
            ),
            "expands to more than a million values",
        ),
        (b"a: " + b"[" * 60 + b"]" * 60, "nested deeper than 50"),
        (b"a: !reset null", "the tag !reset is not allowed"),
        (b"a: !!python/object:os.system x", "is not allowed"),
        (b"a: 1\n---\nb: 2", "is not YAML"),
        (b"- a", "must be a mapping"),
        (b"", "is empty"),
        (b"a: [", "is not YAML"),
        (b"a: " + b"x" * 1_000_001, "larger than 1 MB"),
        (b"[" * 100_000, "c.yaml"),
    ],
)
def test_what_two_parsers_may_read_differently_is_refused(text: bytes, says: str) -> None:
    """A value that one parser sees and another does not would slip past the policy (CO10)."""
    with pytest.raises(Refused) as refused:
        compose.read(text, "c.yaml")
    assert says in str(refused.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=10), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(values)
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_back_byte_for_byte(value: Any) -> None:
    """Environment values survive as they are: `$$`, quotes, newlines, `on`, `0o14` (CO6)."""
    model = {"services": {"web": {"environment": value}}}
    assert compose.load(compose.dump(model, "shop")) == model


@pytest.mark.parametrize(
    "text", ["0o14", "22:22", "1_000", "0x1F", "1e3", "=", "~", ".5", "2001-01-01", "on", "null", "<<"]
)
def test_a_text_that_looks_like_something_else_is_quoted(text: str) -> None:
    """YAML 1.1 and 1.2 disagree about bare words like these; Compose reads 1.2."""
    assert f"'{text}'" in (written := compose.dump({"a": text}, "s").decode()) or f'"{text}"' in written


def test_a_pinned_model_has_nothing_left_to_resolve() -> None:
    """Golden: images by digest, no build, no profile, a label for mounted files, the old names for people."""
    model = {
        "name": "shop",
        "services": {
            "web": {"build": {"context": "/opt/stacks/shop"}, "labels": {"a": "b"}, "profiles": ["x"]},
            "db": {"image": "postgres:17", "pull_policy": "always", "command": None},
        },
        "networks": {"default": {"name": "shop_default", "ipam": {}}},
    }
    digests = {"web": f"sha256:{'1' * 64}", "db": f"sha256:{'2' * 64}"}
    pinned = compose.pinned(model, digests, {"web": "shop-web", "db": "postgres:17"}, {"web": "0a1b"})
    assert compose.dump(pinned, "shop").decode() == (
        "# Written by Hythe for the stack shop: every image is pinned to what was deployed. Edits are overwritten.\n"
        "name: shop\n"
        "services:\n"
        "  web:\n"
        "    labels:\n"
        "      a: b\n"
        '      hythe.files: "0a1b"\n'
        f'    image: "{digests["web"]}"\n'
        "  db:\n"
        f'    image: "{digests["db"]}"\n'
        "    command: null\n"
        "networks:\n"
        "  default:\n"
        "    name: shop_default\n"
        "    ipam: {}\n"
        "x-hythe:\n"
        "  images:\n"
        "    web: shop-web\n"
        '    db: "postgres:17"\n'
    )


def test_only_services_that_differ_have_changed() -> None:
    """What has not changed is neither tried nor touched."""
    old = {"services": {"a": {"image": "1"}, "b": {"image": "1"}, "gone": {}}}
    new = {"services": {"a": {"image": "1"}, "b": {"image": "2"}, "new": {}}}
    assert compose.changed_services(new, old) == {"b", "new"}
    assert compose.changed_services(new, None) == {"a", "b", "new"}


def test_files_a_service_mounts_are_found_in_every_syntax() -> None:
    """Bind mounts, configs and secrets that lie in the stack's folder come from the source; others do not."""
    model = {
        "services": {
            "web": {
                "volumes": [
                    {"type": "bind", "source": "/s/conf", "target": "/c"},
                    {"type": "bind", "source": "/etc", "target": "/e"},
                    {"type": "volume", "source": "v", "target": "/v"},
                ],
                "configs": [{"source": "c", "target": "/x"}],
                "secrets": [{"source": "s"}, {"source": "inline"}],
            },
            "db": {},
        },
        "configs": {"c": {"file": "/s/c.txt"}},
        "secrets": {"s": {"file": "/s/keys/s"}, "inline": {"environment": "X"}},
    }
    assert compose.mounted_files(model, "/s") == {"web": {"conf", "c.txt", "keys/s"}}


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("500ms", 0.5), ("1m30s", 90), ("2h", 7200), ("1.5s", 1.5), (None, 30), ("10us", 1e-5)],
)
def test_durations_are_read_as_compose_writes_them(duration: str | None, seconds: float) -> None:
    """`1m30s` is Go's way."""
    assert compose.seconds(duration, 30) == pytest.approx(seconds)


def test_services_start_after_what_they_need() -> None:
    """Level by level; a circle does not hang."""
    needs = {"web": {"db", "cache"}, "db": set(), "cache": {"db"}, "x": {"y"}, "y": {"x"}}
    assert compose.levels(needs, needs.__getitem__) == [["db"], ["cache"], ["web"], ["x", "y"]]
