"""The policy, case by case: what is refused, where the message points, and which grant allows it."""

from __future__ import annotations

from typing import Any

import pytest

from hythe_deploy import policy
from hythe_deploy.policy import Surroundings
from hythe_events.deploy import Grant

FOLDER = "/opt/stacks/shop"
AROUND = Surroundings("shop", FOLDER, projects={"db": "other", "shop-web-1": "shop", "loner": ""})


def bind(source: str) -> dict[str, Any]:
    return {"volumes": [{"type": "bind", "source": source, "target": "/x"}]}


def service(**keys: Any) -> dict[str, Any]:
    return {"services": {"web": {"image": "shop-web", **keys}}}


PRIVILEGED: list[dict[str, Any]] = [
    {"privileged": True},
    {"cap_add": ["SYS_ADMIN"]},
    {"cap_add": ["CAP_NET_ADMIN"]},
    {"cap_add": ["ALL"]},
    {"devices": [{"source": "/dev/sda", "target": "/dev/sda", "permissions": "rwm"}]},
    {"device_cgroup_rules": ["c 1:3 mr"]},
    {"gpus": [{"count": -1}]},
    {"security_opt": ["seccomp=unconfined"]},
    {"security_opt": ["apparmor:unconfined"]},
    {"security_opt": ["label:disable"]},
    {"security_opt": ["systempaths=unconfined"]},
    {"security_opt": ["no-new-privileges:false"]},
    {"cgroup": "host"},
    {"cgroup_parent": "/"},
    {"runtime": "other"},
    {"isolation": "process"},
    {"sysctls": {"kernel.shmmax": "1"}},
    {"oom_score_adj": -500},
    {"provider": {"type": "/tmp/x"}},
    {"credential_spec": {"file": "x.json"}},
    {"post_start": [{"command": ["x"], "privileged": True}]},
    {"deploy": {"resources": {"reservations": {"devices": [{"capabilities": ["gpu"]}]}}}},
]
NAMESPACES: list[dict[str, Any]] = [
    {"network_mode": "host"},
    {"network_mode": "container:other"},
    {"pid": "host"},
    {"pid": "container:other"},
    {"ipc": "host"},
    {"ipc": "container:other"},
    {"uts": "host"},
    {"userns_mode": "host"},
    {"external_links": ["other-db-1:db"]},
]
FILES: list[dict[str, Any]] = [
    bind("/"),
    bind("/etc"),
    bind("/home/ada/.ssh"),
    bind(f"{FOLDER}/../other"),
    bind(f"{FOLDER}-other/data"),
    {"volumes_from": ["container:other"]},
    {"security_opt": ["seccomp=/etc/shadow"]},
    {"volumes": [{"type": "npipe", "source": "x", "target": "y"}]},
]
ALLOWED: list[dict[str, Any]] = [
    {"cap_add": ["NET_BIND_SERVICE", "CAP_CHOWN"]},
    {"security_opt": ["no-new-privileges:true"]},
    {"network_mode": "service:db"},
    {"network_mode": "none"},
    {"ipc": "shareable"},
    {"sysctls": {"net.core.somaxconn": "1024"}},
    {"oom_score_adj": 100},
    bind(FOLDER),
    bind(f"{FOLDER}/data/inner"),
    {"volumes": [{"type": "tmpfs", "target": "/t"}, {"type": "volume", "source": "data", "target": "/d"}]},
    {"container_name": "shop-web-1"},
    {"container_name": "new"},
    {"labels": {"traefik.enable": "true"}},
    {"privileged": False},
]


@pytest.mark.parametrize(
    ("keys", "grant"),
    [
        *((keys, "privileged") for keys in PRIVILEGED),
        *((keys, "host-namespaces") for keys in NAMESPACES),
        *((keys, "host-files") for keys in FILES),
        ({"use_api_socket": True}, "docker-socket"),
    ],
)
def test_what_reaches_the_host_is_refused_unless_granted(keys: dict[str, Any], grant: Grant) -> None:
    """The message says where it stands and which grant would allow it; that grant, and only that one, does (CO1-CO3)."""
    refused = policy.verdict(service(**keys), AROUND, ())
    assert refused
    assert all(str(one).startswith(f"services.web.{next(iter(keys))}") for one in refused)
    assert any(f"needs the grant {grant}" in str(one) for one in refused)
    every: set[Grant] = {"host-files", "privileged", "host-namespaces", "docker-socket"}
    assert policy.verdict(service(**keys), AROUND, every - {grant})
    assert not policy.verdict(service(**keys), AROUND, every)


@pytest.mark.parametrize("keys", ALLOWED)
def test_ordinary_stacks_are_left_in_peace(keys: dict[str, Any]) -> None:
    """A policy that refuses what people need is switched off."""
    assert policy.verdict(service(**keys), AROUND, ()) == ()


@pytest.mark.parametrize("source", ["/var/run/docker.sock", "/run/docker.sock", "/run", "/var/run", "/"])
def test_the_engines_socket_needs_its_own_grant(source: str) -> None:
    """Files of the host are one thing; the engine is everything."""
    refused = policy.verdict(service(**bind(source)), AROUND, ("host-files",))
    assert [one.grant for one in refused] == ["docker-socket"]


def test_a_link_in_the_stacks_folder_is_judged_by_where_it_leads() -> None:
    """A container may write a link into its data folder, and the next commit may mount it."""
    around = AROUND._replace(real=lambda path: path.replace(f"{FOLDER}/data/link", "/etc"))
    (refused,) = policy.verdict(service(**bind(f"{FOLDER}/data/link")), around, ())
    assert (refused.grant, refused.what) == ("host-files", f"/etc is outside the stack's folder {FOLDER}")


@pytest.mark.parametrize(
    ("volume", "grants"),
    [
        ({"driver_opts": {"type": "none", "o": "bind", "device": "/"}}, ["docker-socket", "host-files"]),
        ({"driver_opts": {"type": "none", "o": "rw,bind", "device": "/etc"}}, ["host-files"]),
        ({"driver": "local", "driver_opts": {"type": "ext4", "device": "/dev/sda1"}}, ["host-files"]),
        ({"external": True, "name": "other_data"}, ["host-files"]),
        ({"name": "other_data"}, ["host-files"]),
        ({"name": "shop_data", "driver_opts": {"type": "none", "o": "bind", "device": f"{FOLDER}/d"}}, []),
        ({"name": "shop_data", "driver_opts": {"type": "tmpfs", "device": "tmpfs"}}, []),
        ({"name": "shop_data"}, []),
        (None, []),
    ],
)
def test_a_volume_is_not_a_way_around(volume: dict[str, Any] | None, grants: list[str]) -> None:
    """A named volume can be a bind mount in disguise, or somebody else's data."""
    model = {"services": {}, "volumes": {"data": volume}}
    assert [one.grant for one in policy.verdict(model, AROUND, ())] == grants


@pytest.mark.parametrize(
    ("network", "refused"),
    [
        ({"name": "shop_default", "ipam": {}}, False),
        ({"name": "proxy", "external": True}, True),
        ({"name": "other_default"}, True),
        ({"name": "shop_lan", "driver": "macvlan"}, True),
    ],
)
def test_networks_of_others_need_a_grant(network: dict[str, Any], refused: bool) -> None:
    """Joining another stack's network is reaching into it."""
    found = policy.verdict({"services": {}, "networks": {"n": network}}, AROUND, ())
    assert [one.grant for one in found] == (["host-namespaces"] if refused else [])


@pytest.mark.parametrize("kind", ["secrets", "configs"])
def test_a_secret_is_not_read_from_the_host(kind: str) -> None:
    """`secrets: {s: {file: /etc/shadow}}` is a bind mount by another name."""
    model = {"services": {}, kind: {"s": {"file": "/etc/shadow"}, "ours": {"file": f"{FOLDER}/s"}}}
    (refused,) = policy.verdict(model, AROUND, ())
    assert (refused.key, refused.grant) == (f"{kind}.s.file", "host-files")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"container_name": "db"}, "the name db is taken by a container of other"),
        ({"container_name": "loner"}, "taken by a container of nobody's stack"),
        ({"labels": {"com.docker.compose.project": "other"}}, "com.docker.compose.project is reserved"),
        ({"labels": {"hythe.files": "x"}}, "hythe.files is reserved"),
        (bind(f"{FOLDER}/~/.ssh"), "names a home folder, and a stack has none"),
        ({"image": "hythe/kept:other.web.1"}, "a name that Hythe keeps images under"),
    ],
)
def test_taking_another_stacks_place_is_never_allowed(keys: dict[str, Any], says: str) -> None:
    """No grant helps: there is no good reason for it (CO7)."""
    (refused,) = policy.verdict(
        service(**keys), AROUND, ("host-files", "privileged", "host-namespaces", "docker-socket")
    )
    assert says in str(refused)
    assert "never allowed" in str(refused)


def test_a_settled_model_may_carry_our_own_label() -> None:
    """Hythe wrote it there itself."""
    assert policy.verdict(service(labels={"hythe.files": "x"}), AROUND, (), settled=True) == ()


@pytest.mark.parametrize(
    "text",
    [
        {"include": ["../other/compose.yaml"]},
        {"include": ["https://evil.example/compose.yaml"]},
        {"include": ["git@evil.example:x.git"]},
        {"include": ["oci://evil.example/x"]},
        {"include": [{"path": ["a.yaml", "/etc/passwd"]}]},
        {"include": [{"path": "a.yaml", "env_file": "/proc/self/environ"}]},
        {"include": [{"path": "a.yaml", "project_directory": "../.."}]},
        {"services": {"web": {"extends": {"file": "../../x.yaml", "service": "y"}}}},
        {"services": {"web": {"env_file": "/proc/self/environ"}}},
        {"services": {"web": {"env_file": ["ok.env", {"path": "../../secret.env"}]}}},
        {"services": {"web": {"env_file": "${HOME}/x"}}},
        {"services": {"web": {"env_file": "~/x"}}},
        {"services": {"web": {"label_file": "/etc/shadow"}}},
        {"secrets": {"s": {"file": "/etc/shadow"}}},
        {"configs": {"s": {"file": "../../etc/shadow"}}},
    ],
)
def test_compose_is_not_made_to_open_files_outside_the_source(text: dict[str, Any]) -> None:
    """It would do so while it renders, before any rendered model could be looked at (CO3, CO4)."""
    assert policy.sources("compose.yaml", text)


def test_files_of_the_source_may_be_pointed_to() -> None:
    """Also from a compose file in a folder, as long as the source is not left."""
    text = {
        "include": ["../parts/db.yaml"],
        "services": {
            "web": {"extends": {"file": "base.yaml", "service": "x"}, "env_file": "./web.env"},
            "odd": None,
        },
    }
    assert policy.sources("deploy/compose.yaml", text) == ()
    assert policy.included("deploy/compose.yaml", text) == ("parts/db.yaml", "deploy/base.yaml")
