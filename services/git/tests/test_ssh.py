"""Mirrors over real SSH: the saved host key and no other, and a login that is tried once."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import pytest
import pytest_asyncio

from hythe_cli.demo.git_server import Hosted, WorkTree
from hythe_git import host_key
from hythe_git.address import fingerprint
from hythe_git.mirror import Login, Mirrors, Origin, SourceRefused

OriginOf = Callable[..., Origin]
Source = asyncio.StreamReader | asyncssh.SSHReader[bytes]
Sink = asyncio.StreamWriter | asyncssh.SSHWriter[bytes]


@dataclass
class SshHost:
    """An SSH server that runs `git-upload-pack` for whoever holds the client's key."""

    key: asyncssh.SSHKey
    client: asyncssh.SSHKey
    root: Path
    logins: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def known(self) -> str:
        return _public(self.key)

    @property
    def url(self) -> str:
        return f"ssh://git@127.0.0.1:{self.port}/app.git"

    def login(self, key: asyncssh.SSHKey | None = None) -> Login:
        return Login("ssh-key", "git", (key or self.client).export_private_key("openssh"))


def _public(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key("openssh").decode().split()[:2])


@pytest_asyncio.fixture
async def ssh_host(hosted: Hosted, tree: WorkTree) -> AsyncIterator[SshHost]:
    host = SshHost(
        asyncssh.generate_private_key("ssh-ed25519"),
        asyncssh.generate_private_key("ssh-ed25519"),
        hosted.path.parent,
    )

    async def carry(source: Source, sink: Sink) -> None:
        while some := await source.read(1 << 16):
            sink.write(some)
            await sink.drain()
        sink.close()

    async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
        program, path = shlex.split(process.command or "")
        assert program == "git-upload-pack"
        child = await asyncio.create_subprocess_exec(
            "git-upload-pack",
            f"{host.root}{path}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        asking = asyncio.create_task(carry(process.stdin, child.stdin))
        await carry(child.stdout, process.stdout)
        asking.cancel()
        process.exit(await child.wait())

    class Counting(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            host.logins.append(username)
            return True

    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=Counting,
        server_host_keys=[host.key],
        authorized_client_keys=asyncssh.import_authorized_keys(_public(host.client)),
        process_factory=serve,
        encoding=None,
    )
    host.port = server.get_port()
    async with server:
        yield host


async def fetch(mirrors: Mirrors, origin: Origin) -> str:
    async with mirrors.of(origin) as mirror:
        return await mirror.fetch(None)


async def test_a_repository_is_fetched_with_a_key(
    mirrors: Mirrors, ssh_host: SshHost, origin_of: OriginOf
) -> None:
    """From memory: the key is in no file."""
    assert await fetch(mirrors, origin_of(ssh_host.url, login=ssh_host.login(), known_host=ssh_host.known))


async def test_another_host_key_is_refused_with_both_fingerprints(
    mirrors: Mirrors, ssh_host: SshHost, origin_of: OriginOf
) -> None:
    """The library would take any key; whoever stands in between must not get so far as to see the login."""
    other = _public(asyncssh.generate_private_key("ssh-ed25519"))
    with pytest.raises(SourceRefused) as refused:
        await fetch(mirrors, origin_of(ssh_host.url, login=ssh_host.login(), known_host=other))
    assert f"{fingerprint(other)} was saved, {fingerprint(ssh_host.known)} is offered now" in str(
        refused.value
    )
    assert ssh_host.logins == []


async def test_one_repositorys_key_does_not_open_another(
    mirrors: Mirrors, ssh_host: SshHost, origin_of: OriginOf
) -> None:
    """Two repositories on one host, at once, with different keys saved: each is judged by its own."""
    other = _public(asyncssh.generate_private_key("ssh-ed25519"))
    right = [
        origin_of(ssh_host.url, login=ssh_host.login(), known_host=ssh_host.known, stack=f"right{n}")
        for n in range(3)
    ]
    wrong = [
        origin_of(ssh_host.url, login=ssh_host.login(), known_host=other, stack=f"wrong{n}") for n in range(3)
    ]
    every = [each for pair in zip(right, wrong, strict=True) for each in pair]
    results = await asyncio.gather(*(fetch(mirrors, each) for each in every), return_exceptions=True)
    assert [isinstance(result, str) for result in results] == [True, False] * 3


async def test_a_refused_key_is_tried_once(mirrors: Mirrors, ssh_host: SshHost, origin_of: OriginOf) -> None:
    """Left to itself the library tries it again for ever."""
    stranger = ssh_host.login(asyncssh.generate_private_key("ssh-ed25519"))
    with pytest.raises(
        SourceRefused, match="refused the login as git; save the repository with another ssh-key"
    ):
        await fetch(mirrors, origin_of(ssh_host.url, login=stranger, known_host=ssh_host.known))


async def test_a_key_that_is_none_is_said(mirrors: Mirrors, ssh_host: SshHost, origin_of: OriginOf) -> None:
    """It was pasted by a person, perhaps only half of it."""
    half = Login(
        "ssh-key", "git", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
    )
    with pytest.raises(SourceRefused, match="ssh key cannot be used"):
        await fetch(mirrors, origin_of(ssh_host.url, login=half, known_host=ssh_host.known))


async def test_a_host_key_can_be_asked_for(ssh_host: SshHost) -> None:
    """To show it beside the saved one; and nothing breaks where there is none to be had."""
    assert await host_key.offered("127.0.0.1", ssh_host.port, "ssh-ed25519") == ssh_host.known
    assert await host_key.offered("127.0.0.1", ssh_host.port, "ssh-rsa", seconds=1) is None
    assert await host_key.offered("127.0.0.1", 9, "ssh-ed25519") is None
