"""The documents that are made from the messages say what the messages say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hythe_events import build, deploy, documents, git, log, webhooks
from hythe_events.access import HEARS, SAYS, SERVICES
from hythe_events.catalog import EVENTS
from hythe_events.language import Command, Query

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["asyncapi.yaml", "events.md"])
def test_the_document_is_what_would_be_made_today(name: str) -> None:
    """To mend it: python -m hythe_events.documents"""
    assert (DOCS / name).read_text() == documents.documents()[name]


def test_the_asyncapi_document_reads_back_as_what_was_written() -> None:
    """Our YAML writer is forty lines; the reader is everybody else's."""
    assert yaml.safe_load((DOCS / "asyncapi.yaml").read_text()) == documents.asyncapi()


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": {}, "b": []},
        [[1, [2]], {"x": [{"y": None}]}],
        {"on": "off", "1": True, "null": 1.5, "a b": "c: d # e", "$ref": "'\"\\\n\t ü 🚀"},
        ["", " ", "- x", "yes", "0x10", "2026-11-23"],
    ],
)
def test_the_yaml_writer_is_understood(value: object) -> None:
    """Also where YAML has its traps."""
    assert yaml.safe_load(documents.yaml(value)) == value


def references(value: object) -> list[str]:
    """Every `$ref` in a document."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for inner in value.values() for found in references(inner)]
    return [found for inner in value for found in references(inner)] if isinstance(value, list) else []


def test_every_reference_leads_somewhere() -> None:
    """A tool that follows one must arrive."""
    document = documents.asyncapi()
    found = references(document)
    assert len(found) > 100
    for reference in found:
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part.replace("~1", "/").replace("~0", "~")]
        assert isinstance(place, dict)


def test_everything_that_can_be_said_or_asked_is_described() -> None:
    """A new event, command or query without a description fails here."""
    channels = documents.asyncapi()["channels"]
    modules = (webhooks, git, build, deploy, log)
    asked = {
        found
        for module in modules
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, (Command, Query)) and found not in (Command, Query)
    }
    assert asked == set(documents.ANSWERS)
    assert set(channels) == {*EVENTS, *(each.subject for each in asked), "answers"}


def test_who_says_and_who_hears_is_what_the_permissions_allow() -> None:
    """The document and the grants are made from one table."""
    operations = set(documents.asyncapi()["operations"])
    for service, says in SAYS.items():
        for kind in {kind for kinds in says.values() for kind in kinds}:
            assert f"{service} says {kind}" in operations
    for service in SERVICES:
        for kind in (*HEARS[service], "message.retried"):
            assert f"{service} hears {kind}" in operations
