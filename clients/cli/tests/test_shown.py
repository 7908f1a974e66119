"""What reaches a terminal, and what reaches a program."""

import io
import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hythe_cli import shown
from hythe_events.errors import BusUnavailable, Misconfigured, NotFound, NotNow, Refused

ORDERS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")

ATTACKS = [
    "\x1b]0;pwned\x07",
    "\x1b]52;c;cm0gLXJmIC8=\x07",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "ok\rfailed",
    "\u202egnp.exe",
    "a\x00b\x08c",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_terminal_would_obey_is_written_out(attack: str) -> None:
    """A commit message may not change the window's title, fill the clipboard, or paint over a line."""
    made = shown.harmless(attack)
    assert not ORDERS.search(made)
    assert "\\" in made


@given(some.text())
def test_no_text_at_all_gives_a_terminal_an_order(text: str) -> None:
    """Not only the attacks that somebody thought of."""
    assert not ORDERS.search(shown.harmless(text))
    assert "\n" not in shown.one_harmless_line(text)


@given(some.text(alphabet=some.characters(codec="utf-8", categories=["L", "N", "P"])))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    """People write their names in their own letters."""
    assert shown.harmless(text) == text


def test_a_log_keeps_its_lines_and_loses_its_carriage_returns() -> None:
    """A progress bar redraws its line; an attacker can do the same to a line of ours."""
    assert shown.log_bytes(b"10%\r20%\r\ndone\n", raw=False) == "10%\n20%\ndone\n"


def test_a_raw_log_is_what_was_stored() -> None:
    """`logs --raw`, and every pipe, gets the colours too."""
    assert shown.log_bytes(b"\x1b[31mred\x1b[0m\n", raw=True) == "\x1b[31mred\x1b[0m\n"


@given(
    some.recursive(
        some.none() | some.text(), lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner)
    )
)
def test_json_says_the_same_and_orders_nothing(value: object) -> None:
    """JSON goes to a terminal too; its escapes say every character that a terminal would obey."""
    written, kept = io.StringIO(), sys.stdout
    sys.stdout = written
    try:
        shown.show_json(value)
    finally:
        sys.stdout = kept
    text = written.getvalue()
    assert not ORDERS.search(text)
    assert json.loads(text) == value


def test_a_table_holds_what_others_wrote_without_reading_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets are markup to the library that draws, and just letters to us."""
    shown.table(("message",), [("[red]not red[/red] \x1b[31m",)])
    assert "[red]not red[/red] \\x1b[31m" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("no"), 3),
        (NotFound("no"), 3),
        (Misconfigured("no"), 3),
        (NotNow("later"), 4),
        (BusUnavailable(), 4),
    ],
)
def test_the_exit_code_tells_the_kind_of_trouble(error: Exception, code: int) -> None:
    """A script may try again after 4, and must not after 3."""
    assert shown.exit_code(error) == code  # type: ignore[arg-type]


def test_a_refusal_names_its_field_once() -> None:
    """The service may have named it already."""
    assert shown.told(Refused("expected a branch", field="branch")) == "expected a branch"
    assert shown.told(Refused("too long", field="branch")) == "branch: too long"


@pytest.mark.parametrize(
    ("identifier", "short"),
    [
        ("0192f0c1-7a2b-7def-8000-123456789abc", "0192f0c1-7a2b"),
        ("sha256:0123456789abcdef", "01234567"),
        ("0123456789abcdef0123456789abcdef01234567", "01234567"),
        (None, ""),
    ],
)
def test_ids_are_shown_as_short_as_they_may_be_typed(identifier: str | None, short: str) -> None:
    """The first 12 digits of a UUIDv7 are its millisecond: fewer would be the same for a whole minute."""
    assert shown.short(identifier) == short
