"""Large things kept by what they are: source archives and finished logs, in the object store, under their SHA-256.

Putting the same content twice keeps it once. What is read is checked against its hash, so a reference in an event
means these bytes and no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Protocol

from hythe_events.bus import Bus
from hythe_events.errors import HytheError
from hythe_events.language import BlobRef


class BlobDamaged(HytheError):
    """What the object store holds is not what was put there."""


class BlobStore(Protocol):
    """Where large things are kept. `Blobs` is the real one, `hythe_events.testing.MemoryBlobs` its double."""

    async def put(self, data: bytes) -> BlobRef: ...

    async def get(self, ref: BlobRef) -> bytes: ...


class Blobs:
    """The object store on the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def put(self, data: bytes) -> BlobRef:
        """Keeps `data`; durable when it returns. Raises BusUnavailable."""
        digest = hashlib.sha256(data).hexdigest()
        await self._bus.put_object(digest, data)
        return BlobRef(key=digest, size=len(data), sha256=digest)

    async def get(self, ref: BlobRef) -> bytes:
        """The content. Raises NotFound, BlobDamaged, BusUnavailable."""
        data = b"".join([chunk async for chunk in self.read(ref)])
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise BlobDamaged(f"the object {ref.key} does not have the content it is named by")
        return data

    def read(self, ref: BlobRef) -> AsyncIterator[bytes]:
        """The content chunk by chunk, unchecked: for whoever hashes it on the way."""
        return self._bus.object_chunks(ref.key)
