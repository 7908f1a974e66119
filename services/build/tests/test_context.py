"""What the builder gets to see; compared with what Docker's own tools send."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hythe_build.context import Context, context
from hythe_build.images import Images
from hythe_build.plan import ImageBuild, PlanRefused
from hythe_build.source import Source

Files = Mapping[str, bytes | str]
OpenSource = Callable[[Files], Awaitable[Source]]

TREE = (
    "a.log",
    "b.txt",
    "keep.md",
    "node_modules/m/index.js",
    "secret/.env",
    "secret/keep",
    "sub/a.log",
    "sub/deep/a.log",
    "sub/deep/keep.md",
    "sub/node_modules/m/index.js",
    "sub/[odd] name*.txt",
    ".git-like/x",
    "README.md",
    "README-secret.md",
)

IGNORES = (
    "*.log\nnode_modules\n",
    "**/*.log\n**/node_modules\n",
    "*\n!sub\n!b.txt\nsub/deep\n",
    "secret\n!secret/keep\n*.md\n!README*.md\nREADME-secret.md\n",
    "/sub/\n./b.txt\n.*\n",
    "# a comment\n\n  keep.md  \nsub/*/a.log\n?.txt\n[a-b].log\n",
    "Dockerfile\n.dockerignore\nsub/\\[odd\\]*\n",
    "**/deep/**\n**\n!*.md\n!sub/a.log\n!sub/deep/keep.md\n!Dockerfile\n",
)


def wanted(**asked: Any) -> ImageBuild:
    return ImageBuild(
        **{"service": "web", "name": "hythe/x-web", "context": "", "dockerfile": "Dockerfile", **asked}
    )


def names(made: Context) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(made.chunks()))) as archive:
        return archive.getnames()


async def test_a_context_is_cut_out_of_the_source_as_a_checkout_would_be(open_source: OpenSource) -> None:
    """Owner, modes and contents are those of a fresh checkout; the format is one that BuildKit recognises."""
    long = "d/" * 60 + "file"
    files: Files = {
        "web/Dockerfile": "FROM scratch",
        "web/run": b"\x7fELF",
        "web/link": "->run",
        f"web/{long}": "x",
        "other/secret": "no",
        "website/no": "no",
    }
    made = context(wanted(context="web", dockerfile="web/Dockerfile"), await open_source(files))
    packed = b"".join(made.chunks())
    assert packed[257:265] in {b"ustar  \0", b"ustar\00000"}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        seen = {each.name: each for each in archive}
        run = archive.extractfile("run")
        assert run is not None
        assert run.read() == b"\x7fELF"
    assert set(seen) >= {"Dockerfile", "run", "link", long, "d"}
    assert not any("no" in name or "secret" in name for name in seen)
    assert (seen["run"].mode, seen["Dockerfile"].mode, seen["d"].mode) == (0o755, 0o644, 0o755)
    assert {(each.uid, each.gid) for each in seen.values()} == {(0, 0)}
    assert seen["link"].linkname == "run"
    assert b"PaxHeader" not in packed


async def test_the_digest_stands_for_what_goes_in_and_not_for_when(open_source: OpenSource) -> None:
    """A service that a commit did not touch keeps its image; whatever changes the image changes the digest."""
    files: dict[str, bytes | str] = {"Dockerfile": "FROM scratch\n", "a": "1"}
    first = context(wanted(), await open_source(files)).digest
    assert context(wanted(), await open_source(files)).digest == first
    other = [
        context(wanted(), await open_source({**files, "a": "2"})).digest,
        context(wanted(), await open_source({**files, "a": b"\x7fELF"})).digest,
        context(wanted(), await open_source({**files, "b": ""})).digest,
        context(wanted(args={"A": "1"}), await open_source(files)).digest,
        context(wanted(target="x"), await open_source(files)).digest,
        context(wanted(labels={"x": "y"}), await open_source(files)).digest,
    ]
    assert len({first, *other}) == len(other) + 1


async def test_what_is_ignored_does_not_change_the_digest(open_source: OpenSource) -> None:
    """Otherwise a changed README would restart the service."""
    files: dict[str, bytes | str] = {
        "Dockerfile": "FROM scratch\n",
        ".dockerignore": "README.md",
        "README.md": "1",
    }
    first = context(wanted(), await open_source(files)).digest
    assert context(wanted(), await open_source({**files, "README.md": "2"})).digest == first


async def test_a_dockerfile_has_its_own_ignore_file(open_source: OpenSource) -> None:
    """Docker's rule: `<Dockerfile>.dockerignore` goes before the context's."""
    files: Files = {
        "Dockerfile": "FROM x",
        "Dockerfile.dockerignore": "a",
        ".dockerignore": "b",
        "a": "",
        "b": "",
    }
    sent = names(context(wanted(), await open_source(files)))
    assert "b" in sent
    assert "a" not in sent


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"dockerfile": "docker/no"}, "there is no docker/no in the repository"),
        ({"context": "no", "inline": "FROM x", "dockerfile": ""}, "there is no folder no in the repository"),
    ],
)
async def test_what_is_missing_is_named(open_source: OpenSource, asked: dict[str, Any], says: str) -> None:
    """The path as the user would look for it, not one of this machine."""
    source = await open_source({"Dockerfile": "FROM x"})
    with pytest.raises(PlanRefused, match=f"web: {says}"):
        context(wanted(**asked), source)


@pytest.mark.parametrize(
    "frontend",
    [
        "evil/frontend",
        "docker.io/evil/dockerfile:1",
        "registry.example/docker/dockerfile:1",
        "docker/dockerfilex",
    ],
)
async def test_a_stranger_may_not_read_the_dockerfile(open_source: OpenSource, frontend: str) -> None:
    """The image that `# syntax=` names runs inside the builder and decides what is built."""
    for text in (
        f"# syntax={frontend}\nFROM x",
        f"# escape=`\n#  SYNTAX = {frontend}  \nFROM x",
        f"// syntax={frontend}\n",
    ):
        with pytest.raises(PlanRefused, match="asks to be read by"):
            context(wanted(), await open_source({"Dockerfile": text}))
    with pytest.raises(PlanRefused, match="asks to be read by"):
        context(wanted(args={"BUILDKIT_SYNTAX": frontend}), await open_source({"Dockerfile": "FROM x"}))


@pytest.mark.parametrize(
    "frontend", ["docker/dockerfile:1", "docker.io/docker/dockerfile:1.7-labs", "evil/x@sha256:" + "a" * 64]
)
async def test_dockers_own_and_a_pinned_frontend_are_fine(open_source: OpenSource, frontend: str) -> None:
    """Most Dockerfiles that name one name Docker's."""
    assert context(wanted(), await open_source({"Dockerfile": f"# syntax={frontend}\nFROM x"})).dockerfile


@pytest.mark.parametrize(
    ("line", "only"),
    [
        ("RUN make", False),
        ("RUN --mount=type=cache,target=/x make", True),
        ("copy --link a b", True),
        ("COPY --from=x --chmod=755 a b", True),
        ("COPY --from=x --chown=1 a b", False),
        ("RUN <<EOF\nmake\nEOF", True),
        ("RUN echo '--mount' x", False),
        ("# RUN --mount=x", False),
    ],
)
async def test_a_dockerfile_that_needs_buildkit_is_known(
    open_source: OpenSource, line: str, only: bool
) -> None:
    """It must not be given to the classic builder, which would fail on it with an unhelpful word."""
    assert context(wanted(), await open_source({"Dockerfile": f"FROM x\n{line}\n"})).only_buildkit is only


@pytest.mark.parametrize("builder", ["buildkit", "classic"])
async def test_images_hold_the_files_that_dockers_own_tools_put_into_them(
    docker: Any, open_source: OpenSource, tmp_path: Path, builder: str
) -> None:
    """`.dockerignore` file for file, against `docker-compose build`: the promise is the same image as by hand."""
    services, files = {}, dict[str, bytes | str]()
    for number, ignore in enumerate(IGNORES):
        folder = f"c{number}"
        tree = {path: path for path in TREE} | {
            "Dockerfile": "FROM scratch\nCOPY . /all/\n",
            ".dockerignore": ignore,
        }
        files |= {f"{folder}/{path}": text for path, text in tree.items()}
        services[folder] = {
            "build": {"context": f"./{folder}"},
            "image": f"hythe-test-build/by-hand:{builder}{number}",
        }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(str(text))
    (tmp_path / "compose.yaml").write_text(json.dumps({"services": services}))
    by_hand = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "docker-compose"),
        *("--project-name", f"hythe-test-build-{builder}", "--file", str(tmp_path / "compose.yaml"), "build"),
        env={"PATH": os.defpath, "HOME": str(tmp_path), "DOCKER_BUILDKIT": "0", "DOCKER_HOST": docker.host},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await by_hand.communicate()
    assert by_hand.returncode == 0, said.decode()
    source = await open_source(files)
    async with Images.open(docker.host, buildkit=builder == "buildkit") as images:
        for number, service in enumerate(services):
            asked = wanted(
                service=service,
                name=f"hythe/hythe-test-build-{service}",
                context=service,
                dockerfile=f"{service}/Dockerfile",
            )
            image = await images.build(asked, context(asked, source), labels={}, say=_unheard)
            ours, theirs = (
                await docker.files(image.digest),
                await docker.files(str(services[service]["image"])),
            )
            assert _copied(ours) == _copied(theirs), IGNORES[number]
            await docker.remove(str(services[service]["image"]))


def _copied(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: body for path, body in files.items() if path.startswith("all/")}


async def _unheard(_line: bytes) -> None:
    """Nobody reads this log."""
