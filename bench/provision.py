"""What the benches install that the product does not need: Debian packages, one npm package, Python peers in a virtual
environment of their own.

Nothing is installed silently: each step says what it does, once. Debian packages only as root on Debian or Ubuntu;
anywhere else the command that is missing is named.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

from bench.figures import progress

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

MESSAGE_DB = "@eventide/message-db@1.3.1"
MESSAGE_DB_SHA256 = "d7938e108d950e29da1974e3acad05bcf680045d0961f6a12039fb002140840d"

PACKAGE_OF = {
    "/usr/lib/postgresql/15/bin/postgres": "postgresql-15",
    "/usr/share/postgresql/15/extension/pgcrypto.control": "postgresql-15",
    "/usr/lib/postgresql/15/bin/pgbench": "postgresql-15",
    "webhook": "webhook",
    "wrk": "wrk",
    "npm": "npm",
    "git": "git",
    "docker": "docker.io",
    "busybox": "busybox-static",
}


def cache() -> Path:
    """Where downloads and the virtual environment are kept between runs."""
    home = os.environ.get("HYTHE_HOME")
    place = Path(home) / "bench" if home else Path.home() / ".cache" / "hythe-bench"
    place.mkdir(parents=True, exist_ok=True)
    return place


def commands(*names: str) -> None:
    """See that these commands (or files) are there; install the Debian packages of those that are not."""
    missing = [name for name in names if not _there(name)]
    if not missing:
        return
    packages = sorted({PACKAGE_OF[name] for name in missing})
    wanted = "apt-get install " + " ".join(packages)
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise SystemExit(f"The bench needs {', '.join(missing)}. On Debian 12, as root: {wanted}")
    progress(f"installing from Debian: {' '.join(packages)}")
    for command in (
        ["apt-get", "-q", "update"],
        ["apt-get", "-q", "-y", "install", "--no-install-recommends", *packages],
    ):
        done = subprocess.run(
            command,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        if done.returncode:
            raise SystemExit(f"`{' '.join(command)}` failed: {done.stderr.strip()[-1000:]}")
    still = [name for name in names if not _there(name)]
    if still:
        raise SystemExit(f"Installed {' '.join(packages)}, and {', '.join(still)} is still missing.")


def _there(name: str) -> bool:
    return Path(name).exists() if name.startswith("/") else shutil.which(name) is not None


def peers() -> Path:
    """The bench's own virtual environment with the Python peers, made once for each version of the lock."""
    lock = HERE / "requirements.lock"
    place = cache() / "venv"
    stamp = place / "lock.sha256"
    wanted = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == wanted):
        progress(f"installing the Python peers into {place}")
        venv.create(place, clear=True, with_pip=True)
        done = subprocess.run(
            [place / "bin" / "pip", "install", "--quiet", "--require-hashes", "-r", lock],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if done.returncode:
            raise SystemExit(f"pip could not install {lock}: {done.stderr.strip()[-1000:]}")
        stamp.write_text(wanted)
    return place / "bin"


def message_db() -> Path:
    """The folder with message-db's SQL and its install script, from npm, checked against a known hash."""
    archive = cache() / "eventide-message-db-1.3.1.tgz"
    if not archive.exists():
        commands("npm")
        progress(f"fetching {MESSAGE_DB} from npm")
        done = subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", str(cache()), MESSAGE_DB],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd=cache(),
        )
        if done.returncode:
            raise SystemExit(f"npm could not fetch {MESSAGE_DB}: {done.stderr.strip()[-1000:]}")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != MESSAGE_DB_SHA256:
        raise SystemExit(
            f"{archive} is not the archive that was measured before: remove it and look at {MESSAGE_DB}."
        )
    place = cache() / "message-db-1.3.1"
    if not place.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter="data")
    return place / "package" / "database"
