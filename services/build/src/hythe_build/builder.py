"""The work of one build, from a source archive to images: fetch, render, plan, then build all of them together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

from hythe_build import plan
from hythe_build.context import Context, context
from hythe_build.images import REVISION, Say
from hythe_build.plan import ImageBuild
from hythe_build.render import Renderer
from hythe_build.source import Blobs, Source, Workshop
from hythe_build.together import together
from hythe_build.transcript import Transcript
from hythe_events.build import Image
from hythe_events.git import BuildRequested
from hythe_events.telemetry import TASK_NAME, TASK_TYPE, span

Planned = Callable[[tuple[str, ...]], Awaitable[None]]
Built = Callable[[str, Image, float], Awaitable[None]]


class ImageBuilder(Protocol):
    """What is needed of `hythe_build.images.Images`."""

    async def build(
        self, wanted: ImageBuild, context: Context, *, labels: Mapping[str, str], say: Say
    ) -> Image: ...


class Builder:
    """Turns what was asked for into images."""

    def __init__(self, *, workshop: Workshop, blobs: Blobs, renderer: Renderer, images: ImageBuilder) -> None:
        self._workshop = workshop
        self._blobs = blobs
        self._renderer = renderer
        self._images = images

    async def build(
        self, asked: BuildRequested, log: Transcript, *, planned: Planned, built: Built
    ) -> dict[str, Image]:
        """The images of `asked`, by service.

        `planned` is told the services before the first is built, `built` each image when it is there. Being cancelled
        stops all of it. Raises Refused for what cannot be built, BuildFailed, EngineUnavailable, BusUnavailable.
        """
        async with self._workshop.fetch(self._blobs, asked.source) as source:
            root, model = await self._renderer.model(
                source, asked.compose_file, stack=asked.stack, sha256=asked.source.sha256
            )
            wanted = plan.images(model, stack=asked.stack, root=root)
            await planned(tuple(each.service for each in wanted))
            if not wanted:
                await log.note("no service has anything to build")
            async with together() as tasks:
                making = {
                    each.service: tasks.create_task(self._one(asked, each, source, log, built))
                    for each in wanted
                }
            return {service: task.result() for service, task in making.items()}

    async def _one(
        self, asked: BuildRequested, wanted: ImageBuild, source: Source, log: Transcript, built: Built
    ) -> Image:
        began = time.monotonic()
        with span(f"build {wanted.service}", attributes={TASK_NAME: wanted.service, TASK_TYPE: "build"}):
            sent = await asyncio.to_thread(context, wanted, source)
            labels = {
                REVISION: asked.commit,
                "dev.hythe.stack": asked.stack,
                "dev.hythe.service": wanted.service,
            }
            image = await self._images.build(
                wanted, sent, labels=labels, say=partial(log.say, wanted.service)
            )
        seconds = time.monotonic() - began
        await log.note(f"{wanted.service}: {image.reference} in {seconds:.1f} s")
        await built(wanted.service, image, round(seconds, 3))
        return image
