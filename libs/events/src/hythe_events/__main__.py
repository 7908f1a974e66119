"""What a server needs beside the services, as one-shot commands for its containers (see compose.yaml).

    python -m hythe_events setup DIR --nats-users FILE      makes the secrets, and tells NATS its users
    python -m hythe_events migrate DIR                      brings the database to this version
    python -m hythe_events healthcheck URL [--writable PATH …]

`healthcheck` runs every few seconds in every container: it imports nothing of ours and needs no curl.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

POSTGRES_PATIENCE = 60.0
"""Seconds that `migrate` waits for Postgres to answer."""
PROBE_SECONDS = 4.0


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command. 0 done or healthy; 1 unhealthy or not done; 2 not understood; 78 (EX_CONFIG) misconfigured."""
    asked = parser().parse_args(words)
    if asked.command == "healthcheck":
        trouble = ailing(asked.url, asked.writable)
        print(trouble or "ready")
        return 1 if trouble else 0
    from hythe_events.errors import HytheError, Misconfigured

    try:
        if asked.command == "setup":
            setup(asked.directory, asked.nats_users)
        else:
            asyncio.run(migrate(asked.directory))
    except HytheError as error:
        print(f"hythe: {error}", file=sys.stderr)
        return 78 if isinstance(error, Misconfigured) else 1
    return 0


def ailing(url: str, writable: Sequence[Path] = ()) -> str | None:
    """Why a service is not healthy, in one line; None when it is ready and may write to every path of `writable`."""
    for path in writable:
        try:
            owner = path.stat()
        except OSError as error:
            return f"{path} cannot be reached: {error.strerror}"
        if not os.access(path, os.W_OK):
            return (
                f"{path} may not be written by user {os.geteuid()}, groups {sorted({os.getegid(), *os.getgroups()})}: "
                f"it belongs to user {owner.st_uid}, group {owner.st_gid}"
            )
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{url} does not answer: {error}"
    finally:
        connection.close()
    if answer.status == http.client.OK:
        return None
    try:
        return "; ".join(json.loads(body)["troubles"])
    except (ValueError, KeyError, TypeError):
        return f"{url} answered {answer.status}"


def setup(directory: Path, nats_users: Path) -> None:
    """Makes the secrets in `directory` that are missing (0400), and writes NATS' users to a file. Raises Misconfigured."""
    from hythe_events.errors import Misconfigured
    from hythe_events.installation import Vault, write_whole

    vault = Vault(directory, mode=0o400)
    try:
        vault.fill(postgres=True)
        write_whole(nats_users, vault.nats_users(), 0o444)
    except OSError as error:
        raise Misconfigured(f"{error.filename or directory} cannot be written: {error.strerror}") from error
    print("the secrets are there")


async def migrate(directory: Path) -> None:
    """Migrates the database at `HYTHE_POSTGRES_URL` as its owner. Raises Misconfigured, StoreUnavailable."""
    from hythe_events.errors import StoreUnavailable
    from hythe_events.installation import DATABASE_OWNER, Vault, read_secret
    from hythe_events.migrate import migrate as bring_up_to_date
    from hythe_events.postgres import with_login
    from hythe_events.settings import ServiceSettings

    vault = Vault(directory)
    dsn = with_login(ServiceSettings().postgres_url, DATABASE_OWNER, read_secret(vault.owner_password_file))
    loop = asyncio.get_running_loop()
    until = loop.time() + POSTGRES_PATIENCE
    while True:
        try:
            applied = await bring_up_to_date(dsn, vault.role_passwords())
        except StoreUnavailable:
            if loop.time() >= until:
                raise
            await asyncio.sleep(1)
        else:
            print(f"applied {', '.join(applied)}" if applied else "the database is up to date")
            return


def parser() -> argparse.ArgumentParser:
    """The commands and what each is told."""
    top = argparse.ArgumentParser(
        prog="python -m hythe_events", description=__doc__ and __doc__.splitlines()[0]
    )
    commands = top.add_subparsers(dest="command", required=True)

    making = commands.add_parser("setup", help="make the secrets, and tell NATS its users")
    making.add_argument(
        "directory", type=Path, help="the folder of the secrets: one folder in it for each who knows some"
    )
    making.add_argument(
        "--nats-users", type=Path, required=True, help="the file for the server's authorization block"
    )

    migrating = commands.add_parser(
        "migrate", help="bring the database at HYTHE_POSTGRES_URL to this version"
    )
    migrating.add_argument("directory", type=Path, help="the folder of the secrets")

    probing = commands.add_parser("healthcheck", help="ask a service whether it is ready")
    probing.add_argument("url", help="such as http://127.0.0.1:8090/readyz")
    probing.add_argument(
        "--writable",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a path it must be able to write",
    )
    return top


if __name__ == "__main__":
    sys.exit(main())
