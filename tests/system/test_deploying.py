"""The main job, on the real parts, seen from outside: what the app answers, what Docker runs, what the log says."""

import asyncio
from typing import Any
from uuid import UUID

from hythe_cli import asking
from hythe_cli.demo import sample
from hythe_cli.demo.scene import App, Scene
from hythe_cli.demo.witness import get, visiting
from hythe_events.access import SERVICES
from hythe_events.deploy import DeployCompleted, ListDeployments, ListStacks, Rollback
from hythe_events.git import DeploymentOpened, RequestDeployment
from hythe_events.log import RebuildProjection, Rebuilt, Rows
from hythe_events.webhooks import ListDeliveries

HELLO = sample.HELLO.format(version=1)
PATIENCE = 60.0


async def pushed(scene: Scene, app: App, commit: str) -> tuple[UUID, DeployCompleted]:
    """Push a commit and wait for the end of the deployment that it leads to."""
    since = await asking.head(scene.bus)
    async with asyncio.timeout(PATIENCE):
        await app.work.push()
        deployment = await scene.opened_by(commit, since)
        return deployment, await scene.end_of(deployment, since)


async def commanded(scene: Scene, asked: Rollback | RequestDeployment) -> tuple[UUID, DeployCompleted]:
    """Give a command and wait for the end of the deployment that it opens."""
    since = await asking.head(scene.bus)
    async with asyncio.timeout(PATIENCE):
        opened = await scene.bus.ask(asked, DeploymentOpened, actor="test:system")
        return opened.deployment, await scene.end_of(opened.deployment, since)


async def running(scene: Scene, app: App) -> dict[str, str]:
    """The images that Docker runs for the app's services, by their ids."""
    return {one.service: one.image for one in await scene.docker.containers(app.stack) if one.running}


def wanted(end: DeployCompleted) -> dict[str, str]:
    """The images that a deployment says it runs."""
    assert end.manifest is not None
    return {name: service.digest for name, service in end.manifest.services.items()}


async def row_of(scene: Scene, stack: str) -> dict[str, Any]:
    """The only deployment of a stack as the read model has it, once that has caught up with the log."""
    async with asyncio.timeout(PATIENCE):
        while True:
            [row] = (await scene.bus.ask(ListDeployments(stack=stack), Rows, actor="test:system")).rows
            if row["outcome"]:
                return row
            await asyncio.sleep(0.02)


async def test_a_push_becomes_a_running_healthy_stack(scene: Scene, stack: str) -> None:
    """The promise in one sentence (P4): succeeded means that Docker runs what the manifest says, and it is healthy."""
    app = await scene.add_app(stack)
    deployment, end = await pushed(scene, app, await scene.commit_first(app))
    assert end.outcome == "succeeded", end.reason
    assert await get(app.url) == HELLO
    assert await running(scene, app) == wanted(end)
    assert [one.health for one in await scene.docker.containers(stack)] == ["healthy"]
    assert (scene.system.stacks / stack / "compose.yaml").is_file(), "Dockge finds the stack's folder"
    told = [event.type for event in await scene.events_of(deployment)]
    assert told[0] == "deployment.requested"
    assert told[-1] == "deploy.completed"


async def test_a_push_that_breaks_the_app_leaves_what_ran(scene: Scene, stack: str) -> None:
    """A bad push costs nothing (P3): the outcome says why, and the old version serves as before."""
    app = await scene.add_app(stack)
    _, first = await pushed(scene, app, await scene.commit_first(app))
    assert first.outcome == "succeeded", first.reason
    async with visiting(app.url) as visits:
        _, end = await pushed(scene, app, await scene.commit_broken(app))
    assert end.outcome == "rolled_back"
    assert end.reason
    assert "web" in end.reason
    assert set(visits.answers) == {HELLO}
    assert visits.failures == 0, f"visitors noticed: {visits}"
    assert await get(app.url) == HELLO
    assert await running(scene, app) == wanted(first)


async def test_a_rollback_runs_the_images_of_that_deployment(scene: Scene, stack: str) -> None:
    """By digest, not by name (P6): whatever was built since, exactly those images run again."""
    app = await scene.add_app(stack)
    first_id, first = await pushed(scene, app, await scene.commit_first(app))
    changed = await app.work.commit({f"page/{sample.PAGE}": "Hello again\n"}, "Say it again")
    _, second = await pushed(scene, app, changed)
    assert second.outcome == "succeeded", second.reason
    assert wanted(second) != wanted(first)
    assert await get(app.url) == "Hello again\n"
    _, end = await commanded(scene, Rollback(stack=stack, to=first_id, reason="the old one was better"))
    assert end.outcome == "succeeded", end.reason
    assert await running(scene, app) == wanted(first)
    assert await get(app.url) == HELLO
    _, again = await commanded(scene, RequestDeployment(stack=stack, commit=changed))
    assert again.outcome == "failed", "a commit that was rolled back from stays rejected"
    assert await get(app.url) == HELLO


async def test_everything_may_be_stopped_and_started_again(scene: Scene, stack: str) -> None:
    """Nothing lives only in a process (P8): the history, the stacks and the apps are all there afterwards."""
    app = await scene.add_app(stack)
    deployment, end = await pushed(scene, app, await scene.commit_first(app))
    assert end.outcome == "succeeded", end.reason
    before = await row_of(scene, stack)
    head = await asking.head(scene.bus)
    await scene.system.stop()
    assert await get(app.url) == HELLO, "stacks run on without Hythe"
    await scene.system.start()
    async with asyncio.timeout(PATIENCE):
        while not scene.bus.connected:
            await asyncio.sleep(0.02)
    assert await asking.head(scene.bus) >= head
    assert await row_of(scene, stack) == before
    assert (await scene.state_of(deployment)).outcome == "succeeded"
    _, after = await pushed(
        scene, app, await app.work.commit({f"page/{sample.PAGE}": "Still here\n"}, "Go on")
    )
    assert after.outcome == "succeeded", after.reason
    assert await get(app.url) == "Still here\n"


async def test_the_log_verifies_and_every_table_can_be_made_from_it(scene: Scene, stack: str) -> None:
    """Read models are only views (P5): made anew, they hold the same rows."""
    app = await scene.add_app(stack)
    _, end = await pushed(scene, app, await scene.commit_first(app))
    assert end.outcome == "succeeded", end.reason
    verdict = await scene.verify()
    assert verdict.bad is None
    assert verdict.position == verdict.head
    for service in SERVICES:
        rebuilt = await scene.bus.ask(
            RebuildProjection(), Rebuilt, actor="test:system", service=service, timeout=60
        )
        assert all(rebuilt.equal.values()), f"{service}: {rebuilt}"
    stacks = await scene.bus.ask(ListStacks(stack=stack), Rows, actor="test:system")
    assert len(stacks.rows) == 1


async def test_a_delivery_can_be_followed_to_its_deployment(scene: Scene, stack: str) -> None:
    """“Why did nothing happen”, or what did: each delivery names what it led to (P1)."""
    app = await scene.add_app(stack)
    deployment, _ = await pushed(scene, app, await scene.commit_first(app))
    async with asyncio.timeout(PATIENCE):
        while True:
            [row] = (await scene.bus.ask(ListDeliveries(source=stack), Rows, actor="test:system")).rows
            if row["status"] == "routed":
                break
            await asyncio.sleep(0.02)
    assert row["deployments"] == [{"stack": stack, "deployment": str(deployment)}]
