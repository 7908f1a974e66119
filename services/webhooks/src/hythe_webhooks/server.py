"""HTTP, as little of it as a webhook needs: limits, deadlines, and answers written in one piece.

aiohttp parses (llhttp, strict), keeps connections, and closes those that are slow. No routes, no middleware, no access
log, no decompression: of the time a request takes here, most would go there.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from hythe_events.errors import Misconfigured
from hythe_webhooks import answers
from hythe_webhooks.answers import Answer
from hythe_webhooks.settings import WebhooksSettings

LINGER = 10.0
"""Seconds for which the rest of a body is read and thrown away, so that who sends it can read our answer."""
BACKLOG = 1024
MOST_IN_A_LINE = 4096
MOST_HEADERS = 64
"""Bytes of a request's longest line, and how many headers it may have. GitHub sends fifteen, proxies add some."""
GC_THRESHOLD = 50_000
"""New objects between two collections. A request leaves no cycles; collecting often only costs time."""

_log = structlog.get_logger("hythe.webhooks")

Receive = Callable[[web.BaseRequest], Awaitable[Answer]]


class Body:
    """Reads bodies, within their limits."""

    def __init__(self, settings: WebhooksSettings) -> None:
        self._most = settings.max_body
        self._seconds = settings.body_seconds

    async def of(self, request: web.BaseRequest, kinds: frozenset[str]) -> bytes | Answer:
        """The whole body of `request`, or the answer that says why it was not read."""
        headers = request.headers
        length = request.content_length
        if length is not None and length > self._most:
            return answers.too_large(self._most)
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            return answers.NOT_ENCODED
        kind = headers.get("Content-Type", "")
        if kind not in kinds and kind.partition(";")[0].strip().lower() not in kinds:
            return answers.not_that_kind(kinds)
        content = request.content
        if content.is_eof():  # it came with the head, as nearly all do
            body = content.read_nowait()
            return body if len(body) <= self._most else answers.too_large(self._most)
        return await self._slowly(request)

    async def _slowly(self, request: web.BaseRequest) -> bytes | Answer:
        expected = request.headers.get("Expect")
        if expected is not None:
            if expected.lower() != "100-continue":
                return answers.NO_SUCH_EXPECTATION
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in request.content.iter_any():
                    size += len(piece)
                    if size > self._most:
                        return answers.too_large(self._most)
                    pieces.append(piece)
        except TimeoutError:
            return answers.TOO_SLOW
        except (RequestPayloadError, ConnectionError):  # the latter will not even be told
            return answers.BROKEN_BODY
        return b"".join(pieces)


class _Ready(web.StreamResponse):
    """An answer that is bytes already; nothing of the class above is wanted but its name."""

    def __init__(self, wire: bytes, keep_alive: bool) -> None:
        self._wire = wire
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        transport.write(self._wire)

    async def write_eof(self, data: bytes = b"") -> None:
        """All was written."""


class Writer:
    """Turns answers into responses. A head is put together once a second for each kind of answer."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._second = 0
        self._heads: dict[tuple[int, str, tuple[tuple[str, str], ...]], bytes] = {}

    def response(self, answer: Answer, keep_alive: bool) -> web.StreamResponse:
        """The response that says `answer`."""
        second = int(self._clock())
        if second != self._second:
            self._heads.clear()
            self._second = second
        key = answer.status, answer.kind, answer.headers
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = self._head(*key)
        keep_alive = keep_alive and not answer.last
        end = b"\r\n\r\n" if keep_alive else b"\r\nConnection: close\r\n\r\n"
        return _Ready(b"%b%d%b%b" % (head, len(answer.body), end, answer.body), keep_alive)

    def _head(self, status: int, kind: str, headers: tuple[tuple[str, str], ...]) -> bytes:
        more = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\n{more}"
            f"Date: {formatdate(self._second, usegmt=True)}\r\nContent-Length: "
        ).encode()


class _Connection(web.RequestHandler):
    """One connection: it has to ask for something soon, and is told in our words what was not HTTP."""

    head_seconds = 10.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._late = self._loop.call_later(self.head_seconds, self._too_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def _too_late(self) -> None:
        if self._request_count == 0:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002  aiohttp passes it
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  it can hold what was sent
    ) -> web.StreamResponse:
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("webhook_not_answered", exc_info=exc)
            return Writer().response(answers.BROKEN, keep_alive=False)
        return Writer().response(answers.NOT_HTTP, keep_alive=False)


class _Server(web.Server):
    def __init__(self, receive: Receive, settings: WebhooksSettings) -> None:
        writer = Writer()

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            answer = await receive(request)
            return writer.response(answer, request.keep_alive and request.version >= (1, 1))

        super().__init__(
            handle,
            access_log=None,
            max_line_size=MOST_IN_A_LINE,
            max_field_size=MOST_IN_A_LINE,
            max_headers=MOST_HEADERS,
            auto_decompress=False,
            keepalive_timeout=settings.idle_seconds,
            lingering_time=min(LINGER, settings.body_seconds),
        )
        self._connection = type("Connection", (_Connection,), {"head_seconds": settings.head_seconds})

    def __call__(self) -> web.RequestHandler:
        made: web.RequestHandler = self._connection(self, loop=self._loop, **self._kwargs)
        return made


def listening_socket(settings: WebhooksSettings) -> socket.socket:
    """A socket bound to where forges post. Raises Misconfigured when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise Misconfigured(
            f"webhooks cannot listen on {settings.host}:{settings.port} (HYTHE_HOST, HYTHE_PORT): {error.strerror}"
        ) from error
    bound.setblocking(False)
    return bound


@asynccontextmanager
async def listening(
    receive: Receive, settings: WebhooksSettings, bound: socket.socket
) -> AsyncIterator[None]:
    """While the block runs, what is posted to `bound` is answered with what `receive` says.

    After it nothing new is taken, and what is under way has `settings.grace` seconds to end.
    """
    server = _Server(receive, settings)
    taking = await asyncio.get_running_loop().create_server(server, sock=bound, backlog=BACKLOG)
    host, port = bound.getsockname()[:2]
    _log.info("webhooks_listen", host=host, port=port)
    try:
        yield
    finally:
        taking.close()
        server.pre_shutdown()
        await server.shutdown(settings.grace)


async def serve(receive: Receive, settings: WebhooksSettings, bound: socket.socket) -> None:
    """Listens until it is cancelled; see `listening`."""
    async with listening(receive, settings, bound):
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 20)
        await asyncio.Event().wait()
