"""The demo's forge: real Git over HTTP, and a webhook that GitHub could have sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from hythe_cli.demo.git_server import ZERO, GitFailed, GitServer, Webhook, WorkTree, git, signature

SECRET = "It's a Secret to Everybody"


@dataclass
class Receiver:
    """Takes webhooks and keeps them; answers 202."""

    url: str = ""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()

    async def take(request: web.Request) -> web.Response:
        made.got.append((dict(request.headers), await request.read()))
        return web.json_response({"delivery": request.headers["X-GitHub-Delivery"]}, status=202)

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


@pytest_asyncio.fixture
async def forge(tmp_path: Path) -> AsyncIterator[GitServer]:
    async with GitServer(tmp_path / "forge") as server:
        yield server


async def test_what_is_pushed_can_be_cloned(forge: GitServer, tmp_path: Path) -> None:
    """By any git: it is git that answers."""
    hosted = await forge.create_repository("app")
    work = await WorkTree.of(hosted, tmp_path / "work")
    commit = await work.commit({"a.txt": "hello\n", "bin/data": bytes(300_000)}, "first")
    await work.push()
    await git("clone", "--quiet", "--depth", "1", "--", hosted.url, "copy", cwd=tmp_path)
    assert (tmp_path / "copy" / "a.txt").read_text() == "hello\n"
    assert await git("rev-parse", "HEAD", cwd=tmp_path / "copy") == commit


async def test_a_push_is_told_as_github_tells_it(
    forge: GitServer, receiver: Receiver, tmp_path: Path
) -> None:
    """Signed over the raw body; with the fields a deployer reads; once per branch that changed."""
    hosted = await forge.create_repository("app", webhook=Webhook(receiver.url, SECRET))
    work = await WorkTree.of(hosted, tmp_path / "work")
    first = await work.commit({"a.txt": "1", "b.txt": "1"}, "first")
    await work.push()
    second = await work.commit(
        {"a.txt": "2", "b.txt": None, "c/d.txt": "3"}, "second\n\nwith a body", author="Ada"
    )
    await work.push()
    async with asyncio.timeout(10):
        told = [await forge.deliveries.get() for _ in range(2)]
    assert [(each.status, each.ref, each.after) for each in told] == [
        (202, "refs/heads/main", first),
        (202, "refs/heads/main", second),
    ]
    headers, body = receiver.got[1]
    assert headers["X-GitHub-Event"] == "push"
    assert headers["X-GitHub-Delivery"] == told[1].delivery
    assert headers["X-Hub-Signature-256"] == signature(SECRET, body)
    payload = json.loads(body)
    assert (payload["before"], payload["after"], payload["created"], payload["forced"]) == (
        first,
        second,
        False,
        False,
    )
    assert payload["head_commit"]["id"] == second
    assert payload["head_commit"]["message"] == "second\n\nwith a body"
    assert payload["head_commit"]["author"]["name"] == "Ada"
    assert (
        payload["commits"][0]["modified"],
        payload["commits"][0]["removed"],
        payload["commits"][0]["added"],
    ) == (
        ["a.txt"],
        ["b.txt"],
        ["c/d.txt"],
    )
    created = json.loads(receiver.got[0][1])
    assert (created["before"], created["created"]) == (ZERO, True)


async def test_a_forced_push_and_a_deleted_branch_are_told_as_such(
    forge: GitServer, receiver: Receiver, tmp_path: Path
) -> None:
    """A deployer must be able to tell them from ordinary pushes."""
    hosted = await forge.create_repository("app", webhook=Webhook(receiver.url, SECRET))
    work = await WorkTree.of(hosted, tmp_path / "work")
    await work.commit({"a": "1"}, "first")
    await work.commit({"a": "2"}, "second")
    await work.push()
    await git("reset", "--quiet", "--hard", "HEAD~1", cwd=work.folder)
    await work.commit({"a": "3"}, "instead")
    await work.push(force=True)
    await work.push("other")
    await git("push", "--quiet", "origin", ":refs/heads/other", cwd=work.folder)
    async with asyncio.timeout(10):
        for _ in range(4):
            await forge.deliveries.get()
    _, forced, _, deleted = [json.loads(body) for _, body in receiver.got]
    assert forced["forced"] is True
    assert (deleted["deleted"], deleted["after"], deleted["head_commit"]) == (True, ZERO, None)


def test_the_signature_is_githubs() -> None:
    """The example of GitHub's own documentation ("Validating webhook deliveries")."""
    expected = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert signature(SECRET, b"Hello, World!") == f"sha256={expected}"


async def test_a_receiver_that_is_down_does_not_hold_the_push(forge: GitServer, tmp_path: Path) -> None:
    """As with a real forge: the push is in, and the delivery is shown as not answered."""
    hosted = await forge.create_repository("app", webhook=Webhook("http://127.0.0.1:9/hook", SECRET))
    work = await WorkTree.of(hosted, tmp_path / "work")
    await work.commit({"a": "1"}, "first")
    await work.push()
    async with asyncio.timeout(10):
        assert (await forge.deliveries.get()).status is None


async def test_a_closed_repository_needs_its_token(forge: GitServer, tmp_path: Path) -> None:
    """And the token stands in no file of the clone."""
    closed = await forge.create_repository("closed", token="s3cret")
    work = await WorkTree.of(closed, tmp_path / "work")
    await work.commit({"a": "1"}, "first")
    await work.push()
    assert "s3cret" not in repr(closed)
    assert "s3cret" not in (work.folder / ".git" / "config").read_text()
    with pytest.raises(GitFailed):
        await git("clone", "--quiet", "--", closed.url, "copy", cwd=tmp_path)


async def test_the_same_repository_can_be_taken_up_again(forge: GitServer, tmp_path: Path) -> None:
    """A second start of the demo finds what the first one made."""
    hosted = await forge.create_repository("app")
    work = await WorkTree.of(hosted, tmp_path / "work")
    commit = await work.commit({"a": "1"}, "first")
    await work.push()
    await forge.stop()
    await forge.stop()
    async with GitServer(forge.directory) as again:
        taken_up = await again.create_repository("app")
        assert commit in await git("ls-remote", taken_up.url, cwd=tmp_path)
