"""The forges Hythe hears, by the path they post to. A forge is fixed by the path, never chosen by a header.

```
POST /api/webhooks/github/{source}     GitHub
POST /api/webhooks/{source}            whoever can sign with HMAC-SHA256
```

To add a forge: a module with what `Forge` asks for, its line in `FORGES`, its name in `hythe_events.webhooks.Provider`,
and a test with a vector from the forge's own documentation.
"""

from __future__ import annotations

import re
from typing import Protocol

from hythe_events.webhooks import Provider
from hythe_webhooks.forges import generic, github
from hythe_webhooks.forges.reading import Headers, Told


class Forge(Protocol):
    """What is known of one kind of sender. Modules are forges; none of them does any IO."""

    @property
    def PROVIDER(self) -> Provider:  # noqa: N802  a module\'s constant
        """Its name in events."""

    @property
    def SIGNATURE(self) -> str:  # noqa: N802  a module\'s constant
        """The header that carries the proof."""

    @property
    def CONTENT_TYPES(self) -> frozenset[str]:  # noqa: N802  a module\'s constant
        """The media types it sends."""

    def parse(self, source: str, headers: Headers, body: bytes, secret: bytes) -> Told:
        """What the forge told, if `secret` signed the raw bytes of `body`.

        Raises NotAuthentic before anything in `body` is looked at; Refused, with the field, for what cannot be read.
        """


FORGES: dict[str, Forge] = {"github": github, "": generic}
"""By the word between `/api/webhooks/` and the source."""

_PATH = re.compile(r"/api/webhooks/(?:(github)/)?([a-z0-9][a-z0-9_-]{0,62})")


def at(path: str) -> tuple[Forge, str] | None:
    """The forge and the source that the raw request target `path` names; None when nothing is there."""
    match = _PATH.fullmatch(path)
    return None if match is None else (FORGES[match[1] or ""], match[2])


def path_of(provider: Provider, source: str) -> str:
    """Where a source of `provider` is posted to."""
    return f"/api/webhooks/github/{source}" if provider == "github" else f"/api/webhooks/{source}"
