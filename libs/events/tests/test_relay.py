"""The relay on the real Postgres and NATS: nothing is missed, nothing is told out of order, whoever leads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest
from nats.js.api import DeliverPolicy

from hythe_cli.local.world import World
from hythe_events import streams
from hythe_events.bus import Bus, Outgoing
from hythe_events.chain import Sealer
from hythe_events.deploy import StackGranted
from hythe_events.envelope import Cause, from_cloudevent, to_cloudevent
from hythe_events.errors import HytheError, VersionConflict
from hythe_events.language import new_id
from hythe_events.postgres import connect
from hythe_events.relay import LogWentBack, Relay
from hythe_events.store import Store
from hythe_events.testing import until

CAUSE = Cause(new_id(), None, "cli:test")
GRANTED = StackGranted(stack="demo", grants=())


@asynccontextmanager
async def relaying(world: World) -> AsyncIterator[Relay]:
    async with world.store("relay") as store, world.bus("relay") as bus:
        relay = Relay(store, bus, Sealer("01" * 32), ack_wait=1.0, max_bytes=512 * 1024**2)
        task = asyncio.create_task(relay.run())
        try:
            yield relay
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def told(world: World) -> list[tuple[int, str]]:
    """Everything on the bus: position and event id, in the order of the stream."""
    seed = (world.home.secrets("client") / "nats_seed").read_text().strip()
    client = await nats.connect(world.nats.url, nkeys_seed_str=seed, inbox_prefix="_INBOX_client")
    js = client.jetstream()
    count = (await js.stream_info("HYTHE")).state.messages
    subscription = await js.subscribe(
        ">", stream="HYTHE", ordered_consumer=True, deliver_policy=DeliverPolicy.ALL
    )
    found = []
    for _ in range(count):
        message = await subscription.next_msg(timeout=10)
        found.append((int((message.headers or {})["Hythe-Position"]), str(from_cloudevent(message.data).id)))
    await client.close()
    return found


async def until_told(relay: Relay, position: int, seconds: float = 60) -> None:
    await until(lambda: relay.position >= position, seconds)


@pytest.mark.slow
async def test_no_event_is_missed_or_told_out_of_order(world: World) -> None:
    """Eight writers, fifty thousand events, appends that abort, a transaction held open: 0 missed, 0 reordered."""
    wanted = 50_000
    left = iter(range(wanted // 20))

    async def write(store: Store, writer: int) -> None:
        chance = random.Random(writer)
        for n in left:
            stream = streams.stack(f"w{writer}-{n}")
            for _ in range(2):
                await store.append(stream, None, [GRANTED] * 10, because=CAUSE)
            if chance.random() < 0.1:
                with pytest.raises(VersionConflict):
                    await store.append(stream, 0, [GRANTED], because=CAUSE)

    holder = await connect(world.owner_dsn)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("create table held_open (a int); insert into held_open values (1)")
    async with relaying(world) as relay:
        async with world.store("deploy") as first, world.store("deploy") as second:
            await asyncio.gather(*(write((first, second)[n % 2], n) for n in range(8)))
            head = (await first.head()).position
        await until_told(relay, head)
    await transaction.rollback()
    await holder.close()
    found = await told(world)
    positions = [position for position, _ in found]
    assert positions[:head] == list(range(1, head + 1))
    assert head >= wanted


async def test_one_relay_leads_and_another_takes_over(world: World) -> None:
    """When the leader dies, another goes on where it was, within seconds, and nothing is told twice."""
    async with world.store("deploy") as store, relaying(world) as second:
        async with relaying(world) as first:
            await store.append(streams.stack("a"), None, [GRANTED] * 3, because=CAUSE)
            await until(lambda: max(first.position, second.position) >= 3)
            assert first.leading != second.leading
        await store.append(streams.stack("a"), None, [GRANTED] * 3, because=CAUSE)
        await until_told(second, 6, 20)
        assert second.leading
    assert [position for position, _ in await told(world)] == [1, 2, 3, 4, 5, 6]


async def test_a_leader_that_was_asleep_cannot_move_the_cursor_back(world: World) -> None:
    """R7: the cursor belongs to an epoch; whoever lost the lead writes in vain."""
    async with world.store("relay") as store, store.session() as session:
        epoch = await session.fetchval("update log.relay set epoch = epoch + 1 returning epoch")
        await session.execute("update log.relay set epoch = epoch + 1, position = 100")
        async with world.bus("relay") as bus:
            relay = Relay(store, bus, Sealer("01" * 32), ack_wait=1.0, max_bytes=1024**3)
            assert not await relay._move(session, epoch, 50)
        assert await session.fetchval("select position from log.relay") == 100


async def test_the_leaders_lost_session_makes_it_stand_down(world: World) -> None:
    """R8: without its session it holds no lock; it publishes nothing more before it leads anew, and nothing is lost."""
    async with relaying(world) as relay, world.store("deploy") as store:
        await store.append(streams.stack("a"), None, [GRANTED], because=CAUSE)
        await until_told(relay, 1)
        owner = await connect(world.owner_dsn)
        await owner.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'hythe_relay' and datname = current_database()"
        )
        await owner.close()
        await store.append(streams.stack("a"), None, [GRANTED] * 5, because=CAUSE)
        await until_told(relay, 6)
    assert [position for position, _ in await told(world)] == [1, 2, 3, 4, 5, 6]


async def test_events_published_before_are_dropped_not_told_twice(world: World) -> None:
    """R3, R4: a relay that died between publishing and moving its cursor publishes again; the bus knows them."""
    async with relaying(world) as relay, world.store("deploy") as store:
        await store.append(streams.stack("a"), None, [GRANTED] * 3, because=CAUSE)
        await until_told(relay, 3)
        events = await store.read_all(0)
    async with world.bus("relay") as bus:
        await bus.publish([Outgoing(e.id, e.type, e.position, to_cloudevent(e), None) for e in events])
    assert [position for position, _ in await told(world)] == [1, 2, 3]


async def test_a_bus_restored_from_an_older_copy_is_told_the_rest(world: World) -> None:
    """R11: the stream is the same one, but ends earlier than the cursor."""
    async with relaying(world) as relay, world.store("deploy") as store:
        await store.append(streams.stack("a"), None, [GRANTED] * 2, because=CAUSE)
        await until_told(relay, 2)
    await world.nats.stop()
    kept = {path: path.read_bytes() for path in world.nats.directory.rglob("*") if path.is_file()}
    await world.nats.start()
    async with relaying(world) as relay, world.store("deploy") as store:
        await store.append(streams.stack("a"), None, [GRANTED] * 2, because=CAUSE)
        await until_told(relay, 4)
    await world.nats.stop()
    await world.nats.wipe()
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    await world.nats.start()
    async with relaying(world) as relay:
        await until_told(relay, 4)
    assert [position for position, _ in await told(world)] == [1, 2, 3, 4]


async def test_a_log_that_went_back_is_not_published(world: World) -> None:
    """E4: a database restored from an older copy would number new events like old ones: the relay refuses."""
    async with relaying(world) as relay, world.store("deploy") as store:
        await store.append(streams.stack("a"), None, [GRANTED] * 3, because=CAUSE)
        await until_told(relay, 3)
    owner = await connect(world.owner_dsn)
    await owner.execute(
        "set session_replication_role = replica; delete from log.events where position = 3; "
        "update log.head set position = 2, hash = (select hash from log.events where position = 2)"
    )
    await owner.close()
    async with world.store("relay") as store, world.bus("relay") as bus, store.session() as session:
        with pytest.raises(LogWentBack, match="up to 3, but the log ends at 2"):
            await Relay(store, bus, Sealer("01" * 32), ack_wait=1.0, max_bytes=512 * 1024**2)._lead(session)


async def test_a_full_stream_holds_the_relay_back_until_there_is_room(world: World) -> None:
    """R13: the bus refuses rather than drop what is old; the cursor stays, and the rest is told when there is room."""
    async with world.store("relay") as store, world.bus("relay") as bus, world.store("deploy") as writer:
        small = Relay(store, bus, Sealer("01" * 32), ack_wait=1.0, max_bytes=16 * 1024)
        task = asyncio.create_task(small.run())
        await writer.append(streams.stack("a"), None, [GRANTED] * 60, because=CAUSE)
        await until(lambda: (small.trouble or "").startswith("the relay waits"))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with relaying(world) as relay:
        await until_told(relay, 60)
    assert [position for position, _ in await told(world)] == list(range(1, 61))


async def test_a_batch_is_refused_whole_or_stored_whole(world: World) -> None:
    """An event the stream does not know the subject of leaves nothing of its batch behind."""
    async with relaying(world) as relay, world.store("deploy") as store:
        await store.append(streams.stack("a"), None, [GRANTED] * 2, because=CAUSE)
        await until_told(relay, 2)
        [first, second] = await store.read_all(0)
    async with world.bus("relay") as bus:
        assert isinstance(bus, Bus)
        good = Outgoing(new_id(), first.type, 3, to_cloudevent(first), None)
        bad = Outgoing(new_id(), "nobody.hears", 4, to_cloudevent(second), None)
        with pytest.raises(HytheError):
            await bus.publish([good, bad])
    assert len(await told(world)) == 2
