"""The one-shot jobs of a server: making secrets, migrating, and asking a service how it is."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import nkeys
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from hythe_cli.local.testing import ScratchPostgres
from hythe_events.__main__ import ailing, main
from hythe_events.access import SERVICES
from hythe_events.errors import Misconfigured
from hythe_events.installation import DATABASE_OWNER, RELAYS, Vault, write_whole
from hythe_events.postgres import connect


def files(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


# -- secrets


def test_whoever_needs_a_secret_has_it_and_nobody_else(tmp_path: Path) -> None:
    """Each folder becomes a volume of one container: what is in it is all that container will ever know."""
    Vault(tmp_path).fill(postgres=True)
    own = {"nats_seed", "postgres_password"}
    relay = {"relay_nats_seed", "relay_postgres_password", "seal_key"}
    expected = {who: own | {"master_key"} | (relay if who in RELAYS else set()) for who in SERVICES}
    expected |= {"owner": {"master_key", "seal_key"}, "relay": own, "client": {"nats_seed"}}
    expected |= {"postgres": {"owner_password"}}
    assert {
        folder.name: {file.name for file in folder.iterdir()} for folder in tmp_path.iterdir()
    } == expected


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """`setup` runs at every start of a server: a second key would not open what the first one sealed."""
    Vault(tmp_path).fill(postgres=True)
    first = files(tmp_path)
    Vault(tmp_path).fill(postgres=True)
    assert files(tmp_path) == first
    (tmp_path / "client" / "nats_seed").unlink()
    Vault(tmp_path).fill(postgres=True)
    second = files(tmp_path)
    assert {name for name in second if second[name] != first[name]} == {"client/nats_seed"}


def test_a_lost_original_is_not_replaced_by_a_new_one(tmp_path: Path) -> None:
    """The copies are then the last there is: a new original would overwrite them."""
    vault = Vault(tmp_path)
    vault.fill()
    before = files(tmp_path)
    (tmp_path / "owner" / "master_key").unlink()
    with pytest.raises(Misconfigured, match=r"owner/master_key is missing; .*webhooks/master_key is a copy"):
        vault.fill()
    assert files(tmp_path) == {name: text for name, text in before.items() if name != "owner/master_key"}


def test_a_secret_is_never_readable_for_others_not_even_while_it_is_written(tmp_path: Path) -> None:
    """The file has its mode before it has its content, whatever the umask says."""
    before = os.umask(0)
    try:
        write_whole(tmp_path / "secret", "x", 0o400)
        Vault(tmp_path / "made", mode=0o400).fill(postgres=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o400
    for file in (tmp_path / "made").rglob("*"):
        mode = 0o700 if file.is_dir() else 0o440 if file.name == "owner_password" else 0o400
        assert stat.S_IMODE(file.stat().st_mode) == mode, file


def test_setup_tells_nats_public_keys_and_permissions_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the file nor what the job prints holds a secret: both are read by others."""
    users = tmp_path / "authorization.conf"
    for _ in range(2):
        assert main(["setup", str(tmp_path / "secrets"), "--nats-users", str(users)]) == 0
    told = users.read_text()
    seed = (tmp_path / "secrets" / "git" / "nats_seed").read_text().strip()
    assert nkeys.from_seed(bytearray(seed.encode())).public_key.decode() in told
    said = capsys.readouterr()
    for secret in files(tmp_path / "secrets").values():
        assert secret.strip() not in told + said.out + said.err
    assert stat.S_IMODE(users.stat().st_mode) == 0o444


def test_setup_says_what_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A volume that belongs to somebody else is the likely mistake, and a traceback would not say so."""
    (tmp_path / "file").write_text("")
    assert main(["setup", str(tmp_path / "file"), "--nats-users", str(tmp_path / "users")]) == 78
    assert "cannot be written: Not a directory" in capsys.readouterr().err


# -- the database


async def test_migrate_brings_an_empty_database_to_this_version(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    postgres_server: ScratchPostgres,
) -> None:
    """As the owner that the Postgres image makes, with the password that `setup` made; twice changes nothing."""
    vault = Vault(tmp_path)
    vault.fill(postgres=True)
    password = vault.owner_password_file.read_text().strip()
    database = await postgres_server.fresh_database()
    owner = await connect(postgres_server.dsn(database=database), application="test")
    try:
        await owner.execute(f"drop role if exists {DATABASE_OWNER}")
        await owner.execute(f"create role {DATABASE_OWNER} superuser login password '{password}'")
        monkeypatch.setenv("HYTHE_POSTGRES_URL", f"postgresql://127.0.0.1:{postgres_server.port}/{database}")
        for said in ("applied 0001_log.sql", "the database is up to date"):
            assert await run(["migrate", str(tmp_path)]) == 0
            assert said in capsys.readouterr().out
        (tmp_path / "git" / "postgres_password").unlink()
        assert await run(["migrate", str(tmp_path)]) == 78
        assert "git/postgres_password cannot be read" in capsys.readouterr().err
    finally:
        await owner.close()
        await postgres_server.drop_database(database)


async def run(words: list[str]) -> int:
    """`main` has an event loop of its own, as in a process of its own."""
    return await asyncio.to_thread(main, words)


# -- health


@pytest_asyncio.fixture
async def service() -> AsyncIterator[TestServer]:
    async def readyz(_request: web.Request) -> web.Response:
        return web.json_response({"ready": True})

    async def starting(_request: web.Request) -> web.Response:
        return web.json_response({"troubles": ["the bus does not answer", "the relay waits"]}, status=503)

    async def broken(_request: web.Request) -> web.Response:
        return web.Response(text="<html>", status=502)

    app = web.Application()
    app.add_routes([web.get("/readyz", readyz), web.get("/starting", starting), web.get("/broken", broken)])
    server = TestServer(app)
    await server.start_server()
    yield server
    await server.close()


async def test_a_ready_service_is_healthy(service: TestServer) -> None:
    """Exit code 0 is all that Docker looks at."""
    assert await run(["healthcheck", str(service.make_url("/readyz"))]) == 0


@pytest.mark.parametrize(
    ("path", "said"),
    [("/starting", "the bus does not answer; the relay waits"), ("/broken", "answered 502")],
)
async def test_an_ailing_service_says_why(
    service: TestServer, path: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`docker inspect` shows what a health check printed: it should be the reason."""
    assert await run(["healthcheck", str(service.make_url(path))]) == 1
    assert said in capsys.readouterr().out


def test_a_service_that_is_not_there_is_not_healthy(unused_tcp_port: int) -> None:
    """And the check ends by itself."""
    trouble = ailing(f"http://127.0.0.1:{unused_tcp_port}/readyz")
    assert trouble is not None
    assert "does not answer" in trouble


async def test_a_path_that_is_not_there_is_an_ailment(service: TestServer, tmp_path: Path) -> None:
    """A folder of stacks that is missing should show at the start, not at the first push."""
    url = str(service.make_url("/readyz"))
    assert await run(["healthcheck", url, "--writable", str(tmp_path)]) == 0
    assert (
        ailing(url, [tmp_path / "gone"])
        == f"{tmp_path / 'gone'} cannot be reached: No such file or directory"
    )


def test_a_path_that_belongs_to_others_is_an_ailment() -> None:
    """Docker's socket with another group than was thought: the line says which it is."""
    as_nobody = (
        "import os, pathlib, hythe_events.__main__ as it\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(it.ailing('http://127.0.0.1:1/', [pathlib.Path('/etc/passwd')]))"
    )
    told = subprocess.run([sys.executable, "-c", as_nobody], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("/etc/passwd may not be written by user")
    assert "it belongs to user 0, group 0" in told.stdout
