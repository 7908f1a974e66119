"""The read model `git_repositories`: where each stack's source comes from, without its secret.

Routing a delivery asks it which stacks listen to a source. It may lag behind the log, so the question says up to which
position of the log the answer must reach: a repository that was saved before a push is never overlooked.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from hythe_events.envelope import Envelope
from hythe_events.errors import NotNow
from hythe_events.git import RepositorySaved
from hythe_events.language import Event
from hythe_events.postgres import Connection
from hythe_git.plan import Listener

LAG = 5.0
"""Seconds to wait for the read model to reach a position."""
_LOOK_AGAIN = 0.005


class RepositoriesTable:
    """The projection that keeps `git_repositories`: one row per stack, from its last `repository.saved`."""

    name = "git_repositories"
    tables = ("git_repositories",)
    ddl = """
        create table if not exists git_repositories (
            stack            text primary key,
            url              text not null,
            branch           text not null,
            path             text not null,
            compose_file     text,
            source           text,
            credential_kind  text,
            credential_user  text,
            known_host       text,
            version          integer not null,
            saved_at         timestamptz not null,
            saved_by         text not null
        );
        create index if not exists git_repositories_source on git_repositories (source)
    """
    hears = frozenset({RepositorySaved.type})

    async def apply(self, connection: Connection, event: Envelope[Event]) -> None:
        """One row becomes what was saved."""
        saved = event.data
        assert isinstance(saved, RepositorySaved)
        await connection.execute(
            """
            insert into git_repositories values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            on conflict (stack) do update set
                (url, branch, path, compose_file, source, credential_kind, credential_user, known_host, version, saved_at,
                 saved_by) =
                (excluded.url, excluded.branch, excluded.path, excluded.compose_file, excluded.source,
                 excluded.credential_kind, excluded.credential_user, excluded.known_host, excluded.version,
                 excluded.saved_at, excluded.saved_by)
            """,
            saved.stack,
            saved.url,
            saved.branch,
            saved.path,
            saved.compose_file,
            saved.source,
            saved.credential.kind if saved.credential else None,
            saved.credential.user if saved.credential else None,
            saved.known_host,
            event.version,
            event.at,
            event.actor,
        )


class Repositories(Protocol):
    """What the handlers ask. Two implementations: the table, and the log itself, read from its beginning."""

    async def listening_to(self, source: str, *, up_to: int) -> list[Listener]:
        """The stacks that listen to `source`, knowing every event up to position `up_to`. Raises NotNow."""

    async def rows(self, stack: str | None) -> tuple[dict[str, Any], ...]:
        """The rows of `git_repositories`, all or one stack's, by stack. Values fit into JSON."""


class _Transactions(Protocol):
    def transaction(self) -> AbstractAsyncContextManager[Connection]: ...


class SavedRepositories:
    """Asks the table."""

    def __init__(self, store: _Transactions) -> None:
        self._store = store

    async def listening_to(self, source: str, *, up_to: int) -> list[Listener]:
        try:
            async with asyncio.timeout(LAG):
                while (found := await self._listening_to(source, up_to)) is None:
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError as error:
            raise NotNow("the read model git_repositories lags behind the log") from error
        return found

    async def _listening_to(self, source: str, up_to: int) -> list[Listener] | None:
        async with self._store.transaction() as connection:
            if await connection.fetchval("select to_regclass('git.git_repositories')") is None:
                return None
            rows = await connection.fetch(
                """
                select c.position, r.stack, r.branch
                from git.checkpoints c left join git.git_repositories r on r.source = $1
                where c.projection = 'git_repositories'
                """,
                source,
            )
        if not rows or rows[0]["position"] < up_to:
            return None
        return [Listener(row["stack"], row["branch"]) for row in rows if row["stack"] is not None]

    async def rows(self, stack: str | None) -> tuple[dict[str, Any], ...]:
        async with self._store.transaction() as connection:
            rows = await connection.fetch(
                "select * from git.git_repositories where $1::text is null or stack = $1 order by stack",
                stack,
            )
        return tuple(dict(row) | {"saved_at": row["saved_at"].isoformat()} for row in rows)


class _Log(Protocol):
    async def read_all(self, after: int, limit: int = 1000) -> list[Envelope[Event]]: ...


class LoggedRepositories:
    """Asks the log itself, from its first event: for tests, and wherever there is no database to keep a table in."""

    def __init__(self, log: _Log) -> None:
        self._log = log

    async def listening_to(self, source: str, *, up_to: int) -> list[Listener]:  # noqa: ARG002  the log never lags
        saved = [saved for _, saved in (await self._saved()).values()]
        return [Listener(each.stack, each.branch) for each in saved if each.source == source]

    async def rows(self, stack: str | None) -> tuple[dict[str, Any], ...]:
        return tuple(
            saved.model_dump(mode="json", exclude={"credential"})
            | {
                "credential_kind": saved.credential.kind if saved.credential else None,
                "credential_user": saved.credential.user if saved.credential else None,
                "version": event.version,
                "saved_at": event.at.isoformat(),
                "saved_by": event.actor,
            }
            for name, (event, saved) in sorted((await self._saved()).items())
            if stack in (None, name)
        )

    async def _saved(self) -> dict[str, tuple[Envelope[Event], RepositorySaved]]:
        saved: dict[str, tuple[Envelope[Event], RepositorySaved]] = {}
        position = 0
        while events := await self._log.read_all(position):
            for event in events:
                if isinstance(event.data, RepositorySaved):
                    saved[event.data.stack] = event, event.data
            position = events[-1].position
        return saved
