"""The Docker engine: the one thing a machine must have, found where there is one and installed where we may.

    answers on DOCKER_HOST or /var/run/docker.sock      it is used as it is
    root on Debian or Ubuntu                            `docker.io` is installed where missing, and started:
                                                        by the service manager, or as a program of ours
    anybody else                                        one line says what to install

Only the version is asked for here, over plain HTTP; what is *done* with Docker is the services' business.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from hythe_cli.local.processes import Program, Running, become_ready, last_lines, run_to_end, start
from hythe_events.errors import HytheError

DEFAULT_HOST = "unix:///var/run/docker.sock"
SYSTEMD = Path("/run/systemd/system")
PID_FILES = (Path("/var/run/docker.pid"), Path("/var/run/docker-ssd.pid"))


class NoEngine(HytheError):
    """No Docker engine answers."""


class NotAllowed(NoEngine):
    """A Docker engine is there, but this user may not speak to it."""


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answered."""

    host: str
    """As in DOCKER_HOST: unix:///… or tcp://…"""
    version: str
    api_version: str
    started: Running | None = None
    """The engine's process when it is ours."""

    @property
    def buildkit(self) -> bool:
        """Whether the engine has BuildKit inside; it came with API 1.39, whatever the client has."""
        return tuple(int(part) for part in self.api_version.split(".") if part.isdigit()) >= (1, 39)

    async def stop(self) -> None:
        """Stop the engine when it is ours, and every container with it; leave any other alone."""
        if self.started is not None:
            await self.started.stop()


def docker_host(environment: Mapping[str, str] = os.environ) -> str:
    """Where the engine is expected: DOCKER_HOST, or the usual socket."""
    return environment.get("DOCKER_HOST") or DEFAULT_HOST


async def find_engine(host: str | None = None, seconds: float = 5.0) -> Engine | None:
    """The engine that answers at `host`, or None when none does.

    Raises NotAllowed when it is there but not for this user.
    """
    host = host or docker_host()
    try:
        async with asyncio.timeout(seconds):
            told = await _ask_version(host)
    except PermissionError as error:
        raise NotAllowed(
            f"the Docker engine at {host} may not be used by this user: "
            "add the user to the group `docker` (sudo usermod -aG docker $USER, then log in again)"
        ) from error
    except (OSError, TimeoutError, ValueError):
        return None
    return Engine(
        host=host, version=str(told.get("Version", "?")), api_version=str(told.get("ApiVersion", "?"))
    )


async def ensure_engine(say: Callable[[str], None], *, log: Path, ends_with_us: bool = False) -> Engine:
    """The Docker engine of this machine, installed and started where that is needed and we may.

    `say` hears one line per thing that is done to the system. `log` is where an engine of ours writes. With
    `ends_with_us` an engine that we start stops when we do; without, it lives on as a service would.
    Raises NoEngine with what to do about it.
    """
    engine = await find_engine()
    if engine is not None:
        return engine
    host = docker_host()
    if host != DEFAULT_HOST:
        raise NoEngine(f"no Docker engine answers at {host} (DOCKER_HOST): start it, or unset DOCKER_HOST")
    if os.geteuid() != 0 or not is_debian_like():
        raise NoEngine(f"no Docker engine answers: {install_hint()}")
    if shutil.which("dockerd") is None:
        await install_packages(["docker.io"], say)
        if SYSTEMD.exists() or any(file.exists() for file in PID_FILES):
            # Debian starts what it installs, even without a service manager, unless it was told not to.
            engine = await _await_engine(20.0)
            if engine is not None:
                return engine
    if SYSTEMD.exists():
        say("starting the Docker engine (systemctl start docker)")
        code, output = await run_to_end("systemctl", "start", "docker", seconds=90)
        engine = await _await_engine(20.0)
        if engine is None:
            raise NoEngine(
                f"systemctl start docker ended with {code} and no engine answers: {output.strip()}"
            )
        return engine
    return await _start_our_own(say, log, ends_with_us=ends_with_us)


def install_hint() -> str:
    """What to do where no engine answers, in one line."""
    if shutil.which("dockerd") is not None:
        return "sudo systemctl start docker (or run dockerd as root)"
    if shutil.which("apt-get") is not None:
        return "sudo apt-get install -y docker.io && sudo systemctl start docker"
    return "install Docker Engine and start it: https://docs.docker.com/engine/install/"


async def ensure_packages(needed: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Install Debian packages for programs that are missing: program → package.

    Raises NoEngine with the line that says what to install where we may not.
    """
    missing = sorted({package for program, package in needed.items() if shutil.which(program) is None})
    if not missing:
        return
    if os.geteuid() != 0 or not is_debian_like():
        names = " ".join(missing)
        raise NoEngine(f"please install {names} (on Debian or Ubuntu: sudo apt-get install -y {names})")
    await install_packages(missing, say)


async def static_busybox(say: Callable[[str], None]) -> Path:
    """A busybox that needs no libraries, to build images from nothing with; installed where missing and allowed.

    Raises NoEngine with what to install where we may not.
    """
    found = shutil.which("busybox")
    if found is None or not await asyncio.to_thread(is_static, Path(found)):
        if os.geteuid() != 0 or not is_debian_like():
            raise NoEngine(
                "please install busybox-static (on Debian or Ubuntu: sudo apt-get install -y busybox-static)"
            )
        await install_packages(["busybox-static"], say)
        found = shutil.which("busybox")
    if found is None:
        raise NoEngine("busybox-static was installed, and still there is no busybox on PATH")
    return Path(found)


async def install_packages(packages: Sequence[str], say: Callable[[str], None]) -> None:
    """Install Debian packages with apt-get; raises NoEngine with its last words when that fails."""
    say(f"installing from Debian: {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    await run_to_end("apt-get", "-q", "update", env=environment, seconds=300)
    code, output = await run_to_end(
        "apt-get", "-q", "-y", "--no-install-recommends", "install", *packages, env=environment, seconds=900
    )
    if code != 0:
        end = "\n".join(output.strip().splitlines()[-10:])
        raise NoEngine(f"apt-get could not install {' '.join(packages)}; its last words:\n{end}")


def is_debian_like(os_release: Path = Path("/etc/os-release")) -> bool:
    """Whether apt-get and Debian's package names work here."""
    try:
        lines = os_release.read_text().splitlines()
    except OSError:
        return False
    told = {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}
    families = {told.get("ID", ""), *told.get("ID_LIKE", "").split()}
    return bool(families & {"debian", "ubuntu"}) and shutil.which("apt-get") is not None


def is_static(program: Path) -> bool:
    """Whether an ELF program runs without a dynamic loader (it has no PT_INTERP header)."""
    with program.open("rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF" or head[4] != 2:
            return False
        order: Literal["little", "big"] = "little" if head[5] == 1 else "big"
        table = int.from_bytes(head[32:40], order)
        size, count = int.from_bytes(head[54:56], order), int.from_bytes(head[56:58], order)
        file.seek(table)
        headers = file.read(size * count)
    return all(int.from_bytes(headers[at : at + 4], order) != 3 for at in range(0, len(headers), size))


async def _start_our_own(say: Callable[[str], None], log: Path, *, ends_with_us: bool) -> Engine:
    say(f"starting the Docker engine (dockerd; log: {log})")
    program = Program(
        name="The Docker engine",
        argv=["dockerd", "--host", DEFAULT_HOST],
        log=log,
        stop_seconds=30,
        # On SIGTERM it stops its containers in order; killed, it would leave them running.
        if_we_die=signal.SIGTERM if ends_with_us else None,
    )
    running = await start(program)
    await become_ready(running, _until_engine(), seconds=60)
    engine = await find_engine()
    if engine is None:
        raise NoEngine(
            f"the Docker engine started and no longer answers; its log ends:\n{last_lines(log, 15)}"
        )
    return Engine(engine.host, engine.version, engine.api_version, started=running)


async def _until_engine() -> None:
    while await find_engine() is None:
        await asyncio.sleep(0.05)


async def _await_engine(seconds: float) -> Engine | None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await _until_engine()
    return await find_engine()


async def _ask_version(host: str) -> dict[str, object]:
    """What the engine says of itself at GET /version; raises OSError or ValueError when it does not."""
    reader, writer = await _connect(host)
    try:
        writer.write(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n")
        answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ValueError(f"{host} does not answer as a Docker engine does")
    told = json.loads(body)
    if isinstance(told, dict):
        return told
    raise ValueError(f"{host} does not answer as a Docker engine does")


async def _connect(host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = urlsplit(host)
    if where.scheme == "unix":
        return await asyncio.open_unix_connection(where.path)
    if where.scheme in {"tcp", "http", "https"} and where.hostname:
        with_tls = where.scheme == "https" or bool(os.environ.get("DOCKER_TLS_VERIFY"))
        context = _tls() if with_tls else None
        return await asyncio.open_connection(where.hostname, where.port or 2375, ssl=context)
    raise ValueError(f"{host} is no address of a Docker engine that Hythe can use: unix:///… or tcp://…")


def _tls() -> ssl.SSLContext:
    folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context
