"""What the git service does when it hears something or is asked: the order of things, and nothing else.

Every handler may be called again for the same message, after a crash or a redelivery: it reads the log and goes on
from there, or finds its own events and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from hythe_events import streams
from hythe_events.decider import Streams, execute, fold
from hythe_events.deployment import Deployment
from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import NotFound, Refused
from hythe_events.faults import crash_point
from hythe_events.git import (
    Credential,
    DeploymentOpened,
    DeploymentRequested,
    ListRepositories,
    RepositorySaved,
    RequestDeployment,
    SaveRepository,
)
from hythe_events.language import BlobRef
from hythe_events.log import Done, Rows
from hythe_events.secrets import SealBroken, Secrets, Shredded
from hythe_events.webhooks import WebhookReceived
from hythe_git import address, plan
from hythe_git.address import Allowed
from hythe_git.mirror import Login, Mirrors, Origin, SourceRefused, Unreachable
from hythe_git.plan import GiveUp, HandOver, Open, Repository, Save
from hythe_git.repositories import Repositories
from hythe_git.tree import BadSource

WHO = "hythe:git"


class Blobs(Protocol):
    """Where archives are kept: under their own SHA-256, so keeping one twice changes nothing."""

    async def put(self, data: bytes) -> BlobRef: ...


class GitHandlers:
    """`patience` is how many seconds a host that does not answer is asked again, from when the deployment was asked for."""

    def __init__(
        self,
        *,
        store: Streams,
        blobs: Blobs,
        secrets: Secrets,
        mirrors: Mirrors,
        repositories: Repositories,
        allow: Allowed,
        patience: float = 600.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._secrets = secrets
        self._mirrors = mirrors
        self._repositories = repositories
        self._allow = allow
        self._patience = timedelta(seconds=patience)
        self._now = now

    async def on_webhook_received(self, heard: Envelope[WebhookReceived]) -> None:
        """Open a deployment for each stack the push concerns, then say which, or why none.

        `delivery.routed` comes last and only once: where it stands, all of it was done.
        """
        routed = fold(
            plan.delivery_decider.evolve, await self._store.read(heard.stream), plan.delivery_decider.initial
        )
        if routed:
            return
        because = heard.cause(WHO)
        listeners = await self._repositories.listening_to(heard.data.source, up_to=heard.position)
        routing = plan.route(heard.id, heard.data, listeners)
        for opened in routing.opens:
            stream = streams.deployment(opened.deployment)
            await execute(self._store, plan.deployment_decider, stream, Open(opened), because=because)
        await execute(self._store, plan.delivery_decider, heard.stream, routing.routed, because=because)

    async def on_deployment_requested(self, heard: Envelope[DeploymentRequested]) -> None:
        """Fetch the named commit, keep its source, and ask for its build; or end the deployment with the reason.

        A host that does not answer is asked again until `patience` is over; what cannot change ends it at once.
        """
        state = fold(
            plan.deployment_decider.evolve,
            await self._store.read(heard.stream),
            plan.deployment_decider.initial,
        )
        if state.finished or state.source is not None:
            return
        outcome: HandOver | GiveUp
        if state.cancel_requested:
            outcome = GiveUp("cancelled", "cancelled before its source was fetched")
        else:
            try:
                outcome = await self._fetch(state)
            except Unreachable as error:
                if self._now() < heard.at + self._patience:
                    raise
                outcome = GiveUp(
                    "failed", f"{error}; it was tried for {self._patience.total_seconds() / 60:g} minutes"
                )
            except (Refused, SourceRefused, BadSource, SealBroken, Shredded) as error:
                outcome = GiveUp("failed", str(error))
        await crash_point("G5")
        await execute(self._store, plan.deployment_decider, heard.stream, outcome, because=heard.cause(WHO))

    async def _fetch(self, state: Deployment) -> HandOver:
        repository = await self._repository(state.stack)
        if repository.saved is None:
            raise NotFound(f"no repository is saved for the stack {state.stack}")
        origin = await self._origin(
            repository.saved, repository.version, state.ref.removeprefix("refs/heads/")
        )
        async with self._mirrors.of(origin) as mirror:
            commit = await mirror.fetch(state.commit)
            await crash_point("G3")
            source = await mirror.source(
                commit, path=repository.saved.path, compose_file=repository.saved.compose_file
            )
        kept = await self._blobs.put(source.tar)
        return HandOver(commit, source.message, source.author, kept, source.compose_file)

    async def save_repository(self, asked: SaveRepository, because: Cause) -> Done:
        """Check it, seal its credential for the version it becomes, and say that it was saved."""
        saved = plan.checked(asked, self._allow)
        version = (await self._repository(asked.stack)).version + 1
        secret, kind = (asked.ssh_key, "ssh-key") if asked.ssh_key is not None else (asked.token, "token")
        if secret is not None:
            sealed = await self._secrets.seal(
                kind="repository", owner=asked.stack, name="credential", version=version, secret=secret
            )
            credential = Credential(kind=kind, user=plan.credential_user(asked, self._allow), secret=sealed)  # type: ignore[arg-type]  # one of the two literals
            saved = plan.with_credential(saved, credential)
        stream = streams.repository(asked.stack)
        state = await execute(
            self._store, plan.repository_decider, stream, Save(version, saved), because=because
        )
        return Done(stream=stream, version=state.version)

    async def deploy(self, asked: RequestDeployment, because: Cause) -> DeploymentOpened:
        """Open a deployment by hand. The same command heard twice opens one."""
        saved = (await self._repository(asked.stack)).saved
        if saved is None:
            raise NotFound(f"stack {asked.stack} has no repository; save one first", field="stack")
        branch = address.check_branch(asked.branch or saved.branch)
        opened = DeploymentRequested(
            deployment=streams.deployment_id(because.correlation, asked.stack),
            stack=asked.stack,
            trigger="command",
            ref=f"refs/heads/{branch}",
            commit=asked.commit,
            asked_by=because.actor,
        )
        stream = streams.deployment(opened.deployment)
        await execute(self._store, plan.deployment_decider, stream, Open(opened), because=because)
        return DeploymentOpened(deployment=opened.deployment, stack=asked.stack)

    async def repositories(self, asked: ListRepositories, _because: Cause) -> Rows:
        """The saved repositories; never their secrets, which the read model does not hold."""
        return Rows(rows=await self._repositories.rows(asked.stack))

    async def _repository(self, stack: str) -> Repository:
        events = await self._store.read(streams.repository(stack))
        return fold(plan.repository_decider.evolve, events, plan.repository_decider.initial)

    async def _origin(self, saved: RepositorySaved, version: int, branch: str) -> Origin:
        login = None
        if saved.credential is not None:
            secret = await self._secrets.open(
                kind="repository",
                owner=saved.stack,
                name="credential",
                version=version,
                sealed=saved.credential.secret,
            )
            login = Login(saved.credential.kind, saved.credential.user, secret)
        return Origin(
            stack=saved.stack,
            address=address.parse(saved.url, self._allow),
            branch=address.check_branch(branch),
            login=login,
            known_host=saved.known_host,
        )
