"""The Docker engine: found, or one line that says what to do."""

import asyncio
from pathlib import Path

import pytest

from hythe_cli.local.engine import (
    Engine,
    NoEngine,
    ensure_engine,
    find_engine,
    is_debian_like,
    is_static,
    static_busybox,
)


async def serve(folder: Path, answer: bytes) -> tuple[asyncio.Server, str]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    socket = folder / "s"
    return await asyncio.start_unix_server(talk, socket), f"unix://{socket}"


async def test_the_engine_of_this_machine_answers_and_is_left_alone(
    docker_engine: Engine, tmp_path: Path
) -> None:
    """An engine that runs is used as it is: nothing is installed, started, or stopped with us."""
    said: list[str] = []
    engine = await ensure_engine(said.append, log=tmp_path / "log")
    assert said == []
    assert engine.started is None
    assert engine.version == docker_engine.version
    assert tuple(int(part) for part in engine.api_version.split(".")) >= (1, 41)


async def test_what_answers_is_asked_for_its_version(tmp_path: Path) -> None:
    """A socket file alone proves nothing."""
    server, host = await serve(
        tmp_path, b'HTTP/1.0 200 OK\r\n\r\n{"Version": "29.0.1", "ApiVersion": "1.52"}'
    )
    async with server:
        assert await find_engine(host) == Engine(host, "29.0.1", "1.52")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.0 500 Oops\r\n\r\n{}", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.0 200 OK\r\n\r\n[1]"]
)
async def test_something_else_on_the_socket_is_no_engine(tmp_path: Path, answer: bytes) -> None:
    """A wrong DOCKER_HOST must end in a sentence, not in a parser's error."""
    server, host = await serve(tmp_path, answer)
    async with server:
        assert await find_engine(host) is None


@pytest.mark.parametrize(
    "host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "ssh://somewhere", "nonsense"]
)
async def test_an_address_where_nothing_answers_is_no_engine(host: str) -> None:
    """Whatever stands in DOCKER_HOST, the answer is None, and the caller has the sentence."""
    assert await find_engine(host) is None


async def test_an_engine_that_was_named_and_does_not_answer_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who set DOCKER_HOST wants that engine, not one that we install."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    said: list[str] = []
    with pytest.raises(NoEngine, match="DOCKER_HOST"):
        await ensure_engine(said.append, log=tmp_path / "log")
    assert said == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nVERSION_ID="12"\n', True),
        ("ID=ubuntu\nID_LIKE=debian\n", True),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', True),
        ("ID=fedora\n", False),
        ("", False),
    ],
)
def test_only_debian_and_its_relatives_get_packages_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: bool
) -> None:
    """apt-get with Debian's names would fail, or do something else, anywhere else."""
    (tmp_path / "apt-get").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "os-release").write_text(text)
    assert is_debian_like(tmp_path / "os-release") is expected


async def test_a_busybox_without_libraries_is_at_hand(docker_engine: Engine) -> None:
    """Images for the demo and the tests are made from nothing: their program must need nothing."""
    busybox = await static_busybox(print)
    assert is_static(busybox)
    assert not is_static(Path("/bin/sh").resolve())
    (text := Path(__file__)).resolve()
    assert not is_static(text)
