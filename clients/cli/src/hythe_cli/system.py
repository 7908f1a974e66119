"""The whole of Hythe on this machine: Postgres, NATS and the four services, each a process of its own.

```
prepare secrets ──► Postgres ──► migrate ──┐
               └──► NATS ──────────────────┴──► webhooks, git, build, deploy ──► ready
stop: webhooks (nothing new comes in) ──► git, build, deploy (what is under way ends or is left for next time) ──► NATS ──► Postgres
```

A part that ends by itself is started again, with growing pauses; what it was doing goes on where it was, because
every part is written so that it may be killed at any instant. When this process dies, all of them die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from hythe_cli.home import Home, Place
from hythe_cli.local.engine import docker_host
from hythe_cli.local.nats import NatsServer
from hythe_cli.local.postgres import PostgresServer
from hythe_cli.local.processes import (
    AlreadyRunning,
    DidNotStart,
    Program,
    Running,
    become_ready,
    describe_exit,
    only_us,
    remembered_port,
    start,
)
from hythe_events import postgres
from hythe_events.access import SERVICES, nats_authorization
from hythe_events.errors import HytheError, Misconfigured
from hythe_events.migrate import migrate

DATABASE = "hythe"
READY_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE, STEADY_AFTER = 0.2, 10.0, 30.0
"""Seconds: the pauses before a part is started again, and how long it must run to count as healthy."""


class HytheRuns(HytheError):
    """Hythe runs already."""

    exit_code = 3


class Part(Protocol):
    """One part of the system. `start` returns when it runs; `stop` and `kill` may be called at any time, and twice."""

    @property
    def pid(self) -> int | None: ...

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def kill(self) -> None: ...
    async def wait(self) -> int: ...
    def last_words(self) -> str: ...


class ServiceProcess:
    """One of the four services as a process: `python -m hythe_<name>`."""

    def __init__(self, name: str, home: Home, settings: Mapping[str, str]) -> None:
        self.name = name
        self.home = home
        self.settings = dict(settings)
        self.only_once: dict[str, str] = {}
        """Added to the settings of the next start, and forgotten then: how a test gives one process `HYTHE_FAULTS`."""
        self.health_port = 0
        self._running: Running | None = None

    @property
    def pid(self) -> int | None:
        return self._running.pid if self._running and self._running.exit_code is None else None

    async def start(self) -> None:
        self.health_port = remembered_port(self.home.port(f"{self.name}-health"))
        once, self.only_once = self.only_once, {}
        program = Program(
            name=self.name,
            argv=[sys.executable, "-m", f"hythe_{self.name}"],
            log=self.home.log(self.name),
            env={**os.environ, **self.settings, "HYTHE_HEALTH_PORT": str(self.health_port), **once},
            cwd=self.home.service(self.name),
            stop_seconds=float(self.settings.get("HYTHE_GRACE", "20")) + 5,
        )
        self._running = await start(program)

    async def until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until the service says that it is ready. Raises DidNotStart with its last words, and kills it then."""
        assert self._running is not None
        await become_ready(self._running, self._ready(), seconds)

    async def is_ready(self) -> bool:
        """Whether the service answers 200 at /readyz."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.health_port)
        except OSError:
            return False
        try:
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in await reader.readline()
        except OSError:
            return False
        finally:
            writer.close()

    async def stop(self) -> None:
        if self._running is not None:
            await self._running.stop()

    async def kill(self) -> None:
        if self._running is not None:
            await self._running.kill()

    async def wait(self) -> int:
        assert self._running is not None
        return await self._running.wait()

    def last_words(self) -> str:
        return self._running.last_words() if self._running else ""

    async def _ready(self) -> None:
        while not await self.is_ready():
            await asyncio.sleep(0.02)


class System:
    """All of it. `async with System(home) as system` starts everything and stops everything in order.

    `settings` are environment variables for every service, `per_service` for one; both win over what is set here.
    `tell` hears one sentence whenever a part ended unexpectedly.
    """

    def __init__(
        self,
        directory: Path,
        *,
        stacks: Path | None = None,
        webhooks_host: str = "127.0.0.1",
        webhooks_port: int | None = None,
        settings: Mapping[str, str] | None = None,
        per_service: Mapping[str, Mapping[str, str]] | None = None,
        tell: Callable[[str], None] = lambda _sentence: None,
    ) -> None:
        self.home = Home(directory)
        self.stacks = (stacks or self.home.stacks()).expanduser().absolute()
        self.webhooks_host = webhooks_host
        self.webhooks_port = webhooks_port or 0
        self.seconds_to_ready = 0.0
        self._chosen_port = webhooks_port
        self._settings = dict(settings or {})
        self._per_service = {name: dict(extra) for name, extra in (per_service or {}).items()}
        self._tell = tell
        self._held = contextlib.ExitStack()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self.postgres = PostgresServer(self.home.postgres)
        self.nats = NatsServer(self.home.nats)
        self.services: dict[str, ServiceProcess] = {}

    @property
    def webhooks_url(self) -> str:
        """Where forges post to, as this machine sees it."""
        host = "127.0.0.1" if self.webhooks_host in {"0.0.0.0", "::"} else self.webhooks_host
        return f"http://{host}:{self.webhooks_port}"

    @property
    def client_seed(self) -> Path:
        """The file with the seed of the NATS user `client`."""
        return self.home.secrets("client") / "nats_seed"

    async def __aenter__(self) -> System:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything and return when all of it is ready.

        Raises HytheRuns when it runs already, DidNotStart with a part's last words; then nothing is left running.
        """
        since = time.monotonic()
        self._hold()
        try:
            self.home.prepare()
            self._prepare_stacks()
            self.nats.authorization = nats_authorization(self.home.public_keys())
            async with asyncio.TaskGroup() as starting:
                starting.create_task(self._start_postgres())
                starting.create_task(self.nats.start())
            self.webhooks_port = self._chosen_port or remembered_port(self.home.port("webhooks"))
            self.services = {
                name: ServiceProcess(name, self.home, self._settings_of(name)) for name in SERVICES
            }
            async with asyncio.TaskGroup() as starting:
                for service in self.services.values():
                    starting.create_task(self._start_service(service))
            for name, part in self._parts().items():
                self._watch(name, part)
            self.home.tell_place(self.place())
        except BaseException as error:
            await asyncio.shield(self._stop_all())
            if isinstance(error, ExceptionGroup):
                raise _first(error) from error
            raise
        self.seconds_to_ready = time.monotonic() - since

    async def stop(self) -> None:
        """Stop everything in order. May be called twice, and before `start`."""
        await asyncio.shield(self._stop_all())

    def place(self) -> Place:
        """Where this Hythe is, as the other commands need to know it."""
        return Place(
            pid=os.getpid(),
            nats_url=self.nats.url,
            seed_file=self.client_seed,
            webhooks_url=self.webhooks_url,
            stacks_dir=self.stacks,
            started_at=datetime.now(UTC),
            health={
                name: f"http://127.0.0.1:{service.health_port}" for name, service in self.services.items()
            },
        )

    async def stop_part(self, name: str, *, kill: bool = False) -> None:
        """Stop one part (`postgres`, `nats` or a service) and leave it stopped; `kill` ends it as a crash would."""
        await self._unwatch(name)
        part = self._parts()[name]
        await (part.kill() if kill else part.stop())

    async def start_part(self, name: str, **only_once: str) -> None:
        """Start one part that was stopped, and return when it is ready.

        `only_once` are environment variables for this process alone: when it ends and is started again, they are gone.
        """
        part = self._parts()[name]
        if isinstance(part, ServiceProcess):
            part.only_once = only_once
            await self._start_service(part)
        else:
            await part.start()
        self._watch(name, part)

    async def crash(self, name: str) -> None:
        """End one part as `kill -9` does; it is started again like after any crash."""
        await self._parts()[name].kill()

    async def until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until every service says that it is ready. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not all([await service.is_ready() for service in self.services.values()]):
                await asyncio.sleep(0.02)

    def _parts(self) -> dict[str, Part]:
        return {"postgres": self.postgres, "nats": self.nats, **self.services}

    def _hold(self) -> None:
        try:
            self._held.enter_context(only_us(self.home.directory))
        except AlreadyRunning as error:
            place = self.home.place()
            who = f"process {place.pid}" if place else "another process, which is starting or stopping"
            raise HytheRuns(
                f"Hythe runs already in {self.home.directory}, as {who}: stop that one first "
                f"({f'kill {place.pid}, or ' if place else ''}Ctrl-C where it runs), or use another folder with --home"
            ) from error

    def _prepare_stacks(self) -> None:
        try:
            self.stacks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Misconfigured(
                f"the folder for stacks, {self.stacks}, cannot be made ({error.strerror}): set STACKS_DIR to one that can"
            ) from error
        self.home.remember_stacks(self.stacks)

    async def _start_postgres(self) -> None:
        await self.postgres.start()
        owner = await postgres.connect(self.postgres.superuser_dsn, application="hythe up")
        try:
            if not await owner.fetchval("select 1 from pg_database where datname = $1", DATABASE):
                await owner.execute(f'create database "{DATABASE}"')
        finally:
            await owner.close()
        await migrate(self.postgres.dsn(database=DATABASE), self.home.role_passwords())

    async def _start_service(self, service: ServiceProcess) -> None:
        await service.start()
        await service.until_ready()

    def _settings_of(self, name: str) -> dict[str, str]:
        settings = {
            "HYTHE_POSTGRES_URL": f"postgresql://127.0.0.1:{self.postgres.port}/{DATABASE}",
            "HYTHE_NATS_URL": self.nats.url,
            "HYTHE_NATS_MONITOR_URL": self.nats.monitor_url,
            "HYTHE_SECRETS_DIR": str(self.home.secrets(name)),
            "HYTHE_RELAY": "true" if (self.home.secrets(name) / "relay_nats_seed").exists() else "false",
        }
        settings |= {
            "webhooks": {"HYTHE_HOST": self.webhooks_host, "HYTHE_PORT": str(self.webhooks_port)},
            "git": {"HYTHE_GIT_DIR": str(self.home.service("git"))},
            "build": {
                "HYTHE_DOCKER_HOST": docker_host(),
                "HYTHE_BUILD_DIR": str(self.home.service("build")),
            },
            "deploy": {"HYTHE_DOCKER_HOST": docker_host(), "HYTHE_STACKS_DIR": str(self.stacks)},
        }[name]
        return settings | self._settings | self._per_service.get(name, {})

    def _watch(self, name: str, part: Part) -> None:
        self._watches[name] = asyncio.create_task(self._keep(name, part), name=f"keep {name} running")

    async def _unwatch(self, name: str) -> None:
        watch = self._watches.pop(name, None)
        if watch is not None:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    async def _keep(self, name: str, part: Part) -> None:
        """Start a part again each time it ends, until this task is cancelled."""
        pause = FIRST_PAUSE
        while True:
            since = time.monotonic()
            what = describe_exit(await part.wait())
            if time.monotonic() - since >= STEADY_AFTER:
                pause = FIRST_PAUSE
            self._tell(f"{name} {what}; starting it again")
            while True:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                try:
                    await part.start()
                except DidNotStart as error:
                    self._tell(f"{name} does not start, trying again in {pause:g} s: {error}")
                else:
                    break

    async def _stop_all(self) -> None:
        for name in list(self._watches):
            await self._unwatch(name)
        webhooks = [service for name, service in self.services.items() if name == "webhooks"]
        others = [service for name, service in self.services.items() if name != "webhooks"]
        for together in (webhooks, others):
            await asyncio.gather(*(service.stop() for service in together))
        await self.nats.stop()
        await self.postgres.stop()
        self.home.forget_place()
        self._held.close()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, however deep: one sentence is enough for a person."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
