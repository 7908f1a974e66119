"""A compose file as values: read strictly, pinned to digests, written for Docker and for people, compared.

Rendering (interpolation, `extends`, `include`, defaults) is Compose's own work, see `stacks.py`. What is here knows
the *rendered* model, in which every short syntax has become the long one and every `$` that is meant stands doubled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from hythe_events.errors import Refused
from hythe_events.strict_yaml import read_mapping

Model = dict[str, Any]

FILES_LABEL = "hythe.files"
"""The label of a service that mounts files of its source: their hash, so that changed files make a new container."""


def read(text: bytes, name: str) -> Model:
    """A compose file as its author wrote it, for looking at only. Raises Refused for what two parsers may read differently."""
    model = read_mapping(text, name)
    if not model:
        raise Refused(f"{name} is empty", field=name)
    return model


def load(text: bytes) -> Model:
    """A file that `dump` wrote."""
    model = yaml.load(text, yaml.CSafeLoader)
    assert isinstance(model, dict)
    return model


class _Dumper(yaml.CSafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  a pinned file has no anchors
        return True


_bare = re.compile(r"[A-Za-z][\w./-]*")


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    """Quoted unless it is a word: YAML 1.1 and 1.2 read `0o14`, `22:22` and `1_0` differently."""
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if _bare.fullmatch(text) else '"'
    )


_Dumper.add_representer(str, _text)


def dump(model: Model, stack: str) -> bytes:
    """`model` as the compose file in the stack's folder. The same model gives the same bytes."""
    head = f"# Written by Hythe for the stack {stack}: every image is pinned to what was deployed. Edits are overwritten.\n"
    first = [key for key in ("name", "services", "networks", "volumes") if key in model]
    ordered = {key: model[key] for key in (*first, *model)}
    text: str = yaml.dump(ordered, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    return (head + text).encode()


def written_by_hythe(text: bytes) -> bool:
    """Whether `dump` wrote it."""
    return text.startswith(b"# Written by Hythe ")


def services(model: Model) -> dict[str, Model]:
    """The services of a rendered model, by name."""
    found: dict[str, Model] = model.get("services") or {}
    return found


def image_of(stack: str, name: str, service: Model) -> str:
    """The image a service runs, by the name in its compose file, or by the one Compose gives what it builds."""
    return str(service.get("image") or f"{stack}-{name}")


def moved(value: Any, old: str, new: str) -> Any:
    """`value` with every path below `old` put below `new`, everywhere."""
    if isinstance(value, dict):
        return {moved(key, old, new): moved(part, old, new) for key, part in value.items()}
    if isinstance(value, list):
        return [moved(part, old, new) for part in value]
    return value.replace(old, new) if isinstance(value, str) else value


def mounted_files(model: Model, folder: str) -> dict[str, set[str]]:
    """For each service the paths below `folder` that it takes from there, relative to it: bind mounts, configs, secrets."""
    shared = {
        (kind, name): definition["file"]
        for kind in ("configs", "secrets")
        for name, definition in (model.get(kind) or {}).items()
        if isinstance(definition, dict) and "file" in definition
    }
    found: dict[str, set[str]] = {}
    for name, service in services(model).items():
        sources = [m["source"] for m in service.get("volumes") or () if m.get("type") == "bind"]
        sources += [
            shared[kind, used["source"]]
            for kind in ("configs", "secrets")
            for used in service.get(kind) or ()
            if (kind, used["source"]) in shared
        ]
        inside = {
            str(PurePosixPath(source).relative_to(folder)) for source in sources if is_below(source, folder)
        }
        if inside:
            found[name] = inside
    return found


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or in it, read as text."""
    return PurePosixPath(path).is_relative_to(folder) and ".." not in PurePosixPath(path).parts


def pinned(
    model: Model, images: Mapping[str, str], references: Mapping[str, str], files: Mapping[str, str]
) -> Model:
    """`model` as it is deployed: `images` by digest, nothing to build or to pull, hash of mounted `files` as a label.

    `references` are the names the images had; they are kept for people, under `x-hythe`.
    """
    changed = {}
    for name, service in services(model).items():
        kept = {k: v for k, v in service.items() if k not in {"build", "pull_policy", "profiles", "develop"}}
        kept["image"] = images[name]
        if name in files:
            kept["labels"] = {**(kept.get("labels") or {}), FILES_LABEL: files[name]}
        changed[name] = kept
    return {**model, "services": changed, "x-hythe": {"images": dict(references)}}


def changed_services(model: Model, before: Model | None) -> set[str]:
    """The services of a pinned `model` that are not the same in the pinned model `before`."""
    old = services(before) if before is not None else {}
    return {name for name, service in services(model).items() if old.get(name) != service}


def unescaped(value: Any) -> Any:
    """`value` as the container gets it: `$$` is how a rendered file writes `$`."""
    if isinstance(value, dict):
        return {unescaped(key): unescaped(part) for key, part in value.items()}
    if isinstance(value, list):
        return [unescaped(part) for part in value]
    return value.replace("$$", "$") if isinstance(value, str) else value


_duration = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?)(?P<unit>h|ms|m|us|µs|ns|s)")
_seconds = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def seconds(duration: str | None, default: float) -> float:
    """A Compose duration (`1m30s`) in seconds."""
    if not duration:
        return default
    return sum(float(found["number"]) * _seconds[found["unit"]] for found in _duration.finditer(duration))


def levels(names: Iterable[str], depends_on: Callable[[str], Iterable[str]]) -> list[list[str]]:
    """`names` in the order they can be started: each level depends only on those before it."""
    left = set(names)
    ordered: list[list[str]] = []
    while left:
        free = sorted(name for name in left if not left & set(depends_on(name)) - {name})
        level = free or sorted(left)
        ordered.append(level)
        left -= set(level)
    return ordered
