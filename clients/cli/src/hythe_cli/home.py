"""The folder in which one Hythe keeps all it has: `HYTHE_HOME`.

    in-use            held by the process that runs this Hythe; it holds that process's number
    system.json       where the running Hythe is, for the other commands (0600)
    secrets/<who>/    what each of them needs to know, and nobody else: files of 0600 in folders of 0700
    postgres/  nats/  the two servers' data, ports and logs
    services/<name>/  what each service keeps: mirrors of repositories, scratch space
    log/<name>.log    what each service says
    ports/            the ports that were taken last time, and are taken again
    stacks-dir        where the stacks' folders are

What is in `secrets`, and how it is made, stands in hythe_events.installation. See docs/operating.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hythe_events.access import SERVICES
from hythe_events.errors import Misconfigured
from hythe_events.installation import Vault, write_whole


@dataclass(frozen=True)
class Place:
    """Where a running Hythe is: what `system.json` holds."""

    pid: int
    nats_url: str
    seed_file: Path
    webhooks_url: str
    stacks_dir: Path
    started_at: datetime
    health: dict[str, str]


def default_home(environment: dict[str, str] | None = None) -> Path:
    """`HYTHE_HOME`, or `~/.local/share/hythe` (below `XDG_DATA_HOME` where that is set)."""
    told = os.environ if environment is None else environment
    if told.get("HYTHE_HOME"):
        return Path(told["HYTHE_HOME"]).expanduser().absolute()
    data = told.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local/share") / "hythe"


DOCKGES = Path("/opt/stacks")
"""Where Dockge has its stacks."""


class Home:
    """One such folder. Nothing is made before `prepare`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.expanduser().absolute()
        self.vault = Vault(self.directory / "secrets")

    @property
    def postgres(self) -> Path:
        return self.directory / "postgres"

    @property
    def nats(self) -> Path:
        return self.directory / "nats"

    def service(self, name: str) -> Path:
        """The folder a service may write in."""
        return self.directory / "services" / name

    def log(self, name: str) -> Path:
        return self.directory / "log" / f"{name}.log"

    def port(self, name: str) -> Path:
        """The file that remembers a port."""
        return self.directory / "ports" / name

    def secrets(self, who: str) -> Path:
        return self.vault.of(who)

    def prepare(self) -> None:
        """Make the folders, and on the first start the secrets.

        Raises Misconfigured when data is there but the key to it is gone: a new key would not open the old secrets.
        """
        for folder in (
            self.directory,
            self.directory / "log",
            self.directory / "ports",
            self.directory / "secrets",
        ):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in SERVICES:
            self.service(name).mkdir(parents=True, exist_ok=True, mode=0o700)
        if (self.postgres / "data" / "PG_VERSION").exists() and not (
            self.secrets("owner") / "master_key"
        ).exists():
            raise Misconfigured(
                f"{self.secrets('owner') / 'master_key'} is missing, and without it the secrets that this Hythe "
                "keeps cannot be read: put it back from a backup, or start with another HYTHE_HOME"
            )
        self.vault.fill()

    def role_passwords(self) -> dict[str, str]:
        """The passwords of the Postgres roles, by the name of the service each belongs to."""
        return self.vault.role_passwords()

    def public_keys(self) -> dict[str, str]:
        """The public nkeys of the NATS users."""
        return self.vault.public_keys()

    def stacks(self, environment: dict[str, str] | None = None) -> Path:
        """Where the stacks' folders are: `STACKS_DIR`; or where they were last time; or /opt/stacks, where Dockge looks
        too, if we may write there; or a folder in here."""
        told = (os.environ if environment is None else environment).get("STACKS_DIR")
        if told:
            return Path(told).expanduser().absolute()
        with contextlib.suppress(FileNotFoundError):
            return Path(self._stacks_file.read_text().strip())
        existing = next(path for path in (DOCKGES, *DOCKGES.parents) if path.exists())
        return DOCKGES if os.access(existing, os.W_OK | os.X_OK) else self.directory / "stacks"

    def remember_stacks(self, folder: Path) -> None:
        """Use the same folder next time, whatever has become of our rights by then."""
        write_whole(self._stacks_file, f"{folder}\n")

    def _is_held(self) -> bool:
        """Whether a process holds the folder. The kernel knows, whatever files were left behind."""
        try:
            with (self.directory / "in-use").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @property
    def _stacks_file(self) -> Path:
        return self.directory / "stacks-dir"

    def tell_place(self, place: Place) -> None:
        """Write `system.json`."""
        shown = {
            name: str(value) if not isinstance(value, int | dict) else value
            for name, value in vars(place).items()
        }
        write_whole(self.directory / "system.json", json.dumps(shown, indent=2) + "\n")

    def forget_place(self) -> None:
        (self.directory / "system.json").unlink(missing_ok=True)

    def place(self) -> Place | None:
        """Where this Hythe runs; None when it does not, or its last words cannot be read."""
        try:
            held: dict[str, Any] = json.loads((self.directory / "system.json").read_text())
            place = Place(
                pid=int(held["pid"]),
                nats_url=held["nats_url"],
                seed_file=Path(held["seed_file"]),
                webhooks_url=held["webhooks_url"],
                stacks_dir=Path(held["stacks_dir"]),
                started_at=datetime.fromisoformat(held["started_at"]),
                health=held["health"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # Who was killed could not take back what it had written.
        return place if self._is_held() else None
