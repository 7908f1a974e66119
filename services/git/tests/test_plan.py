"""The rules of the git service, as given, when, then."""

from __future__ import annotations

from uuid import UUID

import pytest

from hythe_events import streams
from hythe_events.build import CancelRequested
from hythe_events.deploy import DeployCompleted
from hythe_events.errors import Refused
from hythe_events.git import BuildRequested, Credential, DeploymentRequested, RepositorySaved, SaveRepository
from hythe_events.language import BlobRef
from hythe_events.testing import given
from hythe_events.webhooks import Commit, DeliveryRouted, NotConcerned, RoutedTo, WebhookReceived
from hythe_git import plan
from hythe_git.plan import GiveUp, HandOver, Listener, MovedOn, Open, Save, route

EVENT = UUID(int=7)
SHA, OTHER = "a" * 40, "b" * 40
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
PEM = "-----BEGIN OPENSSH PRIVATE KEY-----\n…\n"


def received(
    *, ref: str = "refs/heads/main", message: str = "a change", source: str = "hub"
) -> WebhookReceived:
    return WebhookReceived(
        source=source,
        provider="github",
        delivery="d-1",
        repository="demo/app",
        ref=ref,
        before=OTHER,
        after=SHA,
        commit=Commit(id=SHA, message=message, author="Ada"),
        sender="octocat",
        body_sha256="0" * 64,
    )


def requested(*, commit: str | None = SHA, stack: str = "app") -> DeploymentRequested:
    return DeploymentRequested(
        deployment=streams.deployment_id(EVENT, stack),
        stack=stack,
        trigger="delivery",
        ref="refs/heads/main",
        commit=commit,
        asked_by="github:octocat",
        delivery="d-1",
        message="a change",
        author="Ada",
    )


# -- whom a delivery concerns


def test_a_push_to_the_followed_branch_opens_a_deployment_for_each_stack() -> None:
    """Two stacks may come from one repository; each has its own deployment, with an id that never varies."""
    routing = route(EVENT, received(), [Listener("web", "main"), Listener("app", "main")])
    assert routing.opens == (requested(stack="app"), requested(stack="web"))
    assert routing.routed.deployments == (
        RoutedTo(stack="app", deployment=streams.deployment_id(EVENT, "app")),
        RoutedTo(stack="web", deployment=streams.deployment_id(EVENT, "web")),
    )
    assert routing.routed.reason is None
    assert routing == route(EVENT, received(), [Listener("app", "main"), Listener("web", "main")])


def test_a_push_to_another_branch_says_both_refs() -> None:
    """ "Why did nothing happen" must have an answer that can be acted on."""
    routing = route(EVENT, received(ref="refs/heads/dev"), [Listener("app", "main")])
    assert routing.opens == ()
    reason = "the push was to refs/heads/dev, and the stack follows refs/heads/main"
    assert routing.routed.not_concerned == (NotConcerned(stack="app", reason=reason),)
    assert routing.routed.reason == f"app: {reason}"


def test_a_tag_named_like_the_branch_concerns_nobody() -> None:
    """`refs/tags/main` is not the branch main."""
    assert route(EVENT, received(ref="refs/tags/main"), [Listener("app", "main")]).opens == ()


@pytest.mark.parametrize("message", ["docs [skip ci]", "[CI SKIP] docs", "docs\n\n[Skip CI]"])
def test_a_commit_can_ask_not_to_be_deployed(message: str) -> None:
    """The convention of every forge."""
    routing = route(EVENT, received(message=message), [Listener("app", "main")])
    assert routing.opens == ()
    assert "the commit message says [" in (routing.routed.reason or "")


def test_a_source_nobody_listens_to_is_said() -> None:
    """A webhook that was set up before its repository was saved must not just vanish."""
    routing = route(EVENT, received(), [])
    assert routing.routed == DeliveryRouted(
        deployments=(), reason="no repository listens to the source hub; save one with source=hub"
    )


def test_some_concerned_and_some_not_are_both_said() -> None:
    """One delivery, one record of what became of it."""
    routed = route(EVENT, received(), [Listener("app", "main"), Listener("dev", "dev")]).routed
    assert [each.stack for each in routed.deployments] == ["app"]
    assert [each.stack for each in routed.not_concerned] == ["dev"]
    assert routed.reason is None


def test_a_delivery_is_routed_once() -> None:
    """A redelivered message must not route anew, perhaps differently."""
    routed = route(EVENT, received(), [Listener("app", "main")]).routed
    given(plan.delivery_decider, received()).when(routed).then(routed)
    given(plan.delivery_decider, received(), routed).when(routed).then_nothing()


# -- a deployment

BLOB = BlobRef(key="k", size=1, sha256="1" * 64)
HANDED = HandOver(SHA, "the commit's words", "Grace", BLOB, "compose.yaml")
BUILD = BuildRequested(
    deployment=requested().deployment,
    stack="app",
    commit=SHA,
    ref="refs/heads/main",
    message="a change",
    author="Ada",
    asked_by="github:octocat",
    source=BLOB,
    compose_file="compose.yaml",
)
FAILED = DeployCompleted(
    deployment=requested().deployment, stack="app", outcome="failed", commit=SHA, reason="no such host"
)
CANCEL = CancelRequested(deployment=requested().deployment, stack="app", asked_by="cli:root")


def test_a_deployment_is_opened_once() -> None:
    """The same push heard twice is one deployment."""
    given(plan.deployment_decider).when(Open(requested())).then(requested())
    given(plan.deployment_decider, requested()).when(Open(requested())).then_nothing()


def test_a_fetched_source_asks_for_its_build_once() -> None:
    """After a crash the fetch is done again; the build is asked for once."""
    given(plan.deployment_decider, requested()).when(HANDED).then(BUILD)
    given(plan.deployment_decider, requested(), BUILD).when(HANDED).then_nothing()


def test_a_deployment_by_branch_takes_the_commits_own_words() -> None:
    """Nobody told a message when a person asked for the branch's tip; the commit does."""
    by_hand = requested(commit=None).model_copy(update={"message": "", "author": ""})
    given(plan.deployment_decider, by_hand).when(HANDED).then(
        BUILD.model_copy(update={"message": "the commit's words", "author": "Grace"})
    )


def test_a_source_that_cannot_be_had_ends_the_deployment() -> None:
    """With the reason, once, and never after it was handed over."""
    given(plan.deployment_decider, requested()).when(GiveUp("failed", "no such host")).then(FAILED)
    given(plan.deployment_decider, requested(), FAILED).when(GiveUp("failed", "no such host")).then_nothing()
    given(plan.deployment_decider, requested(), FAILED).when(HANDED).then_nothing()
    given(plan.deployment_decider, requested(), BUILD).when(GiveUp("failed", "late")).then_nothing()


def test_a_deployment_cancelled_while_it_is_fetched_is_not_built() -> None:
    """Whoever pressed cancel sees cancelled, whatever the fetch came to."""
    cancelled = FAILED.model_copy(
        update={"outcome": "cancelled", "reason": "cancelled before its source was fetched"}
    )
    given(plan.deployment_decider, requested(), CANCEL).when(HANDED).then(cancelled)
    given(plan.deployment_decider, requested(), CANCEL).when(GiveUp("failed", "no such host")).then(cancelled)


# -- a repository


def asked(**changes: str | None) -> SaveRepository:
    return SaveRepository.model_validate({"stack": "app", "url": "https://git.example.com/app"} | changes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"url": "http://git.example.com/app"}, "url"),
        ({"url": "https://a:b@git.example.com/app"}, "url"),
        ({"branch": "a..b"}, "branch"),
        ({"path": "../x"}, "path"),
        ({"compose_file": "/etc/passwd"}, "compose_file"),
        ({"compose_file": "."}, "compose_file"),
        ({"ssh_key": PEM}, "ssh_key"),
        ({"user": "me"}, "token"),
        ({"token": ""}, "token"),
        ({"token": "a\nb"}, "token"),
        ({"known_host": KEY}, "known_host"),
        ({"url": "git@git.example.com:app"}, "ssh_key"),
        ({"url": "git@git.example.com:app", "token": "t"}, "token"),
        ({"url": "git@git.example.com:app", "ssh_key": "nonsense"}, "ssh_key"),
        ({"url": "git@git.example.com:app", "ssh_key": PEM}, "known_host"),
        (
            {"url": "git@git.example.com:app", "ssh_key": PEM, "known_host": f"other.example {KEY}"},
            "known_host",
        ),
    ],
)
def test_a_repository_that_cannot_work_is_refused_by_field(changes: dict[str, str], field: str) -> None:
    """At the time it is saved, and not at three in the morning when a push comes."""
    with pytest.raises(Refused) as refused:
        plan.checked(asked(**changes), frozenset())
    assert refused.value.field == field


def test_a_repository_is_saved_as_it_was_meant() -> None:
    """Paths lose their dots and slashes; nothing else changes."""
    saved = plan.checked(asked(path="./deploy/", compose_file="web//app.yaml", source="hub"), frozenset())
    assert saved == RepositorySaved(
        stack="app",
        url="https://git.example.com/app",
        branch="main",
        path="deploy",
        compose_file="web/app.yaml",
        source="hub",
    )


def test_the_user_is_what_forges_take_when_none_is_given() -> None:
    """A token alone is enough for GitHub, GitLab and Gitea."""
    assert plan.credential_user(asked(token="t"), frozenset()) == "x-access-token"
    assert plan.credential_user(asked(token="t", user="bot"), frozenset()) == "bot"
    assert plan.credential_user(asked(url="ssh://deploy@git.example.com/app"), frozenset()) == "deploy"
    assert plan.credential_user(asked(url="ssh://git.example.com/app"), frozenset()) == "git"


def test_github_needs_no_host_key_from_a_person() -> None:
    """It publishes its own."""
    saved = plan.checked(asked(url="git@github.com:demo/app.git", ssh_key=PEM), frozenset())
    assert saved.known_host == KEY


def test_each_save_is_the_next_version_and_the_same_save_is_none() -> None:
    """A credential is sealed for one version: it must not be appended as another."""
    first = plan.checked(asked(), frozenset())
    second = first.model_copy(update={"branch": "dev"})
    given(plan.repository_decider).when(Save(1, first)).then(first)
    given(plan.repository_decider, first).when(Save(2, second)).then(second)
    given(plan.repository_decider, first).when(Save(2, first)).then_nothing()
    given(plan.repository_decider, first).when(Save(1, second)).then_raises(MovedOn)


def test_a_credential_is_not_shown() -> None:
    """Commands and events are logged by their repr."""
    assert "hunter2" not in repr(asked(token="hunter2"))
    credential = Credential(kind="token", user="x", secret="v1.a.b.c")
    assert plan.with_credential(plan.checked(asked(), frozenset()), credential).credential == credential
