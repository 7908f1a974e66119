"""What the webhooks service is asked over the bus: to make a source, to switch it, to list deliveries."""

from __future__ import annotations

import hmac
import secrets as random

from hythe_events import streams
from hythe_events.decider import execute, fold
from hythe_events.envelope import Cause
from hythe_events.log import Done, Rows
from hythe_events.secrets import Secrets
from hythe_events.store import Store
from hythe_events.webhooks import CreateSource, ListDeliveries, SourceMade, SwitchSource
from hythe_webhooks import forges, read_models, source
from hythe_webhooks.source import Source
from hythe_webhooks.sources import Sources, place

SECRET_BYTES = 32


class Handlers:
    """Answers to commands and queries."""

    def __init__(self, store: Store, secrets: Secrets, sources: Sources) -> None:
        self._store = store
        self._secrets = secrets
        self._sources = sources

    async def create_source(self, asked: CreateSource, because: Cause) -> SourceMade:
        """Make a source. Asked again with the same secret it answers the same; with another it is refused."""
        secret = asked.secret or random.token_urlsafe(SECRET_BYTES)
        stream = streams.source(asked.source)
        found = fold(source.evolve, await self._store.read(stream), source.UNKNOWN)
        if not await self._is_the_same(asked, found):
            sealed = await self._secrets.seal(**place(asked.source, 1), secret=secret)
            await execute(
                self._store,
                source.decider,
                stream,
                source.Create(asked.source, asked.provider, sealed),
                because=because,
            )
            self._sources.forget(asked.source)
        path = forges.path_of(asked.provider, asked.source)
        return SourceMade(source=asked.source, provider=asked.provider, path=path, secret=secret)

    async def _is_the_same(self, asked: CreateSource, found: Source) -> bool:
        if asked.secret is None or found.secret is None or found.provider != asked.provider:
            return False
        secret = await self._secrets.open(**place(asked.source, found.secret_version), sealed=found.secret)
        return hmac.compare_digest(secret, asked.secret.encode())

    async def switch_source(self, asked: SwitchSource, because: Cause) -> Done:
        """Switch a source on or off. Raises NotFound."""
        stream = streams.source(asked.source)
        left = await execute(self._store, source.decider, stream, asked, because=because)
        self._sources.forget(asked.source)
        return Done(stream=stream, version=left.version)

    async def deliveries(self, asked: ListDeliveries, _because: Cause) -> Rows:
        """The latest deliveries, newest first."""
        async with self._store.transaction() as connection:
            return Rows(rows=await read_models.latest_deliveries(connection, asked.source, asked.limit))
