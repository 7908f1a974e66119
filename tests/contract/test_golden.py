"""Golden messages: one of each event in each shape it ever had, kept for ever and never changed.

`golden/<type>.<schema number>.json` is an event as it travels on the bus, with every field told; `….least.json` is one
with everything left out that may be. What is in a log somewhere can be read as long as these can.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from pydantic import BaseModel

from hythe_events import catalog
from hythe_events.access import SAYS
from hythe_events.catalog import EVENTS
from hythe_events.envelope import CONTENT_TYPE, from_cloudevent, to_cloudevent
from hythe_events.errors import Refused, UnknownEvent
from hythe_events.language import Event

GOLDEN = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "golden").glob("*.json"))}


def shape_of(name: str) -> tuple[str, int]:
    """Type and schema number, from a golden message's file name."""
    kind, number = name.removesuffix(".json").removesuffix(".least").rsplit(".", 1)
    return kind, int(number)


def is_of_today(name: str) -> bool:
    kind, number = shape_of(name)
    return EVENTS[kind].schema_number == number


@pytest.mark.parametrize("event", EVENTS.values(), ids=lambda event: event.type)
def test_each_event_has_a_golden_message_of_each_shape_it_ever_had(event: type[Event]) -> None:
    """A shape without one could be broken without anybody seeing it. How to add one: CONTRIBUTING."""
    for number in range(1, event.schema_number + 1):
        assert f"{event.type}.{number}.json" in GOLDEN


@pytest.mark.parametrize("name", GOLDEN)
def test_each_golden_message_can_be_read(name: str) -> None:
    """Old shapes are lifted; the envelope is that of the file's name."""
    kind, number = shape_of(name)
    event = from_cloudevent(GOLDEN[name])
    assert event.type == event.data.type == kind
    assert json.loads(GOLDEN[name])["schemanumber"] == number
    assert isinstance(event.data, EVENTS[kind])


@pytest.mark.parametrize("name", [name for name in GOLDEN if is_of_today(name)])
def test_each_golden_message_of_todays_shape_is_written_the_same_again(name: str) -> None:
    """Byte for byte: the hash chain stands on these bytes, and others read them."""
    assert to_cloudevent(from_cloudevent(GOLDEN[name])) == GOLDEN[name]


def test_golden_messages_tell_every_field() -> None:
    """A field that no golden message holds is not kept from being renamed."""
    told: defaultdict[str, set[str]] = defaultdict(set)
    for name, body in GOLDEN.items():
        if is_of_today(name):
            _note(from_cloudevent(body).data, told)
    for event in EVENTS.values():
        assert told[event.__name__] == set(event.model_fields), event.type


def _note(value: object, told: defaultdict[str, set[str]]) -> None:
    """The fields of `value`, and of the values in it, that hold something."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            inner = getattr(value, name)
            if inner not in (None, (), {}):
                told[type(value).__name__].add(name)
                _note(inner, told)
    elif isinstance(value, tuple):
        for inner in value:
            _note(inner, told)
    elif isinstance(value, dict):
        for inner in value.values():
            _note(inner, told)


@pytest.mark.parametrize("name", GOLDEN)
def test_what_travels_is_a_cloudevent_by_the_makers_own_reader(name: str) -> None:
    """CloudEvents 1.0, structured mode, read and validated by the `cloudevents` package."""
    read = JSONFormat().read(CloudEvent, GOLDEN[name])
    ours = from_cloudevent(GOLDEN[name])
    assert read.get_specversion() == "1.0"
    assert read.get_id() == str(ours.id)
    assert read.get_type() == ours.type
    assert read.get_subject() == ours.stream
    assert read.get_source().startswith("/hythe/")
    assert read.get_time() == ours.at
    assert read.get_datacontenttype() == "application/json"
    assert read.get_data() == json.loads(GOLDEN[name])["data"]
    assert read.get_extension("sequence") == str(ours.position)
    assert read.get_extension("correlationid") == str(ours.correlation)
    assert CONTENT_TYPE == JSONFormat.CONTENT_TYPE


def test_each_golden_message_stands_in_a_stream_that_may_hold_it() -> None:
    """By the table of who may say what."""
    for body in GOLDEN.values():
        event = from_cloudevent(body)
        category = event.stream.partition("-")[0]
        assert any(event.type in says.get(category, ()) for says in SAYS.values()), event.stream


def test_who_may_say_what_names_events_that_exist() -> None:
    """And every event has somebody who may say it."""
    said = {kind for says in SAYS.values() for kinds in says.values() for kind in kinds}
    assert said == set(EVENTS)


@pytest.mark.parametrize(
    "field", ["id", "subject", "type", "time", "correlationid", "sequence", "schemanumber", "data"]
)
def test_a_message_without_a_field_is_refused_by_its_name(field: str) -> None:
    """Whoever sent it must see what is missing."""
    message = json.loads(GOLDEN["build.finished.1.json"])
    del message[field]
    with pytest.raises(Refused, match=field) as refused:
        from_cloudevent(json.dumps(message).encode())
    assert refused.value.field == field


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"null", b"{", b'"x"', b"\xff", b"[" * 5000])
def test_what_is_no_message_is_refused(body: bytes) -> None:
    """Never a traceback."""
    with pytest.raises(Refused, match="not an event of Hythe"):
        from_cloudevent(body)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"type": "build.exploded"}, "build.exploded, which this version does not know"),
        ({"schemanumber": 99}, "build.finished in shape 99"),
        ({"schemanumber": 0}, "build.finished in shape 0"),
    ],
)
def test_a_message_from_a_newer_version_stops_the_reader(change: dict[str, object], says: str) -> None:
    """Skipping it would fold a wrong state without a word."""
    message = json.loads(GOLDEN["build.finished.1.json"]) | change
    with pytest.raises(UnknownEvent, match=says):
        from_cloudevent(json.dumps(message).encode())


@pytest.mark.parametrize(
    "data",
    [
        {"unknown": 1},
        {"outcome": "perhaps"},
        {"stack": "../etc"},
        {"stack": 7},
        {"deployment": "1"},
        {"reason": "two\nlines"},
    ],
)
def test_a_message_whose_data_does_not_fit_is_refused(data: dict[str, object]) -> None:
    """Strict: nothing unknown, nothing guessed."""
    message = json.loads(GOLDEN["build.finished.1.json"])
    message["data"] |= data
    with pytest.raises(Refused, match=next(iter(data))):
        from_cloudevent(json.dumps(message).encode())


def test_an_old_shape_is_lifted_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """From whatever number it was written in to today's, one function a step; what is stored stays as it is."""

    class Renamed(Event):
        type = "build.renamed"
        schema_number = 3
        lifts = {
            1: lambda old: {"name": old["nme"]},
            2: lambda old: {**old, "size": 0},
        }
        name: str
        size: int

    monkeypatch.setitem(
        catalog._validators, "build.renamed", (Renamed, Renamed.__pydantic_validator__.validate_json)
    )
    assert catalog.decode("build.renamed", 1, '{"nme": "a"}') == Renamed(name="a", size=0)
    assert catalog.decode("build.renamed", 2, '{"name": "b"}') == Renamed(name="b", size=0)
    assert catalog.decode("build.renamed", 3, '{"name": "c", "size": 5}') == Renamed(name="c", size=5)
    with pytest.raises(UnknownEvent):
        catalog.decode("build.renamed", 4, "{}")
