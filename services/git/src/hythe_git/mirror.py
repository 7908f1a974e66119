"""Bare mirrors of the repositories: fetched just as far as needed, and thrown away whenever in doubt.

```
named commit here already? ──yes──► done, no network
        │ no
fetch the branch (first: its tip alone; later: what is new) ──► commit on the branch? ──yes──► done
        │ no                                                              ▲
deepen: 50, 2000, all commits ────────────────────────────────────────────┘ still no: refused
```

**Which commit.** Only ever the branch is fetched, never a commit by its id: on the large forges the commit of anybody's
fork can be had by id from the original. A commit counts as the branch's when a walk through the branch's history
reaches it. So exactly the named commit is had, or none: never the branch's tip in its stead, and no stranger's commit.

**What may go wrong.** A mirror holds nothing that the remote has not: when it does not open or read, it is removed and
fetched anew. One process works on a mirror at a time (a file lock, which ends with its process). What a killed process
left behind (lock files, half packs) is removed before the next run.

**Time.** The Git library works in a thread, one per fetch, that ends when told to as soon as data arrives. A host that
sends nothing at all, or a byte now and then, cannot be interrupted there; such a thread is left to itself and its mirror
with it, and as long as it lives its repository is not fetched again. That is why it is no thread of the shared pool.

This is the only module that imports pygit2, and no git program is ever started: there are no arguments, no environment
and no files in which a secret or an option could hide. libgit2's settings are the whole process's: they are set when `Mirrors` is
made. Submodules and Git LFS are not fetched; repositories in SHA-256 form are refused by libgit2.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

import pygit2
from pygit2.enums import ConfigLevel, CredentialType

from hythe_events.errors import HytheError, NotNow
from hythe_git import host_key, tree
from hythe_git.address import Address, Allowed, check_addresses, fingerprint
from hythe_git.tree import Limits

T = TypeVar("T")

DEEPER = (50, 2_000, 2**31 - 1)
"""How many commits of the branch are fetched, step by step, until the named one is among them. The last means all."""
CATCHING_UP = 32 * 1024 * 1024
"""Bytes after which fetching what is new costs more than it saves: the branch was rewritten, so its tip alone is fetched."""
TOO_MANY_PACKS = 100
"""Every fetch leaves a pack; a mirror with so many is fetched anew."""
CONNECT_SECONDS, SILENT_SECONDS = 10.0, 30.0
LEAVE_SECONDS = 2.0
"""How long a thread that was told to end may take before it is left to itself."""
_NO_REDIRECT_TO_ANOTHER_HOST = (
    1  # GIT_REMOTE_REDIRECT_NONE: within the same host libgit2 follows all the same
)
_NETWORK = {2: "os", 12: "net", 16: "ssl", 23: "ssh", 34: "http"}
"""git_error_t: the classes of error that speak of the other side and not of the mirror."""
_status = re.compile(r"status code: (\d+)")


class SourceRefused(HytheError):
    """The source cannot be had, and trying again changes nothing."""


class Unreachable(NotNow):
    """The repository's host does not answer as it should."""


class _Broken(Exception):
    """The mirror does not open, or misses objects that it should have."""


class _Told(Exception):
    """The thread was told to end."""


class _Rewritten(Exception):
    """Fetching what is new brings too much."""


@dataclass(frozen=True)
class Login:
    """How to open a repository: a token or a private key, as it is, for as long as the fetch takes."""

    kind: Literal["token", "ssh-key"]
    user: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Origin:
    """A repository to fetch from: the address, the branch, and how to open it. `known_host` is `type base64`."""

    stack: str
    address: Address
    branch: str
    login: Login | None = None
    known_host: str | None = None


@dataclass(frozen=True)
class Source:
    """One commit's source, as an archive, and what the commit says of itself. `at` is in seconds since 1970."""

    commit: str
    message: str
    author: str
    at: int
    compose_file: str
    tar: bytes = field(repr=False)


class Mirrors:
    """The mirrors under `directory`, which is all theirs. One instance per process: it sets libgit2's settings."""

    def __init__(self, directory: Path, *, limits: Limits, allow: Allowed, seconds: float = 300.0) -> None:
        self._directory = directory
        self._limits = limits
        self._allow = allow
        self._seconds = seconds
        self._locks: dict[str, asyncio.Lock] = {}
        self._left: dict[Path, threading.Thread] = {}
        self._cleaned: set[Path] = set()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        home = directory / "home"
        (home / ".ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._known_hosts = home / ".ssh" / "known_hosts"
        settings = pygit2.settings
        settings.homedir = str(home)
        for level in (ConfigLevel.SYSTEM, ConfigLevel.XDG, ConfigLevel.GLOBAL, ConfigLevel.PROGRAMDATA):
            settings.search_path[level] = ""
        settings.server_connect_timeout = int(min(CONNECT_SECONDS, seconds) * 1000)
        settings.server_timeout = int(min(SILENT_SECONDS, seconds) * 1000)

    @contextlib.asynccontextmanager
    async def of(self, origin: Origin) -> AsyncIterator[Mirror]:
        """The mirror of `origin`, this caller's alone until the block ends. Raises Unreachable, SourceRefused."""
        async with self._locks.setdefault(origin.stack, asyncio.Lock()):
            folder = self._directory / "mirrors" / origin.stack
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{hashlib.sha256(origin.address.url.encode()).hexdigest()[:16]}.git"
            hanging = self._left.get(path)
            if hanging is not None and hanging.is_alive():
                raise Unreachable(f"{origin.address.host} still holds an earlier fetch and sends nothing")
            lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise Unreachable(f"another process works on the mirror of {origin.stack}") from error
                for other in folder.iterdir():
                    if other.name not in (path.name, "lock"):
                        await asyncio.to_thread(shutil.rmtree, other, ignore_errors=True)
                yield Mirror(self, origin, path)
            finally:
                os.close(lock)

    async def _in_thread(self, path: Path, host: str, work: Callable[[_Stop], T]) -> T:
        """`work` in a thread of its own, with an end. Raises Unreachable when time is up; see "Time" above."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        done.add_done_callback(
            lambda ended: ended.cancelled() or ended.exception()
        )  # nobody may be left to ask
        stop = _Stop(time.monotonic() + self._seconds)

        def run() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = work(stop)
            except BaseException as raised:  # noqa: BLE001  handed to the caller, whatever it is
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(_settle, done, result, error)

        thread = threading.Thread(target=run, name=f"git {path.parent.name}", daemon=True)
        thread.start()
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(done)
        except (TimeoutError, asyncio.CancelledError) as error:
            stop.now = True
            ended, _ = await asyncio.wait({done}, timeout=LEAVE_SECONDS)
            if not ended:
                self._left[path] = thread
            if isinstance(error, TimeoutError):
                raise Unreachable(f"{host} was not done after {self._seconds:g} s") from error
            raise
        except _Told as error:
            raise Unreachable(f"{host} was not done after {self._seconds:g} s") from error


class Mirror:
    """One repository's mirror, held by one caller. Made by `Mirrors.of`."""

    def __init__(self, mirrors: Mirrors, origin: Origin, path: Path) -> None:
        self._mirrors = mirrors
        self._origin = origin
        self._path = path
        self._ref = f"refs/heads/{origin.branch}"

    async def fetch(self, commit: str | None) -> str:
        """Have `commit`, or the branch's tip when it is None, and return its id.

        A commit that is here already costs no network. Raises SourceRefused when it is not on the branch, when the
        host refuses the login or shows another key, or when the repository is too large; Unreachable when the host
        does not answer; Refused when the host leads to an address that is not allowed.
        """
        if commit is not None and len(commit) != 40:
            raise SourceRefused(
                f"commit not found: {commit} is of a repository in SHA-256 form, which cannot be read"
            )
        if commit is not None and await self._has(commit):
            return commit
        await self._check_addresses()
        try:
            return await self._fetch(commit)
        except _Broken:
            await self._remove()
        try:
            return await self._fetch(commit)
        except _Broken as error:
            raise Unreachable(f"what {self._host} sent cannot be kept: {error}") from error

    async def source(self, commit: str, *, path: str, compose_file: str | None) -> Source:
        """The archive of `commit`, which was fetched. Raises BadSource, and what `fetch` raises.

        Objects that are missing from the mirror (a disk fault, a power cut) are fetched anew.
        """
        work = partial(self._read, commit, path, compose_file)
        try:
            return await self._thread(work)
        except _Broken:
            await self._remove()
        await self.fetch(commit)
        try:
            return await self._thread(work)
        except _Broken as error:
            raise SourceRefused(
                f"{self._host} sends the commit {commit} without all of its files: {error}"
            ) from error

    @property
    def _host(self) -> str:
        return self._origin.address.host

    async def _thread(self, work: Callable[[_Stop], T]) -> T:
        return await self._mirrors._in_thread(self._path, self._host, work)

    async def _has(self, commit: str) -> bool:
        if not self._path.is_dir():
            return False
        try:
            return await self._thread(partial(self._has_in, commit))
        except _Broken:
            await self._remove()
            return False

    async def _remove(self) -> None:
        """Out of the way at once, so that a crash leaves no half of it; then gone."""
        if self._path.exists():
            away = self._path.with_name(f"{uuid4()}.gone")
            self._path.rename(away)
            await asyncio.to_thread(shutil.rmtree, away, ignore_errors=True)

    async def _check_addresses(self) -> None:
        """Where the host's name leads to now. A name that leads elsewhere a moment later is not caught."""
        address = self._origin.address
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(
                    address.host, address.port, type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError, UnicodeError) as error:
            raise Unreachable(f"the name {address.host} leads nowhere: {_plain(error)}") from error
        check_addresses(address.host, {str(each[4][0]) for each in found}, self._mirrors._allow)

    async def _fetch(self, commit: str | None) -> str:
        try:
            return await self._thread(partial(self._fetch_until, commit))
        except _Untrusted as error:
            raise SourceRefused(await self._explain_host_key()) from error

    async def _explain_host_key(self) -> str:
        address, known = self._origin.address, self._origin.known_host
        if address.scheme != "ssh" or known is None:
            return f"the certificate of {address.host} is not valid; nothing was sent to it"
        now = await host_key.offered(address.host, address.port, known.split()[0])
        offered = f"{fingerprint(now)} is offered now" if now else "it offers none of that kind now"
        return (
            f"the host key of {address.host} changed: {fingerprint(known)} was saved, {offered}; if the host's administrator "
            "says that is right, save the repository with the new key, otherwise somebody stands in between"
        )

    # -- in the thread

    def _open(self) -> pygit2.Repository:
        if self._path not in self._mirrors._cleaned:
            _clean(self._path)
            self._mirrors._cleaned.add(self._path)
        if not self._path.is_dir():
            made = self._path.with_name(f"{uuid4()}.new")
            pygit2.init_repository(str(made), bare=True)
            made.rename(self._path)
        try:
            return pygit2.Repository(str(self._path))
        except (pygit2.GitError, KeyError, OSError) as error:
            raise _Broken(_plain(error)) from error

    def _has_in(self, commit: str, stop: _Stop) -> bool:
        repository = self._open()
        return _on_branch(repository, self._tip(repository), commit, stop)

    def _tip(self, repository: pygit2.Repository) -> str | None:
        try:
            return str(repository.references[self._ref].target)
        except (KeyError, ValueError):
            return None
        except (pygit2.GitError, OSError) as error:
            raise _Broken(_plain(error)) from error

    def _fetch_until(self, commit: str | None, stop: _Stop) -> str:
        repository = self._open()
        if len(list(self._path.glob("objects/pack/*.pack"))) > TOO_MANY_PACKS:
            raise _Broken("it has many packs")
        known = self._tip(repository)
        try:
            tip = self._fetch_once(repository, 1 if known is None else 0, stop)
        except _Rewritten:
            tip = self._fetch_once(repository, 1, stop)
        if commit is None or commit == tip:
            return tip
        for depth in DEEPER:
            if _on_branch(repository, tip, commit, stop):
                return commit
            if not repository.is_shallow:
                break
            tip = self._fetch_once(repository, depth, stop)
            repository = self._open()  # libgit2 keeps the old boundary in memory
        if _on_branch(repository, tip, commit, stop):
            return commit
        raise SourceRefused(
            f"commit not found: {commit} is not on the branch {self._origin.branch} of {self._host}; it was pushed over, or "
            "belongs to a fork; push again, or name a commit of the branch"
        )

    def _fetch_once(self, repository: pygit2.Repository, depth: int, stop: _Stop) -> str:
        """One conversation with the host. `depth` 0 means: what is new. Returns the branch's tip."""
        self._mirrors._cleaned.discard(self._path)  # until it ends well, the next one cleans up first
        conversation = _Conversation(self._origin, stop, self._mirrors._limits.size, catching_up=depth == 0)
        remote = repository.remotes.create_anonymous(self._origin.address.url)
        with _trusting(self._origin, self._mirrors._known_hosts, stop) as trusted:
            conversation.host_was_seen = trusted
            try:
                remote.fetch([f"+{self._ref}:{self._ref}"], depth=depth, callbacks=conversation)
            except (pygit2.GitError, KeyError, OSError, ValueError) as error:
                raise conversation.explained(error) from error
        fetched = (self._path / "FETCH_HEAD").read_text().split()
        if not fetched:
            raise SourceRefused(f"{self._host} has no branch {self._origin.branch} in this repository")
        self._mirrors._cleaned.add(self._path)
        return fetched[0]

    def _read(self, commit: str, path: str, compose_file: str | None, stop: _Stop) -> Source:
        try:
            repository = self._open()
            found = repository[commit].peel(pygit2.Commit)
            objects = _Objects(repository)
            where = tree.layout(objects, found.tree_id.raw, path=path, compose_file=compose_file)
            listed = tree.entries(objects, where.tree, self._mirrors._limits, stop.check)
            tar = tree.archive(objects, listed, found.commit_time, stop.check)
        except (pygit2.GitError, KeyError, OSError) as error:
            raise _Broken(_plain(error)) from error
        return Source(
            commit=commit,
            message=found.message,
            author=found.author.name,
            at=found.commit_time,
            compose_file=where.compose_file,
            tar=tar,
        )


# -- the conversation with a host


@dataclass
class _Stop:
    """When a thread must end: told by `now`, or by the time on the monotonic clock."""

    deadline: float
    now: bool = False

    def check(self) -> None:
        if self.now or time.monotonic() > self.deadline:
            raise _Told


class _Untrusted(Exception):
    """The host showed a key or a certificate that is not the one we trust."""


class _Conversation(pygit2.RemoteCallbacks):
    """What libgit2 asks and tells while it fetches.

    pygit2 takes any SSH host key by default, and tries a refused login again without end (SSH) or 15 times (HTTP):
    `certificate_check` and `credentials` are here to stop both.
    """

    def __init__(self, origin: Origin, stop: _Stop, most: int, *, catching_up: bool) -> None:
        super().__init__()
        self._origin = origin
        self._stop = stop
        self._most = most
        self._catching_up = catching_up
        self._logins = 0
        self._untrusted = False
        self.host_was_seen: Callable[[], None] = lambda: None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "fetch_options":  # pygit2 has no argument for it
            value.follow_redirects = _NO_REDIRECT_TO_ANOTHER_HOST
        super().__setattr__(name, value)

    def credentials(
        self,
        url: str,  # noqa: ARG002  pygit2's signature
        username_from_url: str | None,  # noqa: ARG002
        allowed_types: CredentialType,
    ) -> pygit2.Username | pygit2.UserPass | pygit2.Keypair:
        login, host = self._origin.login, self._origin.address.host
        if login is None:
            raise SourceRefused(f"{host} asks for a login; save the repository with a token")
        if allowed_types == CredentialType.USERNAME:
            return pygit2.Username(login.user)
        self._logins += 1
        if self._logins > 1:
            raise SourceRefused(
                f"{host} refused the login as {login.user}; save the repository with another {login.kind}"
            )
        if login.kind == "ssh-key" and allowed_types & CredentialType.SSH_KEY:
            return pygit2.KeypairFromMemory(login.user, None, login.secret.decode(), None)
        if login.kind == "token" and allowed_types & CredentialType.USERPASS_PLAINTEXT:
            return pygit2.UserPass(login.user, login.secret.decode())
        raise SourceRefused(f"{host} takes no {login.kind} as a login")

    def certificate_check(self, certificate: None, valid: bool, host: bytes) -> bool:  # noqa: ARG002
        self.host_was_seen()
        self._untrusted = not valid
        return bool(valid)

    def sideband_progress(self, string: str) -> None:  # noqa: ARG002
        self._stop.check()

    def transfer_progress(self, stats: pygit2.remotes.TransferProgress) -> None:
        self._stop.check()
        if stats.received_bytes > self._most:
            raise SourceRefused(
                f"the repository is larger than {self._most} bytes; raise HYTHE_GIT_MAX_BYTES if that is meant"
            )
        if self._catching_up and stats.received_bytes > CATCHING_UP:
            raise _Rewritten

    def explained(self, error: Exception) -> Exception:
        """What `error`, which libgit2 raised, means for the one who waits for the source."""
        host, said = self._origin.address.host, _plain(error)
        if self._untrusted or isinstance(error, pygit2.CertificateError):
            return _Untrusted()
        if isinstance(error, pygit2.AuthError):
            return SourceRefused(f"{host} refused the login: {said}; save the repository with another one")
        if "cannot redirect" in said:
            return SourceRefused(
                f"{host} sends on to another host ({said}); save the repository with that address"
            )
        if "content-type" in said:
            return SourceRefused(f"{host} does not answer as a Git server: is the URL right? ({said})")
        if status := _status.search(said):
            return self._explained_status(int(status[1]))
        kind = _NETWORK.get(getattr(error, "error_class", 0))
        if kind == "ssh" and "key" in said.lower():
            return SourceRefused(f"the ssh key cannot be used ({said}); save the repository with another one")
        if kind is not None:
            return Unreachable(f"{host} does not answer as it should: {said}")
        return _Broken(said)

    def _explained_status(self, status: int) -> Exception:
        host = self._origin.address.host
        if status in (401, 403):
            return SourceRefused(
                f"{host} refused the login (HTTP {status}); save the repository with another token"
            )
        if status in (404, 410):
            return SourceRefused(
                f"{host} has no such repository, or the token may not see it (HTTP {status})"
            )
        if status >= 500 or status in (408, 425, 429):
            return Unreachable(f"{host} is in trouble (HTTP {status})")
        return SourceRefused(f"{host} refused (HTTP {status})")


_known_hosts_in_use = threading.Lock()


@contextlib.contextmanager
def _trusting(origin: Origin, known_hosts: Path, stop: _Stop) -> Any:
    """While SSH looks at the host's key, `known_hosts` holds this repository's saved key and no other.

    libgit2 knows one such file per process, so conversations take turns, each until it has seen the host's key. Yields
    what to call then; calling it again does nothing.
    """
    if origin.address.scheme != "ssh":
        yield lambda: None
        return
    assert origin.known_host is not None, "an ssh repository is saved with its host key"
    while not _known_hosts_in_use.acquire(timeout=0.2):
        stop.check()
    holding = [True]

    def seen() -> None:
        if holding:
            holding.clear()
            _known_hosts_in_use.release()

    try:
        known_hosts.write_text(f"{origin.address.known_as} {origin.known_host}\n")
        yield seen
    finally:
        seen()


# -- small things


class _Objects:
    """A repository's objects, for `tree`."""

    def __init__(self, repository: pygit2.Repository) -> None:
        self._odb = repository.odb

    def size(self, oid: bytes) -> int:
        return self._odb.read_header(pygit2.Oid(raw=oid))[1]

    def read(self, oid: bytes) -> bytes:
        return self._odb.read(pygit2.Oid(raw=oid))[1]


def _on_branch(repository: pygit2.Repository, tip: str | None, commit: str, stop: _Stop) -> bool:
    """Whether `commit` is here, and `tip` or one of the commits before it."""
    try:
        if tip is None or commit not in repository:
            return False
        if tip == commit:
            return True
        for number, each in enumerate(repository.walk(tip)):
            if str(each.id) == commit:
                return True
            if number % 500 == 0:
                stop.check()
    except (pygit2.GitError, KeyError, ValueError, OSError) as error:
        raise _Broken(_plain(error)) from error
    return False


def _clean(path: Path) -> None:
    """Remove what a killed process left in a mirror: lock files and half packs. Only by who holds the mirror."""
    if path.is_dir():
        for left in (
            *path.rglob("*.lock"),
            *path.glob("objects/pack/pack_*"),
            *path.glob("objects/pack/tmp_*"),
        ):
            left.unlink(missing_ok=True)


def _settle(done: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def _plain(error: BaseException) -> str:
    text = str(error.args[-1]) if isinstance(error, socket.gaierror) else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
