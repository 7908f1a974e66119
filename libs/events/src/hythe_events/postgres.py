"""The one door to Postgres: connections that are known to be durable, and the errors of the driver in our words.

Nothing else in Hythe imports the driver. A connection is refused when the server would not keep what it confirmed:
`fsync`, `full_page_writes` and `synchronous_commit` must be on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import UUID

import asyncpg
import asyncpg.pgproto.pgproto
from asyncpg import Connection, Pool, Record
from asyncpg.exceptions import (
    InsufficientPrivilegeError,
    InvalidAuthorizationSpecificationError,
    PostgresError,
    UniqueViolationError,
)

from hythe_events.errors import HytheError, Misconfigured, NotPermitted, StoreUnavailable

__all__ = [
    "Connection",
    "Pool",
    "QuickUuid",
    "Record",
    "UniqueViolationError",
    "connect",
    "open_pool",
    "our_errors",
    "with_login",
]

QuickUuid: Callable[[bytes], UUID] = asyncpg.pgproto.pgproto.UUID
"""The driver's own UUID: a `uuid.UUID` to everybody, and made and sent in a quarter of the time."""

CONNECT_TIMEOUT = 10.0
STATEMENT_TIMEOUT = 60.0


def with_login(url: str, role: str, password: str) -> str:
    """`url` with a role and its password put in; both are quoted."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(role, safe='')}:{quote(password, safe='')}@{host}"))


class _Plain(Connection):
    """A pooled connection that is given back as it is: nothing here changes a session, and resetting it costs a round trip."""

    def get_reset_query(self) -> str:
        return ""


@asynccontextmanager
async def our_errors() -> AsyncIterator[None]:
    """Turns the driver's errors into ours. A unique violation passes: the store reads it as an answer."""
    try:
        yield
    except UniqueViolationError:
        raise
    except InsufficientPrivilegeError as error:
        raise NotPermitted(f"Postgres refused: {error}") from error
    except InvalidAuthorizationSpecificationError as error:
        raise Misconfigured(f"Postgres refused the login: {error}") from error
    except (
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # the server went away in the midst of an exchange
        asyncpg.PostgresConnectionError,
        OSError,
        TimeoutError,
    ) as error:
        raise StoreUnavailable(f"the event store does not answer: {error or type(error).__name__}") from error
    except (
        asyncpg.CannotConnectNowError,
        asyncpg.AdminShutdownError,
        asyncpg.CrashShutdownError,
        asyncpg.LockNotAvailableError,
        asyncpg.QueryCanceledError,
        asyncpg.DeadlockDetectedError,
        asyncpg.DiskFullError,
        asyncpg.TooManyConnectionsError,
    ) as error:
        raise StoreUnavailable(f"the event store is not ready: {error}") from error
    except PostgresError as error:
        raise HytheError(f"the event store refused: {error}") from error


async def _prove_durable(connection: Connection) -> None:
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        value = await connection.fetchval(f"show {setting}")
        if value == "off":
            raise Misconfigured(
                f"Postgres runs with {setting}=off: what it confirms can be lost; switch it on"
            )


async def connect(dsn: str, *, application: str = "hythe") -> Connection:
    """One connection, proven durable. Raises StoreUnavailable, Misconfigured."""
    async with our_errors():
        connection: Connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT,
            command_timeout=STATEMENT_TIMEOUT,
            server_settings={"application_name": application},
        )
        await _prove_durable(connection)
        return connection


async def open_pool(dsn: str, *, size: int, application: str = "hythe") -> Pool:
    """A pool of at most `size` connections, each proven durable. Raises StoreUnavailable, Misconfigured."""
    async with our_errors():
        pool: Pool = await asyncpg.create_pool(
            dsn,
            min_size=0,  # otherwise the driver restores one in the background, and logs a traceback for each try
            max_size=size,
            timeout=CONNECT_TIMEOUT,
            command_timeout=STATEMENT_TIMEOUT,
            init=_prove_durable,
            connection_class=_Plain,
            server_settings={"application_name": application},
        )
        async with pool.acquire():
            return pool
