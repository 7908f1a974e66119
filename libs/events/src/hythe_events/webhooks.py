"""What the webhooks service says, and what it may be asked.

```
POST /api/webhooks/github/{source} ──► webhook.received     a push: git takes it from here
                                  └──► delivery.ignored     anything else, with the reason
webhook.received ──(git)─────────────► delivery.routed      which deployments it led to, or why to none
```
"""

from __future__ import annotations

from typing import ClassVar, Literal
from uuid import UUID

from pydantic import Field

from hythe_events.language import (
    Command,
    CommitId,
    Event,
    Line,
    Query,
    Sealed,
    Sha256,
    SourceId,
    StackName,
    Text,
    Value,
)

Provider = Literal["github", "generic"]


class SourceCreated(Event):
    """A webhook source was made: a forge may post to it from now on."""

    type: ClassVar[str] = "source.created"
    source: SourceId
    provider: Provider
    secret: Sealed
    secret_version: int = 1


class SourceSwitched(Event):
    """A webhook source was switched on or off; deliveries to one that is off are refused."""

    type: ClassVar[str] = "source.switched"
    source: SourceId
    on: bool


class Commit(Value):
    """What a forge tells of a commit."""

    id: CommitId
    message: Text = ""
    author: Line = ""


class WebhookReceived(Event):
    """A push was delivered by a forge, and its signature was right. One shape for every forge.

    `after` is the commit the ref now points at. `changed_paths` is None where the forge does not tell them or cut the
    list. The raw body is kept beside the event as evidence: compressed, sealed, and hashed into the chain.
    """

    type: ClassVar[str] = "webhook.received"
    source: SourceId
    provider: Provider
    delivery: Line
    repository: Line
    ref: Line
    before: CommitId | None
    after: CommitId
    commit: Commit | None
    sender: Line
    forced: bool = False
    changed_paths: tuple[str, ...] | None = None
    body_sha256: Sha256


class DeliveryIgnored(Event):
    """An authentic delivery that asks for no deployment."""

    type: ClassVar[str] = "delivery.ignored"
    source: SourceId
    provider: Provider
    delivery: Line
    event: Line
    reason: Line
    body_sha256: Sha256


class RoutedTo(Value):
    """A stack the delivery concerned, and the deployment it led to."""

    stack: StackName
    deployment: UUID


class NotConcerned(Value):
    """A stack that listens to the source, and why this delivery did not concern it."""

    stack: StackName
    reason: Line


class DeliveryRouted(Event):
    """The git service decided which stacks a delivery concerns. With no deployments, `reason` says why."""

    type: ClassVar[str] = "delivery.routed"
    deployments: tuple[RoutedTo, ...]
    not_concerned: tuple[NotConcerned, ...] = ()
    reason: Line | None = None


class CreateSource(Command):
    """Make a webhook source. Without `secret` a strong one is made; the answer shows it once."""

    subject: ClassVar[str] = "command.webhooks.create_source"
    source: SourceId
    provider: Provider = "github"
    secret: str | None = Field(default=None, repr=False, min_length=16, max_length=256)


class SwitchSource(Command):
    """Switch a webhook source on or off."""

    subject: ClassVar[str] = "command.webhooks.switch_source"
    source: SourceId
    on: bool


class SourceMade(Value):
    """Answer to `CreateSource`. `secret` is shown this once and never again."""

    source: SourceId
    provider: Provider
    path: str
    secret: str = Field(repr=False)


class ListDeliveries(Query):
    """The latest deliveries, newest first: answered with the rows of the read model `webhook_events`."""

    subject: ClassVar[str] = "query.webhooks.deliveries"
    source: SourceId | None = None
    limit: int = Field(default=50, ge=1, le=1000)
