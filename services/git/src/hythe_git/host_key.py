"""Asks an SSH server for its host key, for one purpose: to say which key is offered when it is not the saved one.

Only the first three messages of SSH's key exchange are spoken (RFC 4253 §4, §7; RFC 5656 §4, RFC 8731), in the clear,
and nothing of it is trusted: the answer is shown to a person and used for nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import os
import struct

_KEXINIT, _ECDH_INIT, _ECDH_REPLY = 20, 30, 31
_CIPHERS = (
    b"aes128-ctr,aes256-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"
)
_MACS = b"hmac-sha2-256,hmac-sha2-512,hmac-sha1"
_LARGEST = 64 * 1024


async def offered(host: str, port: int, kind: str, *, seconds: float = 5.0) -> str | None:
    """The key of type `kind` that the server offers, as `type base64`; None when it cannot be had in time."""
    kinds = b"rsa-sha2-512,rsa-sha2-256,ssh-rsa" if kind == "ssh-rsa" else kind.encode()
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port, limit=_LARGEST)
            try:
                return await _ask(reader, writer, kinds)
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError, ValueError, struct.error):
        return None


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kinds: bytes) -> str | None:
    writer.write(b"SSH-2.0-hythe\r\n")
    for _ in range(20):  # a server may say some lines before its version
        if (await reader.readline()).startswith(b"SSH-"):
            break
    lists = (b"curve25519-sha256,curve25519-sha256@libssh.org", kinds, _CIPHERS, _CIPHERS, _MACS, _MACS)
    exchange = (*lists, b"none", b"none", b"", b"")  # no compression, no language
    writer.write(
        _packet(
            bytes([_KEXINIT]) + os.urandom(16) + b"".join(_string(names) for names in exchange) + bytes(5)
        )
    )
    writer.write(_packet(bytes([_ECDH_INIT]) + _string(os.urandom(32))))
    for _ in range(5):
        payload = await _read_packet(reader)
        if payload[0] == _ECDH_REPLY:
            (length,) = struct.unpack(">I", payload[1:5])
            blob = payload[5 : 5 + length]
            (kind_length,) = struct.unpack(">I", blob[:4])
            return f"{blob[4 : 4 + kind_length].decode('ascii')} {base64.b64encode(blob).decode()}"
    return None


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _packet(payload: bytes) -> bytes:
    padding = 8 - (len(payload) + 5) % 8
    padding += 8 if padding < 4 else 0
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


async def _read_packet(reader: asyncio.StreamReader) -> bytes:
    length, padding = struct.unpack(">IB", await reader.readexactly(5))
    if not 2 + padding <= length <= _LARGEST:
        raise ValueError(length)
    return (await reader.readexactly(length - 1))[: length - 1 - padding]
