"""The tables of the webhooks service: `webhook_events`, one row per delivery and what came of it, and `sources`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hythe_events.envelope import Envelope
from hythe_events.language import Event
from hythe_events.postgres import Connection
from hythe_events.webhooks import (
    DeliveryIgnored,
    DeliveryRouted,
    SourceCreated,
    SourceSwitched,
    WebhookReceived,
)

Row = tuple[Any, ...]


@dataclass(frozen=True)
class WebhookEvents:
    """Both tables; one model, so that the log is read once for them.

    A row of `webhook_events` has the status received, ignored, or routed; then `deployments` says where to. A row of
    `sources` does not have the secret.
    """

    name: ClassVar[str] = "webhook_events"
    tables: ClassVar[tuple[str, ...]] = ("webhook_events", "sources")
    hears: ClassVar[frozenset[str]] = frozenset(
        event.type
        for event in (WebhookReceived, DeliveryIgnored, DeliveryRouted, SourceCreated, SourceSwitched)
    )
    ddl: ClassVar[str] = """
        create table if not exists webhook_events (
            position    bigint primary key,
            event       uuid not null,
            stream      text not null unique,
            at          timestamptz not null,
            source      text not null,
            provider    text not null,
            delivery    text not null,
            kind        text not null,
            status      text not null,
            reason      text,
            repository  text,
            ref         text,
            before      text,
            after       text,
            message     text,
            author      text,
            sender      text,
            body_sha256 text not null,
            deployments json
        );
        create index if not exists webhook_events_of_source on webhook_events (source, position desc);
        create table if not exists sources (
            source     text primary key,
            provider   text not null,
            is_on      boolean not null,
            created_at timestamptz not null,
            changed_at timestamptz not null,
            version    integer not null
        );
    """

    async def apply(self, connection: Connection, event: Envelope[Event]) -> None:
        """One row for what a forge told, changed once by what git says of it; one row for a source."""
        match event.data:
            case WebhookReceived() | DeliveryIgnored():
                await connection.execute(_TOLD, *_told(event))
            case DeliveryRouted() as said:
                await connection.execute(_ROUTED, *_routed(event.stream, said))
            case SourceCreated() as said:
                await connection.execute(_CREATED, said.source, said.provider, event.at, event.version)
            case SourceSwitched() as said:
                await connection.execute(_SWITCHED, said.source, said.on, event.at, event.version)

    async def apply_all(self, connection: Connection, events: Sequence[Envelope[Event]]) -> None:
        """The same for many: what was told first, then what changes it. Sources have nothing to do with deliveries."""
        told, routed = [], []
        for event in events:
            match event.data:
                case WebhookReceived() | DeliveryIgnored():
                    told.append(_told(event))
                case DeliveryRouted() as said:
                    routed.append(_routed(event.stream, said))
                case _:
                    await self.apply(connection, event)
        await connection.executemany(_TOLD, told)
        await connection.executemany(_ROUTED, routed)


_TOLD = """
    insert into webhook_events (position, event, stream, at, source, provider, delivery, body_sha256, kind, status,
                                reason, repository, ref, before, after, message, author, sender)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
"""
_ROUTED = "update webhook_events set status = 'routed', reason = $2, deployments = $3 where stream = $1"
_CREATED = "insert into sources values ($1, $2, true, $3, $3, $4)"
_SWITCHED = "update sources set is_on = $2, changed_at = $3, version = $4 where source = $1"


def _told(event: Envelope[Event]) -> Row:
    told = event.data
    assert isinstance(told, WebhookReceived | DeliveryIgnored)
    head = (
        event.position,
        event.id,
        event.stream,
        event.at,
        told.source,
        told.provider,
        told.delivery,
        told.body_sha256,
    )
    if isinstance(told, DeliveryIgnored):
        return (*head, told.event, "ignored", told.reason, None, None, None, None, None, None, None)
    message, author = (told.commit.message, told.commit.author) if told.commit is not None else (None, None)
    push = (told.repository, told.ref, told.before, told.after, message, author, told.sender)
    return (*head, "push", "received", None, *push)


def _routed(stream: str, said: DeliveryRouted) -> Row:
    routes = [{"stack": to.stack, "deployment": str(to.deployment)} for to in said.deployments]
    return (stream, said.reason, json.dumps(routes))


async def latest_deliveries(
    connection: Connection, source: str | None, limit: int
) -> tuple[dict[str, Any], ...]:
    """The newest `limit` rows of `webhook_events`, of one source or of all, as JSON-ready objects."""
    rows = await connection.fetch(
        """select event, at, source, provider, delivery, kind, status, reason, repository, ref, before, after, message,
                  author, sender, body_sha256, deployments
             from webhook_events where $1::text is null or source = $1 order by position desc limit $2""",
        source,
        limit,
    )
    return tuple(
        {
            **row,
            "event": str(row["event"]),
            "at": row["at"].isoformat(),
            "deployments": json.loads(row["deployments"]) if row["deployments"] is not None else None,
        }
        for row in rows
    )
