"""The command line against a running Hythe: what a person sees, what a program gets, and the exit codes."""

import asyncio
import json
import os
import sys
from typing import Any
from uuid import UUID

import pytest

from hythe_cli import asking
from hythe_cli.demo.scene import Scene

PATIENCE = 60.0


class Answer:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        """Its output as JSON."""
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        """Its output as one JSON document per line."""
        return [json.loads(line) for line in self.out.splitlines()]


async def hythe(scene: Scene, *words: str) -> Answer:
    """Run a command as a process, as a person would."""
    environment = {**os.environ, "HYTHE_HOME": str(scene.folder)}
    environment.pop("HYTHE_NATS_URL", None)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hythe_cli",
        *words,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Answer(process.returncode, out.decode(), err.decode())


async def test_a_stack_is_added_deployed_shown_and_rolled_back_by_command(scene: Scene, stack: str) -> None:
    """The whole of a day's work without a browser."""
    app = await scene.add_app(stack, told_of_pushes=False)
    first_commit = await scene.commit_first(app, "Say \x1b]0;hello\x07")
    await app.work.push()

    added = await hythe(scene, "stack", "add", f"{stack}-2", app.repository.url, "--json")
    assert added.code == 0
    assert added.json["webhook"]["url"].startswith(scene.system.webhooks_url)
    assert len(added.json["webhook"]["secret"]) >= 32
    assert [row["stack"] for row in (await hythe(scene, "stack", "list", "--json")).json].count(stack) == 1

    deployed = await hythe(scene, "deploy", stack, "--follow", "--json")
    assert deployed.code == 0, deployed.out + deployed.err
    assert deployed.json_lines[0]["type"] == "deployment.requested"
    assert deployed.json_lines[-1]["type"] == "deploy.completed"
    first = deployed.json_lines[0]["data"]["deployment"]

    shown = await hythe(scene, "show", first[:16], "--json")
    assert shown.code == 0
    assert shown.json["state"]["outcome"] == "succeeded"
    assert shown.json["state"]["commit"] == first_commit
    then = await hythe(scene, "show", first, "--at", "2", "--json")
    assert then.json["state"]["outcome"] is None
    assert then.json["state"]["version"] == 2
    at = shown.json["events"][1]["time"]
    assert (await hythe(scene, "show", first, "--at", at, "--json")).json == then.json
    readable = await hythe(scene, "show", first)
    assert "\x1b" not in readable.out
    assert "\\x1b]0;hello\\x07" in readable.out

    log = await hythe(scene, "logs", first)
    assert log.code == 0
    assert log.out

    await scene.commit_broken(app)
    await app.work.push()
    broken = await hythe(scene, "deploy", stack, "--follow")
    assert broken.code == 1, "a deployment that failed is not a success to a script"
    assert "rolled_back" in broken.out

    back = await hythe(scene, "rollback", stack, "--to", first, "--reason", "for good", "--follow", "--json")
    assert back.code == 0, back.out + back.err
    async with asyncio.timeout(PATIENCE):  # the table follows the log, a moment behind
        while True:
            outcomes = [row["outcome"] for row in (await hythe(scene, "history", stack, "--json")).json]
            if outcomes[0]:
                break
    assert outcomes == ["succeeded", "rolled_back", "succeeded"]
    for plain in (
        ("history", stack),
        ("stack", "show", stack),
        ("stack", "list"),
        ("events", "tail"),
        ("deliveries",),
    ):
        answer = await hythe(scene, *plain)
        assert answer.code == 0, answer.err
        assert answer.out.strip()


async def test_the_log_is_read_by_command(scene: Scene, stack: str) -> None:
    """`events`, `verify`, `projections` and `parked` answer programs and people."""
    await scene.add_app(stack)
    stream = await hythe(scene, "events", "stream", f"repository-{stack}", "--json")
    assert [event["type"] for event in stream.json_lines] == ["repository.saved"]
    tail = await hythe(scene, "events", "tail", "repository.", "-n", "500", "--json")
    assert {event["type"] for event in tail.json_lines} == {"repository.saved"}
    verified = await hythe(scene, "verify", "--json")
    assert verified.code == 0
    assert verified.json["bad"] is None
    assert verified.json["checked"] == verified.json["head"]
    rebuilt = await hythe(scene, "projections", "rebuild", "--json")
    assert rebuilt.code == 0, rebuilt.out
    parked = await hythe(scene, "parked", "list", "--json")
    assert parked.json == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "ffffffff-ffff"), "begins with ffffffff-ffff"),
        (("show", "00000000-0000-7000-8000-000000000000"), "there is no deployment"),
        (("deploy", "nobody-knows-this"), "nobody-knows-this"),
        (("rollback", "nobody-knows-this"), "nobody-knows-this"),
        (("stack", "show", "nobody-knows-this"), "nobody-knows-this"),
        (("events", "stream", "stack-nobody-knows-this"), "there is no stream"),
        (("source", "off", "nobody-knows-this"), "nobody-knows-this"),
        (("cancel", "00000000-0000-7000-8000-000000000000"), "there is no deployment"),
    ],
)
async def test_what_does_not_exist_is_one_line_and_exit_code_3(
    scene: Scene, words: tuple[str, ...], says: str
) -> None:
    """A script can tell “no such thing” from “broken” and from “not now”."""
    answer = await hythe(scene, *words)
    assert answer.code == 3, answer.out + answer.err
    assert says in answer.err
    assert len(answer.err.splitlines()) == 1


async def test_a_second_up_on_the_same_folder_names_the_first(scene: Scene) -> None:
    """Two on one data directory would be the end of it; the message says which process to stop."""
    answer = await hythe(scene, "up")
    assert answer.code == 3
    assert str(os.getpid()) in answer.err
    assert len(answer.err.splitlines()) == 1


async def test_events_are_followed_as_they_happen(scene: Scene, stack: str) -> None:
    """`events tail --follow` shows what comes after it was started, without asking again and again."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hythe_cli", "events", "tail", "--follow", "-n", "1", "--json"),
        env={**os.environ, "HYTHE_HOME": str(scene.folder)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            await process.stdout.readline()
            await scene.add_app(stack)
            while json.loads(await process.stdout.readline())["subject"] != f"repository-{stack}":
                pass
    finally:
        process.terminate()
        await process.wait()
    assert await asking.head(scene.bus) > 0


ENDLESS = """\
FROM scratch
COPY busybox /busybox
RUN ["/busybox", "sh", "-c", "echo it has begun; while true; do /busybox sleep 1; done"]
"""


async def test_a_build_is_watched_while_it_runs_and_cancelled(scene: Scene, stack: str) -> None:
    """Whoever sees in the live log that a build goes wrong does not have to wait for its end."""
    app = await scene.add_app(stack, told_of_pushes=False)
    await scene.commit_first(app)
    await app.work.commit({"Dockerfile": ENDLESS}, "Build for ever")
    await app.work.push()
    deployment = (await hythe(scene, "deploy", stack, "--json")).json["deployment"]
    since = await asking.head(scene.bus)
    watching = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hythe_cli", "logs", deployment, "--follow"),
        env={**os.environ, "HYTHE_HOME": str(scene.folder)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert watching.stdout is not None
    async with asyncio.timeout(PATIENCE):
        while b"it has begun" not in (line := await watching.stdout.readline()):
            assert line, "the log ended before the build did"
        assert (await hythe(scene, "cancel", deployment, "--reason", "seen enough")).code == 0
        await scene.end_of(UUID(deployment), since)
        assert "seen enough" in (await watching.stdout.read()).decode()
        assert await watching.wait() == 0
    shown = await hythe(scene, "show", deployment, "--json")
    assert shown.json["state"]["outcome"] == "cancelled"
    assert shown.code == 1
    whole = await hythe(scene, "logs", deployment)
    assert "it has begun" in whole.out
