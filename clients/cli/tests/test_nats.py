"""The embedded NATS server: durable JetStream, and no door but one."""

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import nats
import pytest

from hythe_cli.local.nats import NatsServer
from hythe_cli.local.processes import AlreadyRunning, run_to_end
from hythe_cli.local.testing import NatsFactory
from hythe_events.testing import until


async def varz(server: NatsServer) -> dict[str, Any]:
    def fetch() -> Any:
        with urllib.request.urlopen(f"{server.monitor_url}/varz", timeout=5) as answer:
            return json.load(answer)

    told: dict[str, Any] = await asyncio.to_thread(fetch)
    return told


async def test_every_acknowledged_message_is_synced(nats_server: NatsFactory) -> None:
    """`sync_interval: always` is what an acknowledgement is worth; the default syncs every two minutes."""
    async with nats_server() as server:
        told = await varz(server)
        assert told["jetstream"]["config"]["sync_always"] is True
        assert Path(told["jetstream"]["config"]["store_dir"]).is_relative_to(server.directory)
        assert told["max_payload"] == 8 * 1024 * 1024


async def test_a_stream_survives_a_crash_and_a_restart(nats_server: NatsFactory) -> None:
    """What was acknowledged is there after `kill -9`, on the same address."""
    async with nats_server() as server:
        url = server.url
        client = await nats.connect(url)
        jetstream = client.jetstream()
        await jetstream.add_stream(name="kept", subjects=["kept"])
        await jetstream.publish("kept", b"one")
        await client.close()
        await server.kill()
        await server.start()
        assert server.url == url
        client = await nats.connect(url)
        assert (await client.jetstream().stream_info("kept")).state.messages == 1
        await client.close()


async def test_a_wiped_store_is_empty(nats_server: NatsFactory) -> None:
    """The relay must be able to meet a bus that lost everything."""
    async with nats_server() as server:
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(name="lost", subjects=["lost"])
        await client.close()
        await server.stop()
        await server.wipe()
        await server.start()
        client = await nats.connect(server.url)
        assert await client.jetstream().streams_info() == []
        await client.close()


async def test_only_the_named_users_get_in(nats_server: NatsFactory) -> None:
    """Users and permissions come from the text that is passed, and can be changed while it runs."""
    block = 'authorization { users = [ { user: "%s", password: "%s" } ] }'
    async with nats_server(authorization=block % ("git", "first")) as server:
        await (await nats.connect(server.url, user="git", password="first")).close()

        async def refused(password: str) -> bool:
            try:
                client = await nats.connect(
                    server.url, user="git", password=password, allow_reconnect=False, connect_timeout=2
                )
            except (nats.errors.Error, OSError):
                return True
            await client.close()
            return False

        assert await refused("second")
        await server.reload(block % ("git", "second"))

        async def accepted() -> bool:
            return not await refused("second")

        await until(accepted, 10)
        assert await refused("first")


async def test_it_listens_on_this_machine_alone_and_on_two_ports(nats_server: NatsFactory) -> None:
    """Websocket, MQTT, leaf node and cluster listeners have all been ways in; there are none."""
    async with nats_server() as server:
        _, table = await run_to_end("cat", "/proc/net/tcp", "/proc/net/tcp6")
        sockets = await open_sockets(server)
        listening = {
            row.split()[1]
            for row in table.splitlines()
            if len(row.split()) > 9 and row.split()[3] == "0A" and row.split()[9] in sockets
        }
        assert listening == {f"0100007F:{port:04X}" for port in (server.port, server.monitor_port)}


async def open_sockets(server: NatsServer) -> set[str]:
    """The inode numbers of a server's sockets."""
    links = [str(link.readlink()) for link in Path(f"/proc/{server.pid}/fd").iterdir() if link.is_symlink()]
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")}


async def test_a_second_hythe_on_the_same_directory_is_refused(nats_server: NatsFactory) -> None:
    """NATS itself does not notice a second server on its store, and both would write to it."""
    async with nats_server() as server:
        with pytest.raises(AlreadyRunning):
            await NatsServer(server.directory).start()
