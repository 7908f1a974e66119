"""`hythe doctor`: what this machine has of what Hythe needs. One line per check; a bad one names what mends it."""

import asyncio
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hythe_cli import shown
from hythe_cli.home import Home, default_home
from hythe_cli.local.engine import NoEngine, find_engine, install_hint
from hythe_cli.local.postgres import bundled_bin_dir
from hythe_cli.local.processes import DidNotStart, installed_program, run_to_end
from hythe_events.errors import HytheError

OLDEST_API = (1, 41)
LEAST_DISK = 5 * 1000**3


@dataclass(frozen=True)
class Finding:
    """What one check saw, and the command (or the one thing to do) that mends it."""

    check: str
    ok: bool
    found: str
    mend: str = ""


async def doctor(*, json: shown.AsJson = False) -> int:
    """Look at what this machine has of what Hythe needs, and say how to mend what is missing."""
    home = Home(default_home())
    findings = await examine(home, home.stacks())
    if json:
        shown.show_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            shown.say(
                f"{'ok ' if finding.ok else 'BAD'} {finding.check:<12} {finding.found}",
                "" if finding.ok else "red",
            )
            if not finding.ok:
                shown.say(f"    mend it with: {finding.mend}")
    return shown.GOOD if all(finding.ok for finding in findings) else shown.BAD


async def examine(home: Home, stacks_dir: Path) -> list[Finding]:
    """Every check, in the order in which a person would mend things."""
    checks: list[Callable[[], Awaitable[Finding]]] = [
        python_version,
        git_programs,
        docker,
        compose,
        buildkit,
        servers,
        lambda: disk(home.directory),
        lambda: ports(home),
        lambda: clock(home.directory),
        lambda: writable("HYTHE_HOME", home.directory),
        lambda: writable("STACKS_DIR", stacks_dir),
    ]
    return [await check() for check in checks]


async def python_version() -> Finding:
    """Python 3.11 or newer."""
    return Finding(
        "Python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()}",
        "sudo apt-get install -y python3",
    )


async def git_programs() -> Finding:
    """git itself, and the part of it that serves repositories over HTTP (the demo and the tests use it)."""
    if shutil.which("git") is None:
        return Finding("git", False, "missing", "sudo apt-get install -y git")
    _, version = await run_to_end("git", "--version")
    _, where = await run_to_end("git", "--exec-path")
    served = (Path(where.strip()) / "git-http-backend").exists()
    found = version.strip().removeprefix("git version ")
    return Finding(
        "git", served, found + ("" if served else ", without http-backend"), "sudo apt-get install -y git"
    )


async def docker() -> Finding:
    """A Docker engine that answers and is not too old."""
    try:
        engine = await find_engine()
    except NoEngine as error:
        return Finding("Docker", False, "there, but not for this user", str(error).rpartition(": ")[2])
    if engine is None:
        return Finding("Docker", False, "no engine answers", install_hint())
    api = tuple(int(part) for part in engine.api_version.split(".") if part.isdigit())
    return Finding(
        "Docker",
        api >= OLDEST_API,
        f"{engine.version} (API {engine.api_version}) at {engine.host}",
        "install Docker Engine 20.10 or newer: https://docs.docker.com/engine/install/",
    )


async def compose() -> Finding:
    """The Compose program that our packages brought."""
    try:
        code, output = await run_to_end(str(installed_program("docker-compose")), "version", "--short")
    except DidNotStart:
        code, output = 1, "missing"
    return Finding("Compose", code == 0, output.strip(), "rm -rf .venv && ./hythe doctor")


async def buildkit() -> Finding:
    """Which builder the engine has. Both will do; without BuildKit, `dockerfile_inline` and build secrets cannot."""
    try:
        engine = await find_engine()
    except NoEngine:
        engine = None
    if engine is None:
        return Finding("BuildKit", False, "no engine to ask", install_hint())
    code, output = await run_to_end("docker", "buildx", "version") if shutil.which("docker") else (1, "")
    buildx = (
        f"buildx {output.split()[1]}" if code == 0 and len(output.split()) > 1 else "no buildx (not needed)"
    )
    builder = "BuildKit over the engine's API" if engine.buildkit else "the classic builder only"
    return Finding("BuildKit", True, f"{builder}, {buildx}")


async def servers() -> Finding:
    """The embedded Postgres and NATS programs run on this machine."""
    try:
        _, postgres = await run_to_end(str(bundled_bin_dir() / "postgres"), "--version")
        _, nats = await run_to_end(str(installed_program("nats-server")), "--version")
    except (HytheError, OSError) as error:
        return Finding("servers", False, str(error), "rm -rf .venv && ./hythe doctor")
    ok = "PostgreSQL" in postgres and "nats-server" in nats
    return Finding("servers", ok, f"{postgres.strip()}, {nats.strip()}", "rm -rf .venv && ./hythe doctor")


async def disk(directory: Path) -> Finding:
    """Room for images, archives and the log."""
    free = shutil.disk_usage(_nearest(directory)).free
    return Finding(
        "disk",
        free >= LEAST_DISK,
        f"{free / 1000**3:.1f} GB free for {directory}",
        f"docker system prune, or set HYTHE_HOME to a disk with {LEAST_DISK // 1000**3} GB free",
    )


async def ports(home: Home) -> Finding:
    """The ports that were used last time are free, unless Hythe itself is using them."""
    place = home.place()
    if place is not None and Path(f"/proc/{place.pid}").exists():
        return Finding("ports", True, f"Hythe is running (process {place.pid})")
    files = [home.postgres / "port", home.nats / "port", home.nats / "monitor-port"]
    remembered = (home.directory / "ports").glob("*") if (home.directory / "ports").is_dir() else []
    taken = []
    for file in [*files, *remembered]:
        text = file.read_text().strip() if file.is_file() else ""
        if text.isdigit() and not _can_bind(int(text)):
            taken.append(text)
    if taken:
        return Finding(
            "ports",
            False,
            f"in use by another program: {', '.join(taken)}",
            f"ss -ltnp, and stop what listens there (or remove {home.directory / 'ports'}: others are taken then)",
        )
    return Finding("ports", _can_bind(0), "free", "ip link set lo up")


async def clock(directory: Path) -> Finding:
    """The clock has not been set back since Hythe last wrote something: certificates and history depend on it."""
    newest = max((file.stat().st_mtime for file in directory.glob("*/*")), default=0.0)
    behind = newest - time.time()
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    mend = "timedatectl set-ntp true (or set the time with date -s)"
    if time.time() < 1_700_000_000:
        return Finding("clock", False, f"{now} cannot be right", mend)
    return Finding(
        "clock", behind < 60, now if behind < 60 else f"{now} is {behind:.0f} s before our last file", mend
    )


async def writable(name: str, directory: Path) -> Finding:
    """A folder that is there, or can be made, and takes a file."""
    mend = (
        f"sudo mkdir -p {directory} && sudo chown {os.getuid()} {directory} (or set {name} to another folder)"
    )

    def probe() -> None:
        where = _nearest(directory)
        with tempfile.TemporaryFile(dir=where):
            pass

    try:
        await asyncio.to_thread(probe)
    except OSError as error:
        return Finding(name, False, f"{directory}: {error.strerror}", mend)
    return Finding(name, True, str(directory) + ("" if directory.is_dir() else " (will be made)"), mend)


def _nearest(directory: Path) -> Path:
    """The folder itself, or the closest one above it that exists."""
    return next(path for path in (directory, *directory.absolute().parents) if path.exists())


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
