"""The source of one commit: what it may hold, which compose file it names, and the archive made of it.

```
commit's tree ──► layout: which folder, which compose file ──► entries: every one looked at ──► tar
```

The tree is read from Git's objects and never checked out, so no file of it is ever on a disk of ours, no filter runs,
and no link can be followed. Everything is looked at before the first byte is written: a source with too many files,
or too large, or with a link that leaves its folder, is refused while it still costs nothing.

The same commit gives the same bytes always: entries in Git's own order, the commit's time, no owner.
"""

from __future__ import annotations

import io
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from hythe_events.errors import HytheError, Refused
from hythe_events.strict_yaml import read_mapping
from hythe_git.address import inside

COMPOSE_FILES = ("compose.yaml", "docker-compose.yaml", "docker-compose.yml", "compose.yml")
"""In the order in which Dockge looks for them."""
HYTHE_YAML = "hythe.yaml"

_KINDS: dict[int, Literal["folder", "file", "link", "submodule"]] = {
    0o040000: "folder",
    0o100000: "file",
    0o120000: "link",
    0o160000: "submodule",
}
_LONGEST_PATH = 4096
_LARGEST_TREE = 32 * 1024 * 1024
_LARGEST_HYTHE_YAML = 64 * 1024
_HOPS = 40


class BadSource(HytheError):
    """The commit's files cannot be built from."""


@dataclass(frozen=True)
class Limits:
    """How many files and folders a source may have, and how many bytes."""

    files: int = 50_000
    size: int = 256 * 1024 * 1024


class Objects(Protocol):
    """Git's objects, by their ids. Both raise KeyError for one that is not there."""

    def size(self, oid: bytes) -> int: ...

    def read(self, oid: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder or link. `path` is relative to the source's root; `target` is where a link points."""

    path: str
    kind: Literal["folder", "file", "link"]
    executable: bool
    oid: bytes
    size: int
    target: str = ""


@dataclass(frozen=True)
class Layout:
    """Which folder of the repository is the source's root, by its tree, and the compose file in it."""

    tree: bytes
    path: str
    compose_file: str


def layout(objects: Objects, root: bytes, *, path: str, compose_file: str | None) -> Layout:
    """Where the source is in the tree `root`, by the repository's settings, its `hythe.yaml`, or what is there.

    A compose file that the settings name wins; then `hythe.yaml` in the repository's path is not read. Raises
    BadSource.
    """
    tree = _folder(objects, root, path)
    if compose_file is None and (found := _find(objects, tree, HYTHE_YAML)) is not None:
        said = _hythe_yaml(objects, found)
        compose_file = said.get("compose_file")
        if said.get("path"):
            tree, path = _folder(objects, tree, said["path"]), f"{path}/{said['path']}".strip("/")
    if compose_file is None:
        for name in COMPOSE_FILES:
            if _find(objects, tree, name) is not None:
                compose_file = name
                break
        else:
            where = f"the folder {path}" if path else "the repository"
            raise BadSource(
                f"{where} has no compose file: none of {', '.join(COMPOSE_FILES)}; name it in {HYTHE_YAML}"
            )
    file = _find(objects, tree, compose_file)
    if file is None:
        raise BadSource(f"the compose file {compose_file} is not there{f' in {path}' if path else ''}")
    if file.kind != "file":
        raise BadSource(
            f"the compose file {compose_file} is a {_named(file.kind)}; it must be a regular file"
        )
    return Layout(tree, path, compose_file)


def _hythe_yaml(objects: Objects, found: _Named) -> dict[str, str]:
    if found.kind != "file":
        raise BadSource(f"{HYTHE_YAML} is a {_named(found.kind)}; it must be a regular file")
    if objects.size(found.oid) > _LARGEST_HYTHE_YAML:
        raise BadSource(f"{HYTHE_YAML} is larger than {_LARGEST_HYTHE_YAML // 1024} KiB")
    try:
        return parse_hythe_yaml(objects.read(found.oid))
    except Refused as error:
        raise BadSource(str(error)) from error


def parse_hythe_yaml(text: bytes) -> dict[str, str]:
    """The fields of a `hythe.yaml`: `path` and `compose_file`, both optional. Raises Refused naming the field."""
    said = read_mapping(text, HYTHE_YAML)
    for name, value in said.items():
        if name not in ("compose_file", "path"):
            raise Refused(
                f"{HYTHE_YAML} has the unknown field {name!r}; it knows compose_file and path",
                field=str(name),
            )
        if not isinstance(value, str) or not value.isprintable():
            raise Refused(f"{HYTHE_YAML}: {name} must be a line of text", field=name)
    checked = {name: inside(value, name) for name, value in said.items()}
    if "compose_file" in checked and not checked["compose_file"]:
        raise Refused(f"{HYTHE_YAML}: compose_file names no file", field="compose_file")
    return checked


def entries(
    objects: Objects, tree: bytes, limits: Limits, check: Callable[[], None] = lambda: None
) -> list[Entry]:
    """Every entry under `tree`, each looked at. Raises BadSource as soon as one is not to be had.

    `check` is called now and then, and may raise to stop.
    """
    found: list[Entry] = []
    total = 0
    for entry in _walk(objects, tree):
        found.append(entry)
        total += entry.size
        if len(found) > limits.files:
            raise BadSource(
                f"the source has more than {limits.files} files; raise HYTHE_GIT_MAX_FILES if that is meant"
            )
        if total > limits.size:
            raise BadSource(
                f"the source is larger than {limits.size} bytes at {entry.path}; raise HYTHE_GIT_MAX_BYTES if that is meant"
            )
        if len(found) % 500 == 0:
            check()
    links = {entry.path: entry.target for entry in found if entry.kind == "link"}
    for path in links:
        _check_link(path, links)
    return found


def archive(
    objects: Objects, listed: list[Entry], at: int, check: Callable[[], None] = lambda: None
) -> bytes:
    """The tar (GNU format) of `listed`, every entry at `at`, seconds since 1970. `check` as for `entries`."""
    out = io.BytesIO()
    for number, entry in enumerate(listed):
        head = tarfile.TarInfo(f"{entry.path}/" if entry.kind == "folder" else entry.path)
        head.mtime = max(at, 0)
        content = b""
        if entry.kind == "folder":
            head.type, head.mode = tarfile.DIRTYPE, 0o755
        elif entry.kind == "link":
            head.type, head.mode, head.linkname = tarfile.SYMTYPE, 0o777, entry.target
        else:
            content = objects.read(entry.oid)
            head.size, head.mode = len(content), 0o755 if entry.executable else 0o644
        out.write(head.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
        out.write(content)
        out.write(bytes(-len(content) % 512))
        if number % 500 == 0:
            check()
    out.write(bytes(1024))
    return out.getvalue()


# -- reading trees


@dataclass(frozen=True, slots=True)
class _Named:
    """A name in a tree, and what stands there."""

    name: str
    kind: Literal["folder", "file", "link", "submodule"]
    executable: bool
    oid: bytes


def _names(objects: Objects, tree: bytes, where: str) -> Iterator[_Named]:
    """What a tree object holds: `mode SP name NUL id`, again and again (gitformat-pack, "tree")."""
    if objects.size(tree) > _LARGEST_TREE:
        raise BadSource(f"the folder {where or '/'} has too many files")
    raw = objects.read(tree)
    at, seen = 0, set()
    while at < len(raw):
        space = raw.index(b" ", at)
        end = raw.index(b"\0", space)
        mode, name, oid = int(raw[at:space], 8), raw[space + 1 : end], raw[end + 1 : end + 1 + len(tree)]
        at = end + 1 + len(tree)
        kind = _KINDS.get(mode & 0o170000)
        if kind is None:
            raise BadSource(f"an entry in {where or '/'} is of a kind that git does not have (mode {mode:o})")
        text = _checked_name(name, where)
        if text in seen:
            raise BadSource(f"the folder {where or '/'} has two entries named {text}")
        seen.add(text)
        yield _Named(text, kind, bool(mode & 0o100), oid)


def _checked_name(name: bytes, where: str) -> str:
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise BadSource(f"a name in {where or '/'} is not UTF-8: {name!r}") from error
    if not text or "/" in text or text in (".", "..") or text.lower() in (".git", "git~1"):
        raise BadSource(f"a file may not be named {text!r} ({where or '/'})")
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in text):
        raise BadSource(f"a name in {where or '/'} holds a control character: {text!r}")
    return text


def _walk(objects: Objects, tree: bytes) -> Iterator[Entry]:
    """Depth first, in Git's order, without recursion: a hostile tree may be deeper than Python's stack."""
    open_trees: list[tuple[str, Iterator[_Named]]] = [("", _names(objects, tree, ""))]
    while open_trees:
        where, names = open_trees[-1]
        named = next(names, None)
        if named is None:
            open_trees.pop()
            continue
        path = f"{where}/{named.name}" if where else named.name
        if len(path.encode()) > _LONGEST_PATH:
            raise BadSource(f"a path is longer than {_LONGEST_PATH} bytes: {path[:80]}…")
        match named.kind:
            case "folder":
                yield Entry(path, "folder", executable=False, oid=named.oid, size=0)
                open_trees.append((path, _names(objects, named.oid, path)))
            case "file":
                yield Entry(path, "file", named.executable, named.oid, objects.size(named.oid))
            case "link":
                yield Entry(
                    path,
                    "link",
                    executable=False,
                    oid=named.oid,
                    size=0,
                    target=_target(objects, named.oid, path),
                )
            case "submodule":
                raise BadSource(
                    f"{path} is a submodule, which is not fetched; put its files into the repository"
                )


def _target(objects: Objects, oid: bytes, path: str) -> str:
    if objects.size(oid) > _LONGEST_PATH:
        raise BadSource(f"the symlink {path} points to a path longer than {_LONGEST_PATH} bytes")
    try:
        target = objects.read(oid).decode()
    except UnicodeDecodeError as error:
        raise BadSource(f"the symlink {path} points to a name that is not UTF-8") from error
    if not target or any(ord(c) < 0x20 or ord(c) == 0x7F for c in target):
        raise BadSource(f"the symlink {path} points to nothing, or to a name with control characters")
    return target


def _check_link(path: str, links: dict[str, str]) -> None:
    """Follow a link as a file system would, through other links; refuse it when it leaves the root or never ends.

    Going by the text of the target alone is not enough: `x -> a/up/..` stays inside by its text, and leaves when
    `a/up` is itself a link to `..`.
    """
    at = path.split("/")[:-1]
    todo = deque([links[path]])
    for _ in range(_HOPS):
        target = todo.popleft()
        if target.startswith("/"):
            raise BadSource(f"the symlink {path} leaves the source: it points to {links[path]}")
        parts = deque(target.split("/"))
        while parts:
            part = parts.popleft()
            if part == ".." and not at:
                raise BadSource(f"the symlink {path} leaves the source: it points to {links[path]}")
            if part == "..":
                at.pop()
            elif part not in ("", "."):
                at.append(part)
                if (inner := links.get("/".join(at))) is not None:
                    at.pop()
                    todo.append("/".join([inner, *parts]) if parts else inner)
                    break
        if not todo:
            return
    raise BadSource(f"the symlink {path} never ends: it points to {links[path]}")


def _find(objects: Objects, tree: bytes, path: str) -> _Named | None:
    """What stands at `path` under `tree`; None when nothing does. Raises BadSource on a link on the way."""
    found: _Named | None = None
    where = ""
    for part in path.split("/"):
        if found is not None:
            if found.kind == "link":
                raise BadSource(f"{where} is a symlink; the way to {path} must be plain folders")
            if found.kind != "folder":
                return None
            tree = found.oid
        found = next((named for named in _names(objects, tree, where) if named.name == part), None)
        if found is None:
            return None
        where = f"{where}/{part}".strip("/")
    return found


def _folder(objects: Objects, root: bytes, path: str) -> bytes:
    if not path:
        return root
    found = _find(objects, root, path)
    if found is None:
        raise BadSource(f"the repository has no folder {path}")
    if found.kind != "folder":
        raise BadSource(f"{path} is a {_named(found.kind)} in the repository; a folder is needed")
    return found.oid


def _named(kind: str) -> str:
    return "symlink" if kind == "link" else kind
