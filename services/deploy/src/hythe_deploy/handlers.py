"""What the deploy service does when it hears that a build ended, or is asked for a rollback: the order, and nothing else.

```
build.finished ──────┐                    ┌► superseded, rejected: told, nothing touched
rollback.requested ──┴► lease ► Start ────┼► forward: render … verify ► stack.live_changed ► succeeded
                                          └► backward, after a failure: put back ► verify ► rolled_back
```

Every message may come again at any moment. The deployment's stream says how far it got; what was settled stays, what
touches Docker is safe to do twice, and health is always looked at anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

from hythe_deploy import compose, deployment, policy, stack, steps
from hythe_deploy.compose import Model
from hythe_deploy.deployment import BeginRestore, Complete, Done, OpenRollback, Record, Start
from hythe_deploy.lease import Hold, LeaseKept, Superseded
from hythe_deploy.stack import GiveGrants, GoLive, Live, PutBack, Stack
from hythe_deploy.stacks import DeployFailed, DockerUnavailable, Pinned, Release, Unhealthy
from hythe_events import streams, telemetry
from hythe_events.blobs import BlobStore
from hythe_events.build import BuildFinished, Image
from hythe_events.decider import Streams, execute, fold
from hythe_events.deploy import GrantStack, Manifest, Rollback, RollbackRequested, ServiceHealth
from hythe_events.deployment import Deployment, evolve
from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import Refused
from hythe_events.faults import crash_point
from hythe_events.git import DeploymentOpened
from hythe_events.language import Event
from hythe_events.log import Done as Appended

ME = "hythe:deploy"

PATIENCE = timedelta(minutes=10)
"""How long an engine that does not answer is waited for, while nothing has been touched yet."""


class Work(Protocol):
    """What can be done to one stack under a held lease; `hythe_deploy.stacks.Work` is the real one.

    Each raises DeployFailed (Unhealthy) for what will not get better by itself, an error with `retry` otherwise.
    """

    async def render(self, archive: bytes, compose_file: str) -> Model: ...

    async def surroundings(self) -> policy.Surroundings: ...

    async def pin(self, model: Model, built: Mapping[str, Image], archive: bytes) -> Pinned: ...

    async def config_hashes(self, release: Release) -> dict[str, str]: ...

    async def have(self, manifest: Manifest) -> None: ...

    async def rehearse(self, release: Release, before: Release | None) -> list[str]: ...

    async def up(self, release: Release) -> None: ...

    async def wait_healthy(self, names: Iterable[str]) -> dict[str, ServiceHealth]: ...

    async def verify(self, manifest: Manifest) -> None: ...

    async def take_down(self) -> None: ...


class Stacks(Protocol):
    """Where work on a stack comes from."""

    def work_on(self, hold: Hold) -> AbstractAsyncContextManager[Work]: ...

    async def missing_images(self, manifest: Manifest) -> list[str]: ...


class Leases(Protocol):
    """Who may touch a stack. Raises Superseded, LeaseKept, StackBusy, LeaseLost; see `hythe_deploy.lease`."""

    def hold(
        self, stack: str, deployment: UUID, asked: int, *, wait: float = 60.0, force: bool = False
    ) -> AbstractAsyncContextManager[Hold]: ...


@dataclass
class _Run:
    """One handling of one deployment: what is at hand while it lasts."""

    heard: Envelope[Event]
    state: Deployment
    stack: Stack
    hold: Hold
    work: Work
    archive: bytes = b""
    model: Model = field(default_factory=dict)
    release: Release | None = None
    rehearsal: asyncio.Task[list[str]] | None = None
    done: list[Done] = field(default_factory=list)
    health: dict[str, ServiceHealth] | None = None


class Handlers:
    """The deploy service's handlers and answers."""

    def __init__(self, store: Streams, blobs: BlobStore, stacks: Stacks, leases: Leases) -> None:
        self._store = store
        self._blobs = blobs
        self._stacks = stacks
        self._leases = leases

    async def on_build_finished(self, heard: Envelope[BuildFinished]) -> None:
        """Deploy what was built; or say that there is nothing to deploy."""
        match heard.data.outcome:
            case "succeeded":
                await self._deploy(heard)
            case "failed":
                await self._say(heard, Complete("failed", heard.data.reason or "the build failed"))
            case "cancelled":
                await self._say(heard, Complete("cancelled", heard.data.reason or "the build was cancelled"))

    async def on_rollback_requested(self, heard: Envelope[RollbackRequested]) -> None:
        """Deploy what an earlier deployment ran: the same steps, with a manifest that is settled already."""
        await self._deploy(heard)

    async def rollback(self, asked: Rollback, because: Cause) -> DeploymentOpened:
        """Open a rollback. Raises NotFound for a deployment that never went live, Refused when an image of it is gone."""
        known = fold(stack.evolve, await self._store.read(streams.stack(asked.stack)), Stack(asked.stack))
        target = known.rollback_target(asked.to)
        missing = await self._stacks.missing_images(target.manifest)
        if missing:
            one = target.manifest.services[missing[0]]
            raise Refused(
                f"deployment {target.deployment} cannot be brought back: the image of service {missing[0]} "
                f"({one.image}, {one.digest[:19]}) is gone from this machine",
                field="to",
            )
        opened = streams.deployment_id(because.correlation, asked.stack)
        opens = RollbackRequested(
            deployment=opened,
            stack=asked.stack,
            to=target.deployment,
            manifest=target.manifest,
            commit=target.commit,
            asked_by=because.actor,
            reason=asked.reason,
        )
        stream = streams.deployment(opened)
        await execute(self._store, deployment.decider, stream, OpenRollback(opens), because=because)
        return DeploymentOpened(deployment=opened, stack=asked.stack)

    async def grant(self, asked: GrantStack, because: Cause) -> Appended:
        """Say what a stack's compose file is allowed beyond the ordinary, from the next deployment on."""
        stream = streams.stack(asked.stack)
        await execute(
            self._store, stack.decider, stream, GiveGrants(asked.stack, asked.grants), because=because
        )
        return Appended(stream=stream, version=len(await self._store.read(stream)))

    # -- one deployment

    async def _deploy(self, heard: Envelope[Event]) -> None:
        state = fold(evolve, await self._store.read(heard.stream), Deployment())
        if state.finished:
            return
        assert state.id is not None
        by_hand = state.trigger == "rollback"
        try:
            async with self._leases.hold(
                state.stack, state.id, state.requested_position, force=by_hand
            ) as hold:
                await self._deploy_under(hold, heard)
        except Superseded:
            await self._say(heard, Complete("superseded", "a later request for this stack was started first"))
        except LeaseKept as error:
            await self._say(heard, Complete("failed", str(error)))
        except DockerUnavailable as error:
            state = fold(evolve, await self._store.read(heard.stream), Deployment())
            if _settled(state) or datetime.now(UTC) - heard.at < PATIENCE:
                raise
            await self._say(heard, Complete("failed", str(error)))

    async def _deploy_under(self, hold: Hold, heard: Envelope[Event]) -> None:
        known = fold(stack.evolve, await self._store.read(streams.stack(hold.stack)), Stack(hold.stack))
        live = known.live
        state = fold(evolve, await self._store.read(heard.stream), Deployment())
        start = Start(
            fence=hold.fence,
            live=live.deployment if live else None,
            newest=max(hold.newest, live.requested_position if live else 0),
            rejected=state.commit in known.rejected,
        )
        state = await self._say(heard, start)
        if state.finished:
            return
        async with self._stacks.work_on(hold) as work:
            run = _Run(heard, state, known, hold, work)
            if state.phase != "restoring":
                failed = await self._forward(run)
                if failed is None:
                    return
                await crash_point("D7")
                await self._say(
                    heard, BeginRestore(str(failed), failed.services if isinstance(failed, Unhealthy) else {})
                )
                run.state = fold(evolve, await self._store.read(heard.stream), Deployment())
            await self._backward(run)

    async def _forward(self, run: _Run) -> DeployFailed | None:
        """All the steps; the failure, if containers may have been touched or tried; None when it has ended."""
        try:
            for step in steps.forward(run.state):
                await self._carry_out(step, run)
        except DeployFailed as error:
            await self._say(run.heard, Record(tuple(run.done)))
            if _settled(run.state):
                return error
            await self._say(run.heard, Complete("failed", str(error)))
            return None
        finally:
            if run.rehearsal is not None:
                run.rehearsal.cancel()
                await asyncio.gather(run.rehearsal, return_exceptions=True)
        await self._say(run.heard, Record(tuple(run.done), run.health))
        await self._go_live(run)
        await crash_point("D5")
        await self._say(run.heard, Complete("succeeded"))
        return None

    async def _backward(self, run: _Run) -> None:
        """What ran before is put back; what failed is named in the outcome."""
        before = run.stack.was(run.state.replaces) if run.state.replaces else None
        reason = run.state.reason or "it failed"
        run.done = []
        try:
            for step in steps.backward(before.manifest if before else None):
                await self._carry_out(step, run, restoring=before.manifest if before else None)
        except DeployFailed as error:
            run.hold.keep()
            told = f"{reason} — and what ran before could not be put back: {error}"
            await self._say(run.heard, Complete("rollback_failed", told))
            return
        assert run.state.id is not None
        name = streams.stack(run.hold.stack)
        put_back = PutBack(run.state.id, run.state.replaces)
        await execute(self._store, stack.decider, name, put_back, because=run.heard.cause(ME))
        await self._say(run.heard, Record(tuple(run.done)))
        await self._say(run.heard, Complete("rolled_back" if before else "failed", reason))

    async def _go_live(self, run: _Run) -> None:
        state = run.state
        assert state.id is not None
        assert state.manifest is not None
        live = Live(state.id, state.manifest, state.commit, state.requested_position)
        before = run.stack.live
        rollback = state.trigger == "rollback"
        rejecting = before.commit if rollback and before is not None else None
        went = GoLive(state.stack, live, rollback, rejecting, state.reason if rollback else None)
        name = streams.stack(state.stack)
        await execute(self._store, stack.decider, name, went, because=run.heard.cause(ME))

    # -- one step

    async def _carry_out(self, step: steps.Step, run: _Run, *, restoring: Manifest | None = None) -> None:
        began = time.monotonic()
        with telemetry.span(f"deploy {type(step).__name__}", attributes={"hythe.stack": run.hold.stack}):
            match step:
                case steps.Render():
                    said = await self._render(run)
                case steps.CheckPolicy():
                    said = await self._check_policy(run)
                case steps.Pull():
                    await self._pull(run, began)
                    return
                case steps.Rehearse():
                    tried = await (run.rehearsal or self._rehearse(run))
                    said = f"tried beside the running ones: {', '.join(tried)}" if tried else "nothing to try"
                case steps.Up():
                    await self._say(run.heard, Record(tuple(run.done)))
                    run.done = []
                    await run.work.up(await self._release(run))
                    await crash_point("D4")
                    said = "folder and containers are those of the manifest"
                case steps.WaitHealthy():
                    manifest = restoring or run.state.manifest
                    assert manifest is not None
                    services = await run.work.wait_healthy(manifest.config_hashes)
                    run.health = services
                    said = f"{len(services)} services are healthy"
                case steps.Verify():
                    manifest = restoring or run.state.manifest
                    assert manifest is not None
                    await run.work.verify(manifest)
                    said = f"{len(manifest.services)} services run the manifest's digests"
                case steps.PutBack():
                    await run.work.have(step.manifest)
                    await run.work.up(await self._release_of(step.manifest))
                    await crash_point("D8")
                    said = "folder and containers are those that ran before"
                case steps.TakeDown():
                    await run.work.take_down()
                    await crash_point("D8")
                    said = "nothing ran before: its containers were removed"
        name = steps.told_as(step, restoring=restoring is not None)
        run.done.append(Done(name, said, time.monotonic() - began))

    async def _render(self, run: _Run) -> str:
        source = run.state.source
        assert source is not None, "what was built has a source"
        run.archive = await self._blobs.get(source)
        run.model = await run.work.render(run.archive, run.state.compose_file)
        return f"{len(compose.services(run.model))} services"

    async def _check_policy(self, run: _Run) -> str:
        model = run.model or compose.load((await self._release(run)).compose)
        around = await run.work.surroundings()
        refused = policy.verdict(model, around, run.stack.grants, settled=not run.model)
        if refused:
            raise DeployFailed("; ".join(str(refusal) for refusal in refused[:5]))
        return (
            f"granted: {', '.join(sorted(run.stack.grants))}"
            if run.stack.grants
            else "nothing beyond the ordinary"
        )

    async def _pull(self, run: _Run, began: float) -> None:
        """Settles the manifest, or checks that everything of a settled one is here; told at once, for it is what will run."""
        if run.state.manifest is None:
            pinned = await run.work.pin(run.model, run.state.images, run.archive)
            run.release = pinned.release
            run.rehearsal = asyncio.create_task(
                self._rehearse(run)
            )  # meanwhile the manifest is settled and told
            text = await self._blobs.put(pinned.release.compose)
            environment = pinned.release.environment
            manifest = Manifest(
                services=pinned.services,
                compose=text,
                compose_sha256=text.sha256,
                environment=None if environment is None else await self._blobs.put(environment),
                files=run.state.source,
                config_hashes=await run.work.config_hashes(pinned.release),
            )
        else:
            manifest = run.state.manifest
        await run.work.have(manifest)
        said = f"{len(manifest.services)} images are here, by digest"
        done = Done("pull", said, time.monotonic() - began, manifest)
        run.state = await self._say(run.heard, Record((*run.done, done)))
        run.done = []

    async def _rehearse(self, run: _Run) -> list[str]:
        return await run.work.rehearse(await self._release(run), await self._release_before(run))

    async def _release(self, run: _Run) -> Release:
        if run.release is None:
            assert run.state.manifest is not None
            run.release = await self._release_of(run.state.manifest)
        return run.release

    async def _release_before(self, run: _Run) -> Release | None:
        before = run.stack.was(run.state.replaces) if run.state.replaces else None
        return None if before is None else Release(await self._blobs.get(before.manifest.compose), None, None)

    async def _release_of(self, manifest: Manifest) -> Release:
        text, environment, archive = await asyncio.gather(
            self._blobs.get(manifest.compose),
            _nothing() if manifest.environment is None else self._blobs.get(manifest.environment),
            _nothing() if manifest.files is None else self._blobs.get(manifest.files),
        )
        assert text is not None
        return Release(text, environment, archive)

    async def _say(self, heard: Envelope[Event], command: deployment.Asked) -> Deployment:
        if isinstance(command, Record) and not command.steps and command.health is None:
            return fold(evolve, await self._store.read(heard.stream), Deployment())
        return await execute(self._store, deployment.decider, heard.stream, command, because=heard.cause(ME))


def _settled(state: Deployment) -> bool:
    """Whether it is settled what to run; from then on containers may have been touched, by this handling or an earlier."""
    return any(taken.step == "pull" for taken in state.steps)


async def _nothing() -> None:
    return None
