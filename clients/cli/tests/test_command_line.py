"""How the command line answers when something is wrong: one line that says what to do, and an exit code."""

from pathlib import Path

import cyclopts
import pytest

from hythe_cli import asking
from hythe_cli.__main__ import COMMANDS, run
from hythe_events.installation import Vault


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYTHE_HOME", str(tmp_path / "nothing"))
    monkeypatch.delenv("HYTHE_NATS_URL", raising=False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        "stack list",
        "stack show web",
        "deploy web",
        "rollback web",
        "history",
        "show 0192f0c1",
        "logs 0192f0c1",
        "verify",
        "events tail",
        "deliveries",
        "parked list",
        "projections rebuild",
        "source on web",
    ],
)
def test_every_command_says_how_to_start_hythe_when_it_does_not_run(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commonest mistake there is deserves the plainest answer."""
    assert run(arguments.split()) == 4
    assert lines(capsys) == ["hythe: Hythe is not running: start it with ./hythe up"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("nonsense", "nonsense"),
        ("deploy", "stack"),
        ("history -n many", "many"),
        ("deploy web --folow", "--follow"),
        ("deploy Web", "stack: expected a name of lower-case letters"),
        ("deploy web --commit abc", "commit: expected a whole commit id"),
        ("show 0192f0c1 --at yesterday", "--at: expected a version"),
        ("show 0192f0c1 --at 0", "versions begin at 1"),
        ("source add web --provider gitlab", "gitlab"),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_one_line_and_exit_code_2(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names what was wrong and, where it can, what was meant."""
    assert run(arguments.split()) == 2
    told = lines(capsys)
    assert len(told) == 1, told
    assert says in told[0]


def test_a_password_in_a_url_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments are seen by everyone on the machine, and URLs end up in logs."""
    assert run(["stack", "add", "web", "https://me:hunter2@example.com/web.git"]) == 3
    told = lines(capsys)
    assert "--token-file" in told[0]
    assert "hunter2" not in told[0]


def test_a_token_file_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a traceback, and not a stack without its token."""
    missing = tmp_path / "token"
    assert run(["stack", "add", "web", "https://example.com/web.git", "--token-file", str(missing)]) == 3
    assert str(missing) in lines(capsys)[0]


def test_a_bus_elsewhere_needs_its_key_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a server's Hythe, the address alone is not enough."""
    monkeypatch.setenv("HYTHE_NATS_URL", "nats://127.0.0.1:1")
    assert run(["history"]) == 3
    assert "HYTHE_NATS_SEED_FILE" in lines(capsys)[0]


def test_a_bus_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command is no service: it says so within seconds, where the driver would try for ever."""
    monkeypatch.setattr(asking, "CONNECTING", 0.5)
    seed = tmp_path / "nats_seed"
    Vault(tmp_path / "secrets").fill()
    seed.write_text((tmp_path / "secrets" / "client" / "nats_seed").read_text())
    monkeypatch.setenv("HYTHE_NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("HYTHE_NATS_SEED_FILE", str(seed))
    assert run(["history"]) == 4
    assert "nats://127.0.0.1:1 does not answer" in lines(capsys)[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help also proves that the module of each command can be imported."""
    assert run([name, "--help"]) == 0
    assert "Usage: hythe" in capsys.readouterr().out


def test_completion_scripts_know_the_commands() -> None:
    """Shell completion is made from the same table."""
    from hythe_cli.__main__ import app

    script = app.generate_completion(shell="bash")
    assert all(name in script for name in COMMANDS)


def options(command: cyclopts.App) -> set[str]:
    """Every option of a command, by its long name, but for those that all commands have."""
    if command.default_command is None:
        return set()
    names = {name for argument in command.assemble_argument_collection() for name in argument.names}
    positional = {
        name
        for argument in command.assemble_argument_collection()
        if argument.index is not None
        for name in argument.names
    }
    return {name for name in names - positional if name.startswith("--")} - {"--json", "--home"}


def test_every_command_and_option_stands_in_the_manual() -> None:
    """docs/cli.md is written by hand; this keeps it in step."""
    from hythe_cli.__main__ import app

    manual = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    missing = []
    for name in COMMANDS:
        command = app[name]
        subcommands = [sub for sub in command if not sub.startswith("-")]
        for words, one in [(name, command), *((f"{name} {sub}", command[sub]) for sub in subcommands)]:
            if one.default_command is not None:
                missing += [words] if f"`{words}" not in manual else []
            missing += [f"{words} {option}" for option in options(one) if option not in manual]
    assert not missing
