"""A push to a healthy stack, warm: through Hythe, and by hand with `git fetch`, `docker build` and `docker-compose up --wait`.

Both deploy the demo's app from the same Git server, change the same one line of a page, and are timed from the moment
`git push` is called to the moment they say that the new container is healthy. Then the page is asked for, to see that
it is the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench import processes, provision
from bench.figures import Figure, Reading, median, progress, take_turns
from hythe_cli.demo import sample, witness
from hythe_cli.demo.git_server import Hosted, WorkTree
from hythe_cli.demo.scene import App, Scene, set_up
from hythe_cli.local.engine import ensure_engine, static_busybox
from hythe_cli.local.processes import free_port, installed_program, run_to_end

STACK = "hythe-bench-shop"
PROJECT = "hythe-bench-byhand"
DEPLOY_SECONDS = 120.0


async def run(rounds: int) -> list[Figure]:
    provision.commands("git", "docker")
    with processes.folder() as folder:
        await ensure_engine(progress, log=folder / "dockerd.log")
        busybox = await static_busybox(progress)
        async with (
            set_up(folder / "scene", busybox, tell=progress) as scene,
            contextlib.AsyncExitStack() as stack,
        ):
            ours = _Ours(scene, await scene.add_app(STACK))
            await ours.first()
            hand = await _ByHand.ready(scene, folder / "by-hand")
            stack.push_async_callback(hand.clear)
            got = await take_turns(rounds, {"hythe": ours.turn, "by hand": hand.turn})
    return [
        Figure(
            "pipeline",
            "push_to_healthy",
            median(got["hythe"], "seconds"),
            "by hand",
            median(got["by hand"], "seconds"),
            "s",
        )
    ]


def _page(number: int) -> dict[str, str | bytes | None]:
    return {f"page/{sample.PAGE}": sample.HELLO.format(version=number)}


async def _is_served(url: str, number: int) -> None:
    """What answers is the version that was pushed, or the time means nothing."""
    said = await witness.get(url)
    if said != sample.HELLO.format(version=number):
        raise SystemExit(f"{url} should serve version {number}, and says {said!r}")


@dataclass
class _Ours:
    """The demo's app on a whole Hythe: four services, its own Postgres and NATS, a signed webhook."""

    scene: Scene
    app: App
    version: int = 1
    position: int = 0

    async def first(self) -> None:
        """The first deployment: everything is cold, and nothing is counted."""
        await self._deploy(await self.scene.commit_first(self.app))

    async def turn(self) -> Reading:
        self.version += 1
        commit = await self.app.work.commit(_page(self.version), f"Version {self.version}")
        began = time.perf_counter()
        await self._deploy(commit)
        took = time.perf_counter() - began
        await _is_served(self.app.url, self.version)
        return {"seconds": took}

    async def _deploy(self, commit: str) -> None:
        async with asyncio.timeout(DEPLOY_SECONDS):
            await self.app.work.push()
            deployment = await self.scene.opened_by(commit, self.position)
            end = await self.scene.end_of(deployment, self.position)
        if end.outcome != "succeeded":
            raise SystemExit(f"the deployment ended {end.outcome}: {end.reason}")


@dataclass
class _ByHand:
    """The same app in a clone of its own, deployed by the commands one would type."""

    hosted: Hosted
    work: WorkTree
    clone: Path
    port: int
    version: int = 1

    @classmethod
    async def ready(cls, scene: Scene, folder: Path) -> _ByHand:
        """Make the repository and deploy it once."""
        hosted = await scene.forge.create_repository(PROJECT)
        work = await WorkTree.of(hosted, folder / "work")
        port = free_port()
        (work.folder / "busybox").touch(mode=0o755)
        await work.commit(sample.first_version(scene.busybox, port), "Say hello")
        await work.push()
        clone = folder / "clone"
        await _done("git", "clone", "--quiet", "--depth", "1", hosted.url, str(clone), cwd=folder)
        hand = cls(hosted, work, clone, port)
        await hand._deploy()
        return hand

    async def turn(self) -> Reading:
        self.version += 1
        await self.work.commit(_page(self.version), f"Version {self.version}")
        began = time.perf_counter()
        await self.work.push()
        pieces = await self._deploy()
        took = time.perf_counter() - began
        await _is_served(f"http://127.0.0.1:{self.port}/{sample.PAGE}", self.version)
        return {"seconds": took, **pieces}

    async def _deploy(self) -> Reading:
        started = time.perf_counter()
        await _done("git", "fetch", "--quiet", "--depth", "1", "origin", "main", cwd=self.clone)
        await _done("git", "reset", "--quiet", "--hard", "FETCH_HEAD", cwd=self.clone)
        fetched = time.perf_counter()
        await _done("docker", "build", "--quiet", "--tag", f"{PROJECT}-web", ".", cwd=self.clone)
        built = time.perf_counter()
        await self._compose("up", "--detach", "--wait", "--no-build")
        up = time.perf_counter()
        return {"fetch": fetched - started, "build": built - fetched, "up": up - built}

    async def clear(self) -> None:
        """Leave nothing behind: containers, network, image."""
        await self._compose("down", "--timeout", "0", "--rmi", "all", "--volumes")

    async def _compose(self, *words: str) -> None:
        program = str(installed_program("docker-compose"))
        await _done(program, "--project-name", PROJECT, *words, cwd=self.clone)


async def _done(*command: str, cwd: Path) -> None:
    env = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    code, printed = await run_to_end(*command, cwd=cwd, env=env, seconds=DEPLOY_SECONDS)
    if code:
        raise SystemExit(f"`{' '.join(command[:3])} …` ended with {code}: {printed.strip()[-1000:]}")
