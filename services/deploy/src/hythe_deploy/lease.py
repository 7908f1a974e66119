"""The right to touch a stack: a lease with a fencing token, kept in Postgres and measured by its clock.

One holder per stack. The token (the *fence*) only grows; it is checked before each call that changes something, and
travels with the call as an HTTP header. A holder whose lease ran out aborts; the next one first ends the program that
the last one may have left running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID

from hythe_events.errors import HytheError, NotNow, StoreUnavailable
from hythe_events.postgres import Connection

Result = TypeVar("Result")

LOOK_AGAIN = 0.1
"""Seconds between two looks at a lease that somebody else holds."""


class LeaseLost(NotNow):
    """The lease on the stack was lost; whoever holds it now goes on."""


class StackBusy(NotNow):
    """Another deployment of the stack is still running."""


class Superseded(HytheError):
    """A later request for the stack was started first."""


class LeaseKept(HytheError):
    """The stack is held since a restore failed; look at it, then roll it back to a deployment that works."""


class Child(NamedTuple):
    """A running program, by process id and start time (clock ticks since boot), so that a reused id is no mistake."""

    host: str
    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Child:
        """The program that runs as `pid`; `started` is 0 when it has already gone."""
        return cls(_host(), pid, _started(pid))

    def end(self) -> None:
        """Kill it and what it started, if it is still the same program and runs on this machine."""
        if self.host == _host() and self.started and _started(self.pid) == self.started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


def _host() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def _started(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat (proc(5)); 0 when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


class Database(Protocol):
    """What a lease needs of the event store."""

    def transaction(self) -> AbstractAsyncContextManager[Connection]: ...


class Hold(Protocol):
    """A lease that is held."""

    @property
    def stack(self) -> str: ...

    @property
    def fence(self) -> int: ...

    @property
    def newest(self) -> int:
        """The log position of the newest request that ever held this stack's lease."""

    async def check(self) -> None:
        """Returns while the lease is held with time to spare. Raises LeaseLost."""

    async def note(self, pid: int) -> None:
        """Remembers the program `pid` as one that changes the stack. Raises LeaseLost."""

    def keep(self) -> None:
        """The lease is not given back at the end: somebody must look at the stack first."""


@dataclass
class _Held:
    database: Database
    stack: str
    fence: int
    newest: int
    seconds: float
    kept: bool = False

    async def check(self) -> None:
        await self._ask("select log.check_lease($1, $2, $3)", self.seconds / 4)

    async def renew(self) -> None:
        await self._ask("select log.renew_lease($1, $2, $3)", self.seconds)

    async def note(self, pid: int) -> None:
        await self._ask("select log.note_child($1, $2, $3, $4, $5)", *Child.of(pid))

    def keep(self) -> None:
        self.kept = True

    async def release(self) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(
                "select log.release_lease($1, $2, $3)", self.stack, self.fence, self.kept
            )

    async def _ask(self, sql: str, *args: object) -> None:
        async with self.database.transaction() as connection:
            mine = await connection.fetchval(sql, self.stack, self.fence, *args)
        if not mine:
            raise LeaseLost(f"the lease on stack {self.stack} was lost (fence {self.fence})")


@dataclass(frozen=True)
class Leases:
    """The leases of all stacks. `seconds` is how long one lasts without being renewed."""

    database: Database
    seconds: float = 10.0

    @asynccontextmanager
    async def hold(
        self, stack: str, deployment: UUID, asked: int, *, wait: float = 60.0, force: bool = False
    ) -> AsyncIterator[Hold]:
        """Holds the lease of `stack` for `deployment`, whose request stands at log position `asked`.

        Waits up to `wait` seconds for a holder to end. Raises StackBusy, Superseded, LeaseKept (unless `force`); and
        LeaseLost, out of whatever is being done, as soon as the lease cannot be renewed.
        """
        held = await self._take(stack, deployment, asked, wait, force)
        renewing = asyncio.create_task(_until_lost(held, asyncio.current_task()))
        try:
            yield held
        except asyncio.CancelledError:
            if renewing.done() and not renewing.cancelled() and (lost := renewing.exception()) is not None:
                task = asyncio.current_task()
                if task is not None and task.uncancel() == 0:
                    raise lost from None
            raise
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
            await _whole(self._give_back(held))

    async def _take(self, stack: str, deployment: UUID, asked: int, wait: float, force: bool) -> _Held:
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        while True:
            async with self.database.transaction() as connection:
                row = await connection.fetchrow(
                    "select * from log.take_lease($1, $2, $3, $4, $5)",
                    stack,
                    deployment,
                    asked,
                    self.seconds,
                    force,
                )
            assert row is not None
            match row["verdict"]:
                case "granted":
                    if row["child_pid"] is not None:
                        Child(row["child_host"], row["child_pid"], row["child_started"]).end()
                    return _Held(self.database, stack, row["fence"], row["newest"], self.seconds)
                case "superseded":
                    raise Superseded
                case "kept":
                    raise LeaseKept(
                        f"stack {stack} is held since deployment {row['holder']} could not be put back; "
                        "look at it, then roll it back to a deployment that works"
                    )
            if loop.time() >= end:
                raise StackBusy(f"deployment {row['holder']} of stack {stack} is still running")
            await asyncio.sleep(LOOK_AGAIN)

    async def _give_back(self, held: _Held) -> None:
        with contextlib.suppress(StoreUnavailable):  # then it runs out by itself
            await held.release()


async def _until_lost(held: _Held, holder: asyncio.Task[Any] | None) -> None:
    """Renews until cancelled. When that fails for as long as the lease lasts, the holder is stopped."""
    loop = asyncio.get_running_loop()
    lasts = loop.time() + held.seconds
    try:
        while True:
            await asyncio.sleep(held.seconds / 4)
            try:
                async with asyncio.timeout_at(lasts):
                    await held.renew()
            except (StoreUnavailable, TimeoutError):
                if loop.time() >= lasts - held.seconds / 4:
                    raise LeaseLost(f"the lease on stack {held.stack} could not be renewed in time") from None
            else:
                lasts = loop.time() + held.seconds
    except LeaseLost:
        if holder is not None:
            holder.cancel()
        raise


async def _whole(work: Coroutine[Any, Any, Result]) -> Result:
    """Carries `work` to its end even when the task is being cancelled; then the cancellation goes on."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
