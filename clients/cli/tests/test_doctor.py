"""`hythe doctor`: a bad line must name what mends it, and nothing may end in a traceback."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from hythe_cli import doctor
from hythe_cli.home import Home
from hythe_cli.local.engine import Engine
from hythe_cli.local.processes import run_to_end


async def test_a_machine_that_has_everything_is_told_so(docker_engine: Engine, tmp_path: Path) -> None:
    """This machine runs the tests, so it has all that Hythe needs; one line per check says what was seen."""
    findings = await doctor.examine(Home(tmp_path / "home"), tmp_path / "stacks")
    assert [finding for finding in findings if not finding.ok] == []
    seen = {finding.check: finding.found for finding in findings}
    assert docker_engine.version in seen["Docker"]
    assert "(PostgreSQL) 18" in seen["servers"]
    assert not (tmp_path / "home").exists(), "looking changes nothing"


async def test_a_machine_without_an_engine_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mending command stands in the line, not in a manual."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    for finding in (await doctor.docker(), await doctor.buildkit()):
        assert not finding.ok
        assert "docker" in finding.mend.lower()


async def test_a_machine_without_git_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git is the one program besides Docker that Hythe calls."""
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = await doctor.git_programs()
    assert (finding.ok, finding.mend) == (False, "sudo apt-get install -y git")


async def test_a_folder_that_cannot_be_made_is_named_with_its_setting() -> None:
    """Nobody should learn this from a failed deployment."""
    finding = await doctor.writable("STACKS_DIR", Path("/proc/nowhere/stacks"))
    assert not finding.ok
    assert "/proc/nowhere/stacks" in finding.mend
    assert "STACKS_DIR" in finding.mend


async def test_a_port_that_another_program_took_is_named(tmp_path: Path) -> None:
    """The next start would take another port, and bookmarks would break without a word."""
    home = Home(tmp_path)
    (tmp_path / "nats").mkdir()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (tmp_path / "nats" / "port").write_text(f"{port}\n")
        finding = await doctor.ports(home)
    assert (finding.ok, str(port) in finding.found) == (False, True)
    assert (await doctor.ports(home)).ok


async def test_a_clock_that_was_set_back_is_found(tmp_path: Path) -> None:
    """A log whose times run backwards can be read, but not understood."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "git.log").touch()
    assert (await doctor.clock(tmp_path)).ok
    tomorrow = time.time() + 86_400
    os.utime(tmp_path / "log" / "git.log", (tomorrow, tomorrow))
    finding = await doctor.clock(tmp_path)
    assert not finding.ok
    assert "before our last file" in finding.found


async def test_it_speaks_json_to_programs(tmp_path: Path) -> None:
    """A monitor reads the same findings; the exit code tells whether all is well."""
    environment = {**os.environ, "HYTHE_HOME": str(tmp_path), "STACKS_DIR": "/proc/nowhere"}
    code, output = await run_to_end(sys.executable, "-m", "hythe_cli", "doctor", "--json", env=environment)
    findings = {finding["check"]: finding for finding in json.loads(output)}
    assert code == 1
    assert findings["HYTHE_HOME"]["ok"]
    assert not findings["STACKS_DIR"]["ok"]
