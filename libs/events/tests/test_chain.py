"""`verify` names the first event that was changed, removed or reordered; a seal shows that the newest were removed."""

from __future__ import annotations

import pytest

from hythe_cli.local.world import World
from hythe_events import chain, streams
from hythe_events.bus import Outgoing
from hythe_events.deploy import StackGranted
from hythe_events.envelope import Cause, to_cloudevent
from hythe_events.inquiry import Inquiry
from hythe_events.language import new_id
from hythe_events.log import Verdict, VerifyLog
from hythe_events.postgres import connect

CAUSE = Cause(new_id(), None, "cli:test")
OWNERS_WAY = "set session_replication_role = replica; "


async def filled(world: World, count: int = 40) -> None:
    async with world.store("deploy") as store:
        for n in range(count):
            granted = StackGranted(stack=f"stack-{n}", grants=())
            await store.append(
                streams.stack(f"s{n}"), 0, [granted], because=CAUSE, evidence=b"proof" if n % 7 == 0 else None
            )


async def verdict(world: World, *, limit: int = 50_000) -> Verdict:
    async with world.store("git") as store, world.bus("git") as bus:
        inquiry = Inquiry(store, bus)
        answer = await inquiry.verify(VerifyLog(limit=limit), CAUSE)
        while not answer.finished:
            answer = await inquiry.verify(
                VerifyLog(after=answer.position, hash=answer.hash, limit=limit), CAUSE
            )
        return answer


async def tamper(world: World, statement: str) -> None:
    """What only the owner of the database could do, past every trigger."""
    connection = await connect(world.owner_dsn)
    await connection.execute(OWNERS_WAY + statement)
    await connection.close()


async def test_an_untouched_log_verifies(world: World) -> None:
    """The recomputed chain ends where the head says, whatever the size of the stretches it is checked in."""
    await filled(world)
    for limit in (7, 50_000):
        answer = await verdict(world, limit=limit)
        assert (answer.bad, answer.position, answer.head) == (None, 40, 40)


@pytest.mark.parametrize(
    ("statement", "first"),
    [
        (
            "update log.events set data = replace(data::text, 'stack-20', 'stack-2o')::json where position = 21",
            "event 21",
        ),
        ("update log.events set actor = 'cli:tesu' where position = 21", "event 21"),
        ("update log.events set at = at + interval '1 microsecond' where position = 21", "event 21"),
        ("update log.events set evidence = 'prooF' where position = 22", "event 22"),
        ("update log.events set evidence = 'proof' where position = 21", "event 21"),
        ("update log.events set evidence = null where position = 22", "event 22"),
        ("delete from log.events where position = 21", "event 21 is missing"),
        ("delete from log.events where position >= 21", "event 21 is missing"),
        (
            """update log.events set position = -21 where position = 21; update log.events set position = 21 where position = 22;
               update log.events set position = 22 where position = -21""",
            "event 21",
        ),
        ("update log.events set stream = 'stack-other' where position = 21", "event 21"),
        ("update log.events set hash = sha256('x') where position = 40", "event 40"),
    ],
)
async def test_the_first_bad_event_is_named(world: World, statement: str, first: str) -> None:
    """A flipped byte, a deleted row, a cut tail, a swapped pair: by the owner, past the triggers, and still found."""
    await filled(world)
    await tamper(world, statement)
    answer = await verdict(world)
    assert answer.bad is not None
    assert answer.bad.startswith(first)


async def test_a_tail_that_was_cut_with_the_head_shows_on_the_bus(world: World) -> None:
    """Whoever removes the newest rows and sets the head back makes a shorter log that fits: the bus remembers more."""
    await filled(world, 10)
    async with world.running("git"):
        pass
    async with world.store("deploy") as store, world.bus("relay") as bus:
        [_, *_, last] = await store.read_all(0)
        await bus.publish([Outgoing(last.id, last.type, last.position, to_cloudevent(last), None)])
    await tamper(
        world,
        "delete from log.events where position > 8; update log.head set position = 8, "
        "hash = (select hash from log.events where position = 8)",
    )
    answer = await verdict(world)
    assert answer.bad is not None
    assert "event 9 is missing: the bus told of events up to" in answer.bad


async def test_a_seal_cannot_be_made_by_whoever_rewrites_the_log(world: World) -> None:
    """A rewritten chain fits itself; the seals in it do not fit any more, and cannot be made anew without the key."""
    sealer = chain.Sealer("01" * 32)
    seal = sealer.seal(7, b"\x02" * 32)
    assert chain.seal_holds(seal)
    for field, value in (("position", 8), ("hash", "03" * 32), ("signature", "00" * 64)):
        assert not chain.seal_holds(seal.model_copy(update={field: value}))


async def test_a_seal_in_the_log_is_checked(world: World) -> None:
    """A seal of another history is found where it stands."""
    await filled(world, 5)
    async with world.store("relay") as store:
        head = await store.head()
        sealer = chain.Sealer("01" * 32)
        await store.append(streams.CHAIN, None, [sealer.seal(head.position, head.hash)], because=CAUSE)
        assert (await verdict(world)).sealed == 5
        await store.append(streams.CHAIN, None, [sealer.seal(5, b"\x05" * 32)], because=CAUSE)
    answer = await verdict(world)
    assert answer.bad == "the seal in event 7 does not fit what it seals"
