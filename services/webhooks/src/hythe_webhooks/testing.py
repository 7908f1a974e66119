"""The webhooks service for tests: behind a real HTTP server on a free port, on the store in memory or a real one."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp

from hythe_events.envelope import Cause
from hythe_events.language import new_id
from hythe_events.secrets import MasterKeys, Secrets
from hythe_events.telemetry import Telemetry
from hythe_events.testing import MemoryKeys, MemoryStore
from hythe_events.webhooks import CreateSource, Provider
from hythe_webhooks.app import Webhooks
from hythe_webhooks.handlers import Handlers
from hythe_webhooks.server import Body, listening, listening_socket
from hythe_webhooks.settings import WebhooksSettings
from hythe_webhooks.sources import Sources

SECRET = "a-secret-of-the-quayside"  # noqa: S105  made up


def because(actor: str = "cli:test") -> Cause:
    """The cause of a command that a test gives."""
    return Cause(new_id(), None, actor)


def sign(body: bytes, secret: str = SECRET) -> str:
    """What a forge puts into its signature header."""
    return "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()


class Answered(NamedTuple):
    """An HTTP answer."""

    status: int
    body: dict[str, Any]
    headers: Any


@dataclass
class Receiver:
    """A running receiver: its store, its seals, and ways to post to it."""

    store: Any
    secrets: Secrets
    sources: Sources
    handlers: Handlers
    port: int
    http: aiohttp.ClientSession

    async def create(
        self, source: str = "ferry", provider: Provider = "github", secret: str = SECRET
    ) -> None:
        """Make a webhook source."""
        await self.handlers.create_source(
            CreateSource(source=source, provider=provider, secret=secret), because()
        )

    async def post(
        self,
        body: bytes | AsyncIterator[bytes],
        *,
        path: str = "/api/webhooks/github/ferry",
        method: str = "POST",
        **headers: str | None,
    ) -> Answered:
        """Post `body` as GitHub does, signed; a header named as keyword replaces one, None leaves it out."""
        sent: dict[str, str | None] = {
            "Content-Type": "application/json",
            "X-GitHub-Event": "push",
            "X-GitHub-Delivery": "0b989ba4-242f-11e5-81e1-c7b6966d2516",
            "X-Hub-Signature-256": sign(body) if isinstance(body, bytes) else None,
        }
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        kept = {name: value for name, value in sent.items() if value is not None}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with (
            asyncio.timeout(30),
            self.http.request(
                method, url, data=body, headers=kept, skip_auto_headers=("Content-Type",)
            ) as response,
        ):
            text = await response.read()
            return Answered(response.status, json.loads(text) if text else {}, response.headers)

    async def raw(self, sent: bytes) -> bytes:
        """Everything that is answered to these bytes, until the connection is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(30):
                writer.write(sent)
                await writer.drain()
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def opened(
    store: Any = None,
    seals: Secrets | None = None,
    telemetry: Telemetry | None = None,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> AsyncIterator[Receiver]:
    """A receiver on a free port; on the store in memory unless another one is given."""
    told = WebhooksSettings(port=0, grace=0.2, **settings)
    store = MemoryStore("webhooks") if store is None else store
    secrets = seals or Secrets(MemoryKeys(), lambda: MasterKeys(b"m" * 32))
    sources = Sources(store, secrets, clock=clock)
    webhooks = Webhooks(store, secrets, sources, telemetry or Telemetry("webhooks", None), Body(told), told)
    async with AsyncExitStack() as stack:
        bound = stack.enter_context(listening_socket(told))
        port = bound.getsockname()[1]
        await stack.enter_async_context(listening(webhooks.receive, told, bound))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield Receiver(store, secrets, sources, Handlers(store, secrets, sources), port, http)
