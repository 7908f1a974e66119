"""The embedded Postgres: durable, quick to come back, and nobody else's."""

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hythe_cli.local.postgres import PostgresServer
from hythe_cli.local.processes import AlreadyRunning, DidNotStart
from hythe_cli.local.testing import ScratchPostgres

pytestmark = pytest.mark.real


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScratchPostgres]:
    server = ScratchPostgres(tmp_path / "pg")
    await server.start()
    yield server
    await server.stop()


async def test_it_keeps_what_it_acknowledged_through_a_crash(server: ScratchPostgres) -> None:
    """Committed means on disk: `kill -9` of the whole server loses nothing, and the next start recovers."""
    await server.run_sql("CREATE TABLE kept (n int)")
    await server.run_sql("INSERT INTO kept VALUES (42)")
    await server.kill()
    await server.start()
    assert await server.run_sql("SELECT n FROM kept") == "42"


async def test_it_takes_the_same_port_and_is_back_within_a_second(server: ScratchPostgres) -> None:
    """A second `./hythe up` must be ready within five seconds; Postgres may use one of them."""
    port = server.port
    await server.stop()
    since = time.monotonic()
    await server.start()
    assert time.monotonic() - since < 1.0
    assert server.port == port


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("data_checksums", "on"),
        ("data_sync_retry", "off"),
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("password_encryption", "scram-sha-256"),
        ("server_encoding", "UTF8"),
    ],
)
async def test_it_is_durable_and_reachable_from_this_machine_alone(
    postgres_server: ScratchPostgres, setting: str, value: str
) -> None:
    """These settings are the promise that a stored event stays stored."""
    assert await postgres_server.run_sql(f"SHOW {setting}") == value


async def test_durability_cannot_be_switched_off_by_settings(tmp_path: Path) -> None:
    """Whoever tunes the server cannot, by accident, make it forget."""
    server = ScratchPostgres(tmp_path / "pg", settings={"fsync": "off", "shared_buffers": "32MB"})
    await server.start()
    try:
        assert await server.run_sql("SHOW fsync") == "on"
        assert await server.run_sql("SHOW shared_buffers") == "32MB"
    finally:
        await server.stop()


async def test_nobody_gets_in_without_the_password(server: ScratchPostgres) -> None:
    """Other users of the machine can reach the port."""
    (server.directory / "password").rename(server.directory / "moved")
    (server.directory / "password").write_text("wrong\n")
    with pytest.raises(DidNotStart, match="password authentication failed"):
        await server.run_sql("SELECT 1")
    (server.directory / "moved").rename(server.directory / "password")
    assert stat.S_IMODE((server.directory / "password").stat().st_mode) == 0o600
    assert server.superuser_password() not in repr(server)


async def test_a_second_hythe_on_the_same_directory_is_refused(server: ScratchPostgres) -> None:
    """Two servers on one cluster would destroy it."""
    with pytest.raises(AlreadyRunning, match=f"in use by process {os.getpid()}"):
        await PostgresServer(server.directory).start()
    assert await server.run_sql("SELECT 1") == "1"


async def test_a_leftover_pid_that_is_now_another_programs_does_not_keep_it_down(
    server: ScratchPostgres,
) -> None:
    """After a reboot the number in postmaster.pid may be anything; Postgres alone would refuse to start."""
    lines = (server.data / "postmaster.pid").read_text().splitlines()
    await server.stop()
    stranger = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        (server.data / "postmaster.pid").write_text("\n".join([str(stranger.pid), *lines[1:], ""]))
        await server.start()
        assert await server.run_sql("SELECT 1") == "1"
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


async def test_a_server_that_outlived_its_parent_makes_way(server: ScratchPostgres, tmp_path: Path) -> None:
    """If the kernel's promise ever fails, the next start ends the old server instead of failing."""
    old = server.pid
    server._held.close()
    successor = ScratchPostgres(server.directory)
    await successor.start()
    try:
        assert successor.pid != old
        assert await successor.run_sql("SELECT 1") == "1"
    finally:
        await successor.stop()


async def test_half_a_cluster_is_made_anew(tmp_path: Path) -> None:
    """A first start that was killed in the middle must not need a hand."""
    (tmp_path / "pg" / "data.new").mkdir(parents=True)
    (tmp_path / "pg" / "data.new" / "half").touch()
    server = ScratchPostgres(tmp_path / "pg")
    await server.start()
    try:
        assert await server.run_sql("SELECT 1") == "1"
    finally:
        await server.stop()


async def test_each_test_has_a_database_of_its_own(postgres_server: ScratchPostgres) -> None:
    """Tests that share a server must not share rows."""
    first, second = await postgres_server.fresh_database(), await postgres_server.fresh_database()
    await postgres_server.run_sql("CREATE TABLE mine (n int)", database=first)
    assert await postgres_server.run_sql("SELECT to_regclass('mine')", database=second) == ""
    copy = await postgres_server.fresh_database(template=first)
    assert await postgres_server.run_sql("SELECT to_regclass('mine')", database=copy) == "mine"
    for name in (first, second, copy):
        await postgres_server.drop_database(name)


async def test_an_address_quotes_what_it_is_made_of(postgres_server: ScratchPostgres) -> None:
    """A password may hold any character."""
    address = postgres_server.dsn("git", "p@ss/w:rd", "hythe")
    assert address == f"postgresql://git:p%40ss%2Fw%3Ard@127.0.0.1:{postgres_server.port}/hythe"
