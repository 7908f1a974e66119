"""Our store, as a service uses it: callers append typed events at the version they know, through one `Store`.

Each caller writes deployments of 100 events, and waits until its event is durable and chained.
"""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import uvloop

from bench import samples
from bench.contestants import stopwatch
from hythe_events.deploy import DeployStepCompleted
from hythe_events.envelope import Cause
from hythe_events.store import Store


async def append(dsn: str, clients: int, seconds: float, batch: int) -> dict[str, float]:
    event = DeployStepCompleted.model_validate_json(samples.EVENT_JSON)
    assert event.model_dump_json() == samples.EVENT_JSON, "the peers must store the same bytes"
    because = Cause(UUID(samples.EVENT["deployment"]), UUID(samples.EVENT["deployment"]), "hythe:deploy")
    events = [event] * batch
    streams = [f"deployment-{uuid4()}" for _ in range(clients)]
    versions = [0] * clients

    async with Store.open(dsn) as store:

        async def one(number: int) -> None:
            version = versions[number]
            await store.append(streams[number], version, events, because=because)
            if version + batch < 100:
                versions[number] = version + batch
            else:
                streams[number], versions[number] = f"deployment-{uuid4()}", 0

        return await stopwatch.tasks(one, clients, seconds, batch)


if __name__ == "__main__":
    parser = stopwatch.arguments("Hythe's event store")
    parser.add_argument("--batch", type=int, default=1, help="events in one append")
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stopwatch.say(runner.run(append(asked.dsn, asked.clients, asked.seconds, asked.batch)))
