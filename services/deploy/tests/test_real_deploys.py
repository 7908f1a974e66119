"""Deploys on the real engine, from built to outcome: what runs, what was left alone, and what was put back."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hythe_deploy.handlers import Handlers
from hythe_deploy.lease import Child
from hythe_deploy.stacks import KEPT, SCRATCH, Stacks
from hythe_events.deploy import GrantStack, Rollback
from hythe_events.envelope import Cause
from hythe_events.errors import Refused
from hythe_events.language import new_id

if TYPE_CHECKING:
    from services.deploy.tests.conftest import Yard

BROKEN = "sh -c rm /www/index.html; echo no page to show; sleep 100"
DISGUISED_BIND = """
services: {web: {build: ., volumes: ['vol:/v']}}
volumes: {vol: {driver_opts: {type: none, o: bind, device: /}}}
"""
CRASHING = "sh -c echo cannot find the config; exit 3"


def web(healthcheck: str, more: str = "", *, rest: str = "") -> str:
    return f"""
services:
  web:
    build: .
    init: true
    ports: ["127.0.0.1:0:8080"]
    healthcheck: {healthcheck}
{more}
{rest}
"""


async def test_a_built_stack_runs_by_digest_and_is_healthy(yard: Yard, healthy: str) -> None:
    """`succeeded` means that Docker runs the manifest's digests and that they are healthy (P4)."""
    image = await yard.image("one")
    ended = await yard.deploy("shop", web(healthy), {"web": image})
    assert (ended.outcome, ended.reason) == ("succeeded", None)
    running = (await yard.containers("shop"))["web"]
    assert ended.manifest is not None
    assert running["Image"] == image.digest == ended.manifest.services["web"].digest
    assert running["State"]["Health"]["Status"] == "healthy"
    assert (
        running["Config"]["Labels"]["com.docker.compose.config-hash"] == ended.manifest.config_hashes["web"]
    )
    assert [step.step for step in ended.steps] == [
        *("render", "policy", "pull", "rehearse", "up", "health", "verify"),
    ]
    kept = [
        tag
        for one in await yard.docker.images.list()
        for tag in one["RepoTags"] or ()
        if tag.startswith(KEPT)
    ]
    assert f"{KEPT}:{yard.stack('shop')}.web.{image.digest[7:19]}" in kept


async def test_a_folder_that_dockge_can_see_is_left(yard: Yard, healthy: str) -> None:
    """`STACKS_DIR/<stack>/compose.yaml` and `.env`, for its owner only; the containers point to it."""
    image = await yard.image("one")
    more = "    environment: {GREETING: '${GREETING}'}"
    await yard.deploy(
        "shop", web(healthy, more), {"web": image}, {".env": b"GREETING='it costs $5 \"net\"'\n"}
    )
    folder = yard.folder("shop")
    running = (await yard.containers("shop"))["web"]
    assert running["Config"]["Labels"]["com.docker.compose.project.working_dir"] == str(folder)
    assert 'GREETING=it costs $5 "net"' in running["Config"]["Env"]
    assert {path.name for path in folder.iterdir()} == {"compose.yaml", ".env", ".hythe-files"}
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    assert (folder / "compose.yaml").stat().st_mode & 0o777 == 0o600


async def test_a_deployment_that_never_gets_healthy_leaves_the_old_container_running(
    yard: Yard, healthy: str
) -> None:
    """It was tried beside the running one: the old container was never stopped (P3)."""
    good, bad = await yard.image("one"), await yard.image("broken", BROKEN)
    first = await yard.deploy("shop", web(healthy), {"web": good})
    before = (await yard.containers("shop"))["web"]
    ended = await yard.deploy("shop", web(healthy), {"web": bad})
    after = (await yard.containers("shop"))["web"]
    assert ended.outcome == "rolled_back"
    assert "web its healthcheck fails" in (ended.reason or "")
    assert "no page to show" in (ended.reason or "")
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
    assert ended.replaces == first.id
    assert await yard.leftovers() == []
    assert good.digest in (yard.folder("shop") / "compose.yaml").read_text()


async def test_what_cannot_be_rehearsed_is_replaced_and_put_back(yard: Yard, healthy: str) -> None:
    """Two copies would share its data: so the old one has to go first, and comes back with its digest."""
    good, bad = await yard.image("one"), await yard.image("broken", BROKEN)
    compose = web(healthy, "    volumes: ['data:/data']", rest="volumes: {data: {}}")
    await yard.deploy("shop", compose, {"web": good})
    ended = await yard.deploy("shop", compose, {"web": bad})
    after = (await yard.containers("shop"))["web"]
    assert ended.outcome == "rolled_back"
    assert "no page to show" in (ended.reason or "")
    assert (after["Image"], after["State"]["Health"]["Status"]) == (good.digest, "healthy")


async def test_a_container_that_keeps_crashing_is_found_out(yard: Yard) -> None:
    """Without a healthcheck: it does not run on for the settle time. The reason carries its last log line."""
    good, bad = await yard.image("one"), await yard.image("crashing", CRASHING)
    compose = "services: {web: {build: ., init: true, restart: always}}"
    assert (await yard.deploy("shop", compose, {"web": good})).outcome == "succeeded"
    ended = await yard.deploy("shop", compose, {"web": bad})
    assert ended.outcome == "rolled_back"
    assert "keeps crashing" in (ended.reason or "")
    assert "cannot find the config" in (ended.reason or "")
    assert (await yard.containers("shop"))["web"]["Image"] == good.digest


async def test_a_job_may_run_to_its_end(yard: Yard, healthy: str) -> None:
    """A migration that exits with 0 is done; others wait for it; one that exits otherwise has failed."""
    page = await yard.image("one")
    job, failing = await yard.image("job", "sh -c echo migrated"), await yard.image("crashing", CRASHING)
    more = "    depends_on: {job: {condition: service_completed_successfully}}"
    compose = web(healthy, more, rest="  job: {build: ./job}")
    ended = await yard.deploy("shop", compose, {"web": page, "job": job})
    assert (ended.outcome, ended.reason) == ("succeeded", None)
    ended = await yard.deploy("shop", compose, {"web": page, "job": failing})
    assert ended.outcome == "rolled_back"
    assert "job exited with code 3; its last log line: cannot find the config" in (ended.reason or "")


async def test_a_first_deployment_that_fails_leaves_nothing_behind(yard: Yard) -> None:
    """No container, no network, no folder."""
    bad = await yard.image("crashing", CRASHING)
    ended = await yard.deploy("shop", "services: {web: {build: .}}", {"web": bad})
    assert ended.outcome == "failed"
    assert "exited with code 3" in (ended.reason or "")
    assert await yard.containers("shop") == {}
    assert not [n for n in await yard.docker.networks.list() if n["Name"].startswith(yard.stack("shop"))]
    assert not yard.folder("shop").exists()


async def test_services_that_have_not_changed_are_not_touched(yard: Yard, healthy: str) -> None:
    """Only what differs is replaced; what left the compose file is removed."""
    one, two, db = await yard.image("one"), await yard.image("two"), await yard.image("db")
    compose = web(healthy, rest="  db: {build: ./db, init: true}\n  old: {build: ./db, init: true}")
    await yard.deploy("shop", compose, {"web": one, "db": db, "old": db})
    before = await yard.containers("shop")
    compose = web(healthy, rest="  db: {build: ./db, init: true}")
    ended = await yard.deploy("shop", compose, {"web": two, "db": db})
    after = await yard.containers("shop")
    assert ended.outcome == "succeeded"
    assert after["db"]["Id"] == before["db"]["Id"]
    assert after["db"]["State"]["StartedAt"] == before["db"]["State"]["StartedAt"]
    assert after["web"]["Image"] == two.digest
    assert set(after) == {"web", "db"}


async def test_a_rollback_brings_back_digests_files_and_environment(yard: Yard, healthy: str) -> None:
    """Together, as they were (P6); and the commit that was left stays out."""
    one, two = await yard.image("one"), await yard.image("two")
    compose = web(healthy, "    volumes: ['./conf:/conf:ro']\n    environment: {A: '${A}'}")
    first = await yard.deploy(
        "shop", compose, {"web": one}, {".env": b"A=1", "conf/a.txt": b"first", "conf/only.txt": b"x"}
    )
    (yard.folder("shop") / "conf" / "made-at-runtime").write_text("stays")
    second = await yard.deploy("shop", compose, {"web": two}, {".env": b"A=2", "conf/a.txt": b"second"})
    conf = yard.folder("shop") / "conf"
    assert (second.outcome, (conf / "a.txt").read_text()) == ("succeeded", "second")
    assert not (conf / "only.txt").exists()
    ended = await yard.rollback("shop")
    running = (await yard.containers("shop"))["web"]
    assert (ended.outcome, ended.rollback_to, ended.manifest) == ("succeeded", first.id, first.manifest)
    assert (running["Image"], "A=1" in running["Config"]["Env"]) == (one.digest, True)
    assert ((conf / "a.txt").read_text(), (conf / "only.txt").read_text()) == ("first", "x")
    assert (conf / "made-at-runtime").read_text() == "stays"
    assert (yard.folder("shop") / ".env").read_text() == "A=1"
    again = await yard.deploy("shop", compose, {"web": two}, commit=second.commit)
    assert (again.outcome, "was rolled back from" in (again.reason or "")) == ("failed", True)


async def test_a_changed_file_makes_a_new_container(yard: Yard) -> None:
    """A mounted file that is replaced stays the old one in a running container: the label with its hash changes."""
    image = await yard.image("one")
    compose = "services: {web: {build: ., init: true, volumes: ['./a.conf:/a.conf:ro']}, idle: {build: ., init: true}}"
    images = {"web": image, "idle": image}
    await yard.deploy("shop", compose, images, {"a.conf": b"1"})
    before = await yard.containers("shop")
    await yard.deploy("shop", compose, images, {"a.conf": b"2"})
    after = await yard.containers("shop")
    assert after["web"]["Id"] != before["web"]["Id"]
    assert after["idle"]["Id"] == before["idle"]["Id"]


async def test_a_rollback_to_a_missing_image_is_refused_up_front(yard: Yard, healthy: str) -> None:
    """RB2: somebody pruned it after all; the answer names it, and what runs is not touched."""
    one, two = await yard.image("will be gone"), await yard.image("two")
    await yard.deploy("shop", web(healthy), {"web": one})
    await yard.deploy("shop", web(healthy), {"web": two})
    await yard.forget(one)
    with pytest.raises(
        Refused, match=f"the image of service web .{one.reference}, {one.digest[:19]}. is gone"
    ):
        await yard.handlers.rollback(Rollback(stack=yard.stack("shop")), Cause(new_id(), None, "test"))
    assert (await yard.containers("shop"))["web"]["Image"] == two.digest


async def test_an_image_that_cannot_be_had_fails_before_anything_is_touched(yard: Yard, healthy: str) -> None:
    """No registry answers here; the running stack does not notice."""
    image = await yard.image("one")
    await yard.deploy("shop", web(healthy), {"web": image})
    before = (await yard.containers("shop"))["web"]
    compose = web(healthy, rest="  db: {image: '127.0.0.1:1/nowhere:1'}")
    ended = await yard.deploy("shop", compose, {"web": image})
    assert ended.outcome == "failed"
    assert "the image 127.0.0.1:1/nowhere:1 of service db cannot be pulled" in (ended.reason or "")
    assert (await yard.containers("shop"))["web"]["Id"] == before["Id"]


@pytest.mark.parametrize(
    ("compose", "says"),
    [
        (
            "services: {web: {build: ., image: 'x:${PATH}'}}",
            "uses the variable PATH, which .env does not set",
        ),
        ("services: {web: {build: ., environment: {A: '${DOCKER_HOST}'}}}", "the variable DOCKER_HOST"),
        ("services: {web: {build: ., environment: {A: '${X:?please set X}'}}}", "please set X"),
        ("services: {web: {build: ., env_file: /proc/self/environ}}", "services.web.env_file"),
        ("services: {web: {build: ., privileged: true}}", "services.web.privileged"),
        ("services: {web: {build: ., volumes: ['/:/host']}}", "services.web.volumes[0]"),
        ("services: {web: {build: ., volumes: [{type: bind, source: /etc, target: /e}]}}", "/etc is outside"),
        ("services: {web: {build: ., volumes: ['~/.ssh:/s']}}", "names a home folder"),
        ("services: {web: {build: ., volumes: ['../other:/s']}}", "is outside the stack's folder"),
        (
            "services: {web: {build: ., volumes: ['/var/run/docker.sock:/s']}}",
            "needs the grant docker-socket",
        ),
        ("services: {web: {build: ., use_api_socket: true}}", "services.web.use_api_socket"),
        (
            DISGUISED_BIND,
            "volumes.vol.driver_opts",
        ),
        ("services: {web: {build: ., network_mode: host}}", "services.web.network_mode"),
        ("services: {web: {build: ., pid: host}}", "services.web.pid"),
        ("services: {web: {build: ., surprise: 1}}", "surprise"),
        (
            "services: {web: {build: ., privileged: false, privileged: true}}",
            "the key privileged stands twice",
        ),
        (
            "services: {web: {build: ., healthcheck: {test: [CMD, x], start_interval: 1s}}}",
            "needs a start_period",
        ),
        ("services: [", "is not YAML"),
    ],
)
async def test_what_is_refused_is_refused_before_anything_is_touched(
    yard: Yard, compose: str, says: str
) -> None:
    """On the fully rendered model, whatever the syntax; the reason names the place (CO1-CO4, CO6, CO10)."""
    ended = await yard.deploy("shop", compose)
    assert ended.outcome == "failed"
    assert says in (ended.reason or "")
    assert "hythe-deploy-" not in (ended.reason or "")
    assert await yard.containers("shop") == {}
    assert not yard.folder("shop").exists()


async def test_a_grant_lets_it_through(yard: Yard) -> None:
    """For that stack only."""
    image = await yard.image("one")
    compose = "services: {web: {build: ., init: true, pid: host}}"
    because = Cause(new_id(), None, "test")
    await yard.handlers.grant(GrantStack(stack=yard.stack("shop"), grants=("host-namespaces",)), because)
    assert (await yard.deploy("shop", compose, {"web": image})).outcome == "succeeded"
    assert (await yard.deploy("blog", compose, {"web": image})).outcome == "failed"


async def test_another_stack_cannot_be_hijacked(yard: Yard) -> None:
    """`name:` of another project, its container's name, its volumes: the other stack does not notice (CO7)."""
    image, evil = await yard.image("one"), await yard.image("evil")
    victim = yard.stack("victim")
    await yard.deploy(
        "victim",
        "services: {web: {build: ., init: true, volumes: ['own:/d']}}\nvolumes: {own: {}}",
        {"web": image},
    )
    before = (await yard.containers("victim"))["web"]
    ended = await yard.deploy(
        "shop", f"name: {victim}\nservices: {{web: {{build: ., init: true}}}}", {"web": evil}
    )
    assert ended.outcome == "succeeded"
    assert (await yard.containers("shop"))["web"]["Image"] == evil.digest
    volume = f"{{services: {{web: {{build: ., volumes: ['own:/d']}}}}, volumes: {{own: {{external: true, name: {victim}_own}}}}}}"
    network = f"{{services: {{web: {{build: ., networks: [n]}}}}, networks: {{n: {{external: true, name: {victim}_default}}}}}}"
    for compose, says in (
        (
            f"services: {{web: {{build: ., container_name: {victim}-web-1}}}}",
            f"is taken by a container of {victim}",
        ),
        (
            f"services: {{web: {{build: ., labels: {{com.docker.compose.project: {victim}}}}}}}",
            "com.docker.compose.project",
        ),
        (volume, "not this stack's own"),
        (network, "not this stack's own"),
    ):
        ended = await yard.deploy("shop", compose, {"web": evil})
        assert (ended.outcome, says in (ended.reason or "")) == ("failed", True), ended.reason
    after = (await yard.containers("victim"))["web"]
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])


async def test_a_link_that_a_container_planted_is_seen_through(yard: Yard) -> None:
    """It wrote a link to the host into its data folder; the next commit mounts it (CO3)."""
    image = await yard.image("one")
    await yard.deploy(
        "shop", "services: {web: {build: ., init: true, volumes: ['./data:/data']}}", {"web": image}
    )
    (yard.folder("shop") / "data" / "evil").symlink_to("/etc")
    compose = "services: {web: {build: ., init: true, volumes: ['./data/evil:/host']}}"
    ended = await yard.deploy("shop", compose, {"web": image})
    assert ended.outcome == "failed"
    assert "/etc is outside the stack's folder" in (ended.reason or "")


async def test_a_stack_that_was_there_before_hythe_comes_back(yard: Yard) -> None:
    """A compose file of its owner is kept; when Hythe's first deployment fails it is put back and brought up."""
    image, bad = await yard.image("one"), await yard.image("crashing", CRASHING)
    folder = yard.folder("shop")
    await asyncio.to_thread(folder.mkdir, parents=True)
    own = f"services: {{web: {{image: '{image.reference}', init: true}}}}\n"
    (folder / "compose.yaml").write_text(own)
    ended = await yard.deploy("shop", "services: {web: {build: .}}", {"web": bad})
    assert ended.outcome == "failed"
    assert (folder / "compose.yaml").read_text() == own
    running = (await yard.containers("shop"))["web"]
    assert (running["Image"], running["State"]["Status"]) == (image.digest, "running")


async def test_nothing_is_left_lying_about(yard: Yard, healthy: str) -> None:
    """No scratch folder, no container of a rehearsal, whether it went well or not."""
    good, bad = await yard.image("one"), await yard.image("broken", BROKEN)
    scratch = Path(tempfile.gettempdir())
    before = set(scratch.glob("hythe-deploy-*"))
    for image in (good, bad, await yard.image("two")):
        await yard.deploy("shop", web(healthy), {"web": image})
    assert set(scratch.glob("hythe-deploy-*")) <= before
    assert await yard.leftovers() == []
    containers = await yard.containers("shop")
    assert len(containers) == 1


async def test_what_a_killed_process_left_is_removed(yard: Yard) -> None:
    """Its scratch folder holds a source; one of a process that lives is left alone."""
    scratch = Path(tempfile.gettempdir())
    dead, alive = (
        scratch / f"{SCRATCH}4194305-1-x",
        scratch / f"{SCRATCH}{os.getpid()}-{Child.of(os.getpid()).started}-x",
    )
    for folder in (dead, alive):
        folder.mkdir()
    await yard.deploy("shop", "services: [")
    assert (dead.exists(), alive.exists()) == (False, True)
    alive.rmdir()


async def test_a_message_that_comes_again_after_success_does_nothing(yard: Yard, healthy: str) -> None:
    """C6, on the real engine."""
    image = await yard.image("one")
    ended = await yard.deploy("shop", web(healthy), {"web": image})
    before: Any = (await yard.containers("shop"))["web"]
    assert ended.id is not None
    assert (await yard.go_on(ended.id)).version == ended.version
    assert (await yard.containers("shop"))["web"]["Id"] == before["Id"]


async def test_rehearsals_can_be_switched_off(yard: Yard, healthy: str) -> None:
    """For a whole installation by a setting, for a service by `x-hythe`; then it is replaced and put back."""
    good, bad = await yard.image("one"), await yard.image("broken", BROKEN)
    await yard.deploy("shop", web(healthy), {"web": good})
    settings = yard.settings.model_copy(update={"rehearse": False})
    yard.handlers = Handlers(yard.store, yard.blobs, Stacks(settings), yard.leases)
    before = (await yard.containers("shop"))["web"]
    ended = await yard.deploy("shop", web(healthy), {"web": bad})
    after = (await yard.containers("shop"))["web"]
    assert ended.outcome == "rolled_back"
    assert after["Id"] != before["Id"]
    assert after["Image"] == good.digest
