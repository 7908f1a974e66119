"""Deploys on the real engine, from built to outcome: what runs, what was left alone, and what was put back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.deploy.tests.conftest import Yard


def web(healthcheck: str, more: str = "") -> str:
    return f"""
services:
  web:
    build: .
    init: true
    ports: ["127.0.0.1:0:8080"]
    healthcheck: {healthcheck}
{more}
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


async def test_a_deployment_that_never_gets_healthy_leaves_the_old_container_running(
    yard: Yard, healthy: str
) -> None:
    """It was tried beside the running one: the old container was never stopped (P3)."""
    good = await yard.image("one")
    first = await yard.deploy("shop", web(healthy), {"web": good})
    before = (await yard.containers("shop"))["web"]
    bad = await yard.image("broken", "sh -c rm /www/index.html; echo no page to show; sleep 100")
    ended = await yard.deploy("shop", web(healthy), {"web": bad})
    after = (await yard.containers("shop"))["web"]
    assert ended.outcome == "rolled_back"
    assert "web its healthcheck fails" in (ended.reason or "")
    assert "no page to show" in (ended.reason or "")
    assert after["Id"] == before["Id"]
    assert after["State"]["StartedAt"] == before["State"]["StartedAt"]
    assert after["Image"] == good.digest
    assert ended.replaces == first.id
    assert await yard.leftovers() == []
    assert json.dumps(good.digest)[1:-1] in (yard.folder("shop") / "compose.yaml").read_text()
