"""The plan of a deploy, as data: what is done in which order, and how watched containers are judged.

```
Render ► CheckPolicy ► Pull ► Rehearse ► Up ► WaitHealthy ► Verify          nothing that runs is touched before Up
                                  └────────┴──────┴───────────┴──► PutBack ► WaitHealthy ► Verify
                                                                   TakeDown, where nothing ran before
```
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hythe_deploy import compose
from hythe_deploy.compose import Model
from hythe_events import deploy
from hythe_events.deploy import Manifest, ServiceHealth
from hythe_events.deployment import Deployment
from hythe_events.language import one_line


@dataclass(frozen=True)
class Render:
    """Unpack the source and let Compose resolve its compose file."""


@dataclass(frozen=True)
class CheckPolicy:
    """Refuse what the stack was not granted."""


@dataclass(frozen=True)
class Pull:
    """Have every image here, by digest. The first time this settles the manifest."""


@dataclass(frozen=True)
class Rehearse:
    """Try changed services beside those that run."""


@dataclass(frozen=True)
class Up:
    """Write the stack's folder and bring its containers to the manifest."""


@dataclass(frozen=True)
class WaitHealthy:
    """Watch until all services are healthy."""


@dataclass(frozen=True)
class Verify:
    """Docker runs what the manifest says."""


@dataclass(frozen=True)
class PutBack:
    """Bring folder and containers back to the manifest that ran before."""

    manifest: Manifest


@dataclass(frozen=True)
class TakeDown:
    """Remove the containers of a deployment that had nothing before it."""


Step = Render | CheckPolicy | Pull | Rehearse | Up | WaitHealthy | Verify | PutBack | TakeDown


def forward(state: Deployment) -> tuple[Step, ...]:
    """What is left to do. A settled manifest is not settled again; everything after it is safe to do twice."""
    prepare: tuple[Step, ...] = () if state.manifest is not None else (Render(),)
    return (*prepare, CheckPolicy(), Pull(), Rehearse(), Up(), WaitHealthy(), Verify())


def backward(before: Manifest | None) -> tuple[Step, ...]:
    """How a deployment that failed is undone."""
    return (TakeDown(),) if before is None else (PutBack(before), WaitHealthy(), Verify())


def told_as(step: Step, *, restoring: bool = False) -> deploy.Step:
    """What `step` is called in the deployment's stream."""
    match step:
        case Render():
            return "render"
        case CheckPolicy():
            return "policy"
        case Pull():
            return "pull"
        case Rehearse():
            return "rehearse"
        case Up():
            return "up"
        case WaitHealthy():
            return "restore_health" if restoring else "health"
        case Verify():
            return "verify"
        case PutBack() | TakeDown():
            return "restore"


@dataclass(frozen=True)
class Watched:
    """A container as Docker describes it at one moment. `running_for` is seconds since its last start."""

    service: str
    id: str
    image: str
    config_hash: str
    status: Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]
    health: Literal["", "none", "starting", "healthy", "unhealthy"]
    exit_code: int
    restarts: int
    restart_policy: str
    running_for: float
    probe: str = ""


CRASHES = 3
"""Restarts after which a container that still runs no longer than the settle time counts as crash-looping."""


def judge(watched: Watched, settle: float) -> ServiceHealth | float:
    """How a container fares; or, while that is open, the seconds after which time alone could decide it (or infinity)."""
    if watched.status in {"exited", "dead"}:
        if watched.exit_code == 0 and watched.restart_policy in {"", "no", "on-failure"}:
            return ServiceHealth(healthy=True, detail="ran to its end with exit code 0")
        if watched.restart_policy in {"", "no"} or watched.restarts >= CRASHES:
            return ServiceHealth(healthy=False, detail=f"exited with code {watched.exit_code}")
        return math.inf
    if watched.restarts >= CRASHES and (watched.status == "restarting" or watched.running_for < settle):
        code = f" with exit code {watched.exit_code}" if watched.status == "restarting" else ""
        return ServiceHealth(
            healthy=False, detail=f"keeps crashing{code}, restarted {watched.restarts} times"
        )
    if watched.status != "running":
        return math.inf
    if watched.health == "healthy":
        return ServiceHealth(healthy=True, detail="its healthcheck passes")
    if watched.health == "unhealthy":
        said = f": {watched.probe}" if watched.probe else ""
        return ServiceHealth(healthy=False, detail=one_line(f"its healthcheck fails{said}"))
    if watched.health == "starting":
        return math.inf
    if watched.running_for >= settle:
        return ServiceHealth(healthy=True, detail=f"has run for {settle:g} s without a restart")
    return settle - watched.running_for


def summary(services: dict[str, ServiceHealth]) -> str:
    """Why it is unhealthy, in one line."""
    return one_line("; ".join(f"{name} {s.detail}" for name, s in sorted(services.items()) if not s.healthy))


def deviation(manifest: Manifest, containers: Iterable[Watched]) -> str | None:
    """How what runs differs from `manifest`; None when it does not."""
    running: dict[str, list[Watched]] = {}
    for container in containers:
        running.setdefault(container.service, []).append(container)
    for name, wanted in manifest.services.items():
        for container in running.get(name, ()):
            if container.image != wanted.digest:
                return f"service {name} runs image {container.image}, not {wanted.digest}"
            if container.config_hash != manifest.config_hashes.get(name, container.config_hash):
                return f"service {name} runs with another configuration than the manifest's"
        if name not in running and manifest.config_hashes.get(name) is not None:
            return f"service {name} has no container"
    extra = sorted(set(running) - set(manifest.services))
    return f"service {extra[0]} runs but is not in the manifest" if extra else None


@dataclass(frozen=True)
class Rehearsal:
    """A container that is started beside a running service to see whether it becomes healthy.

    `body` is what the Engine's `POST /containers/create` takes; `networks` are joined besides the first, with the
    private names by which it finds other rehearsed services.
    """

    service: str
    name: str
    body: dict[str, Any]
    networks: dict[str, dict[str, Any]]
    patience: float


PROBE = 0.1
"""Seconds between two probes in a rehearsal: Docker first probes after one interval, so a short one tells soon."""

REHEARSAL_LABEL = "hythe.rehearsal"

_understood = {
    "image", "command", "entrypoint", "environment", "healthcheck", "networks", "ports", "expose", "init", "user",
    "working_dir", "labels", "restart", "depends_on", "read_only", "tmpfs", "stop_signal", "stop_grace_period",
    "cap_drop", "container_name", "logging", "annotations", "security_opt", "group_add", "tty", "mem_limit", "hostname",
}  # fmt: skip
"""Keys of a service that a rehearsal carries over, or may leave out without changing whether it becomes healthy."""


def rehearsals(
    stack: str, model: Model, changed: set[str], running: set[str], deadline: float
) -> list[list[Rehearsal]]:
    """The changed services that can soundly be tried beside those that run, in the order in which to try them.

    Sound is: it has a healthcheck that tells; an older container of it runs, so that there is something to protect; it
    shares nothing that two copies would fight over (volumes, host namespaces, fixed addresses); everything it asks for
    is understood here; and none of the services it depends on has changed without being rehearsed too.
    """
    every = compose.services(model)
    chosen = {name for name in changed & running if _sound(every[name])}
    while True:
        spoiled = {name for name in chosen if (_needs(every, name) & changed) - chosen}
        if not spoiled:
            break
        chosen -= spoiled
    ordered = compose.levels(chosen, lambda name: _needs(every, name))
    return [[_rehearsal(stack, model, name, chosen, deadline) for name in level] for level in ordered]


def _needs(every: dict[str, Model], name: str) -> set[str]:
    return set((every[name].get("depends_on") or {}).keys())


def _sound(service: Model) -> bool:
    check = service.get("healthcheck") or {}
    test = check.get("test") or []
    own_way = (service.get("x-hythe") or {}).get("rehearse", True) is True
    understood = all(
        key in _understood or key.startswith("x-") or service[key] in (None, [], {}) for key in service
    )
    plain_networks = all(
        set(network or {}) <= {"aliases", "priority"} for network in _networks(service).values()
    )
    return bool(
        own_way and understood and plain_networks and test and test[0] != "NONE" and not check.get("disable")
    )


def _networks(service: Model) -> dict[str, Model | None]:
    found: dict[str, Model | None] = service.get("networks") or {"default": None}
    return found


def _rehearsal(stack: str, model: Model, name: str, chosen: set[str], deadline: float) -> Rehearsal:
    service = compose.unescaped(compose.services(model)[name])
    check = service["healthcheck"]
    interval = compose.seconds(check.get("interval"), 30.0)
    timeout = compose.seconds(check.get("timeout"), 30.0)
    start = compose.seconds(check.get("start_period"), 0.0)
    retries = int(check.get("retries") or 3)
    test = check["test"]
    networks = {
        str(model["networks"][network]["name"]): {
            "Links": [
                f"{_rehearsal_name(stack, other)}:{other}"
                for other in sorted(_needs({name: service}, name) & chosen)
            ]
        }
        for network in _networks(service)
    }
    first, *others = networks
    body: dict[str, Any] = {
        "Image": service["image"],
        "Cmd": service.get("command"),
        "Entrypoint": service.get("entrypoint"),
        "Env": [
            f"{key}={value}" if value is not None else key
            for key, value in (service.get("environment") or {}).items()
        ],
        "User": str(service.get("user") or ""),
        "WorkingDir": service.get("working_dir") or "",
        "Hostname": service.get("hostname") or "",
        "Tty": bool(service.get("tty")),
        "StopSignal": service.get("stop_signal") or "",
        "Labels": {REHEARSAL_LABEL: stack, "hythe.rehearsal.service": name},
        "Healthcheck": {
            "Test": ["CMD-SHELL", test] if isinstance(test, str) else test,
            "Interval": int(min(PROBE, interval) * 1e9),
            "Timeout": int(timeout * 1e9),
            "StartPeriod": int(start * 1e9),
            "Retries": max(retries, math.ceil(retries * interval / PROBE)) if interval > PROBE else retries,
        },
        "HostConfig": {
            "Init": service.get("init"),
            "NetworkMode": first,
            "ReadonlyRootfs": bool(service.get("read_only")),
            "Tmpfs": {
                entry.partition(":")[0]: entry.partition(":")[2] for entry in _entries(service.get("tmpfs"))
            },
            "CapDrop": service.get("cap_drop"),
            "SecurityOpt": service.get("security_opt"),
            "GroupAdd": [str(group) for group in service.get("group_add") or ()] or None,
            "Memory": int(service.get("mem_limit") or 0),
            "RestartPolicy": _restart(str(service.get("restart") or "no")),
        },
        "NetworkingConfig": {"EndpointsConfig": {first: networks[first]}},
    }
    patience = min(deadline, start + retries * (interval + min(timeout, 2.0)) + 1.0)
    return Rehearsal(
        name, _rehearsal_name(stack, name), body, {other: networks[other] for other in others}, patience
    )


def _rehearsal_name(stack: str, service: str) -> str:
    return f"hythe-rehearsal-{stack}-{service}"


def _entries(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or ()


def _restart(policy: str) -> dict[str, Any]:
    name, _, count = policy.partition(":")
    return {"Name": name, "MaximumRetryCount": int(count)} if count else {"Name": name}
