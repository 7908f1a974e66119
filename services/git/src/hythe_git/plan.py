"""The git service's rules: whom a delivery concerns, what a repository may be, and what becomes of a deployment.

```
webhook.received ──route──► deployment.requested for each stack concerned, then delivery.routed
deployment.requested ──HandOver──► build.requested
                     └─GiveUp────► deploy.completed (failed, cancelled)
```

Values only: the handlers read the log and the clock, and bring them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from hythe_events import deployment, streams
from hythe_events.decider import Decider
from hythe_events.deploy import DeployCompleted
from hythe_events.deployment import Deployment
from hythe_events.envelope import Envelope
from hythe_events.errors import NotNow, Refused
from hythe_events.git import BuildRequested, Credential, DeploymentRequested, RepositorySaved, SaveRepository
from hythe_events.language import BlobRef, Event, one_line
from hythe_events.webhooks import DeliveryRouted, NotConcerned, RoutedTo, WebhookReceived
from hythe_git import address
from hythe_git.address import Address, Allowed

SKIPS = ("[skip ci]", "[ci skip]")
DEFAULT_TOKEN_USER = "x-access-token"  # noqa: S105  GitHub's word; GitLab and Gitea take any
DEFAULT_SSH_USER = "git"


# -- a delivery


@dataclass(frozen=True)
class Listener:
    """A stack that listens to a webhook source, and the branch it follows."""

    stack: str
    branch: str


@dataclass(frozen=True)
class Routing:
    """Which deployments a delivery opens, and what is said about it."""

    opens: tuple[DeploymentRequested, ...]
    routed: DeliveryRouted


def route(event: UUID, received: WebhookReceived, listeners: Iterable[Listener]) -> Routing:
    """Whom the delivery `received` (the event's id: `event`) concerns. The same always gives the same."""
    opens: list[DeploymentRequested] = []
    not_concerned: list[NotConcerned] = []
    for listener in sorted(listeners, key=lambda listener: listener.stack):
        reason = _why_not(received, listener)
        if reason is None:
            opens.append(_opened(event, received, listener))
        else:
            not_concerned.append(NotConcerned(stack=listener.stack, reason=one_line(reason)))
    reason = None
    if not opens:
        reason = (
            "; ".join(f"{each.stack}: {each.reason}" for each in not_concerned)
            or f"no repository listens to the source {received.source}; save one with source={received.source}"
        )
    return Routing(
        tuple(opens),
        DeliveryRouted(
            deployments=tuple(RoutedTo(stack=each.stack, deployment=each.deployment) for each in opens),
            not_concerned=tuple(not_concerned),
            reason=None if reason is None else one_line(reason),
        ),
    )


def _why_not(received: WebhookReceived, listener: Listener) -> str | None:
    wanted = f"refs/heads/{listener.branch}"
    if received.ref != wanted:
        return f"the push was to {received.ref}, and the stack follows {wanted}"
    message = received.commit.message.lower() if received.commit else ""
    for skip in SKIPS:
        if skip in message:
            return f"the commit message says {skip}"
    return None


def _opened(event: UUID, received: WebhookReceived, listener: Listener) -> DeploymentRequested:
    commit = received.commit if received.commit and received.commit.id == received.after else None
    return DeploymentRequested(
        deployment=streams.deployment_id(event, listener.stack),
        stack=listener.stack,
        trigger="delivery",
        ref=received.ref,
        commit=received.after,
        asked_by=one_line(f"{received.provider}:{received.sender}", 200),
        delivery=received.delivery,
        message=commit.message if commit else "",
        author=commit.author if commit else "",
    )


def _evolve_delivery(routed: bool, event: Envelope[Event]) -> bool:
    return routed or isinstance(event.data, DeliveryRouted)


def _decide_delivery(asked: DeliveryRouted, routed: bool) -> Sequence[Event]:
    return [] if routed else [asked]


delivery_decider: Decider[bool, DeliveryRouted] = Decider(False, _evolve_delivery, _decide_delivery)
"""State: whether the delivery was routed. A delivery is routed once; hearing of it again changes nothing."""


# -- a deployment, as far as it is git's


@dataclass(frozen=True)
class Open:
    """Open the deployment, unless it is open already."""

    requested: DeploymentRequested


@dataclass(frozen=True)
class HandOver:
    """The source is kept: ask for the build. `message` and `author` are the commit's own."""

    commit: str
    message: str
    author: str
    source: BlobRef
    compose_file: str


@dataclass(frozen=True)
class GiveUp:
    """The source could not be had, and why; or it is not wanted any more."""

    outcome: Literal["failed", "cancelled"]
    reason: str


def _decide_deployment(asked: Open | HandOver | GiveUp, state: Deployment) -> Sequence[Event]:
    if isinstance(asked, Open):
        return [asked.requested] if state.phase == "unknown" else []
    if state.finished or state.source is not None:
        return []
    assert state.id is not None, "a deployment is opened before its source is fetched"
    if state.cancel_requested:
        asked = GiveUp("cancelled", "cancelled before its source was fetched")
    if isinstance(asked, GiveUp):
        return [
            DeployCompleted(
                deployment=state.id,
                stack=state.stack,
                outcome=asked.outcome,
                commit=state.commit,
                reason=one_line(asked.reason),
            )
        ]
    assert state.commit in (None, asked.commit), "the commit that was asked for is the one that is built"
    return [
        BuildRequested(
            deployment=state.id,
            stack=state.stack,
            commit=asked.commit,
            ref=state.ref,
            message=(state.message or asked.message)[:20_000],
            author=state.author or one_line(asked.author),
            asked_by=state.asked_by,
            source=asked.source,
            compose_file=asked.compose_file,
        )
    ]


deployment_decider: Decider[Deployment, Open | HandOver | GiveUp] = Decider(
    Deployment(), deployment.evolve, _decide_deployment
)


# -- a repository


@dataclass(frozen=True)
class Repository:
    """A stack's repository: what was saved last, and the version of the stream that says so (0: nothing yet)."""

    version: int = 0
    saved: RepositorySaved | None = None


@dataclass(frozen=True)
class Save:
    """Save the repository as `version` of its stream: the credential is sealed for that version and no other."""

    version: int
    repository: RepositorySaved


class MovedOn(NotNow):
    """The repository was saved by somebody else at the same moment; save it again."""


def _evolve_repository(_state: Repository, event: Envelope[Event]) -> Repository:
    assert isinstance(event.data, RepositorySaved), "a repository's stream holds nothing else"
    return Repository(event.version, event.data)


def _decide_repository(asked: Save, state: Repository) -> Sequence[Event]:
    if asked.repository == state.saved:
        return []
    if asked.version != state.version + 1:
        raise MovedOn
    return [asked.repository]


repository_decider: Decider[Repository, Save] = Decider(Repository(), _evolve_repository, _decide_repository)


def checked(asked: SaveRepository, allow: Allowed) -> RepositorySaved:
    """The repository that `asked` describes, still without its credential. Raises Refused, naming the field."""
    where = address.parse(asked.url, allow)
    _check_credential(asked, where)
    compose_file = None
    if asked.compose_file is not None:
        compose_file = address.inside(asked.compose_file, "compose_file")
        if not compose_file:
            raise Refused("compose_file names no file; leave it out to have it found", field="compose_file")
    return RepositorySaved(
        stack=asked.stack,
        url=asked.url,
        branch=address.check_branch(asked.branch),
        path=address.inside(asked.path, "path"),
        compose_file=compose_file,
        source=asked.source,
        known_host=_host_key(asked, where),
    )


def credential_user(asked: SaveRepository, allow: Allowed) -> str:
    """The user to log in as: the one given, the URL's own, or the one that forges take."""
    where = address.parse(asked.url, allow)
    return asked.user or where.user or (DEFAULT_SSH_USER if where.scheme == "ssh" else DEFAULT_TOKEN_USER)


def with_credential(saved: RepositorySaved, credential: Credential | None) -> RepositorySaved:
    """`saved` with its sealed credential."""
    return saved.model_copy(update={"credential": credential})


def _check_credential(asked: SaveRepository, where: Address) -> None:
    if where.scheme == "ssh":
        if asked.token is not None:
            raise Refused("token opens https repositories; for an ssh url give an ssh_key", field="token")
        if asked.ssh_key is None:
            raise Refused("ssh_key is needed: the private key that opens the repository", field="ssh_key")
        if not asked.ssh_key.lstrip().startswith("-----BEGIN "):
            raise Refused(
                "ssh_key must be a private key in PEM or OpenSSH form, beginning with -----BEGIN",
                field="ssh_key",
            )
    else:
        if asked.ssh_key is not None:
            raise Refused("ssh_key opens ssh repositories; for an https url give a token", field="ssh_key")
        if asked.known_host is not None:
            raise Refused(
                "known_host is for ssh repositories; an https host shows a certificate", field="known_host"
            )
        if asked.user is not None and asked.token is None:
            raise Refused("token is needed when a user is given", field="token")
        if asked.token is not None and (not asked.token or not asked.token.isprintable()):
            raise Refused("token must be one line of text", field="token")
    if asked.user is not None and not asked.user.strip():
        raise Refused("user must not be empty; leave it out to have the usual one", field="user")


def _host_key(asked: SaveRepository, where: Address) -> str | None:
    if where.scheme != "ssh":
        return None
    if asked.known_host is not None:
        return address.host_key(asked.known_host, where)
    if where.port == 22 and where.host in address.PUBLISHED:
        return address.PUBLISHED[where.host]
    raise Refused(
        f"known_host is needed: the host key of {where.host}; ssh-keyscan -p {where.port} {where.host} prints it, and the "
        "host's administrator knows whether it is right",
        field="known_host",
    )
