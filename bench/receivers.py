"""The webhook receivers that stand beside ours, and the load that all of them get: 64 kept connections on the loopback.

A receiver is a process that listens; the load is `wrk`, whose one thread sends several times what any receiver here takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import parts, processes, samples
from bench.figures import Reading
from bench.provision import HERE
from hythe_cli.local.world import World

CONNECTIONS = 64
PUSHES = 64
"""Different bodies; each request has a delivery id of its own."""

WARM_UP = 1


@dataclass(frozen=True)
class Receiver:
    """Something that listens. `pids` are the processes whose CPU time a request costs, read when asked."""

    port: int
    path: str
    pids: Callable[[], list[int]] = field(default=list)


def write_pushes(folder: Path, secret: bytes) -> Path:
    """The file that the load is sent from: one push a line, with its signature before it."""
    file = folder / "pushes.tsv"
    bodies = [samples.push(number) for number in range(1, PUSHES + 1)]
    file.write_bytes(
        b"".join(samples.signature(secret, body).encode() + b"\t" + body + b"\n" for body in bodies)
    )
    return file


async def load(receiver: Receiver, pushes: Path, seconds: int) -> Reading:
    """Send for `seconds` after a warm-up. An answer that is not 2xx, or none, breaks the bench: its rate would mean nothing."""
    await _wrk(receiver, pushes, WARM_UP)
    before = processes.cpu_seconds(receiver.pids())
    reading = await _wrk(receiver, pushes, seconds)
    used = processes.cpu_seconds(receiver.pids()) - before
    if reading.pop("refused") or reading.pop("broken"):
        raise SystemExit(f"the receiver at port {receiver.port} refused or broke requests: {reading}")
    if used:
        reading["cpu_us"] = used / reading["requests"] * 1e6
    return reading


async def _wrk(receiver: Receiver, pushes: Path, seconds: int) -> Reading:
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "--timeout", "10s"),
        *("-s", str(HERE / "wrk_pushes.lua"), f"http://127.0.0.1:{receiver.port}"),
        *("--", str(pushes), receiver.path, str(random.randrange(10**9))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds + 30):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    last = out.decode().strip().rpartition("\n")[2]
    if process.returncode or not last.startswith("{"):
        raise SystemExit(f"wrk failed: {out.decode()[-500:]}")
    reading: Reading = json.loads(last)
    return reading


@contextlib.asynccontextmanager
async def debian_webhook(folder: Path, secret: bytes) -> AsyncIterator[Receiver]:
    """adnanh/webhook: the signature rule holds, a second one fails, so that it verifies, parses and runs nothing."""
    hooks = folder / "hooks.json"
    signed = {
        "type": "payload-hmac-sha256",
        "secret": secret.decode(),
        "parameter": {"source": "header", "name": "X-Hub-Signature-256"},
    }
    never = {"type": "value", "value": "refs/heads/never", "parameter": {"source": "payload", "name": "ref"}}
    rule = {"and": [{"match": signed}, {"match": never}]}
    hooks.write_text(json.dumps([{"id": "bench", "execute-command": "/bin/true", "trigger-rule": rule}]))
    hooks.chmod(0o600)
    port = processes.free_port()
    command = ("webhook", "-hooks", str(hooks), "-ip", "127.0.0.1", "-port", str(port))
    async with processes.running(*command, log=folder / "webhook.log") as process:
        await processes.until(process, lambda: processes.listens(port))
        yield Receiver(port, "/hooks/bench", lambda: [process.pid])


@contextlib.asynccontextmanager
async def bare_aiohttp(python: Path, folder: Path, secret: bytes) -> AsyncIterator[Receiver]:
    """`contestants/bare_receiver.py`: HMAC and parse, nothing stored."""
    port = processes.free_port()
    secret_file = folder / "secret"
    secret_file.write_bytes(secret)
    secret_file.chmod(0o600)
    command = (
        *(str(python), "-m", "bench.contestants.bare_receiver"),
        *("--port", str(port), "--secret-file", str(secret_file)),
    )
    async with processes.running(*command, log=folder / "bare.log") as process:
        await processes.until(process, lambda: processes.listens(port))
        yield Receiver(port, "/api/webhooks/github/bench", lambda: [process.pid])


@contextlib.asynccontextmanager
async def hythe(world: World, log: Path, path: str, count: int) -> AsyncIterator[Receiver]:
    """`count` processes of our webhooks service on one port."""
    port = processes.free_port()
    servers = parts.server_pids(world)
    async with contextlib.AsyncExitStack() as stack:
        pids = [
            await stack.enter_async_context(
                parts.service(world, "webhooks", log, port=port, reuse_port=count > 1)
            )
            for _ in range(count)
        ]
        yield Receiver(port, path, lambda: [*pids, *servers()])
