"""Mirrors against real git over HTTP: exactly the named commit, or a sentence that says why not."""

from __future__ import annotations

import asyncio
import io
import ssl
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pygit2
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hythe_cli.demo.git_server import GitServer, Hosted, WorkTree, git
from hythe_events.errors import Refused
from hythe_git import mirror as mirror_module
from hythe_git.mirror import Login, Mirrors, Origin, SourceRefused, Unreachable
from hythe_git.tree import BadSource, Limits

MakeMirrors = Callable[..., Mirrors]
OriginOf = Callable[..., Origin]
COMPOSE = "services: {}\n"


async def fetch(mirrors: Mirrors, origin: Origin, commit: str | None) -> str:
    async with mirrors.of(origin) as mirror:
        return await mirror.fetch(commit)


async def files(mirrors: Mirrors, origin: Origin, commit: str | None, path: str = "") -> dict[str, str]:
    async with mirrors.of(origin) as mirror:
        source = await mirror.source(await mirror.fetch(commit), path=path, compose_file=None)
    with tarfile.open(fileobj=io.BytesIO(source.tar)) as tar:
        return {each.name: tar.extractfile(each).read().decode() for each in tar if each.isfile()}  # type: ignore[union-attr]  # a file has content


@asynccontextmanager
async def answering(
    handler: Callable[[web.Request], object], *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A host that answers every request by `handler`; yields its URL."""
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handler)  # type: ignore[arg-type]  # any handler
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# -- exactly the commit


async def test_the_branchs_tip_is_fetched_and_archived(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """With its message, author and time; the archive holds its files."""
    commit = await tree.commit(
        {"compose.yaml": COMPOSE, "web/index.html": "hi"}, "say hi\n\nmore", author="Ada"
    )
    await tree.push()
    async with mirrors.of(origin_of(hosted.url)) as mirror:
        assert await mirror.fetch(None) == commit
        source = await mirror.source(commit, path="", compose_file=None)
    assert (source.commit, source.author, source.compose_file) == (commit, "Ada", "compose.yaml")
    assert source.message == "say hi\n\nmore\n"
    assert await files(mirrors, origin_of(hosted.url), commit) == {
        "compose.yaml": COMPOSE,
        "web/index.html": "hi",
    }


async def test_the_first_fetch_brings_one_commit_only(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf, tmp_path: Path
) -> None:
    """A repository with a long history must not cost its history."""
    for number in range(5):
        commit = await tree.commit({"n": str(number)}, "next")
    await tree.push()
    await fetch(mirrors, origin_of(hosted.url), commit)
    (kept,) = (tmp_path / "git" / "mirrors" / "app").glob("*.git")
    assert await git("rev-list", "--count", "main", cwd=kept) == "1"


async def test_an_older_commit_of_the_branch_is_had_and_not_the_tip(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """Two pushes in a row: the first deployment builds the first commit, although the branch is ahead already."""
    older = await tree.commit({"n": "older"}, "older")
    for number in range(60):
        await tree.commit({"n": str(number)}, "newer")
    await tree.push()
    assert (await files(mirrors, origin_of(hosted.url), older))["n"] == "older"


async def test_a_commit_that_is_here_costs_no_network(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, forge: GitServer, origin_of: OriginOf
) -> None:
    """After a crash the work is done again: it must not depend on the host a second time."""
    commit = await fetch(mirrors, origin_of(hosted.url), None)
    forge.requests.clear()
    assert await fetch(mirrors, origin_of(hosted.url), commit) == commit
    assert forge.requests == []


async def test_what_is_new_is_fetched_in_one_exchange(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, forge: GitServer, origin_of: OriginOf
) -> None:
    """The ordinary case is a push of a commit or two to a mirror that is there."""
    await fetch(mirrors, origin_of(hosted.url), None)
    first, second = [await tree.commit({"n": str(n)}, "next") for n in range(2)]
    await tree.push()
    forge.requests.clear()
    assert await fetch(mirrors, origin_of(hosted.url), second) == second
    assert await fetch(mirrors, origin_of(hosted.url), first) == first
    assert forge.requests == ["GET /app.git/info/refs", "POST /app.git/git-upload-pack"]


async def test_a_commit_that_was_pushed_over_is_not_found(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """Never another commit in its stead: what was named, or nothing."""
    gone = await tree.commit({"n": "gone"}, "gone")
    await tree.push()
    await git("reset", "--quiet", "--hard", "HEAD~1", cwd=tree.folder)
    await tree.commit({"n": "instead"}, "instead")
    await tree.push(force=True)
    with pytest.raises(SourceRefused, match=f"commit not found: {gone} is not on the branch main"):
        await fetch(mirrors, origin_of(hosted.url), gone)


async def test_a_branch_that_was_rewritten_is_followed(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """People force-push; the mirror must not be stuck on what was."""
    await tree.commit({"n": "gone"}, "gone")
    await tree.push()
    await fetch(mirrors, origin_of(hosted.url), None)
    await git("checkout", "--quiet", "--orphan", "anew", cwd=tree.folder)
    anew = await tree.commit({"n": "anew"}, "anew")
    await tree.push(force=True)
    assert await fetch(mirrors, origin_of(hosted.url), anew) == anew
    assert (await files(mirrors, origin_of(hosted.url), None))["n"] == "anew"


async def test_a_commit_of_a_fork_is_not_built(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """On the large forges a fork's commits can be had from the original by their id; a webhook may name one."""
    await git("checkout", "--quiet", "-b", "theirs", cwd=tree.folder)
    theirs = await tree.commit({"compose.yaml": "evil"}, "theirs")
    await git("push", "--quiet", "origin", "HEAD:refs/pull/1/head", cwd=tree.folder)
    for _ in range(2):  # on an empty mirror, and on one that has the branch
        with pytest.raises(SourceRefused, match="not on the branch main"):
            await fetch(mirrors, origin_of(hosted.url), theirs)


async def test_a_branch_or_a_commit_that_is_not_there_is_said(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """Also when the branch was there before and was deleted since."""
    with pytest.raises(SourceRefused, match="no branch nope"):
        await fetch(mirrors, origin_of(hosted.url, branch="nope"), None)
    with pytest.raises(SourceRefused, match="commit not found"):
        await fetch(mirrors, origin_of(hosted.url), "0" * 39 + "1")
    with pytest.raises(SourceRefused, match="commit not found"):
        await fetch(mirrors, origin_of(hosted.url), "0" * 63 + "1")
    await tree.push("soon-gone")
    await fetch(mirrors, origin_of(hosted.url, branch="soon-gone"), None)
    await git("push", "--quiet", "origin", ":refs/heads/soon-gone", cwd=tree.folder)
    with pytest.raises(SourceRefused, match="no branch soon-gone"):
        await fetch(mirrors, origin_of(hosted.url, branch="soon-gone"), None)


async def test_branches_with_strange_names_are_only_names(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf, tmp_path: Path
) -> None:
    """`$(touch x)` is a legal name of a branch; nothing runs."""
    name = "a;b$(touch${IFS}x)`id`"
    commit = await tree.commit({"n": "strange"}, "strange")
    await tree.push(name)
    assert await fetch(mirrors, origin_of(hosted.url, branch=name), None) == commit


async def test_many_stacks_fetch_at_once(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """Each has its own mirror; two fetches of one stack take turns."""
    origins = [origin_of(hosted.url, stack=f"s{number % 4}") for number in range(12)]
    commits = await asyncio.gather(*(fetch(mirrors, each, None) for each in origins))
    assert len(set(commits)) == 1


# -- hostile sources, through real git


async def test_a_link_to_a_file_of_the_host_is_refused(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """`compose.yaml -> /etc/passwd`, also when an earlier commit was fine."""
    await fetch(mirrors, origin_of(hosted.url), None)
    (tree.folder / "compose.yaml").unlink()
    (tree.folder / "compose.yaml").symlink_to("/etc/passwd")
    await tree.commit({}, "link")
    await tree.push()
    with pytest.raises(BadSource, match="symlink"):
        await files(mirrors, origin_of(hosted.url), None)


async def test_a_submodule_is_refused(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """Hythe fetches none, so a source with one is not whole."""
    head = await git("rev-parse", "HEAD", cwd=tree.folder)
    await git("update-index", "--add", "--cacheinfo", f"160000,{head},lib", cwd=tree.folder)
    (tree.folder / "lib").mkdir()
    await git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "-m", "lib", cwd=tree.folder)
    await tree.push()
    with pytest.raises(BadSource, match="lib is a submodule"):
        await files(mirrors, origin_of(hosted.url), None)


async def test_a_bomb_of_files_is_refused_quickly(
    make_mirrors: MakeMirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """A few kilobytes that unfold into a hundred million files."""
    blob = await git("hash-object", "-w", "--stdin", cwd=hosted.path, input=b"boom")
    level = await git(
        "mktree", cwd=hosted.path, input="".join(f"100644 blob {blob}\tf{n}\n" for n in range(100)).encode()
    )
    for _ in range(3):
        rows = "".join(f"040000 tree {level}\td{n}\n" for n in range(100))
        level = await git("mktree", cwd=hosted.path, input=rows.encode())
    compose = await git("hash-object", "-w", "--stdin", cwd=hosted.path, input=COMPOSE.encode())
    rows = f"100644 blob {compose}\tcompose.yaml\n040000 tree {level}\tbomb\n"
    root = await git("mktree", cwd=hosted.path, input=rows.encode())
    person = {
        "GIT_AUTHOR_NAME": "x",
        "GIT_AUTHOR_EMAIL": "x",
        "GIT_COMMITTER_NAME": "x",
        "GIT_COMMITTER_EMAIL": "x",
    }
    commit = await git("commit-tree", "-m", "bomb", root, cwd=hosted.path, env=person)
    await git("update-ref", "refs/heads/main", commit, cwd=hosted.path)
    began = time.monotonic()
    with pytest.raises(BadSource, match="more than 50000 files"):
        await files(make_mirrors(), origin_of(hosted.url), commit)
    assert time.monotonic() - began < 5


async def test_a_huge_file_is_refused(
    make_mirrors: MakeMirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """Zeros cost nothing on the way and everything here."""
    await tree.commit({"zeros": bytes(20_000_000)}, "zeros")
    await tree.push()
    with pytest.raises(BadSource, match="larger than 10000000 bytes at zeros"):
        await files(make_mirrors(limits=Limits(size=10_000_000)), origin_of(hosted.url), None)


async def test_a_fetch_that_brings_too_much_is_cut_off(
    make_mirrors: MakeMirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf, tmp_path: Path
) -> None:
    """While it comes in, and nothing of it is kept."""
    noise = b"".join(hash_block.to_bytes(8) for hash_block in range(0, 2**63, 2**63 // 400_000))
    await tree.commit({"noise": noise}, "noise")
    await tree.push()
    with pytest.raises(SourceRefused, match="larger than 100000 bytes"):
        await fetch(make_mirrors(limits=Limits(size=100_000)), origin_of(hosted.url), None)
    assert await fetch(make_mirrors(), origin_of(hosted.url), None)
    assert not list((tmp_path / "git").rglob("pack_*"))


# -- hosts


async def test_a_token_opens_a_closed_repository(
    mirrors: Mirrors, forge: GitServer, tmp_path: Path, origin_of: OriginOf
) -> None:
    """And is not written anywhere."""
    closed = await forge.create_repository("closed", token="s3cret-token")
    clone = await WorkTree.of(closed, tmp_path / "closed-clone")
    commit = await clone.commit({"compose.yaml": COMPOSE}, "first")
    await clone.push()
    login = Login("token", "x-access-token", b"s3cret-token")
    assert "s3cret" not in repr(login)
    assert await fetch(mirrors, origin_of(closed.url, login=login), commit) == commit
    for path in (tmp_path / "git").rglob("*"):
        assert not path.is_file() or b"s3cret-token" not in path.read_bytes()


async def test_a_refused_login_is_tried_once(mirrors: Mirrors, forge: GitServer, origin_of: OriginOf) -> None:
    """libgit2 tries a refused one fifteen times, which locks accounts; and says something else in the end."""
    closed = await forge.create_repository("closed", token="right")
    forge.requests.clear()
    with pytest.raises(
        SourceRefused, match=r"127\.0\.0\.1 refused the login as me; save the repository with another token"
    ):
        await fetch(mirrors, origin_of(closed.url, login=Login("token", "me", b"wrong")), None)
    assert len(forge.requests) == 2  # without, then once with
    with pytest.raises(SourceRefused, match="asks for a login; save the repository with a token"):
        await fetch(mirrors, origin_of(closed.url), None)


async def test_a_redirect_to_another_host_is_not_followed(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, forge: GitServer, origin_of: OriginOf
) -> None:
    """An allowed host must not be a way to one that is not; nor get a login sent elsewhere."""
    elsewhere = hosted.url.replace("127.0.0.1", "localhost")

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound(
            f"{elsewhere}/{request.match_info['rest'].removeprefix('app/')}?{request.query_string}"
        )

    forge.requests.clear()
    async with answering(redirect) as url:
        with pytest.raises(SourceRefused, match="another host"):
            await fetch(mirrors, origin_of(f"{url}/app"), None)
    assert forge.requests == []


def self_signed(folder: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    plain = serialization.NoEncryption()
    pem = folder / "host.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    return context


async def test_a_certificate_nobody_vouches_for_is_refused(
    mirrors: Mirrors, origin_of: OriginOf, tmp_path: Path
) -> None:
    """Before anything is sent, the login above all."""
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})

    async with answering(answer, tls=self_signed(tmp_path)) as url:
        with pytest.raises(SourceRefused, match=r"certificate of 127\.0\.0\.1 is not valid"):
            await fetch(mirrors, origin_of(f"{url}/app", login=Login("token", "me", b"secret")), None)
    assert seen == []


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (500, Unreachable, "in trouble .HTTP 500"),
        (503, Unreachable, "in trouble .HTTP 503"),
        (429, Unreachable, "in trouble .HTTP 429"),
        (404, SourceRefused, "no such repository"),
        (403, SourceRefused, "refused the login"),
        (401, SourceRefused, "refused the login"),
        (400, SourceRefused, "refused .HTTP 400"),
        (200, SourceRefused, "does not answer as a Git server"),
    ],
)
async def test_an_answer_says_whether_to_try_again(
    mirrors: Mirrors, origin_of: OriginOf, status: int, error: type[Exception], says: str
) -> None:
    """What mends itself is tried again; what does not ends the deployment at once."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text="\x1b[31mno\x1b[0m")

    async with answering(answer) as url:
        with pytest.raises(error, match=says):
            await fetch(mirrors, origin_of(f"{url}/app"), None)


async def test_a_host_that_is_not_there_is_tried_again(mirrors: Mirrors, origin_of: OriginOf) -> None:
    """Connection refused, name unknown: both mend themselves, sometimes."""
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1 does not answer as it should: .*refused"):
        await fetch(mirrors, origin_of("http://127.0.0.1:9/app"), None)
    with pytest.raises(Unreachable, match=r"the name nowhere\.invalid leads nowhere"):
        await fetch(mirrors, origin_of("http://nowhere.invalid/app"), None)


async def test_a_name_that_leads_into_the_private_network_is_refused(
    make_mirrors: MakeMirrors, hosted: Hosted, origin_of: OriginOf, forge: GitServer
) -> None:
    """A name shows where it leads only when it is looked up, so that is when it is checked."""
    closed = make_mirrors(allow=frozenset({"http"}))
    with pytest.raises(Refused, match="private network"):
        await fetch(closed, origin_of(hosted.url.replace("127.0.0.1", "localhost")), None)
    assert forge.requests == []


async def test_a_host_that_hangs_does_not_hold_us(
    make_mirrors: MakeMirrors, origin_of: OriginOf, tree: WorkTree, hosted: Hosted
) -> None:
    """It accepts, and says nothing or a byte now and then. Others go on meanwhile; it alone is refused until it ends."""
    let_go = asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-git-upload-pack-advertisement"})
        await response.prepare(request)
        await response.write(b"001e# service=git-upload-pack\n0000fff0")
        while not let_go.is_set():
            await response.write(b"0")
            try:
                async with asyncio.timeout(0.05):
                    await let_go.wait()
            except TimeoutError:
                continue
        return response

    mirrors = make_mirrors(seconds=1.0)
    async with answering(drip) as url:
        hanging = origin_of(f"{url}/app", stack="hanging")
        began = time.monotonic()
        with pytest.raises(Unreachable, match="was not done after 1 s"):
            await fetch(mirrors, hanging, None)
        assert time.monotonic() - began < 1 + mirror_module.LEAVE_SECONDS + 1
        assert await fetch(mirrors, origin_of(hosted.url), None)
        with pytest.raises(Unreachable, match="still holds an earlier fetch"):
            await fetch(mirrors, hanging, None)
        thread = next(each for each in threading.enumerate() if each.name == "git hanging")
        let_go.set()
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()


# -- crashes


async def test_a_broken_mirror_is_fetched_anew(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf, tmp_path: Path
) -> None:
    """A mirror holds nothing that the remote has not."""
    commit = await fetch(mirrors, origin_of(hosted.url), None)
    (kept,) = (tmp_path / "git" / "mirrors" / "app").glob("*.git")
    for pack in kept.glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        pack.write_bytes(b"\0" * pack.stat().st_size)
    assert (await files(mirrors, origin_of(hosted.url), commit))["compose.yaml"]
    (kept / "HEAD").unlink()
    assert await fetch(mirrors, origin_of(hosted.url), commit) == commit
    (kept / "config").write_text("[core\n")
    assert await fetch(mirrors, origin_of(hosted.url), None) == commit


async def test_what_a_killed_process_left_does_not_block(
    make_mirrors: MakeMirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf, tmp_path: Path
) -> None:
    """Lock files of git outlive the process that made them."""
    await fetch(make_mirrors(), origin_of(hosted.url), None)
    (kept,) = (tmp_path / "git" / "mirrors" / "app").glob("*.git")
    for left in (
        "refs/heads/main.lock",
        "config.lock",
        "shallow.lock",
        "packed-refs.lock",
        "objects/pack/pack_git2_x",
    ):
        (kept / left).write_bytes(b"")
    commit = await tree.commit({"n": "next"}, "next")
    await tree.push()
    assert await fetch(make_mirrors(), origin_of(hosted.url), commit) == commit
    assert not list(kept.rglob("*.lock"))


async def test_two_processes_do_not_work_on_one_mirror(
    make_mirrors: MakeMirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf
) -> None:
    """The second comes again later; the lock ends with its process, however it ends."""
    ours, theirs = make_mirrors(), make_mirrors()
    async with ours.of(origin_of(hosted.url)):
        with pytest.raises(Unreachable, match="another process"):
            await fetch(theirs, origin_of(hosted.url), None)
    assert await fetch(theirs, origin_of(hosted.url), None)


async def test_a_mirror_of_many_packs_is_made_anew(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, origin_of: OriginOf, tmp_path: Path
) -> None:
    """Every fetch leaves a pack, and a mirror must not grow for ever."""
    await fetch(mirrors, origin_of(hosted.url), None)
    (kept,) = (tmp_path / "git" / "mirrors" / "app").glob("*.git")
    for number in range(mirror_module.TOO_MANY_PACKS):
        (kept / "objects" / "pack" / f"pack-{number:040}.pack").write_bytes(b"")
    commit = await tree.commit({"n": "next"}, "next")
    await tree.push()
    assert await fetch(mirrors, origin_of(hosted.url), commit) == commit
    assert len(list(kept.glob("objects/pack/*.pack"))) == 1


async def test_a_new_url_gets_a_new_mirror_and_the_old_one_goes(
    mirrors: Mirrors, tree: WorkTree, hosted: Hosted, forge: GitServer, origin_of: OriginOf, tmp_path: Path
) -> None:
    """What one host sent must never be taken for what another has."""
    commit = await fetch(mirrors, origin_of(hosted.url), None)
    empty = await forge.create_repository("empty")
    with pytest.raises(SourceRefused):
        await fetch(mirrors, origin_of(empty.url), commit)
    assert len(list((tmp_path / "git" / "mirrors" / "app").glob("*.git"))) == 1


def test_the_users_own_git_settings_are_not_read(mirrors: Mirrors) -> None:
    """A rewrite rule or a credential helper of whoever runs the service must not change where source comes from."""
    assert all(
        pygit2.settings.search_path[level] == ""
        for level in (pygit2.enums.ConfigLevel.GLOBAL, pygit2.enums.ConfigLevel.SYSTEM)
    )
