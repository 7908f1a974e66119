"""Appending one event of 498 bytes, durably: our store beside message-db, a plain table, `eventsourcing`, and COPY."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from bench import ours, peers, provision
from bench.cluster import running
from bench.figures import Figure, median, take_turns

SECONDS = 3.0

BESIDE = [
    ("append_64", "hythe 64", "message-db", "message-db 64"),
    ("append_64", "hythe 64", "pgbench", "pgbench 64"),
    ("append_8", "hythe 8", "eventsourcing", "eventsourcing 8"),
    ("append_1", "hythe 1", "message-db", "message-db 1"),
    ("append_batch_100", "hythe batch 100", "copy", "copy 100"),
]
"""Figure, our turn, the peer's name, its turn."""


async def run(rounds: int) -> list[Figure]:
    provision.commands(*peers.POSTGRES)
    python = provision.peers() / "python"
    message_db_sql = provision.message_db()
    with running() as cluster:
        hythe = await ours.install(cluster)
        message_db = peers.install_message_db(cluster, message_db_sql)
        eventsourcing = cluster.create("eventsourcing")
        plain = peers.install_plain_table(cluster)
        store = functools.partial(peers.contestant, Path(sys.executable), "hythe_store", hythe)
        sample = await ours.sample_row(cluster, store)
        copied = ours.copy_table(cluster)
        their = functools.partial(peers.contestant, python)
        copy = functools.partial(their, "copy_rows", copied, 1, SECONDS)
        got = await take_turns(
            rounds,
            {
                "hythe 64": functools.partial(store, 64, SECONDS),
                "message-db 64": functools.partial(their, "message_db", message_db, 64, SECONDS),
                "pgbench 64": functools.partial(peers.pgbench, cluster, plain, 64, SECONDS),
                "hythe 8": functools.partial(store, 8, SECONDS),
                "eventsourcing 8": functools.partial(
                    their, "eventsourcing_recorder", eventsourcing, 8, SECONDS
                ),
                "hythe 1": functools.partial(store, 1, SECONDS),
                "message-db 1": functools.partial(their, "message_db", message_db, 1, SECONDS),
                "hythe batch 100": functools.partial(store, 1, SECONDS, "--batch", "100"),
                "copy 100": functools.partial(copy, "--table", ours.COPIED, "--sample", sample),
            },
            cluster.settle,
        )
    return [
        Figure("append", figure, median(got[mine]), name, median(got[other]))
        for figure, mine, name, other in BESIDE
    ]
