"""From `build.requested` to `build.finished`: the order of things, races and restarts, on a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from hythe_build.builder import Builder
from hythe_build.context import Context
from hythe_build.handlers import BuildHandlers
from hythe_build.images import BuildFailed, EngineUnavailable, Images, Say
from hythe_build.plan import ImageBuild
from hythe_build.render import Renderer
from hythe_build.source import Workshop
from hythe_events import streams
from hythe_events.build import (
    BuildFinished,
    BuildStarted,
    CancelDeployment,
    CancelRequested,
    FindLog,
    FoundLog,
    Image,
)
from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import BusUnavailable, NotFound, Refused, StoreUnavailable
from hythe_events.git import BuildRequested, DeploymentRequested
from hythe_events.language import BlobRef, Event, new_id
from hythe_events.log import Done
from hythe_events.testing import MemoryBlobs, MemoryBus, MemoryStore

COMPOSE = "services:\n  web: {build: ./web}\n  api: {build: ./api}\n  db: {image: postgres}\n"
FILES = {"compose.yaml": COMPOSE, "web/Dockerfile": "FROM x\n", "api/Dockerfile": "FROM y\n"}


@dataclass
class FakeImages:
    """Builds nothing; what happens instead is decided by the test."""

    instead: Callable[[ImageBuild], Awaitable[None]] | None = None
    built: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    labels: list[Mapping[str, str]] = field(default_factory=list)

    async def build(
        self, wanted: ImageBuild, context: Context, *, labels: Mapping[str, str], say: Say
    ) -> Image:
        self.labels.append(labels)
        await say(b"[1/1] FROM x")
        try:
            if len(self.labels) == 2:  # both services of FILES
                self.begun.set()
            if self.instead is not None:
                await self.instead(wanted)
        except asyncio.CancelledError:
            self.stopped.append(wanted.service)
            raise
        self.built.append(wanted.service)
        return Image(reference=f"{wanted.name}:00", digest=f"sha256:{context.digest}")


async def for_ever(_wanted: ImageBuild) -> None:
    """A build that does not end by itself."""
    await asyncio.Event().wait()


@dataclass
class Yard:
    """A build service in memory, and what one may do with it from outside."""

    store: MemoryStore
    bus: MemoryBus
    blobs: MemoryBlobs
    images: FakeImages
    handlers: BuildHandlers
    make: Callable[..., BuildHandlers]
    tar: Callable[..., bytes]

    async def requested(self, files: Mapping[str, str] | None = None, *events: Event) -> Envelope[Any]:
        """A deployment whose source was fetched; its `build.requested`."""
        deployment = new_id()
        source = await self.blobs.put(self.tar(FILES if files is None else files))
        opened = DeploymentRequested(
            deployment=deployment,
            stack="app",
            trigger="command",
            ref="refs/heads/main",
            commit="a" * 40,
            asked_by="cli:ada",
        )
        asked = BuildRequested(
            deployment=deployment,
            stack="app",
            commit="a" * 40,
            ref="refs/heads/main",
            message="",
            author="",
            asked_by="cli:ada",
            source=source,
            compose_file="compose.yaml",
        )
        said = await self.store.append(
            streams.deployment(deployment),
            0,
            [opened, *events, asked],
            because=Cause(deployment, None, "cli:ada"),
        )
        return said[-1]

    async def told(self, heard: Envelope[Any]) -> list[Event]:
        """What the build service said of it."""
        return [event.data for event in await self.store.read(heard.stream, after=heard.version)]

    async def finished(self, heard: Envelope[Any]) -> BuildFinished:
        """How it ended; it must have ended once."""
        [ending] = [event for event in await self.told(heard) if isinstance(event, BuildFinished)]
        return ending

    async def log(self, heard: Envelope[Any]) -> bytes:
        log = (await self.finished(heard)).log
        assert log is not None
        return await self.blobs.get(log)

    async def cancel(self, heard: Envelope[Any], handlers: BuildHandlers | None = None) -> Done:
        asked = CancelDeployment(deployment=heard.data.deployment, reason="wrong branch")
        return await (handlers or self.handlers).cancel(asked, Cause(new_id(), None, "cli:ada"))


@pytest_asyncio.fixture
async def yard(tmp_path: Path, tar: Callable[..., bytes]) -> AsyncIterator[Yard]:
    store, blobs, images = MemoryStore(), MemoryBlobs(), FakeImages()
    bus = MemoryBus(store)
    async with Workshop.open(tmp_path / "work") as workshop:

        def make(**other: Any) -> BuildHandlers:
            builder = Builder(
                workshop=workshop, blobs=blobs, renderer=Renderer(), images=other.pop("images", images)
            )
            parts = {"store": store.of("build"), "blobs": blobs, "live": bus, "builder": builder}
            return BuildHandlers(**{**parts, **other})

        yield Yard(store, bus, blobs, images, make(), make, tar)
        assert not list((tmp_path / "work").glob("builder-*/source-*"))


async def test_a_stacks_images_are_built_and_told(yard: Yard) -> None:
    """Services that only name an image have nothing to build."""
    heard = await yard.requested()
    await yard.handlers.on_build_requested(heard)
    told = await yard.told(heard)
    assert told[0] == BuildStarted(deployment=heard.data.deployment, stack="app", services=("api", "web"))
    assert {each.type for each in told[1:3]} == {"build.image_built"}
    ending = await yard.finished(heard)
    assert ending.outcome == "succeeded"
    assert sorted(ending.images) == ["api", "web"]
    assert b"web | [1/1] FROM x\n" in await yard.log(heard)
    assert (await yard.log(heard)).endswith(b"hythe | succeeded\n")
    labels = {
        "org.opencontainers.image.revision": "a" * 40,
        "dev.hythe.stack": "app",
        "dev.hythe.service": "web",
    }
    assert labels in yard.images.labels


async def test_whoever_follows_the_log_sees_it_end(yard: Yard) -> None:
    """The live log and the kept one are the same."""
    heard = await yard.requested()
    await yard.handlers.on_build_requested(heard)
    async with asyncio.timeout(5):
        live = [line async for line in yard.bus.follow_log(heard.data.deployment)]
    assert b"".join(line + b"\n" for line in live) == await yard.log(heard)


async def test_a_stack_without_anything_to_build_succeeds(yard: Yard) -> None:
    """Most stacks on most machines only name images."""
    heard = await yard.requested({"compose.yaml": "services: {db: {image: postgres}}"})
    await yard.handlers.on_build_requested(heard)
    ending = await yard.finished(heard)
    assert (ending.outcome, ending.images) == ("succeeded", {})


async def test_a_finished_build_is_left_alone(yard: Yard) -> None:
    """The same message may come again days later."""
    heard = await yard.requested()
    await yard.handlers.on_build_requested(heard)
    before = await yard.told(heard)
    await yard.handlers.on_build_requested(heard)
    assert await yard.told(heard) == before
    assert sorted(yard.images.built) == ["api", "web"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"compose.yaml": "services: ["}, "compose.yaml is not YAML"),
        (
            {
                "compose.yaml": "services: {web: {build: {context: ., ssh: [default]}}}",
                "Dockerfile": "FROM x",
            },
            "build.ssh",
        ),
        ({"compose.yaml": "services: {web: {build: .}}"}, "web: there is no Dockerfile"),
        ({"other": "x"}, "no compose file"),
        ({"compose.yaml": COMPOSE, "link": "->/etc/passwd"}, "leads out"),
        (
            {"compose.yaml": "services: {web: {build: .}}", "Dockerfile": "FROM x", ".dockerignore": "[a"},
            ".dockerignore",
        ),
    ],
)
async def test_a_source_that_cannot_be_built_fails_with_the_reason(
    yard: Yard, files: dict[str, str], says: str
) -> None:
    """It is the user's to mend, so it is told to the user, and not to the operator of a parking lot."""
    heard = await yard.requested(files)
    await yard.handlers.on_build_requested(heard)
    ending = await yard.finished(heard)
    assert ending.outcome == "failed"
    assert says in (ending.reason or "")
    assert (ending.reason or "").encode() in await yard.log(heard)


async def test_a_source_that_is_gone_fails_with_the_reason(yard: Yard) -> None:
    """The object store was wiped; waiting does not bring it back."""
    heard = await yard.requested()
    gone = BlobRef(key="0" * 64, size=1, sha256="0" * 64)
    await yard.handlers.on_build_requested(
        heard._replace(data=heard.data.model_copy(update={"source": gone}))
    )
    assert (await yard.finished(heard)).outcome == "failed"


async def test_one_image_that_fails_stops_the_others(yard: Yard) -> None:
    """A stack is deployed as a whole or not at all."""

    async def one_fails(wanted: ImageBuild) -> None:
        if wanted.service == "web":
            raise BuildFailed("web: step 2/2 RUN make: exit code 2")
        await for_ever(wanted)

    yard.images.instead = one_fails
    heard = await yard.requested()
    await yard.handlers.on_build_requested(heard)
    ending = await yard.finished(heard)
    assert (ending.outcome, ending.reason, ending.images) == (
        "failed",
        "web: step 2/2 RUN make: exit code 2",
        {},
    )
    assert yard.images.stopped == ["api"]


# -- cancelling


async def test_a_running_build_is_cancelled_at_once(yard: Yard) -> None:
    """The images' builds are stopped, the build ends once, and it says who stopped it."""
    yard.images.instead = for_ever
    heard = await yard.requested()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(yard.handlers.on_build_requested(heard))
        await yard.images.begun.wait()
        done = await yard.cancel(heard)
    ending = await yard.finished(heard)
    assert (ending.outcome, ending.reason) == ("cancelled", "cancelled by cli:ada: wrong branch")
    assert sorted(yard.images.stopped) == ["api", "web"]
    assert done.stream == heard.stream
    assert done.version == len(await yard.store.read(heard.stream)) - 1


async def test_a_build_that_another_process_was_told_to_cancel_is_noticed(yard: Yard) -> None:
    """A command is answered by any process; the one that builds sees it in the stream, within two seconds."""
    yard.images.instead = for_ever
    heard = await yard.requested()
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        tasks.create_task(yard.handlers.on_build_requested(heard))
        await yard.images.begun.wait()
        await yard.cancel(heard, yard.make())
    assert (await yard.finished(heard)).outcome == "cancelled"


async def test_a_build_that_another_process_finished_is_stopped(yard: Yard) -> None:
    """A process that was frozen for long finds its work done; it must neither repeat nor undo it."""
    heard = await yard.requested()
    frozen = FakeImages(instead=for_ever)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(yard.make(images=frozen).on_build_requested(heard))
        await frozen.begun.wait()
        await yard.handlers.on_build_requested(heard)
    assert (await yard.finished(heard)).outcome == "succeeded"
    assert sorted(frozen.stopped) == ["api", "web"]


async def test_a_build_that_waits_is_cancelled_before_it_is_heard(yard: Yard) -> None:
    """Then hearing of it changes nothing."""
    heard = await yard.requested()
    await yard.cancel(heard)
    assert (await yard.finished(heard)).outcome == "cancelled"
    await yard.handlers.on_build_requested(heard)
    assert (await yard.finished(heard)).outcome == "cancelled"
    assert yard.images.built == []


async def test_a_build_whose_deployment_was_cancelled_during_the_fetch_does_not_run(yard: Yard) -> None:
    """git handed it over just before it saw the request."""
    heard = await yard.requested()
    opened, asked = await yard.store.read(heard.stream)
    other = new_id()
    cancelled = CancelRequested(deployment=other, stack="app", asked_by="cli:ada")
    first = opened.data.model_copy(update={"deployment": other})
    second = asked.data.model_copy(update={"deployment": other})
    queued: Any
    [*_, queued] = await yard.store.append(
        streams.deployment(other), 0, [first, cancelled, second], because=Cause(other, None, "cli:ada")
    )
    await yard.handlers.on_build_requested(queued)
    assert (await yard.finished(queued)).outcome == "cancelled"
    assert yard.images.built == []


async def test_a_finished_build_cannot_be_cancelled(yard: Yard) -> None:
    """The answer says how it ended."""
    heard = await yard.requested()
    await yard.handlers.on_build_requested(heard)
    with pytest.raises(Refused, match="already ended: succeeded") as refused:
        await yard.cancel(heard)
    assert refused.value.field == "deployment"


class Racing:
    """A store in which somebody else writes just before the build's last word."""

    def __init__(self, store: MemoryStore, first: Callable[[], Awaitable[object]]) -> None:
        self._store = store
        self._first: Callable[[], Awaitable[object]] | None = first

    async def read(self, stream: str) -> list[Envelope[Event]]:
        return await self._store.read(stream)

    async def append(
        self,
        stream: str,
        expected: int | None,
        events: Sequence[Event],
        *,
        because: Cause,
        evidence: bytes | None = None,
    ) -> list[Envelope[Event]]:
        if self._first is not None and isinstance(events[0], BuildFinished):
            first, self._first = self._first, None
            await first()
        return await self._store.append(stream, expected, events, because=because)


async def test_a_cancellation_that_is_first_by_a_hair_wins(yard: Yard) -> None:
    """Exactly one ending, and the one that was promised: the version check of the log decides."""
    heard = await yard.requested()
    racing = Racing(yard.store.of("build"), lambda: yard.cancel(heard))
    await yard.make(store=racing).on_build_requested(heard)
    ending = await yard.finished(heard)
    assert (ending.outcome, ending.images) == ("cancelled", {})


async def test_a_cancellation_that_is_late_by_a_hair_is_refused(yard: Yard) -> None:
    """As above, the other way round."""
    heard = await yard.requested()
    await yard.handlers.on_build_requested(heard)
    with pytest.raises(Refused):
        await yard.cancel(heard)
    assert (await yard.finished(heard)).outcome == "succeeded"


# -- time, crashes and outages


async def test_a_build_that_takes_too_long_fails(yard: Yard) -> None:
    """And what it was building is stopped."""
    yard.images.instead = for_ever
    heard = await yard.requested()
    async with asyncio.timeout(20):
        await yard.make(limit=1.5).on_build_requested(heard)
    ending = await yard.finished(heard)
    assert ending.outcome == "failed"
    assert "took longer than 1.5 s, the limit in HYTHE_BUILD_TIMEOUT" in (ending.reason or "")
    assert sorted(yard.images.stopped) == ["api", "web"]


class Away(FakeImages):
    """An engine that never answers."""

    async def build(self, *_asked: Any, **_more: Any) -> Image:
        raise EngineUnavailable


async def test_an_engine_that_is_away_is_tried_again_until_patience_ends(yard: Yard) -> None:
    """It may be restarting; but a build is never stuck."""

    heard = await yard.requested()
    now = [heard.at + timedelta(seconds=100)]
    handlers = yard.make(patience=120, now=lambda: now[0], images=Away())
    with pytest.raises(EngineUnavailable):
        await handlers.on_build_requested(heard)
    assert not any(isinstance(event, BuildFinished) for event in await yard.told(heard))
    now[0] = heard.at + timedelta(seconds=221)
    await handlers.on_build_requested(heard)
    ending = await yard.finished(heard)
    assert ending.outcome == "failed"
    assert "Docker engine does not answer" in (ending.reason or "")


async def test_an_engine_that_goes_away_in_every_build_is_given_up_at_a_deadline(yard: Yard) -> None:
    """Each attempt begins well, and none ends: from when it was asked for, time is limited all the same."""

    async def away(_wanted: ImageBuild) -> None:
        raise EngineUnavailable

    yard.images.instead = away
    heard = await yard.requested()
    now = [heard.at]
    handlers = yard.make(limit=600, patience=120, now=lambda: now[0])
    for minutes in (1, 5, 9, 11):
        now[0] = heard.at + timedelta(minutes=minutes)
        with pytest.raises(EngineUnavailable):
            await handlers.on_build_requested(heard)
    now[0] = heard.at + timedelta(minutes=12)
    await handlers.on_build_requested(heard)
    assert (await yard.finished(heard)).outcome == "failed"


async def test_an_engine_that_comes_back_finishes_the_build(yard: Yard) -> None:
    """A restarted daemon costs time and nothing else."""
    attempts = []

    async def away_once(wanted: ImageBuild) -> None:
        attempts.append(wanted.service)
        if len(attempts) == 1:
            raise EngineUnavailable

    yard.images.instead = away_once
    heard = await yard.requested()
    yard.bus.hear("build", BuildRequested, yard.handlers.on_build_requested)
    await yard.bus.settle()
    assert yard.bus.parked == []
    assert (await yard.finished(heard)).outcome == "succeeded"


class Breaking(Racing):
    """A store that goes away just before the build's last word is kept, once."""

    def __init__(self, store: MemoryStore) -> None:
        async def break_off() -> None:
            raise StoreUnavailable

        super().__init__(store, break_off)


async def test_a_crash_between_image_and_result_builds_again_and_tells_once(yard: Yard) -> None:
    """Images are found in the engine's cache; the log gets one ending, with the digests that were built."""
    heard = await yard.requested()
    yard.bus.hear(
        "build", BuildRequested, yard.make(store=Breaking(yard.store.of("build"))).on_build_requested
    )
    await yard.bus.settle()
    assert yard.bus.parked == []
    assert (await yard.finished(heard)).outcome == "succeeded"
    assert [event.type for event in await yard.told(heard)].count("build.image_built") == 2
    assert [event.type for event in await yard.told(heard)].count("build.started") == 1


async def test_a_log_that_cannot_be_kept_yet_is_kept_later(yard: Yard) -> None:
    """A build does not end without its log."""

    class Blobs(MemoryBlobs):
        async def put(self, data: Any) -> BlobRef:
            raise BusUnavailable

    heard = await yard.requested()
    with pytest.raises(BusUnavailable):
        await yard.make(blobs=Blobs()).on_build_requested(heard)
    await yard.handlers.on_build_requested(heard)
    assert (await yard.finished(heard)).outcome == "succeeded"


async def test_a_service_that_is_stopped_leaves_the_build_to_the_next(yard: Yard) -> None:
    """The work is stopped, nothing is said, and the message comes again."""
    yard.images.instead = for_ever
    heard = await yard.requested()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        working = tasks.create_task(yard.handlers.on_build_requested(heard))
        await yard.images.begun.wait()
        working.cancel()
    assert working.cancelled()
    assert sorted(yard.images.stopped) == ["api", "web"]
    yard.images.instead = None
    await yard.handlers.on_build_requested(heard)
    assert (await yard.finished(heard)).outcome == "succeeded"


# -- questions


async def test_a_build_log_is_found_once_it_is_finished(yard: Yard) -> None:
    """Until then the live log is to be followed."""
    heard = await yard.requested()
    deployment: UUID = heard.data.deployment
    because = Cause(new_id(), None, "cli:ada")
    waiting = await yard.handlers.find_log(FindLog(deployment=deployment), because)
    assert waiting == FoundLog(deployment=deployment, running=True, log=None)
    await yard.handlers.on_build_requested(heard)
    found = await yard.handlers.find_log(FindLog(deployment=deployment), because)
    assert found == FoundLog(deployment=deployment, running=False, log=(await yard.finished(heard)).log)
    with pytest.raises(NotFound):
        await yard.handlers.find_log(FindLog(deployment=new_id()), because)


# -- the real engine


@pytest.mark.parametrize("buildkit", [True, False])
async def test_two_services_are_built_on_the_real_engine(yard: Yard, docker: Any, buildkit: bool) -> None:
    """All of it but Postgres and NATS."""
    base = "FROM hythe-test-build/base:1\n"
    heard = await yard.requested(
        {
            "compose.yaml": COMPOSE,
            "web/Dockerfile": f"{base}RUN echo from web\n",
            "api/Dockerfile": f"{base}RUN echo from api\n",
        }
    )
    async with Images.open(docker.host, buildkit=buildkit) as images:
        await images.sweep()
        await yard.make(images=images).on_build_requested(heard)
    ending = await yard.finished(heard)
    assert ending.outcome == "succeeded", ending.reason
    for service, image in ending.images.items():
        seen = await docker.get(f"images/{image.reference}/json")
        assert seen["Id"] == image.digest
        assert seen["Config"]["Labels"]["dev.hythe.service"] == service
        await docker.remove(image.reference)
    log = await yard.log(heard)
    assert b"web | from web" in log or b"(cached)" in log or b"Using cache" in log
