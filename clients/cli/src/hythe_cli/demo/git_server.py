"""A small forge on this machine: real Git over HTTP, and a signed webhook after each push, as GitHub sends it.

```
git push ──HTTP──► git http-backend (CGI) ──► refs changed? ──► POST webhook (X-Hub-Signature-256)
```

The demo pushes to it, and the tests fetch from it, so that neither needs an account anywhere. Git itself answers the
protocol; this module only carries bytes between HTTP and `git http-backend`, and compares the branches before and
after a push. It listens on loopback and is not meant for anything else.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import aiohttp
from aiohttp import web

from hythe_events.errors import HytheError

ZERO = "0" * 40
_name = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


class GitFailed(HytheError):
    """A git command failed; the message holds what it wrote."""


@dataclass(frozen=True)
class Webhook:
    """Where a push is told, and the secret it is signed with."""

    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Hosted:
    """A repository on the server: its folder here, and the URL to clone it by."""

    name: str
    path: Path
    url: str
    webhook: Webhook | None = None
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Delivered:
    """One webhook that was sent: `status` is the receiver's HTTP status, None when nobody answered."""

    delivery: str
    repository: str
    ref: str
    after: str
    status: int | None
    answer: str


async def git(
    *arguments: str,
    cwd: Path,
    input: bytes | None = None,  # noqa: A002  subprocess's own word
    env: Mapping[str, str] | None = None,
) -> str:
    """Run git in `cwd`, untouched by the user's configuration; return what it wrote. Raises GitFailed."""
    process = await asyncio.create_subprocess_exec(
        "git",
        *arguments,
        cwd=cwd,
        env={**_environment(), **(env or {})},
        stdin=asyncio.subprocess.PIPE if input is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate(input)
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    if process.returncode != 0:
        raise GitFailed(
            f"git {arguments[0]} failed: {err.decode(errors='replace').strip() or process.returncode}"
        )
    return out.decode(errors="surrogateescape").rstrip("\n")


def _environment() -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
    }


class GitServer:
    """Serves the repositories in `directory`. `async with GitServer(path) as forge:`; `stop` may be called twice."""

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.directory = directory
        self.deliveries: asyncio.Queue[Delivered] = asyncio.Queue()
        """Every webhook that was sent, in order, once its answer is there."""
        self.requests: list[str] = []
        """`METHOD /path` of every request, in order."""
        self._host, self._port = host, port
        self._repositories: dict[str, Hosted] = {}
        self._runner: web.AppRunner | None = None
        self._client: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end. Only after `start`."""
        assert self._port, "the server was not started"
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen; from here on `url` is known."""
        self.directory.mkdir(parents=True, exist_ok=True)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{name}.git/{rest:.*}", self._serve)
        self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening. A push under way has two seconds to end."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def create_repository(
        self, name: str, *, webhook: Webhook | None = None, token: str | None = None, branch: str = "main"
    ) -> Hosted:
        """Make an empty repository, or take up the one that is there. With `token` it asks for it as a password.

        It may be called again to change the webhook. Raises GitFailed.
        """
        assert _name.fullmatch(name), f"{name!r} is no name for a repository"
        path = self.directory / f"{name}.git"
        if not (path / "HEAD").exists():
            await git(
                "init", "--quiet", "--bare", f"--initial-branch={branch}", "--", str(path), cwd=self.directory
            )
            for key in ("http.receivepack", "uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter"):
                await git("config", key, "true", cwd=path)
        hosted = Hosted(name, path, f"{self.url}/{name}.git", webhook, token)
        self._repositories[name] = hosted
        return hosted

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        repository = self._repositories.get(request.match_info["name"])
        if repository is None:
            raise web.HTTPNotFound(text="no such repository\n")
        if repository.token is not None and not _opens(
            repository.token, request.headers.get("Authorization", "")
        ):
            raise web.HTTPUnauthorized(
                headers={"WWW-Authenticate": 'Basic realm="git"'}, text="a token is needed\n"
            )
        pushing = request.method == "POST" and request.match_info["rest"] == "git-receive-pack"
        before = await _branches(repository) if pushing else {}
        response = await self._backend(request)
        if pushing and repository.webhook is not None:
            after = await _branches(repository)
            for ref in sorted(before.keys() | after.keys()):
                if before.get(ref) != after.get(ref):
                    await self._tell(repository, repository.webhook, ref, before.get(ref), after.get(ref))
        return response

    async def _backend(self, request: web.Request) -> web.StreamResponse:
        """Run `git http-backend` for one request (CGI, RFC 3875; see git-http-backend(1))."""
        environment = _environment() | {
            "GIT_PROJECT_ROOT": str(self.directory),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "REMOTE_ADDR": request.remote or "",
            "REMOTE_USER": "git",
        }
        process = await asyncio.create_subprocess_exec(
            "git",
            "http-backend",
            env=environment,
            cwd=self.directory,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=1 << 20,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        feeding = asyncio.create_task(_feed(request.content, process.stdin))
        try:
            head = await process.stdout.readuntil(b"\r\n\r\n")
            response = _response(head)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):  # a client that has what it wants hangs up
                while chunk := await process.stdout.read(1 << 16):
                    await response.write(chunk)
                await process.wait()
                await response.write_eof()
        except asyncio.IncompleteReadError as error:
            raise web.HTTPInternalServerError(text="git http-backend did not answer\n") from error
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await feeding
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return response

    async def _tell(
        self, repository: Hosted, webhook: Webhook, ref: str, before: str | None, after: str | None
    ) -> None:
        assert self._client is not None
        delivery = str(uuid4())
        body = json.dumps(await _push_payload(repository, ref, before, after)).encode()
        status: int | None = None
        try:
            async with self._client.post(
                webhook.url,
                data=body,
                headers={
                    "Content-Type": "application/json",
                    "User-Agent": "GitHub-Hookshot/demo",
                    "X-GitHub-Event": "push",
                    "X-GitHub-Delivery": delivery,
                    "X-GitHub-Hook-ID": "1",
                    "X-Hub-Signature-256": signature(webhook.secret, body),
                },
            ) as response:
                status, answer = response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            answer = f"{type(error).__name__}: {error}"
        self.deliveries.put_nowait(Delivered(delivery, repository.name, ref, after or ZERO, status, answer))


def signature(secret: str, body: bytes) -> str:
    """The value of `X-Hub-Signature-256`, as GitHub computes it: HMAC-SHA256 over the raw body."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _opens(token: str, authorization: str) -> bool:
    kind, _, encoded = authorization.partition(" ")
    try:
        password = base64.b64decode(encoded).decode().partition(":")[2]
    except ValueError:
        return False
    return kind.lower() == "basic" and hmac.compare_digest(password.encode(), token.encode())


async def _feed(source: aiohttp.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        async for chunk in source.iter_chunked(1 << 16):
            sink.write(chunk)
            await sink.drain()
    sink.close()


def _response(head: bytes) -> web.StreamResponse:
    status, headers = 200, {}
    for line in head.decode("latin-1").split("\r\n"):
        name, found, value = line.partition(":")
        if not found:
            continue
        if name.lower() == "status":
            status = int(value.split()[0])
        else:
            headers[name] = value.strip()
    return web.StreamResponse(status=status, headers=headers)


async def _branches(repository: Hosted) -> dict[str, str]:
    listed = await git("for-each-ref", "--format=%(refname) %(objectname)", "refs/heads", cwd=repository.path)
    return dict(line.rsplit(" ", 1) for line in listed.splitlines())


async def _push_payload(
    repository: Hosted, ref: str, before: str | None, after: str | None
) -> dict[str, Any]:
    """The `push` event of GitHub (docs.github.com, "Webhook events and payloads"), as far as a deployer reads it."""
    commits = [commit async for commit in _commits(repository, before, after)] if after else []
    owner = {"name": "demo", "login": "demo", "id": 1, "email": "demo@example.com"}
    return {
        "ref": ref,
        "before": before or ZERO,
        "after": after or ZERO,
        "created": before is None,
        "deleted": after is None,
        "forced": before is not None
        and after is not None
        and not await _is_ancestor(repository, before, after),
        "base_ref": None,
        "compare": f"{repository.url}/compare",
        "repository": {
            "id": int.from_bytes(hashlib.sha256(repository.name.encode()).digest()[:4], "big"),
            "name": repository.name,
            "full_name": f"demo/{repository.name}",
            "private": repository.token is not None,
            "owner": owner,
            "html_url": repository.url.removesuffix(".git"),
            "clone_url": repository.url,
            "default_branch": "main",
        },
        "pusher": {"name": "demo", "email": "demo@example.com"},
        "sender": owner,
        "commits": commits,
        "head_commit": commits[-1] if commits else None,
    }


async def _is_ancestor(repository: Hosted, before: str, after: str) -> bool:
    try:
        await git("merge-base", "--is-ancestor", before, after, cwd=repository.path)
    except GitFailed:
        return False
    return True


async def _commits(
    repository: Hosted, before: str | None, after: str | None
) -> AsyncIterator[dict[str, Any]]:
    span = f"{before}..{after}" if before else str(after)
    form = "%x01%H%x00%T%x00%aI%x00%an%x00%ae%x00%B%x00"
    limit = "--max-count=20" if before else "--max-count=1"
    options = (limit, "--reverse", f"--format={form}", "--name-status", "--no-renames")
    listed = await git("log", *options, span, "--", cwd=repository.path)
    for part in filter(None, listed.split("\x01")):
        commit, tree, at, name, mail, message, changes = part.split("\x00", 6)
        paths: dict[str, list[str]] = {"A": [], "M": [], "D": []}
        for line in changes.split("\n"):
            kind, found, path = line.partition("\t")
            if found:
                paths.get(kind, paths["M"]).append(path)
        person = {"name": name, "email": mail, "username": name}
        yield {
            "id": commit,
            "tree_id": tree,
            "distinct": True,
            "message": message.rstrip("\n"),
            "timestamp": at,
            "url": f"{repository.url.removesuffix('.git')}/commit/{commit}",
            "author": person,
            "committer": person,
            "added": paths["A"],
            "removed": paths["D"],
            "modified": paths["M"],
        }


class WorkTree:
    """A clone to commit in and push from. `await WorkTree.of(hosted, folder)` makes it; nothing is pushed by itself."""

    def __init__(self, folder: Path, token: str | None = None) -> None:
        self.folder = folder
        self._token = token

    @classmethod
    async def of(cls, repository: Hosted, folder: Path, *, branch: str = "main") -> Self:
        """An empty clone of `repository` in `folder`, on `branch`. Raises GitFailed."""
        folder.mkdir(parents=True, exist_ok=True)
        await git("init", "--quiet", f"--initial-branch={branch}", ".", cwd=folder)
        await git("remote", "add", "origin", "--", repository.url, cwd=folder)
        return cls(folder, repository.token)

    async def commit(
        self, files: Mapping[str, str | bytes | None], message: str, *, author: str = "Demo"
    ) -> str:
        """Write `files` (None removes one), commit them and return the commit's id. Raises GitFailed."""
        for name, content in files.items():
            path = self.folder / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        await git("add", "--all", cwd=self.folder)
        person = {
            "GIT_AUTHOR_NAME": author,
            "GIT_AUTHOR_EMAIL": "demo@example.com",
            "GIT_COMMITTER_NAME": author,
            "GIT_COMMITTER_EMAIL": "demo@example.com",
        }
        await git("commit", "--quiet", "--allow-empty", f"--message={message}", cwd=self.folder, env=person)
        return await git("rev-parse", "HEAD", cwd=self.folder)

    async def push(self, branch: str = "main", *, force: bool = False) -> None:
        """Push HEAD to `branch`; the server has told its webhook when its `deliveries` say so. Raises GitFailed."""
        options = ("--force",) if force else ()
        refspec = f"HEAD:refs/heads/{branch}"
        await git("push", "--quiet", *options, "origin", refspec, cwd=self.folder, env=self._login())

    def _login(self) -> dict[str, str]:
        """The token as a header, told by the environment: in no file, and not among the arguments that `ps` shows."""
        if self._token is None:
            return {}
        basic = base64.b64encode(f"git:{self._token}".encode()).decode()
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
        }
