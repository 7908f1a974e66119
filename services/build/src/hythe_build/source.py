"""The source of one commit: fetched from the object store, and read without trusting a single name in it.

The archive is kept as one file and read in place: a build context is cut out of it (`context.py`). It is unpacked only
for Compose, which wants to see files. Everything lives in a folder of its own under `HYTHE_BUILD_DIR`, which is
removed when the build ends, and which the next start sweeps away when the process was killed.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import mmap
import os
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from hythe_events.errors import HytheError, Refused
from hythe_events.language import BlobRef

MAX_BYTES = 2 * 1024**3
MAX_FILES = 200_000
MAX_LINKS = 40
"""How many symbolic links are followed for one file, as Linux does."""


class SourceRefused(Refused):
    """The source archive holds something that must not be unpacked."""


class Blobs(Protocol):
    """Where archives are kept: the part of `hythe_events.blobs.Blobs` that is needed here."""

    def read(self, ref: BlobRef) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a symbolic link of the source. `start` and `size` say where its bytes are in the archive."""

    link: str | None
    executable: bool
    start: int
    size: int
    mtime: int


class Source:
    """The source of one commit, open for reading. `entries` are its files and links by path; folders are implied."""

    def __init__(self, entries: dict[str, Entry], content: mmap.mmap | bytes, folder: Path) -> None:
        self.entries = entries
        self.content = content
        self.folder = folder / "source"
        self._unpacked = False

    def bytes_of(self, entry: Entry) -> memoryview:
        """The bytes of a file, not copied."""
        return memoryview(self.content)[entry.start : entry.start + entry.size]

    def read(self, path: str) -> bytes | None:
        """The content of the file at `path`, following links that stay inside; None when there is none."""
        for _ in range(MAX_LINKS):
            entry = self.entries.get(path)
            if entry is None:
                return None
            if entry.link is None:
                return bytes(self.bytes_of(entry))
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), entry.link))
        return None

    async def unpacked(self) -> Path:
        """The folder that holds the source as files. Unpacked at the first call."""
        if not self._unpacked:
            await asyncio.to_thread(self._unpack)
            self._unpacked = True
        return self.folder

    def _unpack(self) -> None:
        self.folder.mkdir()
        root = str(self.folder)
        made = {""}
        for path, entry in self.entries.items():
            parent = posixpath.dirname(path)
            if parent not in made:
                os.makedirs(f"{root}/{parent}", exist_ok=True)  # noqa: PTH103  one call per folder; Path costs more than the call
                made.add(parent)
            if entry.link is not None:
                os.symlink(entry.link, f"{root}/{path}")  # noqa: PTH211  as above
                continue
            mode = 0o755 if entry.executable else 0o644
            file = os.open(f"{root}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            try:
                rest = self.bytes_of(entry)
                while rest:
                    rest = rest[os.write(file, rest) :]
            finally:
                os.close(file)


class Workshop:
    """Where sources are worked on: a folder of this process, locked as long as it lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    @asynccontextmanager
    async def open(cls, root: Path) -> AsyncIterator[Workshop]:
        """Sweeps away what processes that are gone left under `root`, and makes a folder there."""
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ExitStack() as held:
            with (root / "lock").open("a") as one_at_a_time:
                fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
                for left in root.glob("builder-*"):
                    _remove_if_abandoned(left)
                folder = Path(tempfile.mkdtemp(prefix="builder-", dir=root))
                lock = held.enter_context((folder / "lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            yield cls(folder)

    @asynccontextmanager
    async def fetch(self, blobs: Blobs, ref: BlobRef) -> AsyncIterator[Source]:
        """The source that `ref` names; gone when the block ends. Raises SourceRefused, and what `blobs` raises."""
        if ref.size > MAX_BYTES:
            raise SourceRefused(f"the source is larger than {MAX_BYTES // 1024**3} GB")
        async with AsyncExitStack() as cleared:
            folder = Path(tempfile.mkdtemp(prefix="source-", dir=self._folder))
            cleared.push_async_callback(asyncio.to_thread, shutil.rmtree, folder, ignore_errors=True)
            archive = folder / "archive.tar"
            with archive.open("w+b") as file:
                await _download(blobs, ref, file)
                entries, content = await asyncio.to_thread(_open, file)
            try:
                yield Source(entries, content, folder)
            finally:
                if isinstance(content, mmap.mmap):
                    _close(content)


async def _download(blobs: Blobs, ref: BlobRef, file: IO[bytes]) -> None:
    seen = hashlib.sha256()
    size = 0
    async for part in blobs.read(ref):
        seen.update(part)
        size += len(part)
        if size > ref.size:
            break
        file.write(part)
    file.flush()
    if size != ref.size or seen.hexdigest() != ref.sha256:
        raise HytheError("the source archive is not the one that was stored: its SHA-256 differs")


def _open(file: IO[bytes]) -> tuple[dict[str, Entry], mmap.mmap | bytes]:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            entries = dict(_entries(archive))
    except tarfile.TarError as error:
        raise SourceRefused(f"the source is not a tar archive: {error}") from error
    _check_links(entries)
    return entries, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _entries(archive: tarfile.TarFile) -> Iterator[tuple[str, Entry]]:
    total = 0
    for count, member in enumerate(archive):
        if count >= MAX_FILES:
            raise SourceRefused(f"the source holds more than {MAX_FILES} files")
        path = posixpath.normpath(member.name)
        if path.startswith(("/", "../")) or path == ".." or "\0" in path:
            raise SourceRefused(f"the source holds a path that leads out of it: {member.name!r}")
        if member.isdir():
            continue
        if not (member.issym() or member.isreg()):
            raise SourceRefused(f"the source holds something that is neither a file nor a link: {path!r}")
        total += member.size
        if total > MAX_BYTES:
            raise SourceRefused(f"the source is larger than {MAX_BYTES // 1024**3} GB")
        yield (
            path,
            Entry(
                link=member.linkname if member.issym() else None,
                executable=bool(member.mode & 0o100),
                start=member.offset_data,
                size=0 if member.issym() else member.size,
                mtime=int(member.mtime),
            ),
        )


def _check_links(entries: dict[str, Entry]) -> None:
    """No link may lead out of the source, and no path may lead through a link."""
    for path, entry in entries.items():
        if entry.link is not None and _leads_out(path, entry.link, entries):
            raise SourceRefused(f"the symbolic link {path} leads out of the repository; remove it")
    folders = {posixpath.dirname(path) for path in entries}
    while folders := {folder for folder in folders if folder}:
        for folder in folders:
            if folder in entries:
                raise SourceRefused(f"the source holds {folder} as a file and as a folder")
        folders = {posixpath.dirname(folder) for folder in folders}


def _leads_out(path: str, link: str, entries: dict[str, Entry]) -> bool:
    """Whether following `link` at `path`, link by link as the kernel does, ever leaves the source."""
    at = posixpath.dirname(path).split("/") if "/" in path else []
    todo = link.split("/")[::-1]
    followed = 0
    if link.startswith("/") or "\0" in link:
        return True
    while todo and followed < MAX_LINKS:
        part = todo.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            if not at:
                return True
            at.pop()
            continue
        at.append(part)
        met = entries.get("/".join(at))
        if met is not None and met.link is not None:
            if met.link.startswith("/"):
                return True
            at.pop()
            todo.extend(met.link.split("/")[::-1])
            followed += 1
    return False


def _close(content: mmap.mmap) -> None:
    try:
        content.close()
    except BufferError:  # a cancelled upload still holds a view; the memory goes when the view does
        return


def _remove_if_abandoned(folder: Path) -> None:
    try:
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return  # its process lives
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
