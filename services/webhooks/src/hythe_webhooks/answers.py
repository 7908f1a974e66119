"""What is answered: to a delivery that was kept, and to everything else. Pure: a status and bytes.

What went wrong is said as RFC 9457 has it (`application/problem+json`), with the `field` that was wrong. An unknown
source and a wrong signature get the same bytes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import orjson

from hythe_events.errors import HytheError, Refused
from hythe_events.webhooks import DeliveryIgnored
from hythe_webhooks.delivery import Delivery, SameIdOtherBody

JSON = "application/json"
PROBLEM = "application/problem+json"
_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
RETRY_SECONDS = 5
"""When to try again while the event store is away."""


class Answer(NamedTuple):
    """An HTTP answer. `last` closes the connection after it: what else was sent on it is not to be believed."""

    status: int
    body: bytes
    kind: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    last: bool = False


def kept(delivery: Delivery) -> Answer:
    """The answer to a delivery that is kept: the same however often it comes."""
    told = delivery.told
    assert told is not None, "a delivery that was kept told something"
    if type(told) is DeliveryIgnored:  # pydantic makes isinstance cost ten times as much
        said = {
            "delivery": told.delivery,
            "event": str(delivery.event),
            "status": "ignored",
            "reason": told.reason,
        }
        return Answer(200, orjson.dumps(said))
    return Answer(
        202, orjson.dumps({"delivery": told.delivery, "event": str(delivery.event), "status": "accepted"})
    )


def problem(
    status: int,
    detail: str,
    field: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
    last: bool = False,
) -> Answer:
    """What went wrong, in one sentence that says what was expected."""
    said = {"type": "about:blank", "title": _TITLES[status], "status": status, "detail": detail}
    if field is not None:
        said["field"] = field
    return Answer(status, orjson.dumps(said), PROBLEM, headers, last)


def refused(error: Refused) -> Answer:
    """The answer to a delivery that was refused."""
    return problem(409 if isinstance(error, SameIdOtherBody) else 400, str(error), error.field)


def not_stored(error: HytheError) -> Answer:
    """The answer to a delivery that cannot be kept, for a reason on our side: try again, if that helps."""
    if not error.retry:
        return BROKEN
    wait = (("Retry-After", str(RETRY_SECONDS)),)
    return problem(503, "the delivery could not be stored now; send it again", headers=wait)


def not_authentic(header: str) -> Answer:
    """Nobody who knows the secret sent it, or there is no such source: nobody is told which."""
    return problem(
        401,
        f"the source, the secret or the signature is wrong; one header {header} was expected: sha256= and the "
        "HMAC-SHA256 of the raw body in lower-case hex",
        header,
        (("WWW-Authenticate", f'HMAC-SHA256 header="{header}"'),),
    )


def too_many(source: str, seconds: float) -> Answer:
    """A source that posts faster than it may."""
    wait = max(1, math.ceil(seconds))
    return problem(
        429,
        f"the source {source} posts faster than it may; wait {wait} s",
        headers=(("Retry-After", str(wait)),),
    )


def too_large(limit: int) -> Answer:
    """A body that is not read to its end."""
    return problem(
        413,
        f"the body is larger than {limit} bytes; the setting HYTHE_MAX_BODY allows more",
        "body",
        last=True,
    )


def switched_off(source: str) -> Answer:
    """An authentic delivery to a source that is off."""
    return problem(403, f"the source {source} is switched off")


NOTHING_HERE = problem(
    404,
    "forges post to /api/webhooks/github/<source>, everybody else to /api/webhooks/<source>",
    "path",
    last=True,
)
ONLY_POST = problem(
    405, "webhooks are posted; no other method is answered", "method", (("Allow", "POST"),), last=True
)
NOT_ENCODED = problem(
    415, "the body was expected as it is, without a content encoding", "Content-Encoding", last=True
)
TOO_SLOW = problem(408, "the body did not arrive in time", "body", last=True)
BROKEN_BODY = problem(400, "the body was cut off or is not well-formed chunks", "body", last=True)
NO_SUCH_EXPECTATION = problem(417, "100-continue is the only expectation that is met", "Expect", last=True)
NOT_HTTP = problem(400, "this is not a well-formed request", last=True)
BROKEN = problem(500, "something is wrong on our side; it was logged", last=True)


def not_that_kind(expected: frozenset[str]) -> Answer:
    """A body of another media type than the forge sends."""
    return problem(
        415, f"the content type was expected to be {' or '.join(sorted(expected))}", "Content-Type", last=True
    )
