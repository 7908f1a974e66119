"""The source of one commit, read without trusting it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from hythe_build.source import Source, SourceRefused, Workshop
from hythe_events.errors import HytheError
from hythe_events.language import BlobRef
from hythe_events.testing import MemoryBlobs

OpenSource = Callable[[Mapping[str, bytes | str]], Awaitable[Source]]


async def test_a_source_is_unpacked_as_it_was_committed(open_source: OpenSource) -> None:
    """Compose must see what a checkout would show."""
    files: dict[str, bytes | str] = {
        "compose.yaml": "services: {}",
        "a/b/run": b"\x7fELF",
        "a/link": "->../compose.yaml",
        "empty": "",
    }
    folder = await (await open_source(files)).unpacked()
    assert (folder / "compose.yaml").read_text() == "services: {}"
    assert (folder / "a/link").read_text() == "services: {}"
    assert (folder / "a/b/run").stat().st_mode & 0o777 == 0o755
    assert (folder / "empty").read_bytes() == b""


async def test_a_file_is_read_through_links_that_stay_inside(open_source: OpenSource) -> None:
    """A Dockerfile may be a link to another."""
    source = await open_source(
        {"docker/Dockerfile": "FROM x", "Dockerfile": "->docker/Dockerfile", "loop": "->loop"}
    )
    assert source.read("Dockerfile") == b"FROM x"
    assert source.read("nothing") is None
    assert source.read("loop") is None


@pytest.mark.parametrize(
    "files",
    [
        {"link": "->/etc/passwd"},
        {"link": "->../outside"},
        {"a/link": "->../../outside"},
        {"x/y/d": "->.", "x/y/link": "->d/d/../../.."},
        {"d": "->e", "e": "->/etc", "link": "->d/passwd"},
    ],
)
async def test_a_link_that_leads_out_is_refused(open_source: OpenSource, files: dict[str, str]) -> None:
    """Whoever follows it would read files of this machine."""
    with pytest.raises(SourceRefused, match="leads out of the repository"):
        await open_source(files)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ".."])
async def test_a_path_that_leads_out_is_refused(open_source: OpenSource, name: str) -> None:
    """Unpacking it would write files of this machine."""
    with pytest.raises(SourceRefused, match="leads out"):
        await open_source({name: "x"})


async def test_a_path_through_a_link_is_refused(open_source: OpenSource) -> None:
    """It would write wherever the link leads."""
    with pytest.raises(SourceRefused, match="as a file and as a folder"):
        await open_source({"a": "->b", "a/x": "y"})


async def test_devices_are_refused(tmp_path: Path) -> None:
    """A repository holds files and links, nothing else."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        device = tarfile.TarInfo("null")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    blobs = MemoryBlobs()
    ref = await blobs.put(out.getvalue())
    async with Workshop.open(tmp_path) as workshop:
        with pytest.raises(SourceRefused, match="neither a file nor a link"):
            async with workshop.fetch(blobs, ref):
                pass
        assert not list(tmp_path.glob("builder-*/source-*"))


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\x1f\x8b" + bytes(600)])
async def test_what_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    """With a sentence, and not with a parser's traceback."""
    blobs = MemoryBlobs()
    ref = await blobs.put(content)
    async with Workshop.open(tmp_path) as workshop:
        with pytest.raises(SourceRefused, match="not a tar archive"):
            async with workshop.fetch(blobs, ref):
                pass


async def test_an_archive_that_was_changed_is_refused(tmp_path: Path, tar: Callable[..., bytes]) -> None:
    """Exactly the commit that was fetched is built, or nothing."""
    blobs = MemoryBlobs()
    ref = await blobs.put(tar({"a": "b"}))
    lie = BlobRef(key=ref.key, size=ref.size, sha256=hashlib.sha256(b"other").hexdigest())
    async with Workshop.open(tmp_path) as workshop:
        with pytest.raises(HytheError, match="SHA-256 differs"):
            async with workshop.fetch(blobs, lie):
                pass


async def test_what_a_killed_process_left_is_swept_and_what_lives_is_not(tmp_path: Path) -> None:
    """A disk must not fill up with the sources of builds that were interrupted."""
    left = tmp_path / "builder-killed"
    (left / "source-x").mkdir(parents=True)
    (left / "lock").touch()
    async with Workshop.open(tmp_path):
        living = set(tmp_path.glob("builder-*"))
        assert left not in living
        async with Workshop.open(tmp_path):
            assert living < set(tmp_path.glob("builder-*"))
    assert not list(tmp_path.glob("builder-*"))
