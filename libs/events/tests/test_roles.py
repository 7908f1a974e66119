"""Append-only is a grant, not a habit: what each role may do in Postgres, and each user on the bus, and nothing else."""

from __future__ import annotations

import asyncio
import json
from itertools import product

import asyncpg
import nats
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from hythe_cli.local.world import World
from hythe_events import streams
from hythe_events.access import HEARS, ROLE, SAYS, SERVICES, consumer_name
from hythe_events.catalog import EVENTS
from hythe_events.deploy import StackGranted
from hythe_events.envelope import Cause
from hythe_events.errors import NotPermitted
from hythe_events.language import new_id
from hythe_events.migrate import ROLES
from hythe_events.postgres import with_login

CAUSE = Cause(new_id(), None, "cli:test")

FORBIDDEN = {
    "change an event": "update log.events set actor = 'nobody'",
    "remove an event": "delete from log.events",
    "empty the log": "truncate log.events",
    "drop the log": "drop table log.events",
    "drop everything": "drop schema log cascade",
    "switch the trigger off": "alter table log.events disable trigger all",
    "switch all triggers off": "set session_replication_role = replica",
    "add past the function": "insert into log.events select * from log.events",
    "move the head": "update log.head set position = 0",
    "grant oneself": "insert into log.grants values (current_user, 'stack', 'stack.granted')",
    "replace the function": "create or replace function log.append_events() returns void language sql as ''",
    "become the owner": "set role postgres",
    "make a role": "create role thief superuser",
    "make a schema": "create schema thief",
    "make a table beside": "create table public.thief (a int)",
    "read the passwords": "select * from pg_authid",
    "read a file": "select pg_read_file('/etc/passwd')",
    "run a program": "copy (select 1) to program 'true'",
    "copy over the log": "copy log.events from stdin",
}


async def connect(world: World, who: str) -> asyncpg.Connection:
    password = (world.home.secrets(who) / "postgres_password").read_text().strip()
    return await asyncpg.connect(with_login(world.postgres_url, ROLE.format(service=who), password))


async def test_no_role_can_do_more_than_append_and_read(world: World) -> None:
    """Nineteen statements by each of five roles: every one is refused, and the log is what it was."""
    async with world.store("deploy") as store:
        await store.append(streams.stack("demo"), 0, [StackGranted(stack="demo", grants=())], because=CAUSE)
        before = await store.read_raw(0)
    for who in ROLES:
        connection = await connect(world, who)
        try:
            for what, statement in FORBIDDEN.items():
                with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as refused:
                    await connection.execute(statement)
                assert isinstance(
                    refused.value, asyncpg.InsufficientPrivilegeError | asyncpg.UndefinedFunctionError
                ), f"{who}: {what}: {refused.value}"
        finally:
            await connection.close()
    async with world.store("deploy") as store:
        assert await store.read_raw(0) == before


async def test_nobody_sees_or_changes_another_services_read_models(world: World) -> None:
    """A service's schema is its own."""
    for owner in SERVICES:
        connection = await connect(world, owner)
        await connection.execute(f"create table {owner}.own (a int); insert into {owner}.own values (1)")
        await connection.close()
    for owner, other in product(SERVICES, ROLES):
        if owner == other:
            continue
        connection = await connect(world, other)
        for statement in (
            f"select * from {owner}.own",
            f"delete from {owner}.own",
            f"drop table {owner}.own",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        await connection.close()


async def test_only_those_who_may_say_an_event_can_append_it(world: World) -> None:
    """Every event type, to every category, by every role: accepted exactly where `access.SAYS` has it."""
    categories = sorted({category for says in SAYS.values() for category in says})
    statement = """select verdict from log.append_events(array[1], array[null::int], array[$1], array[$2::uuid],
                   array[$3], array[1::smallint], array[$2::uuid], array[null::uuid], array['cli:test'],
                   array[null::text], array['{}'], array[null::bytea])"""
    for who in ROLES:
        connection = await connect(world, who)
        for category, kind in product(categories, EVENTS):
            allowed = kind in SAYS[who].get(category, ())
            try:
                async with connection.transaction():
                    await connection.fetchval(statement, f"{category}-x", new_id(), kind)
                    accepted = True
                    raise asyncio.CancelledError  # roll it back
            except asyncio.CancelledError:
                pass
            except asyncpg.InsufficientPrivilegeError:
                accepted = False
            assert accepted == allowed, f"{who} to {category}: {kind}"
        await connection.close()


async def test_a_refused_append_names_what_was_refused_and_harms_nobody_else(world: World) -> None:
    """In a batch only the guilty append fails."""
    async with world.store("git") as store:
        wrong = store.append(streams.stack("a"), 0, [StackGranted(stack="a", grants=())], because=CAUSE)
        answer = await asyncio.gather(wrong, return_exceptions=True)
    assert isinstance(answer[0], NotPermitted)
    assert "hythe_git may not write stack.granted to stream stack-a" in str(answer[0])


# -- the bus


async def client_of(world: World, who: str, refused: list[str]) -> Client:
    async def note(error: Exception) -> None:
        refused.append(str(error))

    return await nats.connect(
        world.nats.url,
        nkeys_seed_str=(world.home.secrets(who) / "nats_seed").read_text().strip(),
        inbox_prefix=f"_INBOX_{who}",
        error_cb=note,
        allow_reconnect=False,
    )


async def test_no_user_of_the_bus_can_speak_for_another(world: World) -> None:
    """The abuse matrix: thirteen things to try with a stolen key of each user but the relay; all are refused."""
    async with world.running("git"):
        pass  # streams and consumers are there
    for who in (*SERVICES, "client"):
        other = "build" if who != "build" else "git"
        heard = next(iter(HEARS[other]))
        consumer = consumer_name(other, heard)
        publishes = {
            "forge an event": "deploy.completed",
            "forge a delivery": "webhook.received",
            "take another's messages": f"$JS.API.CONSUMER.MSG.NEXT.HYTHE.{consumer}",
            "acknowledge for another": f"$JS.ACK.HYTHE.{consumer}.1.1.1.1.1",
            "remove a consumer": f"$JS.API.CONSUMER.DELETE.HYTHE.{consumer}",
            "change a consumer": f"$JS.API.CONSUMER.DURABLE.CREATE.HYTHE.{consumer}",
            "remove the stream": "$JS.API.STREAM.DELETE.HYTHE",
            "purge the stream": "$JS.API.STREAM.PURGE.HYTHE",
            "change the stream": "$JS.API.STREAM.UPDATE.HYTHE",
            "remove a message": "$JS.API.STREAM.MSG.DELETE.HYTHE",
            "make a stream": "$JS.API.STREAM.CREATE.THIEF",
            "run the server": "$SYS.REQ.SERVER.PING",
        }
        if who != "client":
            publishes["give a command"] = "command.deploy.rollback"
        for what, subject in publishes.items():
            refused: list[str] = []
            client = await client_of(world, who, refused)
            with pytest.raises((NatsTimeout, NoRespondersError)):
                await client.request(subject, b"{}", timeout=0.15)
            assert any("permissions violation" in line.lower() for line in refused), f"{who}: {what}"
            await client.close()
        for subject in (f"command.{other}.>", "_INBOX_relay.>", f"_INBOX_{other}.>", ">", "log.>"):
            refused = []
            client = await client_of(world, who, refused)
            await client.subscribe(subject)
            async with asyncio.timeout(5):
                while not refused:  # the driver tells of it in a task of its own
                    await client.flush()
            assert any("permissions violation" in line.lower() for line in refused), f"{who}: hear {subject}"
            await client.close()


async def test_the_relay_may_publish_but_not_ask(world: World) -> None:
    """Whoever holds the relay's key can tell events; it gives no commands, and events are checked against the log."""
    refused: list[str] = []
    client = await client_of(world, "relay", refused)
    with pytest.raises((NatsTimeout, NoRespondersError)):
        await client.request("command.deploy.rollback", json.dumps({"stack": "demo"}).encode(), timeout=0.15)
    await client.close()
    assert refused
