"""What the build service does when it hears of something to build, and when it is asked to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID

from hythe_build import build
from hythe_build.build import CancelBuild, Ending, FinishBuild, RecordImage, StartBuild, cancelled_by, is_over
from hythe_build.builder import Builder
from hythe_build.images import EngineUnavailable
from hythe_build.together import together
from hythe_build.transcript import Transcript
from hythe_events import streams
from hythe_events.blobs import BlobStore
from hythe_events.build import BuildFinished, CancelDeployment, CancelRequested, FindLog, FoundLog, Image
from hythe_events.decider import Streams, execute, fold
from hythe_events.deployment import Deployment
from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import HytheError, NotFound, NotNow
from hythe_events.faults import crash_point
from hythe_events.git import BuildRequested
from hythe_events.log import Done
from hythe_events.telemetry import (
    PIPELINE_ACTION,
    PIPELINE_NAME,
    PIPELINE_RESULT,
    PIPELINE_RUN_ID,
    PipelineResult,
    Telemetry,
    span,
)

WHO = "hythe:build"
LOOK = 1.0
"""Seconds between two looks at the stream of a running build, for a cancellation that another process was told."""

_RESULT: dict[Ending, PipelineResult] = {
    "succeeded": "success",
    "failed": "failure",
    "cancelled": "cancellation",
}

T = TypeVar("T")


class LiveLog(Protocol):
    """Where lines go while a build runs: the part of `hythe_events.bus.Bus` that is needed here."""

    async def log_line(self, deployment: UUID, line: bytes) -> None: ...

    async def end_log(self, deployment: UUID) -> None: ...


class BuildCancelled(HytheError):
    """The build was stopped on request."""


class BuildHandlers:
    """Hears `build.requested`; answers `command.build.cancel` and `query.build.log`."""

    def __init__(
        self,
        *,
        store: Streams,
        blobs: BlobStore,
        live: LiveLog,
        builder: Builder,
        limit: float = 1800.0,
        patience: float = 120.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        telemetry: Telemetry | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._live = live
        self._builder = builder
        self._limit = limit
        self._patience = timedelta(seconds=patience)
        self._now = now
        self._telemetry = telemetry
        self._running: dict[UUID, asyncio.Event] = {}
        self._away: dict[UUID, datetime] = {}

    async def on_build_requested(self, heard: Envelope[BuildRequested]) -> None:
        """Build the images a commit's compose file asks for.

        After a crash the same message comes again: a finished build is left alone, an unfinished one starts over.
        """
        asked = heard.data
        if is_over(await self._state(heard.stream)):
            await self._live.end_log(asked.deployment)
            return
        began = time.monotonic()
        log = Transcript(partial(self._live.log_line, asked.deployment))
        attributes = {
            PIPELINE_NAME: asked.stack,
            PIPELINE_ACTION: "BUILD",
            PIPELINE_RUN_ID: str(asked.deployment),
        }
        with span(f"BUILD {asked.stack}", attributes=attributes) as told:
            ending = await self._ending(heard, log)
            told.set(PIPELINE_RESULT, _RESULT[ending.outcome])
            if ending.outcome == "failed":
                told.fail("the build failed")
        await crash_point("C4")
        await log.note(f"{ending.outcome}: {ending.reason}" if ending.reason else ending.outcome)
        kept = await self._blobs.put(log.kept())
        await crash_point("B5")
        finish = FinishBuild(ending.outcome, ending.images, kept, ending.reason)
        await execute(self._store, build.decider, heard.stream, finish, because=heard.cause(WHO))
        await self._live.end_log(asked.deployment)
        self._away.pop(asked.deployment, None)
        if self._telemetry is not None:
            result = _RESULT[ending.outcome]
            self._telemetry.run_finished(asked.stack, "BUILD", result, time.monotonic() - began)

    async def cancel(self, asked: CancelDeployment, because: Cause) -> Done:
        """Ask for a build to be stopped. One that runs here stops at once, one that runs elsewhere within seconds."""
        stream = streams.deployment(asked.deployment)
        state = await execute(
            self._store, build.decider, stream, CancelBuild(because.actor, asked.reason), because=because
        )
        if asked.deployment in self._running:
            self._running[asked.deployment].set()
        elif is_over(state):
            await self._live.end_log(asked.deployment)
        return Done(stream=stream, version=state.version)

    async def find_log(self, asked: FindLog, _because: Cause) -> FoundLog:
        """Where a deployment's finished build log is; None while it runs. Raises NotFound."""
        state = await self._state(streams.deployment(asked.deployment))
        if state.phase == "unknown":
            raise NotFound("there is no deployment with this id", field="deployment")
        return FoundLog(deployment=asked.deployment, running=not is_over(state), log=state.build_log)

    async def _ending(self, heard: Envelope[BuildRequested], log: Transcript) -> FinishBuild:
        """Do the work and say how it ended. Raises NotNow for what a later attempt may mend."""
        because = heard.cause(WHO)

        async def planned(services: tuple[str, ...]) -> None:
            await execute(self._store, build.decider, heard.stream, StartBuild(services), because=because)

        async def built(service: str, image: Image, seconds: float) -> None:
            record = RecordImage(service, image, seconds)
            await execute(self._store, build.decider, heard.stream, record, because=because)

        try:
            async with asyncio.timeout(self._limit) as clock:
                work = self._builder.build(heard.data, log, planned=planned, built=built)
                return FinishBuild("succeeded", await self._unless_cancelled(heard, work))
        except BuildCancelled as stopped:
            return FinishBuild("cancelled", reason=str(stopped))
        except EngineUnavailable as error:
            if self._is_patient(heard, log):
                raise
            waited = f"it was tried for {self._patience.total_seconds():g} s"
            return FinishBuild("failed", reason=f"{error}; {waited}")
        except NotNow:
            raise
        except HytheError as error:
            return FinishBuild("failed", reason=str(error))
        except TimeoutError:
            if not clock.expired():
                raise
            return FinishBuild(
                "failed",
                reason=f"the build took longer than {self._limit:g} s, the limit in HYTHE_BUILD_TIMEOUT",
            )

    def _is_patient(self, heard: Envelope[BuildRequested], log: Transcript) -> bool:
        """Whether an engine that went away is waited for: for a while, and never beyond an absolute deadline."""
        now = self._now()
        if log.kept():
            self._away.pop(heard.data.deployment, None)  # it did answer in this attempt
        since = self._away.setdefault(heard.data.deployment, now)
        return (
            now < since + self._patience and now < heard.at + timedelta(seconds=self._limit) + self._patience
        )

    async def _unless_cancelled(self, heard: Envelope[BuildRequested], work: Awaitable[T]) -> T:
        """What `work` gives. Raises BuildCancelled as soon as the stream says that it is not wanted any more."""
        nudged = self._running[heard.data.deployment] = asyncio.Event()

        async def watch() -> None:
            while True:
                with suppress(NotNow):
                    for event in await self._store.read(heard.stream):
                        if isinstance(event.data, CancelRequested):
                            raise BuildCancelled(cancelled_by(event.data))
                        if isinstance(event.data, BuildFinished):
                            raise BuildCancelled("another process has finished it")
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await nudged.wait()
                nudged.clear()

        try:
            async with together() as tasks:
                watching = tasks.create_task(watch())
                try:
                    return await work
                finally:
                    watching.cancel()
        finally:
            del self._running[heard.data.deployment]

    async def _state(self, stream: str) -> Deployment:
        return fold(build.decider.evolve, await self._store.read(stream), build.decider.initial)
