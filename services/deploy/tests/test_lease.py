"""Leases on the real Postgres: one holder per stack, fences that only grow, and a holder that knows when it lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
import pytest_asyncio

from hythe_deploy.lease import Child, LeaseKept, LeaseLost, Leases, StackBusy, Superseded
from hythe_events.errors import NotPermitted
from hythe_events.store import Store
from hythe_events.testing import MigratedDatabase

A, B = UUID(int=1), UUID(int=2)


@pytest_asyncio.fixture
async def store(database: MigratedDatabase) -> AsyncIterator[Store]:
    async with Store.open(database.dsn("deploy"), readers=8) as opened:
        yield opened


async def run_out(database: MigratedDatabase, stack: str) -> None:
    """The lease ends now, as it does when its holder was gone for too long."""
    async with Store.open(database.owner) as owner, owner.transaction() as connection:
        await connection.execute("update log.leases set expires_at = '-infinity' where stack = $1", stack)


async def test_of_many_who_want_a_stack_one_has_it_at_a_time(store: Store) -> None:
    """Whoever waits gets it when the holder ends; fences grow in the order of holding (P2)."""
    leases, inside, fences = Leases(store), 0, list[int]()

    async def one(number: int) -> None:
        nonlocal inside
        async with leases.hold("shop", UUID(int=number), 5) as hold:
            inside += 1
            assert inside == 1
            await hold.check()
            fences.append(hold.fence)
            inside -= 1

    await asyncio.gather(*(one(number) for number in range(6)))
    assert len(fences) == 6
    assert fences == sorted(set(fences))


async def test_two_stacks_are_held_side_by_side(store: Store) -> None:
    """One slow stack must not hold up another."""
    async with Leases(store).hold("shop", A, 1) as one, Leases(store).hold("blog", B, 2) as other:
        assert one.fence != other.fence


async def test_a_stack_that_stays_busy_is_left_for_later(store: Store) -> None:
    """The error says so and may be tried again: the message comes back."""
    async with Leases(store).hold("shop", A, 1):
        with pytest.raises(StackBusy, match=f"deployment {A} of stack shop is still running") as busy:
            async with Leases(store).hold("shop", B, 2, wait=0.0):
                pass
        assert busy.value.retry


async def test_an_older_request_comes_too_late(store: Store) -> None:
    """It finds out at once, also while the newer one still runs (D11)."""
    async with Leases(store).hold("shop", B, 20):
        with pytest.raises(Superseded):
            async with Leases(store).hold("shop", A, 10):
                pass
    with pytest.raises(Superseded):
        async with Leases(store).hold("shop", A, 10):
            pass


async def test_a_holder_that_slept_too_long_has_lost_it(store: Store, database: MigratedDatabase) -> None:
    """D10: the next one has a higher fence, and the first can do nothing any more."""
    leases = Leases(store, seconds=600)
    async with leases.hold("shop", A, 1) as sleeper:
        await run_out(database, "shop")
        async with leases.hold("shop", B, 2) as holder:
            assert holder.fence > sleeper.fence
            for asked in (sleeper.check(), sleeper.note(os.getpid())):
                with pytest.raises(LeaseLost, match="the lease on stack shop was lost"):
                    await asked
            await holder.check()
    async with leases.hold("shop", B, 3, wait=0.0):
        pass  # the sleeper gave nothing back that was not its own


async def test_work_stops_when_the_lease_cannot_be_renewed(store: Store, database: MigratedDatabase) -> None:
    """It is stopped in the middle of whatever it does: a lost lease aborts."""

    async def work_for_ever() -> None:
        async with asyncio.timeout(20), Leases(store, seconds=1).hold("shop", A, 1):
            await run_out(database, "shop")
            await asyncio.Event().wait()

    with pytest.raises(LeaseLost):
        await work_for_ever()


async def test_a_lease_lasts_as_long_as_its_holder_renews_it(store: Store) -> None:
    """A long pull is no reason to lose the stack: the work here is as long as two leases."""
    async with Leases(store, seconds=1).hold("shop", A, 1) as hold:
        with pytest.raises(StackBusy):
            async with Leases(store).hold("shop", B, 2, wait=2.0):
                pass
        await hold.check()


async def test_a_lease_that_was_kept_waits_for_a_person(store: Store) -> None:
    """After a restore that failed nothing is deployed by itself; a rollback by hand takes over (D8)."""
    async with Leases(store).hold("shop", A, 1) as hold:
        hold.keep()
    with pytest.raises(LeaseKept, match=f"held since deployment {A} could not be put back"):
        async with Leases(store).hold("shop", B, 2):
            pass
    async with Leases(store).hold("shop", B, 3, force=True):
        pass
    async with Leases(store).hold("shop", B, 4):
        pass


async def test_the_next_holder_ends_what_the_last_one_left_running(
    store: Store, database: MigratedDatabase
) -> None:
    """A holder that was frozen may have a child at work; it must not go on beside the new holder's."""
    child = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    leases = Leases(store, seconds=600)
    async with leases.hold("shop", A, 1) as frozen:
        await frozen.note(child.pid)
        await run_out(database, "shop")
        async with leases.hold("shop", B, 2), asyncio.timeout(10):
            assert await child.wait() == -signal.SIGKILL


async def test_a_reused_process_id_is_no_mistake() -> None:
    """Only the program that was noted is ended: pid and start time must both fit."""
    mine = Child.of(os.getpid())
    mine._replace(started=mine.started + 1).end()
    mine._replace(host="elsewhere").end()
    assert Child.of(2**22 + 1).started == 0


async def test_only_the_deploy_service_may_hold_a_stack(database: MigratedDatabase) -> None:
    """The functions are granted to its role alone, and the table to nobody."""
    async with Store.open(database.dsn("build")) as other:
        with pytest.raises(NotPermitted):
            async with Leases(other).hold("shop", A, 1):
                pass
    async with Store.open(database.dsn("deploy")) as ours:
        with pytest.raises(NotPermitted):
            async with ours.transaction() as connection:
                await connection.execute("update log.leases set fence = 0")
