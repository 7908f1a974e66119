"""GitHub: what its webhooks mean, as a function from headers and bytes to an event. Nothing here opens a socket.

Source: https://docs.github.com/webhooks (events and payloads; validating deliveries). The signature is the one of
`X-Hub-Signature-256`; the older SHA-1 one is not looked at. Sent as a form, the JSON is the field `payload`, and the
signature is over the form's raw bytes. A redelivery carries the same `X-GitHub-Delivery`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl

from hythe_events.errors import Refused
from hythe_events.language import CommitId, Line
from hythe_events.webhooks import DeliveryIgnored, Provider
from hythe_webhooks import strict_json
from hythe_webhooks.forges import reading
from hythe_webhooks.forges.reading import Headers, Shape, Told

PROVIDER: Final[Provider] = "github"
SIGNATURE: Final = "X-Hub-Signature-256"
CONTENT_TYPES: Final = frozenset({"application/json", "application/x-www-form-urlencoded"})

MOST_COMMITS = 2048
"""GitHub lists no more commits of a push than this; the paths of the others are not told."""

_EVENT = re.compile(r"[a-z][a-z0-9_]{0,99}")


class Author(Shape):
    name: str | None = None


class HeadCommit(Shape):
    id: CommitId
    message: str
    author: Author | None = None


class ListedCommit(Shape):
    added: list[str] = []
    removed: list[str] = []
    modified: list[str] = []


class Repository(Shape):
    full_name: Line


class Sender(Shape):
    login: str


class Pusher(Shape):
    name: str | None = None


class Push(Shape):
    """What is read of a `push` event."""

    ref: Line
    before: CommitId
    after: CommitId
    repository: Repository
    created: bool = False
    deleted: bool = False
    forced: bool = False
    head_commit: HeadCommit | None = None
    commits: list[ListedCommit] = []
    sender: Sender | None = None
    pusher: Pusher | None = None


def parse(source: str, headers: Headers, body: bytes, secret: bytes) -> Told:
    """What GitHub told; see `hythe_webhooks.forges.Forge.parse`."""
    reading.prove(headers.getall(SIGNATURE, ()), body, secret)
    delivery = reading.required(headers, "X-GitHub-Delivery")
    event = reading.required(headers, "X-GitHub-Event")
    if not _EVENT.fullmatch(event):
        raise Refused(
            "the header X-GitHub-Event was expected to be the name of an event", field="X-GitHub-Event"
        )
    document = strict_json.load(_json(headers, body))
    if event == "push":
        push = reading.shaped(Push, document)
        reason = _why_not(push)
    else:
        push = None
        if not isinstance(document, dict):
            raise Refused("the body was expected to be a JSON object", field="body")
        reason = (
            "a ping: GitHub reaches this source" if event == "ping" else f"{event} asks for no deployment"
        )
    if push is None or reason is not None:
        return DeliveryIgnored(
            source=source,
            provider=PROVIDER,
            delivery=delivery,
            event=event,
            reason=reason or "",
            body_sha256=reading.sha256_of(body),
        )
    head = push.head_commit
    return reading.push(
        source=source,
        provider=PROVIDER,
        delivery=delivery,
        repository=push.repository.full_name,
        ref=push.ref,
        before=None if reading.is_nothing(push.before) else push.before,
        after=push.after,
        commit=None if head is None else _commit(head),
        sender=_sender(push),
        forced=push.forced,
        changed_paths=_changed_paths(push),
        body_sha256=reading.sha256_of(body),
    )


def _json(headers: Headers, body: bytes) -> bytes:
    kind = headers.getall("Content-Type", ("",))[0]
    if not kind.lower().startswith("application/x-www-form-urlencoded"):
        return body
    try:
        fields = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=10
        )
    except ValueError:
        raise Refused("the body was expected to be a form with the field payload", field="payload") from None
    payloads = [value for name, value in fields if name == "payload"]
    if len(payloads) != 1:
        raise Refused("the form was expected to have the field payload exactly once", field="payload")
    return payloads[0].encode()


def _why_not(push: Push) -> str | None:
    """Why a push asks for no deployment; None when it does."""
    if push.deleted or reading.is_nothing(push.after):
        return "the branch or tag was deleted"
    if push.ref.startswith("refs/tags/"):
        return "a tag was pushed, not a branch"
    if not push.ref.startswith("refs/heads/"):
        return "what was pushed is not a branch"
    return None


def _commit(head: HeadCommit) -> dict[str, str]:
    author = head.author.name if head.author is not None else None
    return {"id": head.id, "message": reading.message(head.message), "author": reading.line(author or "")}


def _sender(push: Push) -> str:
    if push.sender is not None:
        return reading.line(push.sender.login)
    return reading.line((push.pusher.name if push.pusher is not None else None) or "")


def _changed_paths(push: Push) -> tuple[str, ...] | None:
    """Every path the push touched; None where GitHub's list of commits does not tell them all.

    A new branch lists only commits that no other branch has; a forced push does not list what it took away.
    """
    if push.forced or push.created or len(push.commits) >= MOST_COMMITS:
        return None

    def touched() -> Iterator[str]:
        for commit in push.commits:
            yield from commit.added
            yield from commit.removed
            yield from commit.modified

    return reading.changed(touched())
