"""The least an honest webhook receiver in aiohttp can do: check the HMAC, parse the JSON, answer 202. It stores nothing.

The limit of what ours can reach, since ours does the same and then stores.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hmac
import json
from pathlib import Path

import orjson
import uvloop
from aiohttp import web


def app(secret: bytes) -> web.Application:
    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        signature = "sha256=" + hmac.digest(secret, body, "sha256").hex()
        if not hmac.compare_digest(signature.encode(), request.headers["X-Hub-Signature-256"].encode()):
            return web.Response(status=401)
        push = orjson.loads(body)
        answer = {"delivery": request.headers["X-GitHub-Delivery"], "ref": push["ref"]}
        return web.Response(status=202, body=json.dumps(answer).encode(), content_type="application/json")

    receiver = web.Application(client_max_size=25 * 1024 * 1024)
    receiver.router.add_post("/api/webhooks/github/{source}", receive)
    return receiver


async def serve(port: int, secret: bytes) -> None:
    runner = web.AppRunner(app(secret), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    gc.collect()
    gc.freeze()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="aiohttp with HMAC and parse, nothing stored")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--secret-file", type=Path, required=True)
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner_:
        runner_.run(serve(asked.port, asked.secret_file.read_bytes().strip()))
