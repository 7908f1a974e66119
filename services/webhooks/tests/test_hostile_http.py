"""Requests that mean harm: too large, too slow, smuggled, cut off. A real server, real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import pytest

from hythe_webhooks.testing import Receiver, opened, sign

HEAD = (
    "POST /api/webhooks/github/ferry HTTP/1.1\r\nHost: ferry\r\nContent-Type: application/json\r\n"
    "X-GitHub-Event: push\r\nX-GitHub-Delivery: one\r\n"
)


def head(*more: str) -> bytes:
    """A request's head with these header lines added."""
    return (HEAD + "".join(line + "\r\n" for line in more) + "\r\n").encode("latin-1")


def status_of(answer: bytes) -> int:
    """The status of the first answer."""
    return int(answer.split(b" ", 2)[1])


def problem_of(answer: bytes) -> dict[str, object]:
    """The problem that the first answer tells."""
    told: dict[str, object] = json.loads(answer.split(b"\r\n\r\n", 1)[1])
    return told


# -- size


async def test_a_body_that_says_it_is_too_large_is_not_read(push_body: bytes) -> None:
    """413 comes before the signature is looked at, and before a byte of the body."""
    async with opened(max_body=2048, body_seconds=0.5) as receiver:
        answer = await receiver.raw(head("Content-Length: 2049"))
        assert status_of(answer) == 413
        assert problem_of(answer)["field"] == "body"
        assert b"connection: close" in answer.lower()
        assert (await receiver.post(push_body)).status == 413


async def test_the_default_limit_is_five_megabytes(receiver: Receiver) -> None:
    """A push of thousands of commits fits; a film does not."""
    body = b" " * (5 * 1024 * 1024)
    assert (await receiver.post(body)).status == 400  # not JSON, but read and proven
    assert (await receiver.post(body + b" ")).status == 413


async def test_an_endless_chunked_body_is_cut_at_the_limit() -> None:
    """Who does not say how much is counted."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536

    async with opened(max_body=1024 * 1024, body_seconds=0.5) as receiver:
        await receiver.create()
        reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
        async with asyncio.timeout(30):
            writer.write(head("Transfer-Encoding: chunked"))
            answer = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
            async for piece in endless():
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await asyncio.wait(
                    [answer, asyncio.ensure_future(writer.drain())], return_when="FIRST_COMPLETED"
                )
                if answer.done():
                    break
            assert status_of(answer.result()) == 413
            assert sent < 16 * 1024 * 1024
        writer.close()


async def test_a_chunked_body_is_received(receiver: Receiver, push_body: bytes) -> None:
    """HTTP/1.1 allows it, and some proxies do it."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(push_body), 100):
            yield push_body[start : start + 100]

    answered = await receiver.post(pieces(), X_Hub_Signature_256=sign(push_body))
    assert answered.status == 202


async def test_a_body_in_small_pieces_is_received(receiver: Receiver, push_body: bytes) -> None:
    """The network cuts where it likes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
    sent = head(f"Content-Length: {len(push_body)}", f"X-Hub-Signature-256: {sign(push_body)}") + push_body
    async with asyncio.timeout(30):
        for start in range(0, len(sent), 64):
            writer.write(sent[start : start + 64])
            await writer.drain()
            await asyncio.sleep(0)
        assert status_of(await reader.readuntil(b"\r\n\r\n")) == 202
    writer.close()


async def test_whoever_asks_whether_to_go_on_is_told_to(receiver: Receiver, push_body: bytes) -> None:
    """`Expect: 100-continue`: curl asks before it sends a large body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
    async with asyncio.timeout(30):
        writer.write(
            head(
                "Expect: 100-continue",
                f"Content-Length: {len(push_body)}",
                f"X-Hub-Signature-256: {sign(push_body)}",
            )
        )
        assert status_of(await reader.readuntil(b"\r\n\r\n")) == 100
        writer.write(push_body)
        assert status_of(await reader.readuntil(b"\r\n\r\n")) == 202
    writer.close()


async def test_a_compressed_body_is_refused_and_not_unpacked(receiver: Receiver) -> None:
    """A thousand bytes of gzip can be a million, and the signature would be over what?"""
    bomb = gzip.compress(b" " * 10_000_000)
    answered = await receiver.post(bomb, Content_Encoding="gzip")
    assert answered.status == 415
    assert answered.body["field"] == "Content-Encoding"


# -- time


async def test_a_head_that_does_not_come_is_waited_for_only_so_long() -> None:
    """Slow loris: a connection that dribbles is closed."""
    async with opened(head_seconds=0.2) as receiver:
        assert await receiver.raw(b"POST /api/webhooks/github/ferry HTTP/1.1\r\nHost: f") == b""
        assert await receiver.raw(b"") == b""


async def test_a_kept_connection_that_asks_for_nothing_is_closed(push_body: bytes) -> None:
    """Half a second request is as good as none."""
    async with opened(idle_seconds=0.2) as receiver:
        answer = await receiver.raw(head("Content-Length: 2") + b"{}" + b"POST /api")
        assert status_of(answer) == 401


async def test_a_body_that_does_not_come_is_408() -> None:
    """One byte a second would take two hours for a push."""
    async with opened(body_seconds=0.2) as receiver:
        await receiver.create()
        answer = await receiver.raw(head("Content-Length: 5000") + b"{")
        assert status_of(answer) == 408
        assert problem_of(answer)["field"] == "body"


async def test_five_hundred_that_dribble_do_not_keep_one_waiting(
    receiver: Receiver, push_body: bytes
) -> None:
    """WH8: a good client is served within a second meanwhile."""
    slow = [await asyncio.open_connection("127.0.0.1", receiver.port) for _ in range(500)]
    for number, (_, writer) in enumerate(slow):
        writer.write(
            head("Content-Length: 5000")[: 20 + number] if number % 2 else head("Content-Length: 5000") + b"{"
        )
    for _ in range(3):
        for _, writer in slow:
            writer.write(b" ")
        async with asyncio.timeout(5):
            assert (await receiver.post(push_body)).status == 202
    for _, writer in slow:
        writer.close()


async def test_a_client_that_goes_away_leaves_no_trace(receiver: Receiver, push_body: bytes) -> None:
    """W1: half a body is no delivery."""
    for cut in (10, 200, len(push_body) - 1):
        _, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
        writer.write(head(f"Content-Length: {len(push_body)}", f"X-Hub-Signature-256: {sign(push_body)}"))
        writer.write(push_body[:cut])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert (await receiver.post(push_body)).status == 202
    assert len(await receiver.store.read_all(0)) == 2


# -- shape

SMUGGLED = [
    head("Content-Length: 2", "Transfer-Encoding: chunked") + b"{}",
    head("Transfer-Encoding: chunked", "Content-Length: 2") + b"0\r\n\r\n",
    head("Content-Length: 2", "Content-Length: 3") + b"{}",
    head("Content-Length: 2, 2") + b"{}",
    head("Content-Length: +2") + b"{}",
    head("Content-Length: -2") + b"{}",
    head("Content-Length: 0x2") + b"{}",
    head("Content-Length: 2 3") + b"{}",
    head("Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    head("Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
    head("Transfer-Encoding : chunked") + b"0\r\n\r\n",
    head("Content-Length : 2") + b"{}",
    head("X-Folded: a\r\n b", "Content-Length: 2") + b"{}",
    head("Content-Length: 2", "X-Nul: a\x00b") + b"{}",
    head("Content-Length: 2", "X Space: a") + b"{}",
    head("Content-Length: 2", ": a") + b"{}",
    HEAD.replace("\r\n", "\n").encode() + b"Content-Length: 2\n\n{}",
    HEAD.encode() + b"Content-Length: 2\r\nX-A: b\nX-B: c\r\n\r\n{}",
    HEAD.encode() + b"Content-Length: 2\r\nX-A: b\rX-B: c\r\n\r\n{}",
    head("Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
    head("Transfer-Encoding: chunked") + b"2 \r\n{}\r\n0\r\n\r\n",
    head("Transfer-Encoding: chunked") + b"2\n{}\n0\n\n",
    head("Transfer-Encoding: chunked") + b"-2\r\n{}\r\n0\r\n\r\n",
    head("Transfer-Encoding: chunked") + b"2\r\n{}xx0\r\n\r\n",
    head("Host: other", "Content-Length: 2") + b"{}",
    HEAD.replace("HTTP/1.1", "HTTP/2.0").encode() + b"\r\n",
    HEAD.replace("HTTP/1.1", "HTTP/1.1 ").encode() + b"\r\n",
    HEAD.replace("POST ", "P\x00ST ").encode() + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"hello\r\n\r\n",
    b"POST\r\n\r\n",
    head("X-Long: " + "x" * 100_000),
    head(*(f"X-{n}: x" for n in range(2000))),
    b"POST /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("sent", SMUGGLED, ids=range(len(SMUGGLED)))
async def test_what_two_servers_could_read_differently_is_refused(receiver: Receiver, sent: bytes) -> None:
    """WH9: one answer, 400, and the connection is closed: what follows is not read as another request."""
    answer = await receiver.raw(sent + b"GET /smuggled HTTP/1.1\r\nHost: ferry\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert status_of(answer) == 400, answer
    assert b"application/problem+json" in answer
    assert b"Traceback" not in answer
    assert b"aiohttp" not in answer


async def test_old_http_is_answered_and_closed(receiver: Receiver, push_body: bytes) -> None:
    """HTTP/1.0 keeps no connection unless asked to."""
    sent = head(f"Content-Length: {len(push_body)}", f"X-Hub-Signature-256: {sign(push_body)}") + push_body
    answer = await receiver.raw(sent.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert status_of(answer) == 202


async def test_pipelined_requests_are_answered_in_order(receiver: Receiver, push_body: bytes) -> None:
    """Two in one packet: two answers, the first first."""
    one = head(f"Content-Length: {len(push_body)}", f"X-Hub-Signature-256: {sign(push_body)}") + push_body
    two = one.replace(b"X-GitHub-Delivery: one", b"X-GitHub-Delivery: two\r\nConnection: close")
    answer = await receiver.raw(one + two)
    assert answer.count(b" 202 Accepted") == 2
    assert answer.index(b'"delivery":"one"') < answer.index(b'"delivery":"two"')


@pytest.mark.parametrize(
    "body",
    [
        b'{"ref":"refs/heads/main","ref":"refs/heads/evil"}',
        b'{"a":NaN}',
        b"[" * 100_000,
        b'"\\ud800"',
        b"\xff",
        b"",
    ],
)
async def test_odd_json_is_400_after_the_signature(receiver: Receiver, body: bytes) -> None:
    """WH10: never our error, and the process lives on."""
    answered = await receiver.post(body)
    assert answered.status == 400
    assert answered.body["field"] == "body"
    assert (await receiver.post(body, X_Hub_Signature_256=sign(b"else"))).status == 401
