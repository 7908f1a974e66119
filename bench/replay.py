"""Reading a log of a million events of 498 bytes from end to end, in pages of 1,000, and one deployment out of it.

Ours is written through the store. The peers' rows are put into their own tables directly, which is only quicker: what
they read is what they would have written.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import sys
from pathlib import Path
from uuid import UUID, uuid4

from bench import ours, peers, provision, samples
from bench.cluster import Cluster, running
from bench.figures import Figure, median, progress, take_turns
from hythe_events import streams
from hythe_events.deploy import (
    DeployCompleted,
    DeployHealthChecked,
    DeployStarted,
    DeployStepCompleted,
    Manifest,
    RollbackRequested,
    ServiceHealth,
)
from hythe_events.envelope import Cause
from hythe_events.language import BlobRef, Event
from hythe_events.store import Store

EVENTS = 1_000_000
PER_STREAM = 100
DEPLOYMENTS = 201
"""Real ones of 30 events each, spread over the log; the rest are streams of 100 events."""

BESIDE = [
    ("replay_raw", "hythe raw", "eventsourcing", "eventsourcing", "rate", "events/s"),
    ("replay_raw", "hythe raw", "message-db", "message-db", "rate", "events/s"),
    ("replay_typed", "hythe typed", "message-db", "message-db", "rate", "events/s"),
    ("deployment_30_events", "hythe deployment", "message-db", "message-db stream", "p50_ms", "ms"),
]
"""Figure, our turn, the peer's name, its turn, what is compared, its unit."""


async def run(rounds: int) -> list[Figure]:
    provision.commands(*peers.POSTGRES)
    python = provision.peers() / "python"
    sql = provision.message_db()
    with running() as cluster:
        hythe = await ours.install(cluster)
        progress(f"writing {EVENTS:,} events through our store")
        deployments = await _fill(hythe)
        progress("writing the same number into the peers' tables")
        message_db = peers.install_message_db(cluster, sql)
        eventsourcing = cluster.create("eventsourcing")
        their = functools.partial(peers.contestant, python)
        await their("eventsourcing_recorder", eventsourcing, 1, 0.1)
        await asyncio.to_thread(_fill_peers, cluster)
        our = functools.partial(peers.contestant, Path(sys.executable), "hythe_reader", hythe, 1, 0.0)
        got = await take_turns(
            rounds,
            {
                "hythe raw": our,
                "eventsourcing": functools.partial(
                    their, "eventsourcing_recorder", eventsourcing, 1, 0.0, "--replay"
                ),
                "hythe typed": functools.partial(our, "--typed"),
                "message-db": functools.partial(their, "message_db", message_db, 1, 0.0, "--replay"),
                "hythe deployment": functools.partial(our, "--deployments", json.dumps(deployments)),
                "message-db stream": functools.partial(
                    their, "message_db", message_db, 1, 0.0, "--streams", str(DEPLOYMENTS)
                ),
            },
            cluster.settle,
        )
    return [
        Figure("replay", figure, median(got[mine], what), name, median(got[other], what), unit)
        for figure, mine, name, other, what, unit in BESIDE
    ]


async def _fill(dsn: str) -> list[str]:
    """Write the log; returns the streams that hold a real deployment."""
    event = DeployStepCompleted.model_validate_json(samples.EVENT_JSON)
    because = Cause(event.deployment, event.deployment, "hythe:deploy")
    made = [uuid4() for _ in range(DEPLOYMENTS)]
    plain = math.ceil((EVENTS - DEPLOYMENTS * 30) / PER_STREAM)
    every = plain // DEPLOYMENTS

    async with Store.open(dsn) as store:

        async def writer(numbers: range) -> None:
            for number in numbers:
                await store.append(streams.deployment(uuid4()), 0, [event] * PER_STREAM, because=because)
                which, rest = divmod(number, every)
                if rest == 0 and which < len(made):
                    await store.append(
                        streams.deployment(made[which]), 0, _deployment(made[which]), because=because
                    )

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(writer(range(number, plain, 8)))
    return [streams.deployment(deployment) for deployment in made]


def _deployment(deployment: UUID) -> list[Event]:
    """The 30 events of a rollback as the deploy service tells it, every step among them."""
    blob = BlobRef(key="sha256-" + "2c26b46b" * 8, size=412, sha256="2c26b46b" * 8)
    manifest = Manifest(services={}, compose=blob, compose_sha256=blob.sha256)
    stack = "shop"
    detail = "an image is here, by digest " + "." * 300
    steps = [
        DeployStepCompleted(deployment=deployment, stack=stack, step="pull", detail=detail, seconds=0.25)
        for _ in range(26)
    ]
    return [
        RollbackRequested(
            deployment=deployment,
            stack=stack,
            to=uuid4(),
            manifest=manifest,
            commit=None,
            asked_by="cli:bench",
            reason="bench",
        ),
        DeployStarted(deployment=deployment, stack=stack, fence=7, replaces=None),
        *steps,
        DeployHealthChecked(
            deployment=deployment,
            stack=stack,
            healthy=True,
            services={"storefront": ServiceHealth(healthy=True, detail="healthy after 1.4 s")},
        ),
        DeployCompleted(deployment=deployment, stack=stack, outcome="succeeded", manifest=manifest),
    ]


def _fill_peers(cluster: Cluster) -> None:
    data = samples.EVENT_JSON.replace("'", "''")
    streams_of_30 = DEPLOYMENTS * 30
    cluster.sql(
        "message_store",
        f"""insert into message_store.messages (position, stream_name, type, data)
            select n % {PER_STREAM}, 'deployment-' || md5((n / {PER_STREAM})::text)::uuid, '{samples.EVENT_TYPE}', '{data}'
              from generate_series(0, {EVENTS - streams_of_30 - 1}) n;
            insert into message_store.messages (position, stream_name, type, data)
            select n % 30, 'deployment-bench' || n / 30, '{samples.EVENT_TYPE}', '{data}'
              from generate_series(0, {streams_of_30 - 1}) n""",
    )
    cluster.sql(
        "eventsourcing",
        f"""truncate bench_events;
            insert into bench_events (originator_id, originator_version, topic, state)
            select md5((n / {PER_STREAM})::text)::uuid, n % {PER_STREAM}, '{samples.EVENT_TYPE}', convert_to('{data}', 'UTF8')
              from generate_series(0, {EVENTS - 1}) n""",
    )
    for database in ("message_store", "eventsourcing", "hythe"):
        cluster.sql(database, "vacuum analyze")
