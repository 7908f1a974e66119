"""The tables `deployments` and `stacks` on the real Postgres: what questions are answered with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
import pytest_asyncio

from hythe_deploy.read_models import DeploymentsTable, Shown, StacksTable
from hythe_events import streams
from hythe_events.build import BuildFinished, BuildStarted
from hythe_events.deploy import (
    CommitRejected,
    DeployCompleted,
    DeployRollbackStarted,
    DeployStarted,
    DeployStepCompleted,
    ListDeployments,
    ListStacks,
    Manifest,
    RollbackRequested,
    ServiceManifest,
    StackGranted,
    StackLiveChanged,
)
from hythe_events.envelope import Cause
from hythe_events.git import DeploymentRequested
from hythe_events.language import BlobRef, Event, new_id
from hythe_events.projections import Projector
from hythe_events.store import Store
from hythe_events.testing import MigratedDatabase

BLOB = BlobRef(key="f" * 64, size=1, sha256="f" * 64)
DIGEST = f"sha256:{'a' * 64}"
MANIFEST = Manifest(
    services={"web": ServiceManifest(image="shop-web", digest=DIGEST)}, compose=BLOB, compose_sha256="f" * 64
)
WHO = Cause(new_id(), None, "cli:me")
FIRST, SECOND, BACK = new_id(), new_id(), new_id()


@pytest_asyncio.fixture
async def told(database: MigratedDatabase) -> AsyncIterator[Store]:
    """A deployment that succeeded, one that was rolled back, and a rollback that is under way."""

    async def say(service: str, stream: str, *events: Event) -> None:
        async with Store.open(database.dsn(service)) as store:
            await store.append(stream, None, events, because=WHO)

    for deployment in (FIRST, SECOND):
        of = {"deployment": deployment, "stack": "shop"}
        stream = streams.deployment(deployment)
        requested = DeploymentRequested.model_validate(
            {**of, "trigger": "delivery", "ref": "main", "commit": "c" * 40, "asked_by": "github:me"}
        )
        await say("git", stream, requested)
        built = BuildFinished.model_validate({**of, "outcome": "succeeded"})
        await say("build", stream, BuildStarted.model_validate({**of, "services": ("web",)}), built)
        await say(
            "deploy",
            stream,
            DeployStarted.model_validate({**of, "fence": 1, "replaces": None}),
            DeployStepCompleted.model_validate(
                {**of, "step": "pull", "detail": "", "seconds": 0.1, "manifest": MANIFEST}
            ),
        )
    done = {"deployment": FIRST, "stack": "shop", "outcome": "succeeded", "manifest": MANIFEST}
    await say("deploy", streams.deployment(FIRST), DeployCompleted.model_validate(done))
    bad = {
        "deployment": SECOND,
        "stack": "shop",
        "outcome": "rolled_back",
        "replaced": FIRST,
        "reason": "web fails",
    }
    restoring = DeployRollbackStarted(deployment=SECOND, stack="shop", to=FIRST, reason="web fails")
    await say("deploy", streams.deployment(SECOND), restoring, DeployCompleted.model_validate(bad))
    back = RollbackRequested(
        deployment=BACK, stack="shop", to=FIRST, manifest=MANIFEST, commit=None, asked_by="cli:me"
    )
    await say("deploy", streams.deployment(BACK), back)
    await say(
        "deploy",
        streams.stack("shop"),
        StackLiveChanged(
            stack="shop", deployment=FIRST, manifest=MANIFEST, commit="c" * 40, requested_position=1
        ),
        CommitRejected(stack="shop", commit="d" * 40),
        StackGranted(stack="shop", grants=("privileged",)),
    )
    async with Store.open(database.dsn("deploy")) as store:
        yield store


@pytest_asyncio.fixture
async def projector(told: Store) -> AsyncIterator[Projector]:
    """The tables, brought up to the head of the log."""
    projector = Projector("deploy", told, [DeploymentsTable(), StacksTable()])
    running = asyncio.create_task(projector.run())
    head = await told.head()
    async with asyncio.timeout(20):
        for name in projector.names:
            await projector.reached(name, head.position)
    yield projector
    running.cancel()
    await asyncio.wait([running])


@pytest.fixture
def shown(told: Store, projector: Projector) -> Shown:
    return Shown(told)


async def test_history_is_newest_first_and_goes_on_where_it_ended(shown: Shown) -> None:
    """One row per deployment, with what a list shows of it."""
    rows = (await shown.deployments(ListDeployments(stack="shop"), WHO)).rows
    assert [UUID(row["id"]) for row in rows] == [BACK, SECOND, FIRST]
    assert [row["outcome"] for row in rows] == [None, "rolled_back", "succeeded"]
    assert [row["phase"] for row in rows] == ["built", "done", "done"]
    assert rows[1]["reason"] == "web fails"
    assert UUID(rows[1]["replaces"]) == FIRST
    assert rows[2]["images"] == {"web": DIGEST}
    assert rows[0]["trigger"] == "rollback"
    older = (await shown.deployments(ListDeployments(stack="shop", before=SECOND, limit=5), WHO)).rows
    assert [UUID(row["id"]) for row in older] == [FIRST]
    assert (await shown.deployments(ListDeployments(stack="blog"), WHO)).rows == ()


async def test_a_stack_is_shown_with_what_it_runs_and_may(shown: Shown) -> None:
    """Also when nothing of it ever went live."""
    (row,) = (await shown.stacks(ListStacks(), WHO)).rows
    assert (row["stack"], UUID(row["live_deployment"]), row["live_commit"]) == ("shop", FIRST, "c" * 40)
    assert (row["grants"], row["rejected"], row["images"]) == (["privileged"], ["d" * 40], {"web": DIGEST})
    assert (UUID(row["last_deployment"]), row["last_phase"]) == (BACK, "built")


async def test_a_rebuilt_table_has_the_same_rows(projector: Projector) -> None:
    """They hold only what events say (P5)."""
    rebuilt = await projector.rebuild()
    assert {name: (one.rows, one.equal) for name, one in rebuilt.items()} == {
        "deployments": (3, True),
        "stacks": (1, True),
    }
