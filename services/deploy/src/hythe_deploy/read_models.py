"""The tables of the deploy service: `deployments`, one row per deployment, and `stacks`, one row per stack."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

from hythe_events.build import BuildFinished, BuildStarted, CancelRequested
from hythe_events.deploy import (
    CommitRejected,
    DeployCompleted,
    DeployRollbackStarted,
    DeployStarted,
    DeployStepCompleted,
    ListDeployments,
    ListStacks,
    Manifest,
    RollbackRequested,
    StackGranted,
    StackLiveChanged,
)
from hythe_events.envelope import Cause, Envelope
from hythe_events.git import BuildRequested, DeploymentRequested
from hythe_events.language import Event
from hythe_events.log import Rows
from hythe_events.postgres import Connection


@dataclass(frozen=True)
class DeploymentsTable:
    """One row per deployment. `phase` is as in `hythe_events.deployment`; `images` maps services to digests."""

    name: ClassVar[str] = "deployments"
    tables: ClassVar[tuple[str, ...]] = ("deployments",)
    hears: ClassVar[frozenset[str]] = frozenset(
        event.type
        for event in (
            DeploymentRequested,
            RollbackRequested,
            BuildRequested,
            BuildStarted,
            CancelRequested,
            BuildFinished,
            DeployStarted,
            DeployStepCompleted,
            DeployRollbackStarted,
            DeployCompleted,
        )
    )
    ddl: ClassVar[str] = """
        create table if not exists deployments (
            id                 uuid primary key,
            stack              text not null,
            trigger            text not null,
            phase              text not null,
            outcome            text,
            reason             text,
            requested_at       timestamptz not null,
            requested_position bigint not null,
            asked_by           text not null,
            delivery           text,
            ref                text,
            commit             text,
            message            text,
            author             text,
            rollback_to        uuid,
            cancel_requested   boolean not null default false,
            build_started_at   timestamptz,
            built_at           timestamptz,
            deploy_started_at  timestamptz,
            finished_at        timestamptz,
            replaces           uuid,
            last_step          text,
            images             jsonb
        );
        create unique index if not exists deployments_newest on deployments (requested_position desc);
        create index if not exists deployments_of_stack on deployments (stack, requested_position desc);
    """

    async def apply(self, connection: Connection, event: Envelope[Event]) -> None:
        """The row as the event leaves it."""
        at = event.at
        match event.data:
            case DeploymentRequested() as said:
                await connection.execute(
                    """insert into deployments (id, stack, trigger, phase, requested_at, requested_position, asked_by,
                                                delivery, ref, commit, message, author)
                       values ($1, $2, $3, 'requested', $4, $5, $6, $7, $8, $9, $10, $11)""",
                    *(said.deployment, said.stack, said.trigger, at, event.position, said.asked_by),
                    *(said.delivery, said.ref, said.commit, said.message, said.author),
                )
            case RollbackRequested() as said:
                await connection.execute(
                    """insert into deployments (id, stack, trigger, phase, requested_at, requested_position, asked_by,
                                                commit, rollback_to, reason, images)
                       values ($1, $2, 'rollback', 'built', $3, $4, $5, $6, $7, $8, $9)""",
                    *(said.deployment, said.stack, at, event.position, said.asked_by, said.commit, said.to),
                    *(said.reason, _images(said.manifest)),
                )
            case BuildRequested() as said:
                await connection.execute(
                    "update deployments set commit = $2, ref = $3, message = $4, author = $5 where id = $1",
                    *(said.deployment, said.commit, said.ref, said.message, said.author),
                )
            case BuildStarted() as said:
                await connection.execute(
                    "update deployments set phase = 'building', build_started_at = $2 where id = $1",
                    *(said.deployment, at),
                )
            case CancelRequested() as said:
                await connection.execute(
                    "update deployments set cancel_requested = true where id = $1", said.deployment
                )
            case BuildFinished() as said:
                await connection.execute(
                    "update deployments set phase = 'built', built_at = $2, reason = $3 where id = $1",
                    *(said.deployment, at, said.reason),
                )
            case DeployStarted() as said:
                await connection.execute(
                    """update deployments set phase = 'deploying', replaces = $3,
                              deploy_started_at = coalesce(deploy_started_at, $2) where id = $1""",
                    *(said.deployment, at, said.replaces),
                )
            case DeployStepCompleted() as said:
                await connection.execute(
                    "update deployments set last_step = $2, images = coalesce($3, images) where id = $1",
                    *(said.deployment, said.step, _images(said.manifest)),
                )
            case DeployRollbackStarted() as said:
                await connection.execute(
                    "update deployments set phase = 'restoring', reason = $2 where id = $1",
                    *(said.deployment, said.reason),
                )
            case DeployCompleted() as said:
                await connection.execute(
                    """update deployments set phase = 'done', outcome = $2, reason = $3, finished_at = $4,
                              commit = coalesce($5, commit), images = coalesce($6, images),
                              replaces = coalesce($7, replaces) where id = $1""",
                    *(said.deployment, said.outcome, said.reason, at, said.commit),
                    *(_images(said.manifest), said.replaced),
                )


@dataclass(frozen=True)
class StacksTable:
    """One row per stack: what it runs, and what it is allowed."""

    name: ClassVar[str] = "stacks"
    tables: ClassVar[tuple[str, ...]] = ("stacks",)
    hears: ClassVar[frozenset[str]] = frozenset(
        event.type for event in (StackLiveChanged, CommitRejected, StackGranted)
    )
    ddl: ClassVar[str] = """
        create table if not exists stacks (
            stack            text primary key,
            live_deployment  uuid,
            live_commit      text,
            live_since       timestamptz,
            images           jsonb,
            grants           jsonb not null default '[]',
            rejected         jsonb not null default '[]'
        );
    """

    async def apply(self, connection: Connection, event: Envelope[Event]) -> None:
        """The row as the event leaves it. A stack is known from its first event on."""
        match event.data:
            case StackLiveChanged() as said:
                await connection.execute(
                    """insert into stacks (stack, live_deployment, live_commit, live_since, images)
                       values ($1, $2, $3, $4, $5)
                       on conflict (stack) do update set live_deployment = $2, live_commit = $3, live_since = $4,
                                                         images = $5, rejected = '[]'""",
                    *(said.stack, said.deployment, said.commit, event.at, _images(said.manifest)),
                )
            case CommitRejected() as said:
                await connection.execute(
                    """insert into stacks (stack, rejected) values ($1, $2)
                       on conflict (stack) do update set rejected = stacks.rejected || $2""",
                    *(said.stack, json.dumps([said.commit])),
                )
            case StackGranted() as said:
                await connection.execute(
                    """insert into stacks (stack, grants) values ($1, $2)
                       on conflict (stack) do update set grants = $2""",
                    *(said.stack, json.dumps(said.grants)),
                )


def _images(manifest: Manifest | None) -> str | None:
    if manifest is None:
        return None
    return json.dumps({name: service.digest for name, service in manifest.services.items()})


class Tables(Protocol):
    """Where the read models are kept; `hythe_events.store.Store` is the real one."""

    def transaction(self) -> AbstractAsyncContextManager[Connection]: ...


@dataclass(frozen=True)
class Shown:
    """Answers about the read models."""

    tables: Tables

    async def deployments(self, asked: ListDeployments, _because: Cause) -> Rows:
        """Deployments, newest first; `before` goes on where an earlier answer ended."""
        return await self._rows(
            """select to_jsonb(d) from deploy.deployments d
                where ($1::text is null or d.stack = $1)
                  and ($2::uuid is null or d.requested_position <
                       (select b.requested_position from deploy.deployments b where b.id = $2))
                order by d.requested_position desc limit $3""",
            *(asked.stack, asked.before, asked.limit),
        )

    async def stacks(self, asked: ListStacks, _because: Cause) -> Rows:
        """Stacks by name, each with the deployment that was asked for last."""
        return await self._rows(
            """select to_jsonb(s) || jsonb_build_object('last_deployment', d.id, 'last_phase', d.phase,
                                                        'last_outcome', d.outcome, 'last_requested_at', d.requested_at)
                 from (select stack, live_deployment, live_commit, live_since, images, grants, rejected from deploy.stacks
                       union all
                       select distinct stack, null::uuid, null, null::timestamptz, null::jsonb, '[]'::jsonb, '[]'::jsonb
                         from deploy.deployments where stack not in (select stack from deploy.stacks)) s
                 left join lateral (select * from deploy.deployments l where l.stack = s.stack
                                    order by l.requested_position desc limit 1) d on true
                where ($1::text is null or s.stack = $1) order by s.stack""",
            asked.stack,
        )

    async def _rows(self, sql: str, *args: object) -> Rows:
        async with self.tables.transaction() as connection:
            found = await connection.fetch(sql, *args)
        return Rows(rows=tuple(json.loads(row[0]) for row in found))
