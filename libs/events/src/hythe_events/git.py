"""What the git service says, and what it may be asked.

```
webhook.received ──► deployment.requested ──(fetch)──► build.requested
a command        ──┘                        └────────► deploy.completed (failed: the source could not be had)
```
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from hythe_events.language import (
    Actor,
    BlobRef,
    Command,
    CommitId,
    Event,
    Line,
    Query,
    Sealed,
    SourceId,
    StackName,
    Text,
    Value,
)

RepositoryUrl = Annotated[
    str,
    StringConstraints(
        max_length=2000,
        pattern=r"^(https?|ssh)://[^\s\x00-\x1f]+$|^[^\s@:/-][^\s@:/]*@[^\s:/-][^\s:/]*:[^\s]+$",
    ),
]
Branch = Annotated[
    str, StringConstraints(max_length=255, pattern=r"^[^\s\x00-\x1f~^:?*\[\\-][^\s\x00-\x1f~^:?*\[\\]*$")
]
RelativePath = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00-\x1f]*$")]


class Credential(Value):
    """How to open a repository. `secret` is the token or the private key, sealed; `user` is not a secret."""

    kind: Literal["token", "ssh-key"]
    user: Line
    secret: Sealed


class RepositorySaved(Event):
    """Where a stack's source comes from, from now on. Each save is a new version of the whole."""

    type: ClassVar[str] = "repository.saved"
    stack: StackName
    url: RepositoryUrl
    branch: Branch
    path: RelativePath = ""
    compose_file: RelativePath | None = None
    source: SourceId | None = None
    credential: Credential | None = None
    known_host: Line | None = None


class DeploymentRequested(Event):
    """Somebody, or a push, asked for a stack to be brought to a commit. The first event of a deployment.

    `commit` is None when only a branch was named; git resolves it when it fetches.
    """

    type: ClassVar[str] = "deployment.requested"
    deployment: UUID
    stack: StackName
    trigger: Literal["delivery", "command"]
    ref: Line
    commit: CommitId | None
    asked_by: Actor
    delivery: Line | None = None
    message: Text = ""
    author: Line = ""


class BuildRequested(Event):
    """The source of exactly this commit was fetched and is kept; build what its compose file asks for."""

    type: ClassVar[str] = "build.requested"
    deployment: UUID
    stack: StackName
    commit: CommitId
    ref: Line
    message: Text
    author: Line
    asked_by: Actor
    source: BlobRef
    compose_file: RelativePath


class SaveRepository(Command):
    """Say where a stack's source comes from. `token` or `ssh_key` is sealed before anything is stored."""

    subject: ClassVar[str] = "command.git.save_repository"
    stack: StackName
    url: RepositoryUrl
    branch: Branch = "main"
    path: RelativePath = ""
    compose_file: RelativePath | None = None
    source: SourceId | None = None
    user: Line | None = None
    token: str | None = Field(default=None, repr=False, max_length=10_000)
    ssh_key: str | None = Field(default=None, repr=False, max_length=20_000)
    known_host: Line | None = None


class RequestDeployment(Command):
    """Bring a stack to a commit, or to the tip of a branch (default: the repository's branch)."""

    subject: ClassVar[str] = "command.git.deploy"
    stack: StackName
    commit: CommitId | None = None
    branch: Branch | None = None


class DeploymentOpened(Value):
    """Answer to `RequestDeployment` and `Rollback`: the deployment that was opened."""

    deployment: UUID
    stack: StackName


class ListRepositories(Query):
    """The repositories: answered with the rows of the read model `git_repositories`."""

    subject: ClassVar[str] = "query.git.repositories"
    stack: StackName | None = None
