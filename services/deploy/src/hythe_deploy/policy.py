"""What a stack's compose file may not ask for, unless it was granted to that stack.

The verdict is given twice: `sources` looks at the files as they were written, before Compose opens anything they point
to; `verdict` looks at the fully rendered model, the very one that is deployed, so that no syntax can hide anything.

| grant | allows |
| --- | --- |
| `host-files` | files and directories of the host outside the stack's folder, other stacks' volumes |
| `privileged` | what makes a container as good as root on the host: capabilities, devices, unconfined profiles |
| `host-namespaces` | the host's or another container's network, processes, IPC; networks of other stacks |
| `docker-socket` | the Docker Engine itself, which is everything |
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from hythe_deploy.compose import FILES_LABEL, Model, image_of, is_below, services
from hythe_events.deploy import Grant

CAPABILITIES = {"NET_BIND_SERVICE", "CHOWN", "SETUID", "SETGID", "DAC_OVERRIDE"}
"""Those that may be added without a grant: a container has them by default."""

SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")

_WEAK_PROFILES = (
    "seccomp=unconfined",
    "apparmor=unconfined",
    "label=disable",
    "systempaths=unconfined",
    "no-new-privileges=false",
)


class Refusal(NamedTuple):
    """One thing that is refused: where it stands, what it is, and the grant that would allow it, if any does."""

    key: str
    what: str
    grant: Grant | None

    def __str__(self) -> str:
        if self.grant is None:
            return f"{self.key}: {self.what}, which is never allowed"
        return f"{self.key}: {self.what}, which needs the grant {self.grant}"


class Surroundings(NamedTuple):
    """What the model does not say: where the stack lives, and what else does.

    `real` maps a path on the host to where it leads once symbolic links are followed; `projects` maps the name of a
    container that exists to the Compose project it belongs to.
    """

    stack: str
    folder: str
    real: Callable[[str], str] = posixpath.normpath
    projects: Mapping[str, str] = {}


def verdict(
    model: Model, around: Surroundings, granted: Iterable[Grant], *, settled: bool = False
) -> tuple[Refusal, ...]:
    """Everything in the rendered `model` that is refused; empty when all is well.

    A `settled` model is one that Hythe has pinned: it may carry Hythe's own label.
    """
    allowed = set(granted)
    found = [*_project(model, around)]
    for name, service in services(model).items():
        found += (
            refusal._replace(key=f"services.{name}.{refusal.key}")
            for refusal in _service(name, service, around)
        )
    own = f"{FILES_LABEL} is reserved" if settled else None
    return tuple(refusal for refusal in found if refusal.grant not in allowed and refusal.what != own)


def _project(model: Model, around: Surroundings) -> Iterator[Refusal]:
    for name, volume in _definitions(model, "volumes"):
        key = f"volumes.{name}"
        if volume.get("external") or not _ours(volume.get("name"), name, around.stack):
            yield Refusal(key, f"the volume {volume.get('name', name)} is not this stack's own", "host-files")
        options = volume.get("driver_opts") or {}
        if volume.get("driver", "local") == "local" and options:
            device = str(options.get("device", ""))
            if (
                "bind" in str(options.get("o", "")).split(",")
                or options.get("type") == "none"
                or device.startswith("/")
            ):
                yield from _host_path(f"{key}.driver_opts", device, around)
    for name, network in _definitions(model, "networks"):
        if network.get("external") or not _ours(network.get("name"), name, around.stack):
            yield Refusal(
                f"networks.{name}",
                f"the network {network.get('name', name)} is not this stack's own",
                "host-namespaces",
            )
        if str(network.get("driver", "bridge")) in {"host", "macvlan", "ipvlan"}:
            yield Refusal(
                f"networks.{name}.driver", f"{network['driver']} joins the host's network", "host-namespaces"
            )
    for kind in ("secrets", "configs"):
        for name, definition in (model.get(kind) or {}).items():
            if isinstance(definition, dict) and "file" in definition:
                yield from _host_path(f"{kind}.{name}.file", str(definition["file"]), around)


def _definitions(model: Model, kind: str) -> Iterator[tuple[str, Model]]:
    for name, definition in (model.get(kind) or {}).items():
        yield name, definition or {}


def _ours(real_name: object, key: str, stack: str) -> bool:
    return real_name is None or real_name == f"{stack}_{key}" or str(real_name).startswith(f"{stack}_")


def _service(name: str, service: Model, around: Surroundings) -> Iterator[Refusal]:
    yield from _root(service)
    yield from _namespaces(service)
    yield from _mounts(service, around)
    yield from _neighbours(name, service, around)


def _root(service: Model) -> Iterator[Refusal]:
    """What makes a container as good as root on the host (CO1), or runs a program on the host (CO5)."""
    if service.get("privileged"):
        yield Refusal("privileged", "a privileged container is root on the host", "privileged")
    for capability in service.get("cap_add") or ():
        if str(capability).upper().removeprefix("CAP_") not in CAPABILITIES:
            yield Refusal("cap_add", f"the capability {capability}", "privileged")
    for key in (
        "devices",
        "device_cgroup_rules",
        "gpus",
        "cgroup_parent",
        "runtime",
        "isolation",
        "provider",
        "credential_spec",
    ):
        if service.get(key):
            yield Refusal(key, f"{key} reaches the host", "privileged")
    for option in service.get("security_opt") or ():
        if str(option).replace(":", "=", 1).lower() in _WEAK_PROFILES:
            yield Refusal("security_opt", f"{option} takes a protection away", "privileged")
        elif str(option).lower().startswith("seccomp") and "unconfined" not in str(option).lower():
            yield Refusal("security_opt", f"{option} reads a file of the host", "host-files")
    for sysctl in service.get("sysctls") or ():
        if not str(sysctl).startswith("net."):
            yield Refusal("sysctls", f"{sysctl} is a setting of the host's kernel", "privileged")
    if int(service.get("oom_score_adj") or 0) < 0:
        yield Refusal("oom_score_adj", "a negative value protects it at the cost of the host", "privileged")
    if service.get("cgroup") == "host":
        yield Refusal("cgroup", "the host's control groups", "privileged")
    reserved = ((service.get("deploy") or {}).get("resources") or {}).get("reservations") or {}
    if reserved.get("devices"):
        yield Refusal("deploy.resources.reservations.devices", "devices of the host", "privileged")
    for hook in ("post_start", "pre_start", "pre_stop"):
        if any(step.get("privileged") for step in service.get(hook) or ()):
            yield Refusal(hook, "a privileged hook is root on the host", "privileged")


def _namespaces(service: Model) -> Iterator[Refusal]:
    """Namespaces of the host or of containers that are not the stack's (CO2)."""
    for key in ("network_mode", "pid", "ipc", "uts", "userns_mode"):
        value = str(service.get(key) or "")
        if value == "host" or value.startswith("container:"):
            yield Refusal(key, f"{value} is outside the stack", "host-namespaces")
    for link in service.get("external_links") or ():
        yield Refusal("external_links", f"{link} is a container outside the stack", "host-namespaces")


def _mounts(service: Model, around: Surroundings) -> Iterator[Refusal]:
    """Files of the host (CO3)."""
    for number, mount in enumerate(service.get("volumes") or ()):
        if mount.get("type") == "bind":
            yield from _host_path(f"volumes[{number}]", str(mount.get("source", "")), around)
        elif mount.get("type") not in {"volume", "tmpfs", "image"}:
            yield Refusal(f"volumes[{number}]", f"a mount of type {mount.get('type')}", "host-files")
    for source in service.get("volumes_from") or ():
        if str(source).startswith("container:"):
            yield Refusal("volumes_from", f"{source} is a container outside the stack", "host-files")
    if service.get("use_api_socket"):
        yield Refusal("use_api_socket", "it is given the Docker Engine", "docker-socket")


def _host_path(key: str, path: str, around: Surroundings) -> Iterator[Refusal]:
    """A path on the host is judged by where it leads, and by what it says."""
    if "~" in path.split("/"):
        yield Refusal(key, f"{path} names a home folder, and a stack has none", None)
        return
    shown = posixpath.normpath(path) if path else path
    leads = around.real(path)
    if any(
        is_below(socket, place) for socket in SOCKETS for place in (shown, leads) if place.startswith("/")
    ) or (posixpath.basename(leads) == "docker.sock"):
        yield Refusal(key, f"{path} holds the Docker Engine's socket", "docker-socket")
    folder = around.real(around.folder)
    if not (is_below(path, around.folder) and is_below(leads, folder)):
        inside = leads if leads != shown else path
        yield Refusal(key, f"{inside} is outside the stack's folder {around.folder}", "host-files")


def _neighbours(name: str, service: Model, around: Surroundings) -> Iterator[Refusal]:
    """Taking another stack's place (CO7)."""
    container = service.get("container_name")
    if container and around.projects.get(container, around.stack) != around.stack:
        owner = around.projects[container] or "nobody's stack"
        yield Refusal("container_name", f"the name {container} is taken by a container of {owner}", None)
    for label in service.get("labels") or {}:
        if label.startswith(("com.docker.compose.", "hythe.")):
            yield Refusal("labels", f"{label} is reserved", None)
    if "@" not in (image := image_of(around.stack, name, service)) and image.startswith("hythe/"):
        yield Refusal("image", f"{image} is a name that Hythe keeps images under", None)


def sources(name: str, text: Model) -> tuple[Refusal, ...]:
    """What a compose file as it was written points to outside its own folder, which Compose would open (CO3, CO4).

    `name` is its path below the folder of the source; files it may include are looked at in the same way.
    """
    found: list[Refusal] = []
    here = posixpath.dirname(name)
    for key, path in pointed_to(text):
        why = _escapes(path, here)
        if why:
            found.append(Refusal(f"{name}: {key}", f"{path} {why}", None))
    return tuple(found)


def included(name: str, text: Model) -> tuple[str, ...]:
    """The other compose files of the source that `text` takes in, as paths below the source's folder."""
    here = posixpath.dirname(name)
    return tuple(
        posixpath.normpath(posixpath.join(here, path))
        for key, path in pointed_to(text)
        if (key.startswith("include") and ".env_file" not in key) or ".extends" in key
    )


def pointed_to(text: Model) -> Iterator[tuple[str, str]]:
    """Every file that Compose opens while it renders: key and path."""
    for number, entry in enumerate(_list(text.get("include"))):
        if isinstance(entry, dict):
            for key in ("path", "project_directory", "env_file"):
                for path in _list(entry.get(key)):
                    yield f"include[{number}].{key}", str(path)
        else:
            yield f"include[{number}]", str(entry)
    for name, service in _mapping(text.get("services")):
        extends = service.get("extends")
        if isinstance(extends, dict) and extends.get("file"):
            yield f"services.{name}.extends.file", str(extends["file"])
        for key in ("env_file", "label_file"):
            for path in _list(service.get(key)):
                yield (
                    f"services.{name}.{key}",
                    str(path.get("path", "")) if isinstance(path, dict) else str(path),
                )
    for kind in ("configs", "secrets"):
        for name, definition in _mapping(text.get(kind)):
            if definition.get("file"):
                yield f"{kind}.{name}.file", str(definition["file"])


def _escapes(path: str, here: str) -> str | None:
    if "$" in path:
        return "must be written out, without variables"
    if (
        "://" in path
        or path.startswith(("git@", "oci:"))
        or (":" in path and not path.startswith(("/", ".")))
    ):
        return "is not a file of the source"
    whole = posixpath.normpath(posixpath.join(here, path))
    if posixpath.isabs(path) or path.startswith("~") or whole == ".." or whole.startswith("../"):
        return "is outside the source"
    return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _mapping(value: Any) -> Iterator[tuple[str, Model]]:
    if isinstance(value, dict):
        for name, part in value.items():
            if isinstance(part, dict):
                yield str(name), part
