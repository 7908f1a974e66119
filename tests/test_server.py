"""compose.yaml, .env.example and infra/: the same system for a server, with no more rights than it needs.

What is asked here is asked of the model that Compose itself renders, so that anchors, defaults and short forms count as
what they become.
"""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hythe_build.settings import BuildSettings
from hythe_cli.local.nats import MAX_PAYLOAD
from hythe_cli.local.postgres import DURABLE, SETTINGS
from hythe_cli.local.processes import installed_program
from hythe_deploy.settings import DeploySettings
from hythe_events.__main__ import parser
from hythe_events.access import SERVICES
from hythe_events.installation import DATABASE_OWNER, RELAYS, Vault
from hythe_events.settings import ServiceSettings
from hythe_git.settings import GitSettings
from hythe_webhooks.settings import WebhooksSettings

ROOT = Path(__file__).parents[1]
SETTINGS_OF: dict[str, type[ServiceSettings]] = {
    "webhooks": WebhooksSettings,
    "git": GitSettings,
    "build": BuildSettings,
    "deploy": DeploySettings,
}
SERVERS = ("postgres", "nats")
JOBS = ("setup", "migrate")
SOCKET = "/var/run/docker.sock"

Model = dict[str, Any]


def compose(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(installed_program("docker-compose")), "--env-file", str(ROOT / ".env.example"), *words],
        cwd=ROOT,
        env={"PATH": os.defpath, "HOME": "/nonexistent", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def rendered(**env: str) -> Model:
    told = compose("--profile", "*", "config", "--format", "json", env={"DOCKER_GID": "998", **env})
    assert told.returncode == 0, told.stderr
    model: Model = json.loads(told.stdout)
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    return rendered()


def mounts(service: Model) -> dict[str, Model]:
    """What a service mounts, by the path inside."""
    return {mount["target"]: mount for mount in service.get("volumes", [])}


def who(model: Model, holds: Callable[[Model], bool]) -> set[str]:
    return {name for name, service in model["services"].items() if holds(service)}


# -- compose.yaml


def test_compose_accepts_the_file_with_the_example_settings(model: Model) -> None:
    """`cp .env.example .env` and one number must be enough."""
    assert set(model["services"]) == {*SERVICES, *SERVERS, *JOBS, "cli"}


def test_what_must_be_filled_in_is_said_in_a_sentence() -> None:
    """A guessed group would give a Hythe that starts and cannot deploy."""
    told = compose("config", env={})
    assert told.returncode != 0
    assert "stat -c %g /var/run/docker.sock" in told.stderr
    assert "Traceback" not in told.stderr


def test_only_build_and_deploy_reach_docker(model: Model) -> None:
    """Who may speak to Docker's socket is root on the machine."""
    assert who(model, lambda service: SOCKET in mounts(service)) == {"build", "deploy"}
    assert who(model, lambda service: "998" in service.get("group_add", [])) == {"build", "deploy"}
    everything = json.dumps(
        {name: model["services"][name] for name in ("webhooks", "git", "cli", *SERVERS, *JOBS)}
    )
    assert "docker.sock" not in everything


def test_every_container_gives_up_what_it_does_not_need(model: Model) -> None:
    """A hole in one of them should lead no further."""
    for name, service in model["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"cap_add", "privileged", "pid", "ipc", "devices", "userns_mode"} & set(service), name
        assert service.get("network_mode") in {None, "none"}, name
        assert service["init"] is True, name
        assert any(each.startswith("/tmp:size=") for each in service["tmpfs"]), name


def test_nothing_runs_as_root(model: Model) -> None:
    """Our images say `USER hythe`; the two servers are told here."""
    assert instructions()[-1][-1][0] == "ENTRYPOINT"
    assert ("USER", "hythe") in instructions()[-1]
    users = {name: service.get("user") for name, service in model["services"].items()}
    assert {name for name, user in users.items() if user is not None} == set(SERVERS)
    assert users["postgres"] == "postgres"
    assert users["nats"] == "10001:10001"


def test_no_container_can_use_up_the_machine(model: Model) -> None:
    """Memory, processes and logs have an end."""
    for name, service in model["services"].items():
        assert int(service["mem_limit"]) <= 2 * 1024**3, name
        assert service["pids_limit"] <= 512, name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}, name


def test_only_the_webhooks_are_reached_from_outside(model: Model) -> None:
    """Postgres and NATS publish nothing, and by default not even the webhooks leave this machine without a proxy."""
    assert who(model, lambda service: "ports" in service) == {"webhooks"}
    [port] = model["services"]["webhooks"]["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "8080", 8080)


def test_each_network_holds_who_needs_it(model: Model) -> None:
    """Whoever takes over webhooks finds no way out, and whoever sits elsewhere finds no way to the two servers."""

    def inside(network: str) -> set[str]:
        return who(model, lambda service: network in (service.get("networks") or {}))

    assert inside("store") == {*SERVICES, "postgres", "migrate"}
    assert inside("bus") == {*SERVICES, "nats", "cli"}
    assert inside("edge") == {"webhooks"}
    assert inside("forges") == {"git"}
    assert model["services"]["setup"]["network_mode"] == "none"
    networks = model["networks"]
    assert networks["store"]["internal"] is True
    assert networks["bus"]["internal"] is True
    assert networks["edge"]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}


def test_whatever_keeps_running_says_whether_it_is_well(model: Model) -> None:
    """Without curl: our images have none, and need none."""
    for name in (*SERVICES, *SERVERS):
        test = model["services"][name]["healthcheck"]["test"]
        assert test[0] == "CMD", "no shell"
        assert "curl" not in test
    for name in SERVICES:
        service = model["services"][name]
        words = service["healthcheck"]["test"]
        assert words[1:4] == ["python", "-m", "hythe_events"]
        asked = parser().parse_args(words[4:])
        assert asked.url == f"http://127.0.0.1:{service['environment']['HYTHE_HEALTH_PORT']}/readyz"
    assert "127.0.0.1" in model["services"]["postgres"]["healthcheck"]["test"], (
        "the server that makes the cluster answers on the socket, and goes away again"
    )


def test_build_and_deploy_say_when_they_cannot_reach_docker_or_the_stacks(model: Model) -> None:
    """A wrong DOCKER_GID or folder should show at once, not at the first push."""
    writable = {
        name: [
            str(path)
            for path in parser().parse_args(model["services"][name]["healthcheck"]["test"][4:]).writable
        ]
        for name in SERVICES
    }
    assert writable == {"webhooks": [], "git": [], "build": [SOCKET], "deploy": [SOCKET, "/opt/stacks"]}


def test_everything_starts_when_what_it_needs_is_there(model: Model) -> None:
    """A service that met an old schema, or a bus without users, would only make noise."""

    def needs(name: str) -> dict[str, str]:
        return {
            other: how["condition"]
            for other, how in (model["services"][name].get("depends_on") or {}).items()
        }

    done, well = "service_completed_successfully", "service_healthy"
    assert needs("setup") == {}
    assert needs("postgres") == needs("nats") == {"setup": done}
    assert needs("migrate") == {"postgres": well}
    for name in SERVICES:
        assert needs(name) == {"postgres": well, "nats": well, "migrate": done}
    assert model["services"]["nats"]["depends_on"]["setup"]["restart"] is True, (
        "it reads its users when it starts"
    )


def test_what_keeps_running_comes_back_and_jobs_do_not(model: Model) -> None:
    """After a reboot everything is there again without anybody."""
    assert who(model, lambda service: service["restart"] == "unless-stopped") == {*SERVICES, *SERVERS}


def test_work_under_way_has_time_to_end(model: Model) -> None:
    """Docker kills after its own grace period, which must be the longer one."""
    assert ServiceSettings.model_fields["grace"].default == 20
    for name in SERVICES:
        assert model["services"][name]["stop_grace_period"] == "30s"
    assert model["services"]["postgres"]["stop_grace_period"] == "2m0s"


def test_each_container_sees_its_own_secrets_and_no_others(model: Model) -> None:
    """And reads them only: the one that writes has no network."""
    for name, volume in {
        **{each: each for each in SERVICES},
        "postgres": "postgres",
        "cli": "client",
    }.items():
        seen = {
            mount["source"]: mount
            for mount in model["services"][name]["volumes"]
            if "secrets" in mount["source"]
        }
        assert set(seen) == {f"secrets-{volume}"}, name
        assert seen[f"secrets-{volume}"]["read_only"] is True, name
        assert seen[f"secrets-{volume}"]["target"] == "/run/secrets", name
    assert not any("secrets" in mount["source"] for mount in model["services"]["nats"]["volumes"])
    migrating = model["services"]["migrate"]["volumes"]
    assert {mount["source"].removeprefix("secrets-") for mount in migrating} == {
        "postgres",
        "relay",
        *SERVICES,
    }
    assert all(mount["read_only"] for mount in migrating)
    assert who(model, lambda service: any("owner" in m["source"] for m in service["volumes"])) == {"setup"}


def test_no_secret_stands_in_an_environment_or_a_command(model: Model) -> None:
    """`docker inspect` shows both to whoever may ask."""
    for name, service in model["services"].items():
        for variable in service.get("environment") or {}:
            secret = re.search("PASSWORD|SECRET|SEED|KEY|TOKEN", variable)
            assert secret is None or variable.endswith(("_FILE", "_DIR")), f"{name}: {variable}"
    assert not re.search(
        r"PASSWORD|SECRET|TOKEN", (ROOT / ".env.example").read_text().replace("HYTHE_SECRETS_DIR", "")
    )


def test_the_one_that_strangers_talk_to_may_not_publish_the_log(model: Model) -> None:
    """Its settings agree with the secrets it is given."""
    relays = {name for name in SERVICES if model["services"][name]["environment"]["HYTHE_RELAY"] == "true"}
    assert relays == set(RELAYS)


def test_every_secret_has_a_volume_and_every_volume_a_folder_of_ours(model: Model, tmp_path: Path) -> None:
    """A folder that only the container's own layer holds would be gone with the container, and the keys with it; one that
    the image lacks would belong to root."""
    Vault(tmp_path).fill(postgres=True)
    made = {f"/var/lib/hythe/secrets/{folder.name}" for folder in tmp_path.iterdir()}
    mounted = mounts(model["services"]["setup"])
    assert {path for path in mounted if "/secrets/" in path} == made
    prepared = " ".join(words for _, words in instructions()[-1])
    for path in {*mounted, "/var/lib/hythe/git", "/var/lib/hythe/build"}:
        assert re.search(rf"\s{path.removeprefix('/var/lib/')}(\s|$)", prepared), path
    assert {mount["source"] for mount in mounted.values()} <= set(model["volumes"])


def test_the_stacks_lie_under_the_same_path_inside_and_outside() -> None:
    """Docker looks a stack's bind mounts up on the host: under another path they would be empty folders."""
    deploy = rendered(STACKS_DIR="/srv/stacks")["services"]["deploy"]
    mount = mounts(deploy)["/srv/stacks"]
    assert (mount["type"], mount["source"]) == ("bind", "/srv/stacks")
    assert mount["bind"].get("create_host_path") in {False, None}, "made by Docker it would belong to root"
    assert deploy["environment"]["HYTHE_STACKS_DIR"] == "/srv/stacks"
    assert "/srv/stacks" in deploy["healthcheck"]["test"]


def test_every_folder_a_service_writes_in_outlives_its_container(model: Model) -> None:
    """The roots are read-only: a path without a volume would fail at the first write."""
    for name, setting in (("git", "HYTHE_GIT_DIR"), ("build", "HYTHE_BUILD_DIR")):
        service = model["services"][name]
        assert mounts(service)[service["environment"][setting]]["type"] == "volume"
    assert {"postgres-data", "nats-data"} <= set(model["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_the_settings_given_here_are_settings(
    model: Model, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt variable would be ignored in silence."""
    told = model["services"][name]["environment"]
    known = {f"HYTHE_{field.upper()}" for field in SETTINGS_OF[name].model_fields}
    assert set(told) <= known
    for variable, value in told.items():
        monkeypatch.setenv(variable, value)
    assert SETTINGS_OF[name]().secrets_dir == Path("/run/secrets")


def test_images_can_be_named_otherwise() -> None:
    """For a mirror, a digest, or a machine without a registry."""
    services = rendered(
        HYTHE_POSTGRES_IMAGE="p@sha256:1", HYTHE_NATS_IMAGE="n:1", HYTHE_BASE_IMAGE="b:1", HYTHE_IMAGES="mine", HYTHE_VERSION="9"
    )["services"]  # fmt: skip
    assert services["postgres"]["image"] == "p@sha256:1"
    assert services["nats"]["image"] == "n:1"
    ours = {name: service for name, service in services.items() if "build" in service}
    assert set(ours) == {*SERVICES, *JOBS, "cli"}
    for name, service in ours.items():
        member = "webhooks" if name in JOBS else name
        assert service["image"] == f"mine-{member}:9"
        assert service["build"]["args"] == {"BASE": "b:1", "MEMBER": member, "VERSION": "9"}
        assert service["build"]["dockerfile"] == "infra/Dockerfile"


# -- .env.example


def example() -> dict[str, str]:
    """Every variable of .env.example, commented out or not."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    found = [match for line in lines if (match := re.fullmatch(r"#?([A-Z_]+)=(.*)", line))]
    listed = {match[1]: match[2] for match in found}
    assert len(listed) == len(found), "a variable stands there twice"
    return listed


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_stands_in_the_example_with_its_default(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the list that people read: what is missing there does not exist for them."""
    listed = example()
    for field, described in SETTINGS_OF[name].model_fields.items():
        variable = f"HYTHE_{field.upper()}"
        assert variable in listed, f"{variable} of {name} is missing in .env.example"
        if described.default is None:
            assert listed[variable] == "", variable
        elif variable == "HYTHE_HEALTH_PORT":
            assert listed[variable] == str(described.default)
        else:
            monkeypatch.setenv(variable, listed[variable])
            assert getattr(SETTINGS_OF[name](), field) == described.default, variable


def test_everything_in_the_example_is_read_by_somebody() -> None:
    """A setting that nobody reads is a promise that nobody keeps."""
    settings = {f"HYTHE_{field.upper()}" for known in SETTINGS_OF.values() for field in known.model_fields}
    named = re.finditer(r"\$\{([A-Z_]+):[-?]([^}]*)\}", (ROOT / "compose.yaml").read_text())
    read = {match[1]: match[2] for match in named}
    assert set(example()) == settings | set(read)
    for variable, default in read.items():
        if variable not in settings and variable != "DOCKER_GID":
            assert example()[variable] == default, variable


def test_only_what_must_be_filled_in_is_not_commented_out() -> None:
    """A copied file should change nothing but what was changed in it."""
    lines = [
        line for line in (ROOT / ".env.example").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert lines == ["DOCKER_GID="]


# -- infra/


def instructions() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages, each as its instructions; continued lines are one, comments are gone."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "infra/Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    stages: list[list[tuple[str, str]]] = [[]]
    for line in lines:
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stages.append([])
        stages[-1].append((word, re.sub(r"\s+", " ", rest).strip()))
    return stages


def test_the_dockerfile_needs_nothing_that_debians_docker_lacks() -> None:
    """Docker 20.10 without buildx builds with the classic builder."""
    known = {"ARG", "FROM", "WORKDIR", "RUN", "COPY", "LABEL", "ENV", "USER", "STOPSIGNAL", "ENTRYPOINT"}
    stages = instructions()
    assert {word for stage in stages for word, _ in stage} <= known
    assert not any(rest.startswith("--") and "--from" not in rest for stage in stages for _, rest in stage)
    assert stages[0] == [("ARG", "BASE=python:3.11-slim-bookworm")]
    assert [stage[0][1] for stage in stages[1:]] == ["${BASE} AS wheels", "wheels AS installed", "${BASE}"]


def test_an_image_is_made_of_locked_packages_alone() -> None:
    """Whatever comes from the index is checked against a hash; what follows is taken from what was checked."""
    runs = [rest for stage in instructions() for word, rest in stage if word == "RUN"]
    fetching = [
        part for rest in runs for part in rest.split("&&") if re.search(r"bin/pip .*(install|wheel) ", part)
    ]
    assert fetching
    for part in fetching:
        assert "--require-hashes" in part or "--no-index" in part or "./libs/events" in part, part
    assert "requirements-dev.lock" not in " ".join(rest for _, rest in instructions()[-1])
    tools = re.search(r"\^\[\^ \]/ \{ on = /\^\(([^)]*)\)==", " ".join(runs))
    assert tools is not None
    locked = (ROOT / "requirements.lock").read_text() + (ROOT / "requirements-dev.lock").read_text()
    for tool in tools[1].split("|"):
        assert len(re.findall(rf"^{tool}==", locked, re.MULTILINE)) == 1, f"{tool} is locked once"


def test_what_builds_our_packages_is_among_the_locked_tools() -> None:
    """An image is built without asking the index for a build backend."""
    dockerfile = (ROOT / "infra/Dockerfile").read_text()
    for member in [*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")]:
        assert tomllib.loads(member.read_text())["build-system"]["requires"] == ["hatchling"]
    needed = importlib.metadata.requires("hatchling") or []
    names = {re.split(r"[^\w-]", need)[0] for need in needed if "python_version < '3.11'" not in need}
    for name in {"hatchling", "setuptools", *names} - {"tomli"}:
        assert re.search(rf"[(|]{name}[|)]", dockerfile), name


@pytest.mark.parametrize("member", ["libs/events", *(f"services/{name}" for name in SERVICES), "clients/cli"])
def test_a_member_declares_whatever_it_imports(member: str) -> None:
    """Here everything is installed; in a member's image only what it declares is, and the rest fails there, at night."""
    declared = {
        re.split(r"[^\w.-]", need)[0].lower().replace("-", "_")
        for project in (member, "libs/events")  # which is in every image, with all it needs
        for need in tomllib.loads((ROOT / project / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    own = next(path.name for path in (ROOT / member / "src").iterdir() if path.is_dir())
    distributions = importlib.metadata.packages_distributions()
    for file in (ROOT / member / "src").rglob("*.py"):
        for imported in top_level_imports(file):
            if imported == own or imported in sys.stdlib_module_names:
                continue
            names = {name.lower().replace("-", "_") for name in distributions.get(imported, [imported])}
            assert names & declared, (
                f"{file.relative_to(ROOT)} imports {imported}, which {member} does not declare"
            )


def top_level_imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_an_image_is_sent_no_more_than_it_is_made_of() -> None:
    """.git, .env and caches have no business in a build."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source
        for word, rest in (each for stage in instructions() for each in stage)
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert allowed == copied


def test_nats_accepts_its_configuration_and_keeps_what_it_confirms(tmp_path: Path) -> None:
    """The real server reads the file, with the users that `setup` writes beside it."""
    vault = Vault(tmp_path / "secrets")
    vault.fill()
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "authorization.conf").write_text(vault.nats_users())
    text = (ROOT / "infra/nats/nats.conf").read_text()
    (tmp_path / "nats.conf").write_text(text)
    told = subprocess.run(
        [str(installed_program("nats-server")), "-t", "-c", str(tmp_path / "nats.conf")],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    settings = dict(re.findall(r"^\s*(\w+): \"?([^\"\n]+)\"?$", text, re.MULTILINE))
    assert settings["sync_interval"] == "always"
    assert int(settings["max_payload"]) == MAX_PAYLOAD, "as where Hythe starts NATS itself"
    assert not {"websocket", "mqtt", "leafnodes", "cluster", "gateway"} & set(
        re.findall(r"^(\w+)", text, re.MULTILINE)
    )


def test_nats_keeps_its_streams_on_a_volume(model: Model) -> None:
    """Its own default is below /tmp."""
    text = (ROOT / "infra/nats/nats.conf").read_text()
    [folder] = re.findall(r'store_dir: "(.*)"', text)
    assert mounts(model["services"]["nats"])[folder]["source"] == "nats-data"
    [users] = re.findall(r'include "(.*)/authorization.conf"', text)
    assert mounts(model["services"]["nats"])[f"/etc/nats/{users}"]["read_only"] is True
    assert model["services"]["nats"]["configs"][0]["target"] == "/etc/nats/hythe.conf", (
        "beside the folder it includes from"
    )


def test_postgres_is_set_as_where_hythe_starts_it_itself(model: Model) -> None:
    """Durability is not a matter of where it runs."""
    text = (ROOT / "infra/postgres/postgresql.conf").read_text()
    settings = dict(re.findall(r"^(\w+) = '?([^'\n]*)'?$", text, re.MULTILINE))
    assert DURABLE.items() <= settings.items()
    elsewhere = {"listen_addresses", "unix_socket_directories"}
    assert {name: settings.get(name) for name in SETTINGS if name not in elsewhere} == {
        name: value for name, value in SETTINGS.items() if name not in elsewhere
    }
    postgres = model["services"]["postgres"]
    assert postgres["configs"][0]["target"] == postgres["command"][-1].removeprefix("config_file=")
    assert "--data-checksums" in postgres["environment"]["POSTGRES_INITDB_ARGS"]
    assert "--auth=scram-sha-256" in postgres["environment"]["POSTGRES_INITDB_ARGS"]
    assert postgres["environment"]["POSTGRES_USER"] == DATABASE_OWNER
    assert postgres["environment"]["POSTGRES_PASSWORD_FILE"] == "/run/secrets/owner_password"
