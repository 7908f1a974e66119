"""Which images a rendered compose file asks for, as plain data; nothing is built here.

A service with `build:` becomes one `ImageBuild`. A service with only `image:` has nothing to build. What the builder
behind the Docker API cannot do is refused here, naming service and key, rather than built differently from what the
file says.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hythe_events.errors import Refused

_UNDERSTOOD = {
    "args",
    "cache_from",
    "context",
    "dockerfile",
    "dockerfile_inline",
    "extra_hosts",
    "labels",
    "network",
    "no_cache",
    "platforms",
    "provenance",
    "pull",
    "sbom",
    "shm_size",
    "tags",
    "target",
}
"""`cache_from`, `provenance` and `sbom` do not change what the image holds and are left to the engine's own cache;
`tags` would be moved from commit to commit, and our images are named by what they are."""

_SOURCE_LABEL = "dev.hythe."
_REMOTE = re.compile(r"^(?:[a-z][a-z0-9+.-]*://|git@|github\.com/)", re.IGNORECASE)


class PlanRefused(Refused):
    """The compose file asks for a build that cannot be done here."""


@dataclass(frozen=True)
class ImageBuild:
    """One image to build. Paths are inside the source, with `/`; the source itself is `""`."""

    service: str
    name: str
    """The image's name without a tag, `hythe/<stack>-<service>`."""
    context: str
    dockerfile: str
    inline: str | None = None
    target: str | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    network: str | None = None
    extra_hosts: tuple[str, ...] = ()
    shm_size: int | None = None
    no_cache: bool = False
    pull: bool = False
    platform: str | None = None


def images(model: Mapping[str, Any], *, stack: str, root: str) -> tuple[ImageBuild, ...]:
    """The images that `model` asks for, by service name. `root` is where the source was when it was rendered.

    `model` is what `docker-compose config --format json` gives. Raises PlanRefused.
    """
    services: Mapping[str, Any] = model.get("services") or {}
    return tuple(
        _image(service, asked["build"], stack, root)
        for service, asked in sorted(services.items())
        if isinstance(asked, Mapping) and asked.get("build")
    )


def image_name(stack: str, service: str) -> str:
    """The name, without a tag, of a service's images. What Docker's grammar does not allow is replaced, and a few
    digits of a hash keep two such names apart."""
    plain = f"{stack}-{service}"
    allowed = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    if allowed != plain:
        allowed = f"{allowed[:100]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
    return f"hythe/{allowed}"


def _image(service: str, build: Mapping[str, Any], stack: str, root: str) -> ImageBuild:
    for key, value in build.items():
        if key not in _UNDERSTOOD and not key.startswith("x-") and value:
            raise PlanRefused(
                f"{service}: build.{key} is not possible with the builder of this Docker engine; leave it out",
                field=f"services.{service}.build.{key}",
            )
    platforms = build.get("platforms") or []
    if len(platforms) > 1:
        raise PlanRefused(
            f"{service}: build.platforms names {len(platforms)} platforms; one image is built for one",
            field=f"services.{service}.build.platforms",
        )
    if build.get("network") not in {None, "default", "none", "bridge"}:
        raise PlanRefused(
            f"{service}: build.network may be default, bridge or none, not {build['network']}",
            field=f"services.{service}.build.network",
        )
    context = _inside(str(build.get("context") or "."), root, root, f"{service}: build.context", service)
    inline = build.get("dockerfile_inline")
    dockerfile = "" if inline is not None else str(build.get("dockerfile") or "Dockerfile")
    if dockerfile:
        dockerfile = _inside(
            dockerfile, posixpath.join(root, context), root, f"{service}: build.dockerfile", service
        )
    shm_size = build.get("shm_size")
    return ImageBuild(
        service=service,
        name=image_name(stack, service),
        context=context,
        dockerfile=dockerfile,
        inline=inline,
        target=build.get("target") or None,
        args={
            key: str(value) for key, value in sorted((build.get("args") or {}).items()) if value is not None
        },
        labels=_labels(service, build.get("labels") or {}),
        network=build.get("network"),
        extra_hosts=tuple(build.get("extra_hosts") or ()),
        shm_size=None if shm_size is None else int(shm_size),
        no_cache=bool(build.get("no_cache")),
        pull=bool(build.get("pull")),
        platform=str(platforms[0]) if platforms else None,
    )


def _inside(path: str, base: str, root: str, what: str, service: str) -> str:
    """`path`, seen from `base`, as a path inside `root`."""
    if _REMOTE.match(path):
        raise PlanRefused(
            f"{what} must be a folder of the repository, not an address", field=f"services.{service}.build"
        )
    inside = posixpath.relpath(posixpath.normpath(posixpath.join(base, path)), root)
    if inside == ".." or inside.startswith("../"):
        raise PlanRefused(f"{what} leads out of the repository", field=f"services.{service}.build")
    return "" if inside == "." else inside


def _labels(service: str, labels: Mapping[str, Any]) -> Mapping[str, str]:
    for name in labels:
        if name.startswith(_SOURCE_LABEL):
            raise PlanRefused(
                f"{service}: labels that begin with {_SOURCE_LABEL} are Hythe's own",
                field=f"services.{service}.build.labels",
            )
    return {name: str(value) for name, value in sorted(labels.items())}
