"""Secrets: opened in their own place only, forgotten for good when asked to, and kept through a new master key."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hythe_events.errors import Misconfigured, NotPermitted
from hythe_events.language import Sealed
from hythe_events.postgres import connect, our_errors
from hythe_events.secrets import (
    REMEMBERED,
    Keys,
    MasterKeys,
    PostgresKeys,
    SealBroken,
    Secrets,
    Shredded,
    WrappedKey,
    master_id,
    read_master_keys,
)
from hythe_events.settings import ServiceSettings
from hythe_events.store import Store
from hythe_events.testing import MemoryKeys, MigratedDatabase

MASTER, NEW_MASTER, WRONG_MASTER = (bytes([n]) * 32 for n in (1, 2, 3))


class Place(NamedTuple):
    kind: str = "source"
    owner: str = "github"
    name: str = "webhook-secret"
    version: int = 1


HERE = Place()
CANARY = "It's a Secret to Everybody"


async def sealed_at(secrets: Secrets, place: Place, secret: str | bytes = CANARY) -> str:
    return await secrets.seal(**place._asdict(), secret=secret)


async def opened_at(secrets: Secrets, place: Place, sealed: str) -> bytes:
    return await secrets.open(**place._asdict(), sealed=sealed)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def secrets_on(
    keys: Keys, master: bytes = MASTER, former: bytes | None = None, clock: Clock | None = None
) -> Secrets:
    return Secrets(keys, lambda: MasterKeys(master, former), clock=clock or Clock())


@pytest_asyncio.fixture
async def store(database: MigratedDatabase) -> AsyncIterator[Store]:
    async with Store.open(database.dsn("git")) as opened:
        yield opened


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.real)])
def keys(request: pytest.FixtureRequest) -> Keys:
    """Both places that data keys can be kept in: what is promised holds for either."""
    return MemoryKeys() if request.param == "memory" else PostgresKeys(request.getfixturevalue("store"))


# -- sealing and opening


@pytest.mark.parametrize("secret", ["", "x", CANARY, "ünïcödé\n", b"\x00\xff" * 5000])
async def test_what_was_sealed_is_opened(secret: str | bytes) -> None:
    """And the text fits where events hold sealed secrets."""
    secrets = secrets_on(MemoryKeys())
    sealed = await sealed_at(secrets, HERE, secret)
    assert TypeAdapter(Sealed).validate_python(sealed) == sealed
    assert await opened_at(secrets, HERE, sealed) == (secret.encode() if isinstance(secret, str) else secret)


async def test_the_same_secret_never_looks_the_same() -> None:
    """Nobody may see from the log that two places hold one password."""
    secrets = secrets_on(MemoryKeys())
    assert await sealed_at(secrets, HERE) != await sealed_at(secrets, HERE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        HERE._replace(kind="repository"),
        HERE._replace(owner="gitlab"),
        HERE._replace(name="webhook-secret2"),
        HERE._replace(version=2),
        Place("source", "github|14", "webhook-secret", 1),
        Place("sourc", "egithub", "webhook-secret", 1),
    ],
)
async def test_a_secret_that_was_moved_does_not_open(elsewhere: Place) -> None:
    """Else whoever can write one row could put a secret where they may read it."""
    secrets = secrets_on(MemoryKeys())
    sealed = await sealed_at(secrets, HERE)
    with pytest.raises(SealBroken):
        await opened_at(secrets, elsewhere, sealed)


async def test_a_secret_of_another_owner_does_not_open_under_this_ones_key() -> None:
    """Swapping the rows of two stacks is found, whichever way."""
    secrets = secrets_on(MemoryKeys())
    other = HERE._replace(owner="other")
    ours, theirs = await sealed_at(secrets, HERE), await sealed_at(secrets, other)
    for place, sealed in ((HERE, theirs), (other, ours)):
        with pytest.raises(SealBroken):
            await opened_at(secrets, place, sealed)


async def test_each_changed_character_of_a_sealed_text_is_found() -> None:
    """Every character, those with spare bits in them too: base64 could be written in several ways."""
    secrets = secrets_on(MemoryKeys())
    sealed = await sealed_at(secrets, HERE)
    for at, char in enumerate(sealed):
        for other in {"A", "B", "_", ".", "=", chr(ord(char) ^ 1)} - {char}:
            changed = sealed[:at] + other + sealed[at + 1 :]
            with pytest.raises(SealBroken):
                await opened_at(secrets, HERE, changed)
    for cut in range(len(sealed)):
        with pytest.raises(SealBroken):
            await opened_at(secrets, HERE, sealed[:cut])


async def test_each_flipped_bit_of_a_sealed_body_is_found() -> None:
    """Key id, nonce, ciphertext and tag alike."""
    secrets = secrets_on(MemoryKeys())
    sealed = await secrets.sealed_bytes(**HERE._asdict(), body=b'{"ref": "refs/heads/main"}')
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(SealBroken):
            await secrets.opened_bytes(**HERE._asdict(), sealed=bytes(changed))
    for cut in range(len(sealed)):
        with pytest.raises(SealBroken):
            await secrets.opened_bytes(**HERE._asdict(), sealed=sealed[:cut])


async def test_a_sealed_text_cannot_be_passed_off_as_a_sealed_body() -> None:
    """They are sealed for different forms, though the key is the same."""
    secrets = secrets_on(MemoryKeys())
    body = await secrets.sealed_bytes(**HERE._asdict(), body=b"x")
    text = await sealed_at(secrets, HERE, b"x")
    assert not text.encode().startswith(body[:1])
    from hythe_events.secrets import _text

    forged = f"v1.{_text(body[1:17])}.{_text(body[17:29])}.{_text(body[29:])}"
    with pytest.raises(SealBroken):
        await opened_at(secrets, HERE, forged)


@pytest.mark.parametrize("size", [0, 1, 8000, 2_000_000])
async def test_a_body_comes_back_whole_and_smaller_than_it_was(size: int) -> None:
    """Webhook bodies are JSON: they are compressed before they are sealed."""
    secrets = secrets_on(MemoryKeys())
    body = (b'{"key": "value"}' * (size // 16 + 1))[:size]
    sealed = await secrets.sealed_bytes(**HERE._asdict(), body=body)
    assert await secrets.opened_bytes(**HERE._asdict(), sealed=sealed) == body
    assert len(sealed) < size or size < 8000


@settings(max_examples=50)
@given(st.text(), st.text(), st.text(), st.integers(), st.binary())
def test_any_place_and_any_secret_can_be_sealed(
    kind: str, owner: str, name: str, version: int, secret: bytes
) -> None:
    """Names come from people."""
    place = Place(
        kind.encode(errors="ignore").decode(),
        owner.encode(errors="ignore").decode(),
        "n" + name.encode(errors="ignore").decode(),
        version,
    )

    async def there_and_back() -> bytes:
        secrets = secrets_on(MemoryKeys())
        return await opened_at(secrets, place, await sealed_at(secrets, place, secret))

    assert asyncio.run(there_and_back()) == secret


# -- the keys' life, in memory and in Postgres


async def test_another_process_opens_what_this_one_sealed(keys: Keys) -> None:
    """The data key is in the database, so a restart loses nothing."""
    sealed = await sealed_at(secrets_on(keys), HERE)
    again = secrets_on(keys)
    await again.check()
    assert await opened_at(again, HERE, sealed) == CANARY.encode()


async def test_two_processes_that_start_at_once_share_one_key(keys: Keys) -> None:
    """An owner with two keys would survive being shredded by half."""
    processes = [secrets_on(keys) for _ in range(8)]
    sealed = await asyncio.gather(*(sealed_at(process, HERE) for process in processes))
    assert len({text.split(".")[1] for text in sealed}) == 1
    assert sum((await keys.masters()).values()) == 1
    for process, text in zip(processes, reversed(sealed), strict=True):
        assert await opened_at(process, HERE, text) == CANARY.encode()


async def test_a_shredded_secret_is_gone_and_says_so(keys: Keys) -> None:
    """For the process that shredded it at once, for the others within minutes, and for every later one."""
    clock = Clock()
    ours, theirs = secrets_on(keys), secrets_on(keys, clock=clock)
    other = HERE._replace(owner="other")
    sealed, kept = await sealed_at(ours, HERE), await sealed_at(ours, other)
    body = await ours.sealed_bytes(**HERE._asdict(), body=b"{}")
    assert await opened_at(theirs, HERE, sealed) == CANARY.encode()

    assert await ours.shred(HERE.owner) == 1
    assert await ours.shred(HERE.owner) == 0

    clock.now += REMEMBERED + 1
    for process in (ours, theirs, secrets_on(keys)):
        with pytest.raises(Shredded):
            await opened_at(process, HERE, sealed)
        with pytest.raises(Shredded):
            await process.opened_bytes(**HERE._asdict(), sealed=body)
        assert await opened_at(process, other, kept) == CANARY.encode()


async def test_an_owner_that_comes_back_gets_a_new_key(keys: Keys) -> None:
    """A stack of the same name may be made again; what its forerunner sealed stays gone."""
    secrets = secrets_on(keys)
    old = await sealed_at(secrets, HERE)
    await secrets.shred(HERE.owner)
    new = await sealed_at(secrets, HERE)
    assert await opened_at(secrets_on(keys), HERE, new) == CANARY.encode()
    with pytest.raises(Shredded):
        await opened_at(secrets_on(keys), HERE, old)


async def test_a_worn_key_is_replaced_and_still_opens_what_it_sealed(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random nonces of one key may not come near 2^32 (NIST SP 800-38D, 8.3)."""
    monkeypatch.setattr("hythe_events.secrets.SEALS_PER_KEY", 3)
    first, second = secrets_on(keys), secrets_on(keys)
    sealed = [await sealed_at(first, HERE) for _ in range(4)]
    bodies = [await first.sealed_bytes(**HERE._asdict(), body=b"{}") for _ in range(4)]
    used = {text.split(".")[1] for text in sealed}
    assert len(used) == 2
    assert (await sealed_at(second, HERE)).split(".")[1] not in used
    for text in sealed:
        assert await opened_at(secrets_on(keys), HERE, text) == CANARY.encode()
    for body in bodies:
        assert await secrets_on(keys).opened_bytes(**HERE._asdict(), sealed=body) == b"{}"


# -- the master key


async def test_a_wrong_master_key_refuses_to_start(keys: Keys) -> None:
    """It must never look as if there were no secrets."""
    sealed = await sealed_at(secrets_on(keys), HERE)
    wrong = secrets_on(keys, WRONG_MASTER)
    with pytest.raises(Misconfigured, match="master_key"):
        await wrong.check()
    with pytest.raises(Misconfigured, match="master_key"):
        await opened_at(wrong, HERE, sealed)
    with pytest.raises(Misconfigured, match="master_key"):
        await sealed_at(wrong, HERE)


async def test_a_new_master_key_wraps_all_keys_and_changes_no_secret(keys: Keys) -> None:
    """While it is under way, services that run with both keys go on."""
    places = [HERE._replace(owner=f"stack-{n}") for n in range(5)]
    before = secrets_on(keys)
    sealed = {place: await sealed_at(before, place) for place in places}

    rotating = secrets_on(keys, NEW_MASTER, MASTER)
    assert await rotating.rotate(NEW_MASTER) == len(places)
    assert await rotating.rotate(NEW_MASTER) == 0

    after = secrets_on(keys, NEW_MASTER)
    await after.check()
    for place in places:
        assert await opened_at(after, place, sealed[place]) == CANARY.encode()
    with pytest.raises(Misconfigured):
        await secrets_on(keys, MASTER).check()


class DiesAfter(MemoryKeys):
    """Keys that cannot be reached any more after some of them were wrapped anew."""

    left = 2

    async def rewrap(self, key: WrappedKey, master_id: str, wrapped: bytes) -> bool:
        if self.left == 0:
            raise ConnectionError
        self.left -= 1
        return await super().rewrap(key, master_id, wrapped)


async def test_a_rotation_that_was_killed_goes_on_where_it_was() -> None:
    """In between, everything opens: each row says which master key wraps it."""
    keys = DiesAfter()
    places = [HERE._replace(owner=f"stack-{n}") for n in range(5)]
    sealed = {place: await sealed_at(secrets_on(keys), place) for place in places}
    with pytest.raises(ConnectionError):
        await secrets_on(keys, NEW_MASTER, MASTER).rotate(NEW_MASTER)
    assert await keys.masters() == {master_id(MASTER): 3, master_id(NEW_MASTER): 2}

    between = secrets_on(keys, NEW_MASTER, MASTER)
    await between.check()
    for place in places:
        assert await opened_at(between, place, sealed[place]) == CANARY.encode()

    keys.left = 100
    assert await secrets_on(keys, NEW_MASTER, MASTER).rotate(NEW_MASTER) == 3
    assert await keys.masters() == {master_id(NEW_MASTER): 5}


async def test_a_running_service_takes_the_new_master_key_without_a_restart(keys: Keys) -> None:
    """It reads the files again when it meets a key that is wrapped otherwise."""
    files = MasterKeys(MASTER)
    running = Secrets(keys, lambda: files, clock=Clock())
    sealed = await sealed_at(secrets_on(keys), HERE)
    files = MasterKeys(NEW_MASTER, MASTER)
    await secrets_on(keys, NEW_MASTER, MASTER).rotate(NEW_MASTER)
    assert await opened_at(running, HERE, sealed) == CANARY.encode()
    await sealed_at(running, HERE._replace(owner="new"))
    assert await keys.masters() == {master_id(NEW_MASTER): 2}


# -- the master key's file


def secrets_dir(folder: Path, **files: str) -> ServiceSettings:
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return ServiceSettings(secrets_dir=folder)


def test_the_master_key_is_read_from_its_file(tmp_path: Path) -> None:
    """Hex, so that it survives being copied by hand; a former one only while it is being replaced."""
    assert read_master_keys(secrets_dir(tmp_path, master_key=MASTER.hex() + "\n")) == MasterKeys(MASTER)
    both = secrets_dir(tmp_path, master_key=NEW_MASTER.hex(), master_key_former=MASTER.hex())
    assert read_master_keys(both) == MasterKeys(NEW_MASTER, MASTER)


@pytest.mark.parametrize(
    "text", ["", "hunter2", "00" * 31, "00" * 33, "zz" * 32, MASTER.hex() + " " + MASTER.hex()]
)
def test_a_master_key_that_is_none_is_refused_and_never_shown(tmp_path: Path, text: str) -> None:
    """The message names the file and what it must hold, not what it holds."""
    with pytest.raises(Misconfigured, match="master_key must hold 64 hex digits") as refused:
        read_master_keys(secrets_dir(tmp_path, master_key=text))
    assert not text or text not in str(refused.value)


def test_a_missing_master_key_says_where_it_was_looked_for(tmp_path: Path) -> None:
    """The message names the file."""
    with pytest.raises(Misconfigured, match="master_key"):
        read_master_keys(ServiceSettings(secrets_dir=tmp_path))


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o620])
def test_a_master_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever has it and a copy of the database has every secret."""
    configured = secrets_dir(tmp_path, master_key=MASTER.hex())
    (tmp_path / "master_key").chmod(mode)
    with pytest.raises(Misconfigured, match="chmod 600"):
        read_master_keys(configured)


def test_no_key_shows_in_a_repr() -> None:
    """Reprs end up in logs and tracebacks."""
    assert MASTER.hex() not in repr(MasterKeys(MASTER, NEW_MASTER))
    assert "\\x01\\x01" not in repr(MasterKeys(MASTER, NEW_MASTER))


# -- in Postgres


async def test_a_service_sees_its_own_keys_only(database: MigratedDatabase, store: Store) -> None:
    """A stack and a source may have one name, and a service that was taken over opens no other's secrets."""
    async with Store.open(database.dsn("webhooks")) as others:
        git, webhooks = PostgresKeys(store), PostgresKeys(others)
        sealed = await sealed_at(secrets_on(git), HERE)
        with pytest.raises(SealBroken):
            await opened_at(secrets_on(webhooks), HERE, sealed)
        assert await webhooks.masters() == {}
        assert await webhooks.to_rewrap("another", 10) == []
        assert await webhooks.shred(HERE.owner) == 0
        theirs = await sealed_at(secrets_on(webhooks), HERE)
        assert theirs.split(".")[1] != sealed.split(".")[1]
        assert await git.shred(HERE.owner) == 1
        assert await opened_at(secrets_on(webhooks), HERE, theirs) == CANARY.encode()


async def test_the_owner_of_the_log_rotates_all_services_keys(
    database: MigratedDatabase, store: Store
) -> None:
    """One command for everything, by whoever may migrate the database."""
    async with Store.open(database.dsn("webhooks")) as others, Store.open(database.owner) as owner:
        for each in (store, others):
            await sealed_at(secrets_on(PostgresKeys(each)), HERE)
        assert await secrets_on(PostgresKeys(owner), NEW_MASTER, MASTER).rotate(NEW_MASTER) == 2


@pytest.mark.parametrize("service", ["webhooks", "git", "build", "deploy", "relay"])
async def test_no_service_touches_the_table_of_keys(database: MigratedDatabase, service: str) -> None:
    """Through the functions only, by grant."""
    connection = await connect(database.dsn(service))
    for statement in (
        "select * from log.data_keys",
        "insert into log.data_keys (key_id, service, owner, master_id) values (gen_random_uuid(), 'x', 'x', 'x')",
        "update log.data_keys set wrapped = null",
        "delete from log.data_keys",
        "truncate log.data_keys",
        "drop table log.data_keys",
        "alter table log.data_keys disable trigger all",
    ):
        with pytest.raises(NotPermitted):
            async with our_errors():
                await connection.execute(statement)
    await connection.close()


async def test_the_relay_has_no_business_with_keys(database: MigratedDatabase) -> None:
    """It publishes what is sealed and opens nothing."""
    connection = await connect(database.dsn("relay"))
    with pytest.raises(NotPermitted):
        async with our_errors():
            await connection.fetch("select * from log.data_key_in_use('github')")
    await connection.close()


async def test_a_wrapped_key_that_was_changed_in_the_database_is_found(
    database: MigratedDatabase, store: Store
) -> None:
    """RFC 3394 checks integrity: a changed key is an error, not another key."""
    sealed = await sealed_at(secrets_on(PostgresKeys(store)), HERE)
    connection = await connect(database.owner)
    await connection.execute(
        "update log.data_keys set wrapped = set_byte(wrapped, 5, get_byte(wrapped, 5) # 1)"
    )
    await connection.close()
    with pytest.raises(SealBroken, match="changed in the database"):
        await opened_at(secrets_on(PostgresKeys(store)), HERE, sealed)


async def test_no_secret_and_no_key_is_in_the_database(database: MigratedDatabase, store: Store) -> None:
    """A dump of the database opens nothing."""
    secrets = secrets_on(PostgresKeys(store))
    await sealed_at(secrets, HERE)
    connection = await connect(database.owner)
    dump = str(await connection.fetch("select k::text from log.data_keys k"))
    await connection.close()
    assert len(dump) > 100
    assert MASTER.hex() not in dump
    assert CANARY not in dump


async def test_bodies_are_sealed_without_asking_the_database(store: Store) -> None:
    """The webhook path seals every body: once the key is known, a database that is gone does not matter."""
    secrets = secrets_on(PostgresKeys(store))
    await secrets.sealed_bytes(**HERE._asdict(), body=b"{}")
    await store._close()
    body = os.urandom(8000)
    sealed = await secrets.sealed_bytes(**HERE._asdict(), body=body)
    assert await secrets.opened_bytes(**HERE._asdict(), sealed=sealed) == body
