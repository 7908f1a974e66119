"""What a recording proxy in front of the engine sees: every call that changes something carries its fence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hythe_deploy.handlers import Handlers
from hythe_deploy.lease import Leases
from hythe_deploy.stacks import Stacks
from hythe_events.store import Store
from hythe_events.testing import MigratedDatabase

if TYPE_CHECKING:
    from services.deploy.tests.conftest import Yard


@dataclass
class Recorder:
    """A proxy on a socket of its own; `calls` is (stack, fence, method, path) of everything but looking."""

    engine: str
    calls: list[tuple[str, int | None, str, str]] = field(default_factory=list)

    @asynccontextmanager
    async def listen(self, socket: Path) -> AsyncIterator[str]:
        server = await asyncio.start_unix_server(self._serve, socket)
        async with server:
            yield f"unix://{socket}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(self.engine.removeprefix("unix://"))
        answers = asyncio.ensure_future(self._pump(engine_reader, writer))
        try:
            while head := await self._head(reader):
                engine_writer.write(head)
                await self._body(head, reader, engine_writer)
                await engine_writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            engine_writer.close()
            answers.cancel()
            writer.close()

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        headers = _headers(head)
        if method not in {"GET", "HEAD"}:
            fence = headers.get("x-hythe-fence")
            self.calls.append(
                (
                    headers.get("x-hythe-stack", ""),
                    int(fence) if fence else None,
                    method,
                    path.partition("?")[0],
                )
            )
        return head

    @staticmethod
    async def _body(head: bytes, reader: asyncio.StreamReader, engine: asyncio.StreamWriter) -> None:
        headers = _headers(head)
        if headers.get("transfer-encoding") == "chunked":
            while True:
                line = await reader.readuntil(b"\r\n")
                engine.write(line + await reader.readexactly(int(line.split(b";")[0], 16) + 2))
                if int(line.split(b";")[0], 16) == 0:
                    return
        engine.write(await reader.readexactly(int(headers.get("content-length", "0"))))

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
            writer.close()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode().split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


async def test_fences_never_interleave(
    yard: Yard, healthy: str, database: MigratedDatabase, tmp_path: Path
) -> None:
    """Two deployments of a stack at once, one of another beside them: per stack the fences only grow (I2)."""
    compose = f"services: {{web: {{build: ., init: true, healthcheck: {healthy}}}}}"
    one, two, bad = (
        await yard.image("one"),
        await yard.image("two"),
        await yard.image("broken", "sh -c rm /www/index.html; sleep 100"),
    )
    recorder = Recorder(yard.settings.docker_host)
    async with (
        recorder.listen(tmp_path / "proxy.sock") as address,
        Store.open(database.dsn("deploy")) as store,
    ):
        settings = yard.settings.model_copy(update={"docker_host": address})
        yard.handlers = Handlers(yard.store, yard.blobs, Stacks(settings), Leases(store))
        waiting = [
            await yard.deploy("shop", compose, {"web": one}, run=False),
            await yard.deploy("shop", compose, {"web": bad}, run=False),
            await yard.deploy("shop", compose, {"web": two}, run=False),
            await yard.deploy("blog", compose, {"web": one}, run=False),
        ]
        ended = await asyncio.gather(*(yard.go_on(one.id) for one in waiting if one.id))
    assert {state.outcome for state in ended} <= {"succeeded", "superseded", "failed", "rolled_back"}
    assert ended[2].outcome == ended[3].outcome == "succeeded"
    assert (await yard.containers("shop"))["web"]["Image"] == two.digest
    assert recorder.calls
    assert [call for call in recorder.calls if call[1] is None or not call[0]] == []
    for name in ("shop", "blog"):
        fences = [fence for stack, fence, *_ in recorder.calls if stack == yard.stack(name)]
        assert fences == sorted(fences, key=lambda fence: fence or 0)
    changed = {(method, path.rpartition("/")[2]) for _, _, method, path in recorder.calls}
    assert {("POST", "create"), ("POST", "start"), ("POST", "tag")} <= changed
