"""The plan, and how containers are judged: plain values in, plain values out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from hythe_deploy import steps
from hythe_deploy.steps import Watched, judge
from hythe_events.deploy import Manifest, ServiceManifest
from hythe_events.deployment import Deployment
from hythe_events.language import BlobRef

BLOB = BlobRef(key="f" * 64, size=1, sha256="f" * 64)
DIGEST = f"sha256:{'a' * 64}"
MANIFEST = Manifest(
    services={"web": ServiceManifest(image="shop-web", digest=DIGEST)},
    compose=BLOB,
    compose_sha256="f" * 64,
    config_hashes={"web": "h"},
)
RUNNING = Watched(
    service="web",
    id="c1",
    image=DIGEST,
    config_hash="h",
    status="running",
    health="",
    exit_code=0,
    restarts=0,
    restart_policy="",
    running_for=0.1,
)


def test_a_settled_manifest_is_not_settled_again() -> None:
    """After a crash, and in a rollback, what runs is what was told, not what a second rendering would give."""
    fresh = [type(step).__name__ for step in steps.forward(Deployment())]
    assert fresh == ["Render", "CheckPolicy", "Pull", "Rehearse", "Up", "WaitHealthy", "Verify"]
    assert [type(step).__name__ for step in steps.forward(Deployment(manifest=MANIFEST))] == fresh[1:]


def test_what_ran_before_is_put_back_or_nothing_is_left() -> None:
    """The way back is a plan as well."""
    assert steps.backward(MANIFEST) == (steps.PutBack(MANIFEST), steps.WaitHealthy(), steps.Verify())
    assert steps.backward(None) == (steps.TakeDown(),)


HEALTHY, ILL, OPEN = True, False, None


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"health": "healthy"}, HEALTHY),
        ({"health": "starting"}, OPEN),
        ({"health": "unhealthy"}, ILL),
        ({"running_for": 2.0}, HEALTHY),
        ({"running_for": 0.5}, OPEN),
        ({"running_for": 0.5, "restarts": 3, "restart_policy": "always"}, ILL),
        ({"running_for": 900.0, "restarts": 50, "restart_policy": "always"}, HEALTHY),
        ({"running_for": 0.5, "restarts": 1, "restart_policy": "always"}, OPEN),
        ({"status": "restarting", "restarts": 1, "exit_code": 1, "restart_policy": "always"}, OPEN),
        ({"status": "restarting", "restarts": 3, "exit_code": 1, "restart_policy": "always"}, ILL),
        ({"status": "exited", "exit_code": 0}, HEALTHY),
        ({"status": "exited", "exit_code": 0, "restart_policy": "on-failure"}, HEALTHY),
        ({"status": "exited", "exit_code": 1}, ILL),
        ({"status": "exited", "exit_code": 1, "restart_policy": "on-failure", "restarts": 5}, ILL),
        ({"status": "exited", "exit_code": 0, "restart_policy": "always"}, OPEN),
        ({"status": "created"}, OPEN),
        ({"status": "paused"}, OPEN),
    ],
)
def test_a_container_is_judged_by_what_docker_says_of_it(
    change: dict[str, Any], verdict: bool | None
) -> None:
    """A healthcheck decides; without one, running on for the settle time does; a job may end with exit code 0."""
    judged = judge(replace(RUNNING, **change), settle=1.5)
    assert (None if isinstance(judged, float) else judged.healthy) == verdict


def test_a_settle_time_that_runs_is_waited_for_exactly() -> None:
    """No ticks: the watcher sleeps as long as time alone could decide it."""
    assert judge(replace(RUNNING, running_for=0.5), settle=1.5) == pytest.approx(1.0)
    assert judge(replace(RUNNING, health="starting"), settle=1.5) == math.inf


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"image": "sha256:other"}, "runs image sha256:other"),
        ({"config_hash": "x"}, "another configuration"),
        ({"service": "db"}, "service web has no container"),
    ],
)
def test_success_needs_what_the_manifest_says(change: dict[str, Any], says: str | None) -> None:
    """Digest for digest (P4)."""
    difference = steps.deviation(MANIFEST, [replace(RUNNING, **change)])
    assert difference is None if says is None else says in (difference or "")


def test_a_stranger_in_the_project_is_a_deviation() -> None:
    """An orphan that `up` should have removed is still there."""
    assert "service db runs but is not in the manifest" in (
        steps.deviation(MANIFEST, [RUNNING, replace(RUNNING, service="db")]) or ""
    )


CHECK = {"test": ["CMD", "true"], "interval": "1s", "retries": 3, "timeout": "1s"}


def model(**services: dict[str, Any]) -> dict[str, Any]:
    every = {
        name: {"image": DIGEST, "healthcheck": CHECK, "networks": {"default": None}, **keys}
        for name, keys in services.items()
    }
    return {"services": every, "networks": {"default": {"name": "shop_default"}}}


def tried(rendered: dict[str, Any], running: set[str] | None = None) -> list[list[str]]:
    every = set(rendered["services"])
    plan = steps.rehearsals("shop", rendered, every, every if running is None else running, 60)
    return [[one.service for one in level] for level in plan]


@pytest.mark.parametrize(
    "keys",
    [
        {"volumes": [{"type": "volume", "source": "data", "target": "/d"}]},
        {"network_mode": "host", "networks": None},
        {"networks": {"default": {"ipv4_address": "10.0.0.2"}}},
        {"healthcheck": None},
        {"healthcheck": {"test": ["NONE"]}},
        {"healthcheck": {**CHECK, "disable": True}},
        {"x-hythe": {"rehearse": False}},
        {"some_key_of_tomorrow": 1},
    ],
)
def test_what_two_copies_would_fight_over_is_not_rehearsed(keys: dict[str, Any]) -> None:
    """Then it is replaced, and put back if it fails."""
    assert tried(model(web=keys)) == []


def test_a_service_that_runs_nowhere_yet_is_not_rehearsed() -> None:
    """There is nothing to protect."""
    assert tried(model(web={}), running=set()) == []


def test_who_needs_an_unrehearsed_change_is_not_rehearsed_either() -> None:
    """Beside the old database the new page could fail for no fault of its own."""
    stateful = {"volumes": [{"type": "volume", "source": "d", "target": "/d"}]}
    chain = model(db=stateful, api={"depends_on": {"db": {}}}, web={"depends_on": {"api": {}}}, docs={})
    assert tried(chain) == [["docs"]]


def test_rehearsed_services_find_each_other() -> None:
    """By a private name that hides the running service of the same name, and in the order they need."""
    plan = steps.rehearsals(
        "shop", model(db={}, web={"depends_on": {"db": {}}}), {"db", "web"}, {"db", "web"}, 60
    )
    assert [[one.service for one in level] for level in plan] == [["db"], ["web"]]
    endpoint = plan[1][0].body["NetworkingConfig"]["EndpointsConfig"]["shop_default"]
    assert endpoint == {"Links": ["hythe-rehearsal-shop-db:db"]}


def test_a_rehearsal_publishes_nothing_and_carries_no_project_label() -> None:
    """Golden: the body for the Engine's API. It cannot take a port, an alias or a place in the stack."""
    keys = {
        "command": ["serve", "$$HOME"],
        "entrypoint": None,
        "environment": {"A": "x$$y", "B": None},
        "ports": [{"target": 80, "published": "80"}],
        "labels": {"traefik.enable": "true"},
        "container_name": "shop",
        "init": True,
        "restart": "on-failure:3",
        "tmpfs": "/tmp:size=1m",
        "read_only": True,
    }
    ((one,),) = steps.rehearsals("shop", model(web=keys), {"web"}, {"web"}, 60)
    assert one.name == "hythe-rehearsal-shop-web"
    assert one.patience == pytest.approx(3 * 2 + 1)
    assert one.body == {
        "Image": DIGEST,
        "Cmd": ["serve", "$HOME"],
        "Entrypoint": None,
        "Env": ["A=x$y", "B"],
        "User": "",
        "WorkingDir": "",
        "Hostname": "",
        "Tty": False,
        "StopSignal": "",
        "Labels": {"hythe.rehearsal": "shop", "hythe.rehearsal.service": "web"},
        "Healthcheck": {
            "Test": ["CMD", "true"],
            "Interval": 100_000_000,
            "Timeout": 1_000_000_000,
            "StartPeriod": 0,
            "Retries": 30,
        },
        "HostConfig": {
            "Init": True,
            "NetworkMode": "shop_default",
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": "size=1m"},
            "CapDrop": None,
            "SecurityOpt": None,
            "GroupAdd": None,
            "Memory": 0,
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
        },
        "NetworkingConfig": {"EndpointsConfig": {"shop_default": {"Links": []}}},
    }
