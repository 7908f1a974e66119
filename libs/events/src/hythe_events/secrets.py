"""Secrets at rest: sealed so that only the right place opens them, and so that an owner's can all be forgotten.

```
master key (a file) ──wraps──► data key of an owner (a row) ──seals──► secret (in an event, a row, a blob)
```

An *owner* is a stack or a webhook source. Each has its own data key, which exists unwrapped in memory only; the rows
hold it wrapped by the master key. A seal binds the secret to its place (kind, owner, name, version): a sealed secret
that was moved to another place does not open there. Shredding an owner throws its data keys away, so that the log can
be kept for ever and still forget. Changing the master key wraps the data keys anew and touches no secret.

Keys belong to the service that made them: what `git` sealed, `webhooks` cannot open.

AES-256-GCM (NIST SP 800-38D) with random 96-bit nonces seals; AES key wrap (RFC 3394) wraps.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from uuid import UUID, uuid4

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from hythe_events.errors import HytheError, Misconfigured
from hythe_events.settings import ServiceSettings

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
SEALS_PER_KEY = 2**28
"""After so many seals by one process a data key is retired: random nonces of one key may not come near 2^32 (NIST)."""
REMEMBERED = 300.0
"""Seconds a process remembers a data key: the longest that a key outlives being shredded by another process."""
IN_A_THREAD = 512 * 1024
"""A body from this size on is compressed in a thread: smaller ones take less time than the way there."""

_BYTES_FORMAT = b"\x01"
_REWRAP_BATCH = 100


class SealBroken(HytheError):
    """This is not what was sealed, or it was sealed for another place; it was changed or moved, and is not opened."""


class Shredded(HytheError):
    """The key of this secret was destroyed on purpose; nobody can read the secret again."""


class WrappedKey(NamedTuple):
    """A data key as it is kept. `wrapped` is None once it was shredded; `master_id` says which master key wraps it."""

    key_id: UUID
    owner: str
    master_id: str
    wrapped: bytes | None


class Keys(Protocol):
    """Where wrapped data keys are kept. At any time an owner has at most one key in use, whoever asks.

    `PostgresKeys` is the real one; `hythe_events.testing.MemoryKeys` passes the same tests.
    """

    async def in_use(self, owner: str) -> WrappedKey | None:
        """The key that the owner's secrets are sealed with now."""

    async def by_id(self, key_id: UUID) -> WrappedKey | None:
        """One key, retired or shredded ones too; None when it was never kept."""

    async def keep(self, key: WrappedKey, *, replaces: UUID | None = None) -> WrappedKey:
        """Offer a new key (in place of a retiring one). The answer is the one that holds: of two offers, the first."""

    async def shred(self, owner: str) -> int:
        """Forget all keys of the owner for good; how many there were."""

    async def masters(self) -> Mapping[str, int]:
        """Which master keys wrap the keys that are kept, and how many each."""

    async def to_rewrap(self, master_id: str, limit: int) -> Sequence[WrappedKey]:
        """At most `limit` keys that another master key than this one wraps."""

    async def rewrap(self, key: WrappedKey, master_id: str, wrapped: bytes) -> bool:
        """Put a new wrapping in place of the one in `key`; False when the key is not as `key` says any more."""


class _Transactions(Protocol):
    def transaction(self) -> AbstractAsyncContextManager[Any]: ...


class PostgresKeys:
    """Wrapped data keys in Postgres, through the functions of `sql/0003_keys.sql`. Raises StoreUnavailable."""

    def __init__(self, store: _Transactions) -> None:
        self._store = store

    async def in_use(self, owner: str) -> WrappedKey | None:
        return await self._one("select * from log.data_key_in_use($1)", owner)

    async def by_id(self, key_id: UUID) -> WrappedKey | None:
        return await self._one("select * from log.data_key($1)", key_id)

    async def keep(self, key: WrappedKey, *, replaces: UUID | None = None) -> WrappedKey:
        offer = (key.key_id, key.owner, key.master_id, key.wrapped, replaces)
        kept = await self._one("select * from log.keep_data_key($1, $2, $3, $4, $5)", *offer)
        while kept is None:  # the one that was first was shredded before it could be read
            kept = await self._one("select * from log.keep_data_key($1, $2, $3, $4, $5)", *offer)
        return kept

    async def shred(self, owner: str) -> int:
        async with self._store.transaction() as connection:
            return int(await connection.fetchval("select log.shred_data_keys($1)", owner))

    async def masters(self) -> Mapping[str, int]:
        async with self._store.transaction() as connection:
            rows = await connection.fetch("select master_id, keys from log.data_key_masters()")
        return {row["master_id"]: row["keys"] for row in rows}

    async def to_rewrap(self, master_id: str, limit: int) -> Sequence[WrappedKey]:
        async with self._store.transaction() as connection:
            rows = await connection.fetch("select * from log.data_keys_to_rewrap($1, $2)", master_id, limit)
        return [WrappedKey(*row.values()) for row in rows]

    async def rewrap(self, key: WrappedKey, master_id: str, wrapped: bytes) -> bool:
        async with self._store.transaction() as connection:
            return bool(
                await connection.fetchval(
                    "select log.rewrap_data_key($1, $2, $3, $4)",
                    key.key_id,
                    key.master_id,
                    master_id,
                    wrapped,
                )
            )

    async def _one(self, query: str, *arguments: object) -> WrappedKey | None:
        async with self._store.transaction() as connection:
            row = await connection.fetchrow(query, *arguments)
        return None if row is None else WrappedKey(*row.values())


@dataclass(frozen=True)
class MasterKeys:
    """The master key in use, and a former one that may still wrap some data keys while the change is under way."""

    current: bytes = field(repr=False)
    former: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for key in (self.current, self.former):
            if key is not None and len(key) != KEY_BYTES:
                raise Misconfigured(f"a master key has {KEY_BYTES} bytes; this one has {len(key)}")

    @property
    def by_id(self) -> dict[str, bytes]:
        """Each key by its id."""
        return {master_id(key): key for key in (self.current, self.former) if key is not None}


def master_id(key: bytes) -> str:
    """What a master key is called in the rows: a fingerprint that tells nothing of the key (it has 256 random bits)."""
    return hashlib.sha256(b"hythe master key id\0" + key).hexdigest()[:16]


def read_master_keys(settings: ServiceSettings) -> MasterKeys:
    """The master keys in the secret files `master_key` and, if there is one, `master_key_former`, each 64 hex digits.

    Raises Misconfigured, also when anybody on the machine could read such a file. The message never holds the key.
    """
    former = _read_key(settings, "master_key_former") if settings.has_secret("master_key_former") else None
    return MasterKeys(_read_key(settings, "master_key"), former)


def _read_key(settings: ServiceSettings, name: str) -> bytes:
    text = settings.secret(name).strip()
    mode = (settings.secrets_dir / name).stat().st_mode
    if mode & 0o027:
        raise Misconfigured(f"the secret file {name} can be read or changed by others; run: chmod 600 {name}")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise Misconfigured(f"the secret file {name} must hold {2 * KEY_BYTES} hex digits, and nothing else")
    return key


@dataclass(slots=True)
class _DataKey:
    key_id: UUID
    cipher: AESGCM
    forget_at: float
    seals: int = 0
    in_aad: str = ""
    header: bytes = b""

    def __post_init__(self) -> None:
        self.in_aad = self.key_id.hex
        self.header = _BYTES_FORMAT + self.key_id.bytes


class Secrets:
    """Seals and opens secrets. One per process; any number of tasks may use it at once.

    `check` must have passed before the service says it is ready. Data keys are remembered for a few minutes, so that
    sealing and opening rarely ask the database. Raises StoreUnavailable when a key is needed and cannot be asked for.
    """

    def __init__(
        self, keys: Keys, masters: Callable[[], MasterKeys], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`masters` is asked again when a data key is made or an unknown wrapping is met: a change shows at once."""
        self._keys = keys
        self._read_masters = masters
        self._masters = masters()
        self._clock = clock
        self._sealing: dict[str, _DataKey] = {}
        self._known: dict[UUID, _DataKey] = {}
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()

    async def check(self) -> None:
        """Proves that the master key is the right one. Raises Misconfigured when data keys are wrapped by another.

        Without this, a wrong key would look like secrets that are lost.
        """
        self._masters = self._read_masters()
        known = self._masters.by_id
        foreign = {name: count for name, count in (await self._keys.masters()).items() if name not in known}
        if foreign:
            raise Misconfigured(
                f"the master key is not the one that {sum(foreign.values())} data keys were wrapped with "
                f"(fingerprint {', '.join(sorted(foreign))}; this one is {master_id(self._masters.current)}); "
                "put the right key in the secret file master_key, or the former one in master_key_former"
            )

    # -- short secrets, as text

    async def seal(self, *, kind: str, owner: str, name: str, version: int, secret: str | bytes) -> str:
        """`secret`, sealed for this place, as a `language.Sealed` text. A str is sealed as UTF-8."""
        key = await self._key_to_seal(owner)
        nonce = os.urandom(NONCE_BYTES)
        plain = secret.encode() if isinstance(secret, str) else secret
        sealed = key.cipher.encrypt(nonce, plain, _place("v1", kind, owner, name, version, key.in_aad))
        return f"v1.{_text(key.key_id.bytes)}.{_text(nonce)}.{_text(sealed)}"

    async def open(self, *, kind: str, owner: str, name: str, version: int, sealed: str) -> bytes:
        """The secret in `sealed`, if it was sealed for exactly this place. Raises Shredded, SealBroken."""
        key_id, nonce, body = _parts(sealed)
        key = await self._key_to_open(key_id)
        try:
            return key.cipher.decrypt(nonce, body, _place("v1", kind, owner, name, version, key.in_aad))
        except InvalidTag:
            raise SealBroken from None

    # -- bodies, as bytes

    async def sealed_bytes(self, *, kind: str, owner: str, name: str, version: int, body: bytes) -> bytes:
        """`body`, compressed (zstd) and sealed for this place: 45 bytes longer than compressed. For webhook bodies."""
        key = self._sealing.get(owner)
        if key is None or key.forget_at < self._clock() or key.seals >= SEALS_PER_KEY:
            key = await self._key_to_seal(owner)
        else:
            key.seals += 1
        if len(body) < IN_A_THREAD:
            packed = self._compressor.compress(body)
        else:
            packed = await asyncio.to_thread(lambda: zstandard.ZstdCompressor(level=1).compress(body))
        nonce = os.urandom(NONCE_BYTES)
        sealed = key.cipher.encrypt(nonce, packed, _place("b1", kind, owner, name, version, key.in_aad))
        return b"".join((key.header, nonce, sealed))

    async def opened_bytes(self, *, kind: str, owner: str, name: str, version: int, sealed: bytes) -> bytes:
        """The body in `sealed`, if it was sealed for exactly this place. Raises Shredded, SealBroken."""
        if sealed[:1] != _BYTES_FORMAT or len(sealed) < 1 + 16 + NONCE_BYTES + TAG_BYTES:
            raise SealBroken
        key = await self._key_to_open(UUID(bytes=sealed[1:17]))
        nonce, body = sealed[17 : 17 + NONCE_BYTES], sealed[17 + NONCE_BYTES :]
        try:
            packed = key.cipher.decrypt(nonce, body, _place("b1", kind, owner, name, version, key.in_aad))
        except InvalidTag:
            raise SealBroken from None
        if len(packed) < IN_A_THREAD:
            return self._decompressor.decompress(packed)
        return await asyncio.to_thread(lambda: zstandard.ZstdDecompressor().decompress(packed))

    # -- the keys' life

    async def shred(self, owner: str) -> int:
        """Forget all that was ever sealed for `owner`; how many data keys that were. Cannot be taken back.

        Other processes of the service forget within `REMEMBERED` seconds. Backups of the table `log.data_keys` must
        expire, or nothing is forgotten.
        """
        shredded = await self._keys.shred(owner)
        self._sealing.pop(owner, None)
        self._known.clear()
        return shredded

    async def rotate(self, new_master: bytes) -> int:
        """Wrap all data keys with `new_master`; how many were wrapped anew now. Secrets stay as they are.

        Put the new key in the file `master_key` and the old one in `master_key_former` first: running services then
        take the new key without a restart. May be stopped anywhere and called again: each row says which key wraps it.
        When it has returned, `master_key_former` can be deleted.
        """
        new = MasterKeys(new_master)
        new_id = master_id(new.current)
        known = {**self._read_masters().by_id, **self._masters.by_id}
        done = 0
        while batch := await self._keys.to_rewrap(new_id, _REWRAP_BATCH):
            for key in batch:
                old = known.get(key.master_id)
                if old is None:
                    raise Misconfigured(
                        f"data key {key.key_id} is wrapped by a master key (fingerprint {key.master_id}) that is not "
                        "here; put it in the secret file master_key_former"
                    )
                done += await self._keys.rewrap(key, new_id, aes_key_wrap(new.current, _unwrap(old, key)))
        self._masters = MasterKeys(new.current, None)
        return done

    async def _key_to_seal(self, owner: str) -> _DataKey:
        key = self._sealing.get(owner)
        if key is not None and key.forget_at >= self._clock() and key.seals < SEALS_PER_KEY:
            key.seals += 1
            return key
        worn = key.key_id if key is not None and key.seals >= SEALS_PER_KEY else None
        kept = await self._keys.in_use(owner)
        if kept is None or kept.key_id == worn:
            self._masters = self._read_masters()
            fresh = aes_key_wrap(self._masters.current, AESGCM.generate_key(KEY_BYTES * 8))
            offer = WrappedKey(uuid4(), owner, master_id(self._masters.current), fresh)
            kept = await self._keys.keep(offer, replaces=worn)
        seals = key.seals if key is not None and key.key_id == kept.key_id else 0
        key = self._remember(kept)
        key.seals = max(key.seals, seals) + 1
        self._sealing[owner] = key
        return key

    async def _key_to_open(self, key_id: UUID) -> _DataKey:
        key = self._known.get(key_id)
        if key is not None and key.forget_at >= self._clock():
            return key
        kept = await self._keys.by_id(key_id)
        if kept is None:
            raise SealBroken(
                f"this was sealed with the data key {key_id}, which is not one of this service's"
            )
        return self._remember(kept)

    def _remember(self, kept: WrappedKey) -> _DataKey:
        if kept.wrapped is None:
            self._known.pop(kept.key_id, None)
            raise Shredded
        if kept.master_id not in self._masters.by_id:
            self._masters = self._read_masters()
        master = self._masters.by_id.get(kept.master_id)
        if master is None:
            raise Misconfigured(
                f"a data key is wrapped by a master key (fingerprint {kept.master_id}) that is not here; "
                "put it in the secret file master_key or master_key_former"
            )
        key = _DataKey(kept.key_id, AESGCM(_unwrap(master, kept)), self._clock() + REMEMBERED)
        known = self._known.setdefault(kept.key_id, key)
        known.forget_at = key.forget_at
        return known


def _unwrap(master: bytes, kept: WrappedKey) -> bytes:
    assert kept.wrapped is not None
    try:
        return aes_key_unwrap(master, kept.wrapped)
    except (InvalidUnwrap, ValueError) as error:
        raise SealBroken(
            f"the data key {kept.key_id} was changed in the database; it does not unwrap"
        ) from error


def _place(form: str, kind: str, owner: str, name: str, version: int, key_id: str) -> bytes:
    """What a seal is bound to. Lengths stand before the parts, so that no two places read the same."""
    return f"{form}|{len(kind)}:{kind}|{len(owner)}:{owner}|{len(name)}:{name}|{version}|{key_id}".encode()


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _parts(sealed: str) -> tuple[UUID, bytes, bytes]:
    """Key id, nonce and ciphertext. Only the one way to write them is accepted: base64 has spare bits at its end."""
    form, _, rest = sealed.partition(".")
    try:
        texts = rest.split(".")
        key_id, nonce, body = (urlsafe_b64decode(text + "=" * (-len(text) % 4)) for text in texts)
    except ValueError:
        raise SealBroken from None
    whole = [_text(part) for part in (key_id, nonce, body)] == texts
    if form != "v1" or not whole or len(key_id) != 16 or len(nonce) != NONCE_BYTES or len(body) < TAG_BYTES:
        raise SealBroken
    return UUID(bytes=key_id), nonce, body
