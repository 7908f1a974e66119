"""What the tests of the webhooks service share: a push as GitHub sends it, and a running receiver."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hythe_webhooks.testing import Receiver, opened


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver with the source `ferry`, which GitHub posts to."""
    async with opened() as running:
        await running.create()
        yield running


@pytest.fixture(scope="session")
def push_document() -> dict[str, Any]:
    """A push of two commits, in the shape that GitHub documents; people and places are made up."""
    document: dict[str, Any] = json.loads((Path(__file__).parent / "github_push.json").read_text())
    return document


@pytest.fixture(scope="session")
def push_body(push_document: dict[str, Any]) -> bytes:
    """The same as GitHub sends it: compact, in UTF-8."""
    return json.dumps(push_document, ensure_ascii=False, separators=(",", ":")).encode()
