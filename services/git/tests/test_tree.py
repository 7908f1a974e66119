"""What a commit may hold, which compose file it names, and the archive made of it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from typing import Any

import pytest

from hythe_events.errors import Refused
from hythe_git import tree
from hythe_git.tree import BadSource, Limits

File = bytes
COMPOSE = b"services: {}\n"


class Link(str):
    """A symlink's target, in a tree written as a dict."""

    __slots__ = ()


class Submodule:
    """A gitlink, in a tree written as a dict."""


class MadeObjects:
    """Git's objects, made from dicts: bytes are files, dicts are folders. Any tree can be made, valid or not."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.sizes: dict[bytes, int] = {}
        self.reads = 0

    def size(self, oid: bytes) -> int:
        return self.sizes.get(oid, len(self.kept[oid]))

    def read(self, oid: bytes) -> bytes:
        self.reads += 1
        return self.kept[oid]

    def keep(self, content: bytes) -> bytes:
        oid = hashlib.sha1(content).digest()
        self.kept[oid] = content
        return oid

    def tree(self, content: dict[Any, Any]) -> bytes:
        return self.raw([self._entry(name, each) for name, each in content.items()])

    def raw(self, listed: list[tuple[int, bytes, bytes]]) -> bytes:
        ordered = sorted(listed, key=lambda each: each[1] + b"/" * (each[0] == 0o40000))
        return self.keep(b"".join(b"%o %s\0%s" % (mode, name, oid) for mode, name, oid in ordered))

    def _entry(self, name: str | bytes, content: object) -> tuple[int, bytes, bytes]:
        name = name if isinstance(name, bytes) else name.encode()
        match content:
            case Link():
                return 0o120000, name, self.keep(content.encode())
            case Submodule():
                return 0o160000, name, bytes(20)
            case bytes():
                return 0o100755 if name.endswith(b".sh") else 0o100644, name, self.keep(content)
            case dict():
                return 0o40000, name, self.tree(content)
        raise AssertionError(content)


def listed(content: dict[Any, Any], limits: Limits | None = None) -> list[tree.Entry]:
    objects = MadeObjects()
    return tree.entries(objects, objects.tree(content), limits or Limits())


def laid_out(content: dict[Any, Any], path: str = "", compose_file: str | None = None) -> tree.Layout:
    objects = MadeObjects()
    return tree.layout(objects, objects.tree(content), path=path, compose_file=compose_file)


# -- the archive


def test_an_archive_holds_what_the_commit_holds() -> None:
    """Files with their mode, folders, and links that stay inside; the commit's time; nobody's name."""
    objects = MadeObjects()
    long = "x" * 120
    content = {
        "compose.yaml": COMPOSE,
        "run.sh": b"#!/bin/sh\n",
        "src": {"ä.txt": b"hello", "up": Link("../run.sh"), long: b"1"},
    }
    tar = tree.archive(objects, tree.entries(objects, objects.tree(content), Limits()), 1_700_000_000)
    with tarfile.open(fileobj=io.BytesIO(tar)) as read:
        members = {each.name: each for each in read.getmembers()}
        assert list(members) == ["compose.yaml", "run.sh", "src", "src/up", f"src/{long}", "src/ä.txt"]
        assert members["run.sh"].mode == 0o755
        assert members["compose.yaml"].mode == 0o644
        assert members["src/up"].linkname == "../run.sh"
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in members.values()} == {(1_700_000_000, 0, 0, "")}
        extracted = read.extractfile("src/ä.txt")
        assert extracted is not None
        assert extracted.read() == b"hello"


def test_the_same_commit_gives_the_same_archive() -> None:
    """The archive is kept under its hash: fetching a commit again must not keep it twice."""
    content = {"a": b"1", "b": {"c": b"2"}}
    once, again = MadeObjects(), MadeObjects()
    made = [tree.archive(o, tree.entries(o, o.tree(content), Limits()), 5) for o in (once, again)]
    assert made[0] == made[1]


# -- what is refused


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../x", "a/../../x", "/proc/self/environ", ""])
def test_a_link_out_of_the_source_is_refused(target: str) -> None:
    """Whoever reads the source later follows links; the host's files must not be among what it reads."""
    with pytest.raises(BadSource, match=r"symlink compose\.yaml"):
        listed({"compose.yaml": Link(target), "a": {"b": b""}})


def test_a_link_that_leaves_through_another_link_is_refused() -> None:
    """By its text `a/up/../..` stays inside; but `a/up` leads to the root, and two steps up from there lead out."""
    with pytest.raises(BadSource, match="symlink x leaves"):
        listed({"a": {"up": Link("..")}, "x": Link("a/up/..")})


def test_links_in_a_circle_are_refused() -> None:
    """A link that never ends makes every reader stumble."""
    with pytest.raises(BadSource, match="never ends"):
        listed({"a": Link("b"), "b": Link("a")})


def test_links_that_stay_inside_are_fine() -> None:
    """Through folders, through other links, to nothing: as long as they stay."""
    assert (
        len(listed({"d": {"e": {"up": Link("../..")}}, "x": Link("d/e/up/d/e"), "y": Link("x/up/nothing")}))
        == 5
    )


def test_a_submodule_is_refused() -> None:
    """Its files are not there: building without them would build something else."""
    with pytest.raises(BadSource, match="lib is a submodule"):
        listed({"lib": Submodule(), "compose.yaml": COMPOSE})


@pytest.mark.parametrize(
    "name", [b"a\nb", b"a\rb", b"\x1b[2J", b"a\x7f", b".git", b".GIT", b"git~1", b"..", b".", b"", b"\xff"]
)
def test_a_name_that_plays_tricks_is_refused(name: bytes) -> None:
    """Control characters fool terminals and parsers; `.git` fools the next git that looks."""
    with pytest.raises(BadSource):
        listed({name: b"x"})


def test_two_entries_of_one_name_are_refused() -> None:
    """Git never makes such a tree; whoever does wants one reader to see the one and another the other."""
    objects = MadeObjects()
    file, folder = objects.keep(b"x"), objects.tree({"y": b""})
    with pytest.raises(BadSource, match="two entries"):
        tree.entries(objects, objects.raw([(0o100644, b"a", file), (0o40000, b"a", folder)]), Limits())


def test_a_bomb_of_files_is_refused_before_it_is_unfolded() -> None:
    """Ten trees deep, ten names each: ten thousand million files in a few hundred bytes."""
    objects = MadeObjects()
    oid = objects.keep(b"boom")
    entries = [(0o100644, b"%d" % n, oid) for n in range(10)]
    for _ in range(10):
        level = objects.raw(entries)
        entries = [(0o40000, b"%d" % n, level) for n in range(10)]
    with pytest.raises(BadSource, match="more than 1000 files"):
        tree.entries(objects, level, Limits(files=1000))
    assert objects.reads < 2000


def test_a_huge_file_is_refused_by_its_size_alone() -> None:
    """A gigabyte of zeros is a megabyte in a pack: it must not be read to know that it is too large."""
    objects = MadeObjects()
    root = objects.tree({"a": b"small", "big": b"zeros"})
    objects.sizes[hashlib.sha1(b"zeros").digest()] = 1_500_000_000
    reads = objects.reads
    with pytest.raises(BadSource, match=r"larger than .* at big"):
        tree.entries(objects, root, Limits())
    assert objects.reads == reads + 1  # the tree, and no file


def test_a_path_that_is_too_long_is_refused_however_deep() -> None:
    """A thousand folders deep is no reason to run out of stack."""
    objects = MadeObjects()
    level = objects.tree({"f": b""})
    for _ in range(3000):
        level = objects.raw([(0o40000, b"d", level)])
    with pytest.raises(BadSource, match="path is longer"):
        tree.entries(objects, level, Limits())


def test_looking_stops_when_told_to() -> None:
    """Time is up, or the service stops: a large source must not hold it."""

    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    objects = MadeObjects()
    root = objects.tree({f"{n:04}": b"" for n in range(1000)})
    with pytest.raises(Stopped):
        tree.entries(objects, root, Limits(), stop)


# -- which compose file


def test_compose_files_are_looked_for_as_dockge_does() -> None:
    """A stack that Dockge runs must be found as Dockge finds it."""
    every = dict.fromkeys(reversed(tree.COMPOSE_FILES), COMPOSE)
    for name in tree.COMPOSE_FILES:
        assert laid_out(every).compose_file == name
        del every[name]
    with pytest.raises(BadSource, match="no compose file"):
        laid_out({"README": b""})


def test_the_settings_win_over_what_is_there() -> None:
    """What a person saved is meant."""
    content = {"compose.yaml": COMPOSE, "prod.yaml": COMPOSE, "hythe.yaml": b"compose_file: other.yaml"}
    assert laid_out(content, compose_file="prod.yaml").compose_file == "prod.yaml"


def test_hythe_yaml_names_folder_and_file() -> None:
    """A repository can say for itself where its stack is."""
    content = {
        "hythe.yaml": b"path: deploy\ncompose_file: web/app.yaml\n",
        "deploy": {"web": {"app.yaml": COMPOSE}},
    }
    found = laid_out(content)
    assert (found.path, found.compose_file) == ("deploy", "web/app.yaml")
    below = laid_out({"sub": content}, path="sub")
    assert (below.path, below.compose_file) == ("sub/deploy", "web/app.yaml")


def test_a_folder_becomes_the_root_of_the_source() -> None:
    """What stands beside the folder is none of the stack's business, submodules and all."""
    objects = MadeObjects()
    root = objects.tree({"deploy": {"compose.yaml": COMPOSE}, "other": {"lib": Submodule()}})
    found = tree.layout(objects, root, path="deploy", compose_file=None)
    assert [entry.path for entry in tree.entries(objects, found.tree, Limits())] == ["compose.yaml"]


@pytest.mark.parametrize(
    ("content", "path", "compose_file", "says"),
    [
        (
            {"compose.yaml": Link("real.yaml"), "real.yaml": COMPOSE},
            "",
            None,
            "is a symlink; it must be a regular file",
        ),
        ({"compose.yaml": {"x": b""}}, "", None, "is a folder"),
        ({"compose.yaml": COMPOSE}, "deploy", None, "no folder deploy"),
        ({"deploy": Link("/etc")}, "deploy", None, "deploy is a symlink"),
        ({"d": Link("e"), "e": {"f": {"compose.yaml": COMPOSE}}}, "d/f", None, "d is a symlink"),
        ({"compose.yaml": COMPOSE}, "", "prod.yaml", "prod.yaml is not there"),
        ({"hythe.yaml": Link("/etc/passwd")}, "", None, "hythe.yaml is a symlink"),
        ({"hythe.yaml": b"x" * 70_000}, "", None, "larger than"),
        ({"hythe.yaml": b"compose: x.yaml"}, "", None, "unknown field 'compose'"),
    ],
)
def test_what_cannot_be_the_compose_file_is_said(
    content: dict[Any, Any], path: str, compose_file: str | None, says: str
) -> None:
    """One sentence that says what is there instead."""
    with pytest.raises(BadSource, match=says):
        laid_out(content, path, compose_file)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b"compose_fil: x", "compose_fil"),
        (b"compose_file: 5", "compose_file"),
        (b"path: ../x", "path"),
        (b"path: /etc", "path"),
        (b"compose_file: ''", "compose_file"),
        (b"- a", None),
        (b"a: [", None),
        (b"\xff\xfe\x00", None),
        (b"!!python/object/apply:os.system ['true']", None),
    ],
)
def test_a_bad_hythe_yaml_is_refused_by_field(text: bytes, field: str | None) -> None:
    """A typing error must be said, not read past."""
    with pytest.raises(Refused) as refused:
        tree.parse_hythe_yaml(text)
    assert refused.value.field == field


def test_an_empty_hythe_yaml_says_nothing() -> None:
    """Comments alone are no mistake."""
    assert tree.parse_hythe_yaml(b"# nothing yet\n") == {}
