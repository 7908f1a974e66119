"""The tables of the webhooks service: `webhook_events`, one row per delivery and what came of it, and `sources`."""

from __future__ import annotations

import json
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


@dataclass(frozen=True)
class WebhookEvents:
    """One row per delivery. `status` is received, ignored, or routed; then `deployments` says where to."""

    name: ClassVar[str] = "webhook_events"
    tables: ClassVar[tuple[str, ...]] = ("webhook_events",)
    hears: ClassVar[frozenset[str]] = frozenset(
        {WebhookReceived.type, DeliveryIgnored.type, DeliveryRouted.type}
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
    """

    async def apply(self, connection: Connection, event: Envelope[Event]) -> None:
        """One row for what a forge told, changed once by what git says of it."""
        match event.data:
            case WebhookReceived() as told:
                commit = told.commit
                await connection.execute(
                    _INSERT,
                    *(
                        event.position,
                        event.id,
                        event.stream,
                        event.at,
                        told.source,
                        told.provider,
                        told.delivery,
                    ),
                    *("push", "received", None, told.repository, told.ref, told.before, told.after),
                    *((commit.message, commit.author) if commit is not None else (None, None)),
                    *(told.sender, told.body_sha256),
                )
            case DeliveryIgnored() as told:
                await connection.execute(
                    _INSERT,
                    *(
                        event.position,
                        event.id,
                        event.stream,
                        event.at,
                        told.source,
                        told.provider,
                        told.delivery,
                    ),
                    *(
                        told.event,
                        "ignored",
                        told.reason,
                        None,
                        None,
                        None,
                        None,
                        None,
                        None,
                        None,
                        told.body_sha256,
                    ),
                )
            case DeliveryRouted() as said:
                routes = [{"stack": to.stack, "deployment": str(to.deployment)} for to in said.deployments]
                await connection.execute(
                    "update webhook_events set status = 'routed', reason = $2, deployments = $3 where stream = $1",
                    event.stream,
                    said.reason,
                    json.dumps(routes),
                )


_INSERT = """
    insert into webhook_events (position, event, stream, at, source, provider, delivery, kind, status, reason,
                                repository, ref, before, after, message, author, sender, body_sha256)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
"""


@dataclass(frozen=True)
class SourcesTable:
    """One row per webhook source. Its secret is not in it."""

    name: ClassVar[str] = "sources"
    tables: ClassVar[tuple[str, ...]] = ("sources",)
    hears: ClassVar[frozenset[str]] = frozenset({SourceCreated.type, SourceSwitched.type})
    ddl: ClassVar[str] = """
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
        """A row for a source that was made, changed when it is switched."""
        match event.data:
            case SourceCreated() as said:
                await connection.execute(
                    "insert into sources values ($1, $2, true, $3, $3, $4)",
                    *(said.source, said.provider, event.at, event.version),
                )
            case SourceSwitched() as said:
                await connection.execute(
                    "update sources set is_on = $2, changed_at = $3, version = $4 where source = $1",
                    *(said.source, said.on, event.at, event.version),
                )


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
