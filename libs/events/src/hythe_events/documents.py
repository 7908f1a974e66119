"""The documents that are made from the messages themselves: `docs/asyncapi.yaml` and `docs/events.md`.

    python -m hythe_events.documents [folder]      writes both (default: docs)

A test fails when they are not what this would write. To have a new command or query described, name what answers it
in `ANSWERS`.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from hythe_events import build, deploy, git, log, webhooks
from hythe_events.access import HEARS, SAYS, SERVICES, STREAM
from hythe_events.catalog import EVENTS
from hythe_events.envelope import CONTENT_TYPE
from hythe_events.language import Command, Event, Query, Value

VERSION = "1.0.0"
"""The version of the language. Adding is minor; what exists is never taken away, only lifted."""

ANSWERS: dict[type[Command] | type[Query], type[Value]] = {
    webhooks.CreateSource: webhooks.SourceMade,
    webhooks.SwitchSource: log.Done,
    webhooks.ListDeliveries: log.Rows,
    git.SaveRepository: log.Done,
    git.RequestDeployment: git.DeploymentOpened,
    git.ListRepositories: log.Rows,
    build.CancelDeployment: log.Done,
    build.FindLog: build.FoundLog,
    deploy.Rollback: git.DeploymentOpened,
    deploy.GrantStack: log.Done,
    deploy.ListDeployments: log.Rows,
    deploy.ListStacks: log.Rows,
    log.ListParked: log.Rows,
    log.RetryParked: log.Done,
    log.RebuildProjection: log.Rebuilt,
    log.ReadStream: log.Page,
    log.ReadLog: log.Page,
    log.ShowDeployment: log.Rows,
    log.VerifyLog: log.Verdict,
}
"""What each command and query is answered with, when it is not refused."""

Json = dict[str, Any]

_SCHEMAS = "#/components/schemas/"

_CLOUD_EVENT: Json = {
    "description": "The envelope of every event: a CloudEvent 1.0 in structured JSON.",
    "type": "object",
    "required": [
        *("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"),
        *("correlationid", "sequence", "streamversion", "schemanumber", "actor", "chainhash"),
    ],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "format": "uuid", "description": "UUIDv7; also the header Nats-Msg-Id"},
        "source": {"type": "string", "format": "uri-reference", "examples": ["/hythe/build"]},
        "type": {"type": "string", "description": "What happened; the NATS subject"},
        "subject": {"type": "string", "description": "The stream, e.g. deployment-<id>"},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"const": "application/json"},
        "correlationid": {
            "type": "string",
            "format": "uuid",
            "description": "The first event or command of the story",
        },
        "causationid": {
            "type": "string",
            "format": "uuid",
            "description": "The event or command that led to it",
        },
        "sequence": {
            "type": "string",
            "pattern": "^[0-9]+$",
            "description": "Position in the log, from 1 on",
        },
        "streamversion": {"type": "integer", "minimum": 1, "description": "Its place in the stream"},
        "schemanumber": {"type": "integer", "minimum": 1, "description": "The shape of data"},
        "actor": {"type": "string", "description": "Who asked, e.g. github:octocat"},
        "traceparent": {"type": "string", "description": "W3C trace context"},
        "chainhash": {
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
            "description": "SHA-256, chained onto the last",
        },
    },
}

_EVENT_HEADERS: Json = {
    "type": "object",
    "required": ["Content-Type", "Nats-Msg-Id"],
    "properties": {
        "Content-Type": {"const": CONTENT_TYPE},
        "Nats-Msg-Id": {
            "type": "string",
            "format": "uuid",
            "description": "The event's id: sent twice is kept once",
        },
        "Hythe-Position": {"type": "string", "description": "Position in the log"},
        "traceparent": {"type": "string", "description": "W3C trace context"},
    },
}

_ASKED_HEADERS: Json = {
    "type": "object",
    "properties": {
        "Hythe-Actor": {"type": "string", "description": "Who asks; kept in the event it leads to"},
        "Hythe-Command-Id": {
            "type": "string",
            "format": "uuid",
            "description": "The same id again is the same command",
        },
        "traceparent": {"type": "string", "description": "W3C trace context"},
    },
}

_REFUSAL: Json = {
    "description": "The answer to what was refused. The header Nats-Service-Error-Code is 400, 404, 500 or 503.",
    "type": "object",
    "required": ["error", "field"],
    "properties": {
        "error": {"type": "string", "description": "One sentence: what is wrong, and what to do"},
        "field": {"type": ["string", "null"], "description": "The field that is wrong"},
    },
}


def sayers(event_type: str) -> list[str]:
    """Which services say an event of this type."""
    return [who for who, says in SAYS.items() if any(event_type in kinds for kinds in says.values())]


def hearers(event_type: str) -> list[str]:
    """Which services hear an event of this type. Clients may watch all of them."""
    if event_type == log.MessageRetried.type:
        return list(SERVICES)
    return [who for who, hears in HEARS.items() if event_type in hears]


def streams_of(event_type: str) -> list[str]:
    """The categories of the streams that hold events of this type."""
    return sorted({name for says in SAYS.values() for name, kinds in says.items() if event_type in kinds})


def answerers(asked: type[Command] | type[Query]) -> list[str]:
    """Which services answer a command or query: one, or each under its own name, or whoever holds the log."""
    _, who, _ = asked.subject.split(".", 2)
    return [who] if who in SERVICES else list(SERVICES)


def asyncapi() -> Json:
    """The AsyncAPI 3.0 document of everything that is said and asked."""
    schemas = _schemas()
    channels: Json = {}
    operations: Json = {}
    messages: Json = {}
    for event in EVENTS.values():
        channels[event.type] = {
            "address": event.type,
            "description": _text(event),
            "messages": {event.__name__: _ref("components/messages", event.__name__)},
        }
        messages[event.__name__] = _event_message(event)
        for verb, action, services in (
            ("says", "send", sayers(event.type)),
            ("hears", "receive", hearers(event.type)),
        ):
            for service in services:
                operations[f"{service} {verb} {event.type}"] = {
                    "action": action,
                    "channel": _ref("channels", event.type),
                }
    for asked, answer in ANSWERS.items():
        channels[asked.subject] = _asked_channel(asked)
        messages[asked.__name__] = _asked_message(asked)
        messages.setdefault(answer.__name__, _answer_message(answer))
        service = asked.subject.split(".")[1]
        operations[f"{service} answers {asked.subject}"] = {
            "action": "receive",
            "channel": _ref("channels", asked.subject),
            "reply": {
                "address": {
                    "location": "$message.header#/reply-to",
                    "description": "The inbox that NATS names",
                },
                "channel": _ref("channels", "answers"),
                "messages": [
                    _ref("channels/answers/messages", each) for each in (answer.__name__, "Refusal")
                ],
            },
        }
    messages["Refusal"] = {
        "summary": _REFUSAL["description"],
        "contentType": "application/json",
        "payload": {"$ref": f"{_SCHEMAS}Refusal"},
    }
    answers = sorted({answer.__name__ for answer in ANSWERS.values()} | {"Refusal"})
    channels["answers"] = {
        "address": None,
        "description": "The inbox of whoever asked.",
        "messages": {name: _ref("components/messages", name) for name in answers},
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Hythe",
            "version": VERSION,
            "description": "What Hythe's services say to each other and may be asked, over NATS JetStream. "
            "Made from the classes in libs/events by: python -m hythe_events.documents",
            "license": {"name": "MIT", "url": "https://opensource.org/license/mit"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "bus": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": f"JetStream, stream {STREAM}",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def _schemas() -> Json:
    models: list[type[BaseModel]] = [*EVENTS.values(), *ANSWERS, *ANSWERS.values()]
    unique = list(dict.fromkeys(models))
    _, made = models_json_schema(
        [(model, "validation") for model in unique], ref_template=_SCHEMAS + "{model}", by_alias=True
    )
    return {"CloudEvent": _CLOUD_EVENT, "Refusal": _REFUSAL, **dict(sorted(made["$defs"].items()))}


def _event_message(event: type[Event]) -> Json:
    return {
        "name": event.type,
        "title": event.__name__,
        "summary": _first(event),
        "contentType": CONTENT_TYPE,
        "headers": _EVENT_HEADERS,
        "payload": {
            "allOf": [
                {"$ref": f"{_SCHEMAS}CloudEvent"},
                {
                    "type": "object",
                    "properties": {
                        "type": {"const": event.type},
                        "schemanumber": {"const": event.schema_number},
                        "data": {"$ref": f"{_SCHEMAS}{event.__name__}"},
                    },
                },
            ]
        },
    }


def _asked_channel(asked: type[Command] | type[Query]) -> Json:
    channel: Json = {
        "address": asked.subject,
        "description": _text(asked),
        "messages": {asked.__name__: _ref("components/messages", asked.__name__)},
    }
    if "{service}" in asked.subject:
        channel["parameters"] = {"service": {"enum": list(SERVICES), "description": "Whom to ask"}}
    return channel


def _asked_message(asked: type[Command] | type[Query]) -> Json:
    return {
        "name": asked.__name__,
        "summary": _first(asked),
        "contentType": "application/json",
        "headers": _ASKED_HEADERS,
        "payload": {"$ref": f"{_SCHEMAS}{asked.__name__}"},
    }


def _answer_message(answer: type[Value]) -> Json:
    return {
        "name": answer.__name__,
        "summary": _first(answer),
        "contentType": "application/json",
        "payload": {"$ref": f"{_SCHEMAS}{answer.__name__}"},
    }


def _ref(where: str, name: str) -> Json:
    escaped = name.replace("~", "~0").replace("/", "~1")
    return {"$ref": f"#/{where}/{escaped}"}


def _text(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "")


def _first(model: type[BaseModel]) -> str:
    return _text(model).partition("\n")[0]


def events_md() -> str:
    """The table for people: what is said by whom, heard by whom, and what it carries."""
    lines = [
        "# What is said and what may be asked",
        "",
        "Made from the classes in `libs/events` by `python -m hythe_events.documents`; do not edit. The same for",
        "machines is [asyncapi.yaml](asyncapi.yaml).",
        "",
        "An event's type is its NATS subject. `?` marks a field that may be left out. Every event travels as a",
        "CloudEvent 1.0; clients may watch all of them. *Four* subjects join the services: `webhook.received`,",
        "`build.requested`, `build.finished`, `deploy.completed`.",
        "",
        "## Events",
        "",
        "| subject | says | said by | heard by | in stream | fields |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for event in EVENTS.values():
        shape = f" (shape {event.schema_number})" if event.schema_number > 1 else ""
        lines.append(
            _row(
                f"`{event.type}`{shape}",
                _first(event),
                ", ".join(sayers(event.type)),
                ", ".join(hearers(event.type)) or "clients",
                ", ".join(f"`{name}-…`" for name in streams_of(event.type)),
                _fields(event),
            )
        )
    for title, parent in (("Commands", Command), ("Queries", Query)):
        lines += [
            *("", f"## {title}", ""),
            "| subject | asks | answered with | fields |",
            "| --- | --- | --- | --- |",
        ]
        for asked, answer in ANSWERS.items():
            if issubclass(asked, parent):
                shown = asked.subject.replace("{service}", "<service>")
                lines.append(_row(f"`{shown}`", _first(asked), f"`{answer.__name__}`", _fields(asked)))
    lines += ["", "## Answers", "", "| answer | holds | fields |", "| --- | --- | --- |"]
    lines += [_row(f"`{a.__name__}`", _first(a), _fields(a)) for a in dict.fromkeys(ANSWERS.values())]
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _fields(model: type[BaseModel]) -> str:
    named = (f"`{name}`{'' if field.is_required() else '?'}" for name, field in model.model_fields.items())
    return ", ".join(named) or "–"


def yaml(value: object) -> str:
    """`value` as YAML that needs no library to write: every string is quoted as in JSON, which YAML 1.2 includes."""
    return "\n".join(_yaml(value, 0)) + "\n"


def _yaml(value: object, depth: int) -> Iterator[str]:
    pad = "  " * depth
    match value:
        case Mapping() if value:
            for key, inner in value.items():
                yield from _entry(f"{pad}{_key(str(key))}:", inner, depth)
        case list() | tuple() if value:
            for inner in value:
                yield from _entry(f"{pad}-", inner, depth)
        case _:
            yield f"{pad}{_scalar(value)}"


def _entry(head: str, inner: object, depth: int) -> Iterator[str]:
    if isinstance(inner, (Mapping, list, tuple)) and inner:
        yield head
        yield from _yaml(inner, depth + 1)
    else:
        yield f"{head} {_scalar(inner)}"


def _key(name: str) -> str:
    return name if name.replace("_", "").isalpha() and name not in _YAML_WORDS else json.dumps(name)


_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def _scalar(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def documents() -> dict[str, str]:
    """Each generated document's text, by its file name."""
    return {"asyncapi.yaml": yaml(asyncapi()), "events.md": events_md()}


def main(arguments: Sequence[str]) -> None:
    """Writes the documents."""
    folder = Path(arguments[0] if arguments else "docs")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
