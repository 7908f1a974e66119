"""A private PostgreSQL 15 for one bench: its own directory, its own socket, gone afterwards. Durable: `fsync` and
`synchronous_commit` are on for everybody.

Debian's, because message-db needs pgcrypto, which the embedded Postgres of the product does not have.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.processes import DISK

BINARIES = Path("/usr/lib/postgresql/15/bin")

SETTINGS = {
    "listen_addresses": "''",
    "max_connections": "300",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "min_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "synchronous_commit": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "logging_collector": "off",
    "log_min_messages": "fatal",
}


@dataclass(frozen=True)
class Cluster:
    """A running server. `dsn(database)` is what every contestant connects with: the same socket for all."""

    socket: Path
    port: int
    data: Path

    def dsn(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.socket}&port={self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """For libpq's own tools: psql, createdb, pgbench."""
        return os.environ | {"PGHOST": str(self.socket), "PGPORT": str(self.port), "PGUSER": "postgres"}

    def run(self, *command: str, **more: str) -> str:
        """Run one of libpq's tools; returns what it printed. What it complains of is the error's text."""
        done = subprocess.run(
            command, env=self.environment | more, capture_output=True, text=True, check=False, timeout=600
        )
        if done.returncode:
            raise SystemExit(f"{command[0]} failed: {(done.stderr.strip() or done.stdout.strip())[:1000]}")
        return done.stdout

    def create(self, database: str) -> str:
        """Make an empty database; returns its address."""
        self.run(str(BINARIES / "createdb"), database)
        return self.dsn(database)

    def sql(self, database: str, statements: str) -> str:
        return self.run(
            str(BINARIES / "psql"),
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database,
            "-c",
            statements,
        )

    def settle(self) -> None:
        """Before a round: write out what the round before left behind, and take its log files into use again."""
        self.sql("postgres", "checkpoint")

    def age(self) -> None:
        """Fill the log once. A server that has run for a while reuses its log files; a new one creates and zeroes each,
        which costs whoever writes most the most."""
        self.sql(
            "postgres",
            "create table ageing as select repeat(md5(n::text), 200) as filling from generate_series(1, 1000) n; "
            "alter table ageing alter filling set storage external; "
            "insert into ageing select repeat(md5(n::text), 200) from generate_series(1, 220000) n; "
            "drop table ageing; checkpoint",
        )


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Initialise, start, and in the end stop and remove. As root it runs as the user `postgres`, as it must."""
    home = Path(tempfile.mkdtemp(prefix="hythe-bench-", dir=DISK))
    home.chmod(0o755)
    data = home / "data"
    as_owner: list[str] = []
    if os.getuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(home, owner.pw_uid, owner.pw_gid)
        as_owner = [
            "setpriv",
            f"--reuid={owner.pw_uid}",
            f"--regid={owner.pw_gid}",
            "--clear-groups",
            "--inh-caps=-all",
        ]

    def carry_out(*command: str) -> None:
        # No pipes: the server would inherit them and hold them open.
        with (home / "log").open("ab") as log:
            done = subprocess.run(
                [*as_owner, *command], stdout=log, stderr=log, check=False, timeout=120, cwd=home
            )
        if done.returncode:
            raise SystemExit(f"{command[0]} failed; its log: {(home / 'log').read_text()[-2000:]}")

    try:
        carry_out(
            str(BINARIES / "initdb"),
            *(
                "-D",
                str(data),
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ),
        )
        settings = SETTINGS | {"unix_socket_directories": f"'{home}'", "port": "5432"}
        with (data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = {value}\n" for name, value in settings.items())
        carry_out(
            str(BINARIES / "pg_ctl"),
            "-D",
            str(data),
            "-w",
            "-t",
            "60",
            "-l",
            str(home / "server.log"),
            "start",
        )
        try:
            cluster = Cluster(socket=home, port=5432, data=data)
            cluster.age()
            yield cluster
        finally:
            carry_out(str(BINARIES / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)
