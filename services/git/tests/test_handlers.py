"""The git service's order of things: the log and blobs in memory, git for real."""

from __future__ import annotations

import asyncio
import io
import tarfile
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from hythe_cli.demo.git_server import GitServer, Hosted, WorkTree
from hythe_events import streams
from hythe_events.build import CancelRequested
from hythe_events.deploy import DeployCompleted
from hythe_events.envelope import Cause, Envelope
from hythe_events.errors import BusUnavailable, NotFound, NotNow, Refused
from hythe_events.git import (
    BuildRequested,
    DeploymentOpened,
    DeploymentRequested,
    ListRepositories,
    RepositorySaved,
    RequestDeployment,
    SaveRepository,
)
from hythe_events.language import BlobRef, Event, new_id
from hythe_events.log import Done, Rows
from hythe_events.secrets import MasterKeys, Secrets
from hythe_events.testing import MemoryBlobs, MemoryBus, MemoryKeys, MemoryStore
from hythe_events.webhooks import Commit, DeliveryRouted, WebhookReceived
from hythe_git.address import Allowed
from hythe_git.handlers import GitHandlers
from hythe_git.mirror import Mirrors
from hythe_git.repositories import LoggedRepositories

HERE: Allowed = frozenset({"http", "private"})

COMPOSE = "services: {}\n"


class Git:
    """The git service on a log in memory, and what a test does with it."""

    def __init__(self, mirrors: Mirrors) -> None:
        self.time = datetime(2026, 11, 1, 12, tzinfo=UTC)
        self.log = MemoryStore(clock=lambda: self.time)
        self.bus = MemoryBus(self.log)
        self.blobs = MemoryBlobs()
        secrets = Secrets(MemoryKeys(), lambda: MasterKeys(bytes(32)))
        self.handlers = GitHandlers(
            store=self.log.of("git"),
            blobs=self.blobs,
            secrets=secrets,
            mirrors=mirrors,
            repositories=LoggedRepositories(self.log),
            allow=HERE,
            patience=600,
            now=lambda: self.time,
        )
        self.bus.hear("git", WebhookReceived, self.handlers.on_webhook_received)
        self.bus.hear("git", DeploymentRequested, self.handlers.on_deployment_requested)
        self.bus.serve(SaveRepository, self.handlers.save_repository)
        self.bus.serve(RequestDeployment, self.handlers.deploy)
        self.bus.serve(ListRepositories, self.handlers.repositories)

    async def save(self, url: str, **more: str | None) -> Done:
        asked = SaveRepository.model_validate({"stack": "app", "url": url, "source": "hub"} | more)
        return await self.bus.ask(asked, Done, actor="cli:root")

    async def push(
        self, commit: str, *, delivery: str = "d-1", ref: str = "refs/heads/main"
    ) -> Envelope[Event]:
        received = WebhookReceived(
            source="hub",
            provider="github",
            delivery=delivery,
            repository="demo/app",
            ref=ref,
            before=None,
            after=commit,
            commit=Commit(id=commit, message="a change", author="Ada"),
            sender="octocat",
            body_sha256="0" * 64,
        )
        cause = Cause(new_id(), None, "github:octocat")
        (event,) = await self.log.of("webhooks").append(
            streams.delivery("hub", delivery), 0, [received], because=cause
        )
        return event

    async def deployment(self, event: Envelope[Event], stack: str = "app") -> list[Event]:
        return await self.said(streams.deployment(streams.deployment_id(event.id, stack)))

    async def said(self, stream: str) -> list[Event]:
        return [event.data for event in await self.log.read(stream)]


@pytest.fixture
def service(mirrors: Mirrors) -> Git:
    return Git(mirrors)


async def test_a_push_becomes_a_request_to_build_exactly_its_commit(
    service: Git, tree: WorkTree, hosted: Hosted
) -> None:
    """The whole of it: routed, fetched, kept, asked for."""
    await service.save(hosted.url)
    commit = await tree.commit({"compose.yaml": COMPOSE, "Dockerfile": "FROM scratch\n"}, "a change")
    await tree.commit({"Dockerfile": "FROM later\n"}, "later")
    await tree.push()
    event = await service.push(commit)
    await service.bus.settle()
    requested, build = await service.deployment(event)
    assert isinstance(requested, DeploymentRequested)
    assert isinstance(build, BuildRequested)
    assert (requested.commit, requested.asked_by, requested.delivery) == (commit, "github:octocat", "d-1")
    assert (build.commit, build.message, build.author, build.compose_file) == (
        commit,
        "a change",
        "Ada",
        "compose.yaml",
    )
    with tarfile.open(fileobj=io.BytesIO(await service.blobs.get(build.source))) as tar:
        extracted = tar.extractfile("Dockerfile")
        assert extracted is not None
        assert extracted.read() == b"FROM scratch\n"
    routed = (await service.said(event.stream))[-1]
    assert isinstance(routed, DeliveryRouted)
    assert [each.deployment for each in routed.deployments] == [requested.deployment]


async def test_hearing_everything_again_changes_nothing(service: Git, tree: WorkTree, hosted: Hosted) -> None:
    """A bus may deliver anything twice, days later."""
    await service.save(hosted.url)
    commit = await tree.commit({"n": "1"}, "a change")
    await tree.push()
    await service.push(commit)
    await service.bus.settle()
    before = await service.log.read_all(0)
    for event in before:
        await service.bus.deliver_again(event)
    assert await service.log.read_all(0) == before
    assert service.bus.parked == []


async def test_a_crash_between_opening_and_routing_is_made_good(
    service: Git, tree: WorkTree, hosted: Hosted
) -> None:
    """The deployment was opened, then the process died: hearing the delivery again finds it and says so."""
    await service.save(hosted.url)
    commit = await tree.commit({"n": "1"}, "a change")
    await tree.push()
    event = await service.push(commit)

    class Died(Exception):
        pass

    class DiesOnRouting(MemoryStore):
        async def append(self, stream: str, *arguments: object, **more: object) -> list[Envelope[Event]]:
            if stream == event.stream:
                raise Died
            return await super().append(stream, *arguments, **more)  # type: ignore[arg-type]  # passed on as they are

    whole = service.handlers._store
    service.handlers._store = DiesOnRouting("git", log=service.log._log)
    with pytest.raises(Died):
        await service.handlers.on_webhook_received(event)  # type: ignore[arg-type]  # it is a webhook.received
    service.handlers._store = whole
    assert len(await service.deployment(event)) == 1
    await service.bus.settle()
    assert [said.type for said in await service.deployment(event)] == [
        "deployment.requested",
        "build.requested",
    ]
    assert [said.type for said in await service.said(event.stream)] == ["webhook.received", "delivery.routed"]


async def test_a_push_nobody_listens_to_ends_with_its_reason(service: Git) -> None:
    """Every accepted delivery ends in one recorded outcome."""
    event = await service.push("a" * 40)
    await service.bus.settle()
    assert [said.type for said in await service.said(event.stream)] == ["webhook.received", "delivery.routed"]


async def test_a_commit_that_cannot_be_had_fails_at_once(
    service: Git, tree: WorkTree, hosted: Hosted
) -> None:
    """No retry helps, so the deployment ends with the reason and nothing is parked."""
    await service.save(hosted.url)
    event = await service.push("0" * 39 + "1")
    await service.bus.settle()
    (_, completed) = await service.deployment(event)
    assert isinstance(completed, DeployCompleted)
    assert (completed.outcome, completed.commit) == ("failed", "0" * 39 + "1")
    assert "commit not found" in (completed.reason or "")
    assert service.bus.parked == []


async def test_a_host_that_is_down_is_tried_again_until_the_time_is_over(
    service: Git, hosted: Hosted
) -> None:
    """Counted from when the deployment was asked for, so that a restart of ours does not start it anew."""
    await service.save("http://127.0.0.1:9/app.git")
    event = await service.push("a" * 40)
    opened = streams.deployment(streams.deployment_id(event.id, "app"))
    await service.handlers.on_webhook_received(event)  # type: ignore[arg-type]  # it is a webhook.received
    (requested,) = await service.log.read(opened)
    service.time += timedelta(seconds=599)
    with pytest.raises(NotNow, match=r"127\.0\.0\.1 does not answer"):
        await service.handlers.on_deployment_requested(requested)  # type: ignore[arg-type]
    assert len(await service.said(opened)) == 1
    service.time += timedelta(seconds=1)
    await service.handlers.on_deployment_requested(requested)  # type: ignore[arg-type]
    completed = (await service.said(opened))[-1]
    assert isinstance(completed, DeployCompleted)
    assert completed.outcome == "failed"
    assert "it was tried for 10 minutes" in (completed.reason or "")


async def test_trouble_of_our_own_never_fails_a_deployment(
    service: Git, tree: WorkTree, hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bus is down and comes back: that is no reason to say that the source could not be had."""

    class Down:
        async def put(self, data: bytes) -> BlobRef:
            raise BusUnavailable

    await service.save(hosted.url)
    event = await service.push(await tree.commit({"n": "1"}, "a change"))
    await tree.push()
    await service.handlers.on_webhook_received(event)  # type: ignore[arg-type]
    opened = streams.deployment(streams.deployment_id(event.id, "app"))
    (requested,) = await service.log.read(opened)
    service.time += timedelta(days=1)
    service.handlers._blobs = Down()
    with pytest.raises(BusUnavailable):
        await service.handlers.on_deployment_requested(requested)  # type: ignore[arg-type]
    service.handlers._blobs = service.blobs
    await service.bus.settle()
    assert (await service.said(opened))[-1].type == "build.requested"


async def test_a_deployment_that_was_cancelled_is_not_fetched(
    service: Git, tree: WorkTree, hosted: Hosted, forge: GitServer
) -> None:
    """Whoever cancels saves the work."""
    await service.save(hosted.url)
    event = await service.push("a" * 40)
    await service.handlers.on_webhook_received(event)  # type: ignore[arg-type]
    deployment = streams.deployment_id(event.id, "app")
    cancel = CancelRequested(deployment=deployment, stack="app", asked_by="cli:root")
    cause = Cause(new_id(), None, "cli:root")
    await service.log.of("build").append(streams.deployment(deployment), 1, [cancel], because=cause)
    forge.requests.clear()
    await service.bus.settle()
    completed = (await service.deployment(event))[-1]
    assert isinstance(completed, DeployCompleted)
    assert completed.outcome == "cancelled"
    assert forge.requests == []


async def test_a_repository_that_is_gone_fails_with_a_sentence(
    service: Git, tree: WorkTree, hosted: Hosted
) -> None:
    """A deployment whose stack has no repository cannot be fetched."""
    requested = DeploymentRequested(
        deployment=UUID(int=5),
        stack="app",
        trigger="command",
        ref="refs/heads/main",
        commit=None,
        asked_by="cli:root",
    )
    cause = Cause(new_id(), None, "cli:root")
    await service.log.of("git").append(streams.deployment(UUID(int=5)), 0, [requested], because=cause)
    await service.bus.settle()
    completed = (await service.said(streams.deployment(UUID(int=5))))[-1]
    assert isinstance(completed, DeployCompleted)
    assert completed.reason == "no repository is saved for the stack app"


# -- commands


async def test_a_credential_is_sealed_and_opens_the_repository(
    service: Git, forge: GitServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the log it is sealed; in the read model and in answers it is not at all."""
    closed = await forge.create_repository("closed", token="s3cret")
    clone = await WorkTree.of(closed, tmp_path_factory.mktemp("clone"))
    commit = await clone.commit({"compose.yaml": COMPOSE}, "first")
    await clone.push()
    assert await service.save(closed.url, token="wrong") == Done(stream="repository-app", version=1)
    assert await service.save(closed.url, token="s3cret") == Done(stream="repository-app", version=2)
    event = await service.push(commit)
    await service.bus.settle()
    assert (await service.deployment(event))[-1].type == "build.requested"
    whole_log = "".join(str(each.data.model_dump_json()) for each in await service.log.read_all(0))
    assert "s3cret" not in whole_log
    rows = await service.bus.ask(ListRepositories(), Rows, actor="cli:root")
    (row,) = rows.rows
    assert (row["url"], row["credential_kind"], row["credential_user"], row["version"]) == (
        closed.url,
        "token",
        "x-access-token",
        2,
    )
    assert not any("v1." in str(value) or "secret" in key for key, value in row.items())


async def test_saving_at_the_same_moment_saves_one_and_tells_the_other(service: Git, hosted: Hosted) -> None:
    """Each credential is sealed for one version; the one that came late is asked for again."""
    results = await asyncio.gather(
        service.save(hosted.url, token="one"), service.save(hosted.url, token="two"), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["Done", "MovedOn"]
    assert len(await service.said("repository-app")) == 1


async def test_a_bad_repository_is_refused_by_field(service: Git) -> None:
    """Nothing is stored."""
    with pytest.raises(Refused) as refused:
        await service.save("https://me:token@git.example.com/app")
    assert refused.value.field == "url"
    assert await service.log.read_all(0) == []


async def test_a_person_can_deploy_the_tip_or_a_commit(service: Git, tree: WorkTree, hosted: Hosted) -> None:
    """By branch: what is its tip when it is fetched. By commit: that one. By another branch: its tip."""
    await service.save(hosted.url)
    first = await tree.commit({"n": "1"}, "first words", author="Grace")
    second = await tree.commit({"n": "2"}, "second words")
    await tree.push()
    third = await tree.commit({"n": "3"}, "third words")
    await tree.push("dev")
    wanted = {(): second, (("commit", first),): first, (("branch", "dev"),): third}
    for asked, commit in wanted.items():
        command = RequestDeployment.model_validate({"stack": "app"} | dict(asked))
        opened = await service.bus.ask(command, DeploymentOpened, actor="cli:root")
        await service.bus.settle()
        build = (await service.said(streams.deployment(opened.deployment)))[-1]
        assert isinstance(build, BuildRequested)
        assert build.commit == commit
        assert build.message.endswith("words\n")
        assert build.asked_by == "cli:root"


async def test_the_same_command_twice_opens_one_deployment(service: Git, hosted: Hosted) -> None:
    """A client that got no answer asks again."""
    await service.save(hosted.url)
    cause = Cause(new_id(), None, "cli:root")
    one = await service.handlers.deploy(RequestDeployment(stack="app"), cause)
    again = await service.handlers.deploy(RequestDeployment(stack="app"), cause)
    assert one == again
    assert len(await service.said(streams.deployment(one.deployment))) == 1


async def test_an_unknown_stack_or_a_bad_branch_is_refused_by_field(service: Git, hosted: Hosted) -> None:
    """Before anything is stored."""
    with pytest.raises(NotFound) as missing:
        await service.bus.ask(RequestDeployment(stack="nope"), DeploymentOpened, actor="cli:root")
    assert missing.value.field == "stack"
    await service.save(hosted.url)
    with pytest.raises(Refused) as refused:
        await service.bus.ask(
            RequestDeployment(stack="app", branch="a..b"), DeploymentOpened, actor="cli:root"
        )
    assert refused.value.field == "branch"


async def test_a_saved_repository_is_what_was_said(service: Git, hosted: Hosted) -> None:
    """Each save is a version of the whole; saving the same again is none."""
    await service.save(hosted.url, branch="dev", path="web")
    assert await service.save(hosted.url, branch="dev", path="web") == Done(
        stream="repository-app", version=1
    )
    assert await service.said("repository-app") == [
        RepositorySaved(stack="app", url=hosted.url, branch="dev", path="web", source="hub")
    ]
