"""What all forges have in common: one way to check a signature, and one way to take text out of a delivery.

A signature is HMAC-SHA256 over the raw bytes, in exactly one header, as `sha256=` and 64 lower-case hex digits. Every
other spelling is somebody trying something, and is answered as a wrong one is.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hythe_events.errors import Refused
from hythe_events.language import one_line
from hythe_events.webhooks import DeliveryIgnored, WebhookReceived

Told = WebhookReceived | DeliveryIgnored
"""What a delivery came to: a push, or something that asks for no deployment."""

MESSAGE_LENGTH = 20_000
LINE_LENGTH = 2_000
PATHS_LENGTH = 100_000
"""Characters of all changed paths together; an event has to fit on the bus, and without paths every stack is concerned."""

_PRINTABLE = re.compile(r"[\x21-\x7e]{1,200}")
_ZEROS = re.compile(r"0{40}(?:0{24})?")


class NotAuthentic(Refused):
    """Nobody who knows the secret of such a source sent this."""


class Headers(Protocol):
    """A request's headers: `getall` gives every value of a name, whatever its case."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]: ...


class Shape(BaseModel):
    """What is read of a forge's JSON. Strict: a number is not a string. What else is in there does not matter."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


S = TypeVar("S", bound=Shape)


def prove(signatures: Sequence[str], body: bytes, secret: bytes) -> None:
    """Raises NotAuthentic unless `signatures` is the one right signature of `body`.

    The digest is computed in any case and compared in constant time: how long it takes tells nothing.
    """
    right = "sha256=" + hmac.digest(secret, body, "sha256").hex()
    given = signatures[0] if len(signatures) == 1 and signatures[0].isascii() else ""
    if not hmac.compare_digest(right, given):
        raise NotAuthentic


def sha256_of(body: bytes) -> str:
    """The SHA-256 of `body`, in hex."""
    return sha256(body).hexdigest()


def only_one(headers: Headers, name: str) -> str | None:
    """The value of the header `name`, None without one. Raises Refused unless it is one, short and plain ASCII."""
    values = headers.getall(name, ())
    if not values:
        return None
    if len(values) != 1 or not _PRINTABLE.fullmatch(values[0]):
        raise Refused(
            f"the header {name} was expected once, with 1 to 200 printable ASCII characters", field=name
        )
    return values[0]


def required(headers: Headers, name: str) -> str:
    """As `only_one`, and it has to be there."""
    value = only_one(headers, name)
    if value is None:
        raise Refused(f"the header {name} is missing", field=name)
    return value


def shaped(shape: type[S], document: object) -> S:
    """`document` read as `shape`. Raises Refused, which names the first field that is wrong and what was expected."""
    if not isinstance(document, dict):
        raise Refused("the body was expected to be a JSON object", field="body")
    try:
        read: S = shape.__pydantic_validator__.validate_python(document)
    except ValidationError as error:
        raise _refused(error) from None
    return read


def push(**fields: object) -> WebhookReceived:
    """The event of a push with these fields. Raises Refused, naming the field, when one is not what the event can hold."""
    try:
        event: WebhookReceived = WebhookReceived.__pydantic_validator__.validate_python(fields)
    except ValidationError as error:
        raise _refused(error) from None
    return event


def _refused(error: ValidationError) -> Refused:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = one_line(".".join(map(str, first["loc"])), 200)
    return Refused(f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}", field=field)


def line(text: str, limit: int = 500) -> str:
    """`text` as one line for a person."""
    return text if len(text) <= limit and text.isprintable() else one_line(text, limit)


def message(text: str) -> str:
    """A commit's message, cut where it is longer than an event holds. PostgreSQL's text knows no NUL."""
    return text[:MESSAGE_LENGTH].replace("\x00", "\ufffd")


def is_nothing(commit: str) -> bool:
    """Whether a forge says by `commit`, all zeros, that there is none."""
    return _ZEROS.fullmatch(commit) is not None


def changed(paths: Iterable[str]) -> tuple[str, ...] | None:
    """`paths`, each once, in order; None, "not told", when they are none or too many to carry."""
    each = tuple(dict.fromkeys(paths))
    if not each or sum(map(len, each)) > PATHS_LENGTH or any("\x00" in path for path in each):
        return None
    return each
