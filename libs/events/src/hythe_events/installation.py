"""The secrets of one installation: who holds which, and how they are made.

    <folder>/owner/     master_key, seal_key: the originals, for whoever makes backups
    <folder>/relay/     nats_seed, postgres_password: the originals of those who may publish the log
    <folder>/client/    nats_seed
    <folder>/<service>/ nats_seed, postgres_password, and copies of the shared keys it needs; see settings.py
    <folder>/postgres/  owner_password, where Postgres is a server of its own

Everything is made once and never changes by itself. Whoever loses `master_key` has lost every secret that Hythe was
given; a backup without it is worth little. `hythe up` keeps this folder in `HYTHE_HOME`; on a server each folder in it
is a volume, so that a container sees its own and no other.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import nkeys

from hythe_events.access import SERVICES, nats_authorization
from hythe_events.errors import Misconfigured

RELAYS = ("git", "build", "deploy")
"""The services that may publish the log. Not webhooks: it is the one that strangers talk to."""

SHARED = {"master_key": SERVICES, "seal_key": RELAYS}
"""The keys that several hold, and who they are."""

ROLES = (*SERVICES, "relay")
USERS = (*ROLES, "client")

DATABASE_OWNER = "hythe_owner"
"""The role that migrates the database on a server; no service logs in as it."""

FOR_THE_GROUP = 0o440
"""Postgres runs as a user of its own image: it reads its password as a member of our group."""


class Vault:
    """One such folder. `mode` is that of the files; folders are 0700. Nothing is made before `fill`."""

    def __init__(self, folder: Path, *, mode: int = 0o600) -> None:
        self.folder = folder
        self._mode = mode

    def of(self, who: str) -> Path:
        """The folder of a service, `relay`, `client`, `owner` or `postgres`."""
        return self.folder / who

    def fill(self, *, postgres: bool = False) -> None:
        """Makes what is missing; what is there stays. `postgres` asks for the database owner's password too.

        Raises Misconfigured when an original is gone of which there are copies: a new one would replace those.
        """
        for name, holders in SHARED.items():
            original = self.of("owner") / name
            copies = [copy for who in holders if (copy := self.of(who) / name).exists()]
            if copies and not original.exists():
                raise Misconfigured(
                    f"{original} is missing; {copies[0]} is a copy of it: put it back from there"
                )
            self._made(original, lambda: secrets.token_hex(32))
        for who in USERS:
            self._made(self.of(who) / "nats_seed", _new_seed)
        for who in ROLES:
            self._made(self.of(who) / "postgres_password", lambda: secrets.token_urlsafe(32))
        for name, holders in SHARED.items():
            for who in holders:
                self._copied(self.of("owner") / name, self.of(who) / name)
        for who in RELAYS:
            for name in ("nats_seed", "postgres_password"):
                self._copied(self.of("relay") / name, self.of(who) / f"relay_{name}")
        if postgres:
            self._made(self.owner_password_file, lambda: secrets.token_urlsafe(32), FOR_THE_GROUP)

    @property
    def owner_password_file(self) -> Path:
        """The password of `DATABASE_OWNER`."""
        return self.of("postgres") / "owner_password"

    def role_passwords(self) -> dict[str, str]:
        """The passwords of the Postgres roles, by the name of whom each belongs to. Raises Misconfigured."""
        return {who: read_secret(self.of(who) / "postgres_password") for who in ROLES}

    def nats_users(self) -> str:
        """The `authorization` block for the NATS server: public keys and permissions, no secret. Raises Misconfigured."""
        return nats_authorization(self.public_keys())

    def public_keys(self) -> dict[str, str]:
        """The public nkeys of the NATS users. Raises Misconfigured."""
        return {who: _public(read_secret(self.of(who) / "nats_seed")) for who in USERS}

    def _made(self, file: Path, make: Callable[[], str], mode: int | None = None) -> None:
        if not file.exists():
            self._write(file, make() + "\n", mode)

    def _copied(self, original: Path, file: Path) -> None:
        content = original.read_text()
        if not file.exists() or file.read_text() != content:
            self._write(file, content)

    def _write(self, file: Path, content: str, mode: int | None = None) -> None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(file, content, self._mode if mode is None else mode)


def write_whole(file: Path, content: str, mode: int = 0o600) -> None:
    """Writes a file with `mode`, all of it or nothing, and on disk when this returns."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        os.fchmod(descriptor, mode)
        opened.write(content)
        opened.flush()
        os.fsync(descriptor)
    new.replace(file)


def read_secret(file: Path) -> str:
    """A secret file's content without white space around it. Raises Misconfigured."""
    try:
        return file.read_text().strip()
    except OSError as error:
        raise Misconfigured(f"the secret file {file} cannot be read: {error.strerror}") from error


def _new_seed() -> str:
    return bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)).decode()


def _public(seed: str) -> str:
    return bytes(nkeys.from_seed(bytearray(seed.encode())).public_key).decode()
