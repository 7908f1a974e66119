"""The folder that holds everything, and above all its secrets."""

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hythe_cli.home import Home, Place, default_home
from hythe_cli.local.processes import only_us
from hythe_events.access import SERVICES, nats_authorization
from hythe_events.errors import Misconfigured
from hythe_events.installation import RELAYS


def files(home: Home) -> dict[str, str]:
    below = home.directory / "secrets"
    return {
        str(file.relative_to(below)): file.read_text() for file in sorted(below.rglob("*")) if file.is_file()
    }


def test_secrets_are_made_once_and_never_change(tmp_path: Path) -> None:
    """A second start with new keys could not read what the first one sealed."""
    home = Home(tmp_path / "hythe")
    home.prepare()
    first = files(home)
    home.prepare()
    assert files(home) == first


def test_nobody_else_may_read_a_secret(tmp_path: Path) -> None:
    """Other users of the machine are not of the family."""
    home = Home(tmp_path / "hythe")
    home.prepare()
    for path in (home.directory / "secrets").rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_each_service_knows_its_own_secrets_and_no_others(tmp_path: Path) -> None:
    """Whoever takes over the service that strangers talk to does not thereby get the right to publish the log."""
    home = Home(tmp_path / "hythe")
    home.prepare()
    made = files(home)
    seeds = {made[f"{who}/nats_seed"] for who in (*SERVICES, "relay", "client")}
    assert len(seeds) == 6
    assert {name for name in made if name.startswith("webhooks/")} == {
        "webhooks/master_key",
        "webhooks/nats_seed",
        "webhooks/postgres_password",
    }
    for who in RELAYS:
        assert made[f"{who}/relay_nats_seed"] == made["relay/nats_seed"]


def test_the_bus_is_told_public_keys_only(tmp_path: Path) -> None:
    """A configuration file is read by more eyes than a key."""
    home = Home(tmp_path / "hythe")
    home.prepare()
    written = nats_authorization(home.public_keys())
    assert all(key.startswith("U") and key in written for key in home.public_keys().values())
    assert not any(content.strip() in written for content in files(home).values())


def test_a_lost_master_key_stops_the_start(tmp_path: Path) -> None:
    """A new one would silently turn every kept secret into noise."""
    home = Home(tmp_path / "hythe")
    home.prepare()
    (home.postgres / "data").mkdir(parents=True)
    (home.postgres / "data" / "PG_VERSION").write_text("18\n")
    (home.secrets("owner") / "master_key").unlink()
    with pytest.raises(Misconfigured, match="master_key is missing"):
        home.prepare()


def test_a_running_hythe_is_found_by_its_folder(tmp_path: Path) -> None:
    """The other commands need its address and the file with the key, never the key itself."""
    home = Home(tmp_path / "hythe")
    home.prepare()
    assert home.place() is None
    place = Place(
        pid=1,
        nats_url="nats://127.0.0.1:4222",
        seed_file=home.secrets("client") / "nats_seed",
        webhooks_url="http://127.0.0.1:8080",
        stacks_dir=tmp_path / "stacks",
        started_at=datetime.now(UTC),
        health={"git": "http://127.0.0.1:1"},
    )
    with only_us(home.directory):
        home.tell_place(place)
        assert home.place() == place
        assert "SU" not in (home.directory / "system.json").read_text()
    assert home.place() is None, "whoever wrote it is gone"


def test_a_torn_place_is_no_place(tmp_path: Path) -> None:
    """A file from another version, or half of one, must not crash every command."""
    home = Home(tmp_path)
    (tmp_path / "system.json").write_text('{"pid": ')
    with only_us(tmp_path):
        assert home.place() is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HYTHE_HOME": "/srv/hythe"}, Path("/srv/hythe")),
        ({"XDG_DATA_HOME": "/data"}, Path("/data/hythe")),
        ({}, Path.home() / ".local/share/hythe"),
    ],
)
def test_the_folder_is_where_the_user_says_or_where_data_belongs(
    environment: dict[str, str], expected: Path
) -> None:
    """XDG base directories say where that is."""
    assert default_home(environment) == expected


def test_stacks_live_where_they_lived_last_time(tmp_path: Path) -> None:
    """Rights change, and a stack may not move because of it."""
    home = Home(tmp_path / "hythe")
    home.prepare()
    home.remember_stacks(tmp_path / "there")
    assert home.stacks({}) == tmp_path / "there"
    assert home.stacks({"STACKS_DIR": "/srv/stacks"}) == Path("/srv/stacks")
