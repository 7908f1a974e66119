"""Starts the build service."""

from __future__ import annotations

from hythe_build.builder import Builder
from hythe_build.handlers import BuildHandlers
from hythe_build.images import Images
from hythe_build.render import Renderer
from hythe_build.settings import BuildSettings
from hythe_build.source import Workshop
from hythe_events.build import CancelDeployment, FindLog
from hythe_events.git import BuildRequested
from hythe_events.service import answers, on, service, start


async def main() -> None:
    settings = BuildSettings()
    async with (
        service("build", settings) as hythe,
        Workshop.open(settings.workshop) as workshop,
        Images.open(settings.docker_host, settings.builds_at_once, buildkit=settings.buildkit) as images,
    ):
        handlers = BuildHandlers(
            store=hythe.store,
            blobs=hythe.blobs,
            live=hythe.bus,
            builder=Builder(workshop=workshop, blobs=hythe.blobs, renderer=Renderer(), images=images),
            limit=settings.build_timeout,
            patience=settings.build_patience,
            telemetry=hythe.telemetry,
        )
        await hythe.run(
            hears=[on(BuildRequested, handlers.on_build_requested, at_once=settings.builds_at_once)],
            serves=[answers(CancelDeployment, handlers.cancel), answers(FindLog, handlers.find_log)],
            alongside=[images.sweep],
        )


if __name__ == "__main__":
    start(main)
