"""What the builder gets to see: the part of the source that is a service's build context, as a tar.

The tar is cut straight out of the source archive: a header for each file, and the file's bytes where they lie. It is
in GNU format: BuildKit looks at the first bytes to tell an archive from a Dockerfile, and does not recognise PAX.
Owner is 0:0 and modes are those of a fresh checkout, so that the same source gives the same layers.

`digest` stands for all that goes into the image but time: names, modes, contents, Dockerfile, arguments.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from hythe_build.ignore import Ignore
from hythe_build.plan import ImageBuild, PlanRefused
from hythe_build.source import Entry, Source

_BLOCK = tarfile.BLOCKSIZE
_PART = 256 * 1024

_DIRECTIVE = re.compile(rb"^(?:#|//)\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*$")
_FRONTEND = re.compile(
    r"^(?:docker\.io/)?docker/dockerfile(?:-upstream)?(?::[\w.-]+)?$|@sha256:[0-9a-f]{64}$"
)
_ONLY_BUILDKIT = re.compile(
    rb"^[ \t]*(?:RUN[ \t]+--(?:mount|network|security)\b"
    rb"|(?:COPY|ADD)[ \t]+(?:--\S+[ \t]+)*--(?:link|chmod|parents|exclude|checksum|keep-git-dir)\b"
    rb"|(?:RUN|COPY|ADD)\b.*<<-?[\"']?\w)",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Context:
    """A build context, ready to be sent.

    `dockerfile` is its name in the tar. `hidden` says that the build itself must not see it, which the classic builder
    can do and BuildKit, told over plain HTTP, cannot. `only_buildkit` says that the Dockerfile needs BuildKit.
    """

    dockerfile: str
    hidden: bool
    only_buildkit: bool
    digest: str
    parts: tuple[bytes | memoryview, ...]

    def chunks(self) -> Iterator[bytes]:
        """The tar, in chunks of some 256 KB."""
        waiting: list[bytes | memoryview] = []
        size = 0
        for part in self.parts:
            for start in range(0, len(part), _PART):
                piece = part[start : start + _PART]
                waiting.append(piece)
                size += len(piece)
                if size >= _PART:
                    yield b"".join(waiting)
                    waiting, size = [], 0
        yield b"".join(waiting)


def context(wanted: ImageBuild, source: Source) -> Context:
    """The context of `wanted`. Reads the whole of it: call it in a thread. Raises PlanRefused, BadPattern."""
    text = wanted.inline.encode() if wanted.inline is not None else source.read(wanted.dockerfile)
    if text is None:
        raise PlanRefused(
            f"{wanted.service}: there is no {wanted.dockerfile} in the repository",
            field=f"services.{wanted.service}.build.dockerfile",
        )
    _check_frontend(wanted, text)
    top = f"{wanted.context}/" if wanted.context else ""
    ignored = _ignored(wanted, source, top)
    entries = {
        path[len(top) :]: entry for path, entry in source.entries.items() if not top or path.startswith(top)
    }
    if not entries and top:
        raise PlanRefused(
            f"{wanted.service}: there is no folder {wanted.context} in the repository",
            field=f"services.{wanted.service}.build.context",
        )
    ignore = Ignore(ignored)
    sent = {path: entry for path, entry in entries.items() if not ignore.leaves_out(path)}
    made: dict[str, bytes] = {}
    inside = wanted.inline is None and wanted.dockerfile.startswith(top)
    dockerfile = (
        wanted.dockerfile[len(top) :]
        if inside
        else f".hythe-{hashlib.sha256(text).hexdigest()[:12]}.dockerfile"
    )
    hidden = dockerfile not in sent
    if hidden and inside:
        sent[dockerfile] = entries[dockerfile]
    elif hidden:
        made[dockerfile] = text
    if hidden:
        made[".dockerignore"] = _hiding(
            dockerfile, ".dockerignore" in sent, source.read(f"{top}.dockerignore") or b""
        )
        sent.pop(".dockerignore", None)
    folders = _folders(entries, ignore) | {parent for path in sent for parent in _parents(path)}
    return _packed(wanted, source, sent, made, folders, dockerfile, hidden, bool(_ONLY_BUILDKIT.search(text)))


def _ignored(wanted: ImageBuild, source: Source, top: str) -> bytes:
    """Docker's rule: a `<Dockerfile>.dockerignore` beside the Dockerfile goes before the context's `.dockerignore`."""
    own = source.read(f"{wanted.dockerfile}.dockerignore") if wanted.dockerfile else None
    if own is not None:
        return own
    return source.read(f"{top}.dockerignore") or b""


def _hiding(dockerfile: str, ignore_file_is_sent: bool, text: bytes) -> bytes:
    """A `.dockerignore` by which the classic builder takes the Dockerfile away again before it copies anything."""
    escaped = re.sub(r"([*?\[\\])", r"\\\1", dockerfile)
    hides = (
        [*text.splitlines(), escaped.encode()]
        if ignore_file_is_sent
        else [escaped.encode(), b".dockerignore"]
    )
    return b"\n".join(hides) + b"\n"


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _folders(entries: dict[str, Entry], ignore: Ignore) -> set[str]:
    every = {parent for path in entries for parent in _parents(path)}
    return {folder for folder in every if not ignore.leaves_out(folder)}


def _packed(
    wanted: ImageBuild,
    source: Source,
    sent: dict[str, Entry],
    made: dict[str, bytes],
    folders: set[str],
    dockerfile: str,
    hidden: bool,
    only_buildkit: bool,
) -> Context:
    seen = hashlib.sha256()
    parts: list[bytes | memoryview] = []
    newest = max((entry.mtime for entry in source.entries.values()), default=0)

    def add(kind: bytes, path: str, mode: int, body: bytes | memoryview, mtime: int, link: str = "") -> None:
        header = tarfile.TarInfo(path)
        header.type, header.mode, header.size, header.mtime, header.linkname = (
            kind,
            mode,
            len(body),
            mtime,
            link,
        )
        parts.append(header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        said = json.dumps([kind.decode(), path, mode, len(body), link])
        seen.update(said.encode() + b"\n")
        if body:
            seen.update(body)
            parts.append(body)
            parts.append(bytes(-len(body) % _BLOCK))

    # Parents come before what they hold: "a" < "a/b" in this order.
    for path in sorted({*sent, *made, *folders}):
        if path in made:
            add(tarfile.REGTYPE, path, 0o644, made[path], newest)
        elif path in sent:
            entry = sent[path]
            if entry.link is not None:
                add(tarfile.SYMTYPE, path, 0o777, b"", entry.mtime, entry.link)
            else:
                mode = 0o755 if entry.executable else 0o644
                add(tarfile.REGTYPE, path, mode, source.bytes_of(entry), entry.mtime)
        else:
            add(tarfile.DIRTYPE, path, 0o755, b"", newest)
    parts.append(bytes(2 * _BLOCK))
    asked = (
        wanted.name,
        wanted.service,
        dockerfile,
        wanted.target,
        dict(wanted.args),
        dict(wanted.labels),
        wanted.platform,
    )
    seen.update(json.dumps(asked, sort_keys=True).encode())
    return Context(dockerfile, hidden, only_buildkit, seen.hexdigest(), tuple(parts))


def _check_frontend(wanted: ImageBuild, dockerfile: bytes) -> None:
    """A Dockerfile may name an image that reads it, which then runs inside the builder: only Docker's own, or one
    pinned by digest."""
    asked = [wanted.args["BUILDKIT_SYNTAX"]] if "BUILDKIT_SYNTAX" in wanted.args else []
    for line in dockerfile.removeprefix(b"\xef\xbb\xbf").splitlines():
        directive = _DIRECTIVE.match(line)
        if directive is None:
            break
        if directive[1].lower() == b"syntax":
            asked.append(directive[2].decode("utf-8", "replace").split()[0])
    for frontend in asked:
        if not _FRONTEND.search(frontend):
            raise PlanRefused(
                f"{wanted.service}: the Dockerfile asks to be read by {frontend!r}; "
                "use docker/dockerfile, or pin it by its sha256 digest",
                field=f"services.{wanted.service}.build.dockerfile",
            )
