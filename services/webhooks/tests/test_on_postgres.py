"""The webhooks service on the real event store: what was answered is there, once, and the tables tell it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hythe_cli.local.testing import ScratchPostgres
from hythe_events import streams
from hythe_events.language import new_id
from hythe_events.projections import Projector
from hythe_events.secrets import MasterKeys, PostgresKeys, Secrets
from hythe_events.store import Store
from hythe_events.testing import MigratedDatabase
from hythe_events.webhooks import DeliveryRouted, ListDeliveries, RoutedTo, SwitchSource
from hythe_webhooks.read_models import WebhookEvents
from hythe_webhooks.testing import Receiver, because, opened

DELIVERY = "0b989ba4-242f-11e5-81e1-c7b6966d2516"


async def migrated(server: ScratchPostgres) -> MigratedDatabase:
    """A new database with the log in it."""
    return await MigratedDatabase(server.dsn(database=await server.fresh_database())).migrate()


@asynccontextmanager
async def receiving(database: MigratedDatabase) -> AsyncIterator[Receiver]:
    """A receiver on that database, with the source `ferry`."""
    async with Store.open(database.dsn("webhooks")) as store:
        seals = Secrets(PostgresKeys(store), lambda: MasterKeys(b"m" * 32))
        async with opened(store, seals) as receiver:
            await receiver.create()
            yield receiver


@pytest_asyncio.fixture
async def database(postgres_server: ScratchPostgres) -> MigratedDatabase:
    """A migrated database of the test's own."""
    return await migrated(postgres_server)


async def test_what_was_answered_is_in_the_log_with_its_evidence(
    database: MigratedDatabase, push_body: bytes
) -> None:
    """P1, on the real store: event and sealed body in one append, readable by another process."""
    async with receiving(database) as receiver:
        answered = await receiver.post(push_body)
        assert answered.status == 202
    async with Store.open(database.dsn("git")) as elsewhere:
        [event] = await elsewhere.read(streams.delivery("ferry", DELIVERY))
        assert str(event.id) == answered.body["event"]
    async with receiving(database) as again:
        sealed = await again.store.evidence(event.id)
        place: dict[str, Any] = {"kind": "evidence", "owner": "ferry", "name": DELIVERY, "version": 1}
        assert await again.secrets.opened_bytes(**place, sealed=sealed) == push_body
        assert (await again.post(push_body)).body == answered.body


async def test_identical_deliveries_to_two_processes_at_once_are_one(
    database: MigratedDatabase, push_body: bytes
) -> None:
    """W10: the version check in Postgres decides, not the memory of a process."""
    async with receiving(database) as one, receiving(database) as other:
        answered = await asyncio.gather(*(each.post(push_body) for each in (one, other) * 20))
        assert {each.status for each in answered} == {202}
        assert len({each.body["event"] for each in answered}) == 1
        assert len(await one.store.read(streams.delivery("ferry", DELIVERY))) == 1


async def test_without_postgres_it_is_503_and_afterwards_nothing_is_lost(
    tmp_path: Path, push_body: bytes
) -> None:
    """W11: what was answered 202 is there after Postgres came back; what was answered 503 can be sent again."""
    server = ScratchPostgres(tmp_path)
    await server.start()
    try:
        async with receiving(await migrated(server)) as receiver:
            first = await receiver.post(push_body)
            await server.stop()
            away = await receiver.post(push_body, X_GitHub_Delivery="two")
            assert away.status == 503
            assert int(away.headers["Retry-After"]) > 0
            await server.start()
            async with asyncio.timeout(20):
                while (second := await receiver.post(push_body, X_GitHub_Delivery="two")).status == 503:
                    pass
            assert second.status == 202
            assert (await receiver.post(push_body)).body == first.body
    finally:
        await server.stop()


async def test_the_tables_tell_what_came_of_each_delivery(
    database: MigratedDatabase, push_body: bytes
) -> None:
    """Received, ignored, routed; and made anew from the log they are the same."""
    async with receiving(database) as receiver, Store.open(database.dsn("git")) as git:
        await receiver.post(push_body)
        await receiver.post(
            b'{"zen":"Keep it logically awesome."}', X_GitHub_Event="ping", X_GitHub_Delivery="two"
        )
        await receiver.handlers.switch_source(SwitchSource(source="ferry", on=False), because())
        routed = DeliveryRouted(deployments=(RoutedTo(stack="ferry", deployment=new_id()),))
        stream = streams.delivery("ferry", DELIVERY)
        [event] = await git.append(stream, 1, [routed], because=because("hythe:git"))
        projector = Projector("webhooks", receiver.store, [WebhookEvents()])
        following = asyncio.create_task(projector.run())
        async with asyncio.timeout(20):
            for name in projector.names:
                await projector.reached(name, event.position)
        ping, push = (await receiver.handlers.deliveries(ListDeliveries(), because())).rows
        assert (ping["kind"], ping["status"], ping["delivery"]) == ("ping", "ignored", "two")
        assert push["status"] == "routed"
        assert push["deployments"] == [
            {"stack": "ferry", "deployment": str(routed.deployments[0].deployment)}
        ]
        assert (push["repository"], push["ref"]) == ("quayside/ferry", "refs/heads/main")
        assert (await receiver.handlers.deliveries(ListDeliveries(source="nobody"), because())).rows == ()
        assert len((await receiver.handlers.deliveries(ListDeliveries(limit=1), because())).rows) == 1
        async with receiver.store.transaction() as connection:
            assert await connection.fetchval("select is_on from sources where source = 'ferry'") is False
        assert all(each.equal for each in (await projector.rebuild()).values())
        following.cancel()


@pytest.mark.parametrize("odd", ["\x00", "\x7f", "\u2028", "\U0001f6a2", "x" * 19_000])
async def test_whatever_a_message_holds_the_tables_can_hold(
    database: MigratedDatabase, push_document: dict[str, Any], odd: str
) -> None:
    """One push with a NUL in its message must not stop the read model for ever."""
    body = json.dumps(
        push_document | {"head_commit": push_document["head_commit"] | {"message": odd}}
    ).encode()
    async with receiving(database) as receiver:
        assert (await receiver.post(body)).status == 202
        projector = Projector("webhooks", receiver.store, [WebhookEvents()])
        following = asyncio.create_task(projector.run())
        async with asyncio.timeout(20):
            await projector.reached("webhook_events", 2)
        following.cancel()
        assert not projector.troubles
