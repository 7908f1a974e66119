"""Whoever can sign with HMAC-SHA256: a CI job, a script, a forge that Hythe does not know by name.

The proof is `X-Hythe-Signature: sha256=<hex>` over the raw bytes. `Idempotency-Key` names the delivery; without one the
body's own SHA-256 does, so that the same body is the same delivery. The body is a JSON object:

| field | is |
| --- | --- |
| `ref` | the branch, in full: `refs/heads/main` |
| `commit` (or `after`) | the whole id of the commit the branch now points at; all zeros: the branch was deleted |
| `repository` | what the repository is called |
| `before`, `message`, `author`, `sender`, `forced`, `changed_paths` | optional |
"""

from __future__ import annotations

from typing import Final

from hythe_events.errors import Refused
from hythe_events.language import CommitId, Line
from hythe_events.webhooks import DeliveryIgnored, Provider
from hythe_webhooks import strict_json
from hythe_webhooks.forges import reading
from hythe_webhooks.forges.reading import Headers, Shape, Told

PROVIDER: Final[Provider] = "generic"
SIGNATURE: Final = "X-Hythe-Signature"
CONTENT_TYPES: Final = frozenset({"application/json"})


class Push(Shape):
    """What is read of a generic push."""

    ref: Line
    repository: Line
    commit: CommitId | None = None
    after: CommitId | None = None
    before: CommitId | None = None
    message: str = ""
    author: str = ""
    sender: str = ""
    forced: bool = False
    changed_paths: list[str] | None = None


def parse(source: str, headers: Headers, body: bytes, secret: bytes) -> Told:
    """What the sender told; see `hythe_webhooks.forges.Forge.parse`."""
    reading.prove(headers.getall(SIGNATURE, ()), body, secret)
    body_sha256 = reading.sha256_of(body)
    delivery = reading.only_one(headers, "Idempotency-Key") or body_sha256
    push = reading.shaped(Push, strict_json.load(body))
    if push.commit is not None and push.after is not None and push.commit != push.after:
        raise Refused("commit and after name different commits; send one of them", field="commit")
    commit = push.commit or push.after
    if commit is None:
        raise Refused("commit is missing: the whole id of the commit was expected", field="commit")
    if not push.ref.startswith("refs/"):
        raise Refused("ref was expected in full, such as refs/heads/main", field="ref")
    reason = None
    if reading.is_nothing(commit):
        reason = "the branch was deleted"
    elif not push.ref.startswith("refs/heads/"):
        reason = "what was pushed is not a branch"
    if reason is not None:
        return DeliveryIgnored(
            source=source,
            provider=PROVIDER,
            delivery=delivery,
            event="push",
            reason=reason,
            body_sha256=body_sha256,
        )
    return reading.push(
        source=source,
        provider=PROVIDER,
        delivery=delivery,
        repository=push.repository,
        ref=push.ref,
        before=None if push.before is None or reading.is_nothing(push.before) else push.before,
        after=commit,
        commit={"id": commit, "message": reading.message(push.message), "author": reading.line(push.author)},
        sender=reading.line(push.sender),
        forced=push.forced,
        changed_paths=None if push.changed_paths is None else reading.changed(push.changed_paths),
        body_sha256=body_sha256,
    )
