"""Brings a database to this version: schema, roles, and who may do what.

Numbered SQL files are applied in order, each in its own transaction, and recorded with their SHA-256 under an
advisory lock, so any number of processes may start at once. A file that was changed after it was applied is an error,
and so is a database that a newer version has migrated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files

from hythe_events.access import ROLE, SAYS, SERVICES
from hythe_events.errors import Misconfigured
from hythe_events.postgres import Connection, connect, our_errors

_LOCK = 0x48595448  # "HYTH"

ROLES = (*SERVICES, "relay")


async def migrate(owner_dsn: str, passwords: Mapping[str, str]) -> list[str]:
    """Migrate the database at `owner_dsn`; `passwords` maps `webhooks`, `git`, `build`, `deploy`, `relay` to theirs.

    The owner must be able to create roles; no service ever logs in as it. Returns the names of the files that were
    applied now. Raises Misconfigured, StoreUnavailable.
    """
    connection = await connect(owner_dsn, application="hythe migrate")
    try:
        async with our_errors():
            await connection.execute(f"select pg_advisory_lock({_LOCK})")
            for name, password in passwords.items():
                await _role(connection, ROLE.format(service=name), password)
            applied = await _apply_files(connection)
            async with connection.transaction():
                await _grant(connection)
            return applied
    finally:
        await connection.close()


async def _role(connection: Connection, role: str, password: str) -> None:
    """The password travels as a parameter and is set by a function, so that it stands in no statement's text."""
    await connection.execute(
        f"""do $$ begin
            create role {role} login;
        exception when duplicate_object or unique_violation then null; end $$"""
    )
    async with connection.transaction():
        await connection.execute("set local log_statement = 'none'")
        await connection.execute("select set_config('hythe.password', $1, true)", password)
        await connection.execute(
            f"""do $$ begin
                execute format('alter role {role} login password %L', current_setting('hythe.password'));
            end $$"""
        )
    for setting, value in (
        ("idle_in_transaction_session_timeout", "10s"),
        ("lock_timeout", "3s"),
        ("statement_timeout", "60s"),
        ("synchronous_commit", "on"),
    ):
        await connection.execute(f"alter role {role} set {setting} = '{value}'")


async def _apply_files(connection: Connection) -> list[str]:
    await connection.execute(
        """create table if not exists public.hythe_migrations
           (name text primary key, sha256 text not null, applied timestamptz not null default now())"""
    )
    recorded = {
        r["name"]: r["sha256"]
        for r in await connection.fetch("select name, sha256 from public.hythe_migrations")
    }
    known = sorted(
        (f for f in files(__package__).joinpath("sql").iterdir() if f.name.endswith(".sql")),
        key=lambda f: f.name,
    )
    newer = set(recorded) - {f.name for f in known}
    if newer:
        raise Misconfigured(
            f"the database was migrated by a newer Hythe ({', '.join(sorted(newer))}); run that version"
        )
    applied = []
    for file in known:
        text = file.read_text()
        digest = hashlib.sha256(text.encode()).hexdigest()
        if file.name in recorded:
            if recorded[file.name] != digest:
                raise Misconfigured(
                    f"the migration {file.name} was changed after it was applied; restore the file"
                )
            continue
        async with connection.transaction():
            await connection.execute(text)
            await connection.execute("insert into public.hythe_migrations values ($1, $2)", file.name, digest)
        applied.append(file.name)
    return applied


async def _grant(connection: Connection) -> None:
    """Rights follow `access.SAYS`; what is no longer in it is taken away."""
    database = await connection.fetchval("select quote_ident(current_database())")
    await connection.execute(
        f"revoke all on database {database} from public; revoke all on schema public from public; truncate log.grants"
    )
    for name in ROLES:
        role = ROLE.format(service=name)
        await connection.execute(
            f"""grant connect on database {database} to {role};
                grant usage on schema log to {role};
                grant select on log.events, log.head, log.relay to {role};
                grant execute on function log.append_events, log.append_batch, log.append_event to {role}"""
        )
        await connection.executemany(
            "insert into log.grants values ($1, $2, $3)",
            [(role, category, kind) for category, kinds in SAYS[name].items() for kind in kinds],
        )
    await connection.execute(
        f"grant update (position, epoch, stream_created) on log.relay to {ROLE.format(service='relay')}"
    )
    for name in SERVICES:
        role = ROLE.format(service=name)
        await connection.execute(f"alter role {role} in database {database} set search_path = {name}")
        for schema in (name, f"{name}_rebuild"):
            await connection.execute(f"create schema if not exists {schema} authorization {role}")
