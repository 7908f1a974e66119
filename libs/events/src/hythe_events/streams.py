"""How streams are named. A stream's category, the part before the first `-`, decides who may write to it."""

from __future__ import annotations

import hashlib
import re
from uuid import UUID, uuid5

_plain = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


def delivery(source: str, delivery_id: str) -> str:
    """One delivery of a forge. An id that is not plain text is named by its SHA-256."""
    plain = delivery_id if _plain.fullmatch(delivery_id) else hashlib.sha256(delivery_id.encode()).hexdigest()
    return f"delivery-{source}-{plain}"


def source(name: str) -> str:
    """One webhook source."""
    return f"source-{name}"


def repository(stack: str) -> str:
    """Where a stack's source comes from."""
    return f"repository-{stack}"


def deployment(deployment_id: UUID) -> str:
    """The whole life of one deployment."""
    return f"deployment-{deployment_id}"


def stack(name: str) -> str:
    """What a stack runs, and what it is allowed."""
    return f"stack-{name}"


def parked(service: str, event_id: UUID) -> str:
    """A message that a service could not handle."""
    return f"parked-{service}-{event_id}"


CHAIN = "chain-seals"
"""The stream of seals."""


def deployment_id(delivered: UUID, stack_name: str) -> UUID:
    """The deployment that a delivered push leads to for a stack: always the same, however often it is asked."""
    return uuid5(delivered, stack_name)
