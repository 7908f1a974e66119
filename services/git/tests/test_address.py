"""Where source may come from."""

from __future__ import annotations

import base64

import pytest

from hythe_events.errors import Misconfigured, Refused
from hythe_git import address
from hythe_git.address import Allowed

NOTHING: Allowed = frozenset()
ALL: Allowed = frozenset({"http", "private"})
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "user"),
    [
        ("https://git.example.com/team/app.git", "https", "git.example.com", 443, None),
        ("https://git.example.com:8443/app", "https", "git.example.com", 8443, None),
        ("ssh://git@git.example.com/app.git", "ssh", "git.example.com", 22, "git"),
        ("ssh://git@git.example.com:2222/~me/app.git", "ssh", "git.example.com", 2222, "git"),
        ("git@github.com:team/app.git", "ssh", "github.com", 22, "git"),
        ("https://8.8.8.8/app", "https", "8.8.8.8", 443, None),
    ],
)
def test_an_ordinary_url_is_taken_apart(
    url: str, scheme: str, host: str, port: int, user: str | None
) -> None:
    """What people copy from their forge must work as it is."""
    found = address.parse(url, NOTHING)
    assert (found.scheme, found.host, found.port, found.user, found.url) == (scheme, host, port, user, url)


@pytest.mark.parametrize(
    "url",
    [
        "ssh://-oProxyCommand=touch%20/x/y",
        "ssh://a@-oX/y",
        "-oProxyCommand=x:y",
        "git@-oX:y",
        "-git@host.example:y",
        "git@host.example:-upload-pack",
        "ssh://git@host.example/-x",
        "ext::sh -c touch% /x",
        "ext::sh",
        "file:///etc",
        "/etc",
        "../app",
        "fd::7",
        "git://host.example/app",
        "https::host.example/app",
        "ftp://host.example/app",
        "http://host.example/app",
        "https:///example.com/x",
        "https://host.example",
        "https://host.example/",
        "https://host.example/app?x=1",
        "https://host.example/app#x",
        "https://host.example/../app",
        "https://ho st.example/app",
        "https://host.example/a\nb",
        "https://host.example:0/app",
        "https://host.example:99999/app",
        "https://host.example:/app",
        "https://host_.example/app",
        "https://user@allowed@127.0.0.1/app",
        "https://token@host.example/app",
        "https://user:token@host.example/app",
        "ssh://git:password@host.example/app",
    ],
)
def test_a_url_that_could_mean_something_else_is_refused(url: str) -> None:
    """Options, other transports, passwords: none of it reaches a Git library, and the field is named."""
    with pytest.raises(Refused) as refused:
        address.parse(url, NOTHING)
    assert refused.value.field == "url"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "[::1]",
        "[fd00::1]",
        "[::ffff:127.0.0.1]",
        "localhost",
        "a.localhost",
    ],
)
def test_private_hosts_need_to_be_allowed(host: str) -> None:
    """A repository's URL must not become a way into the network that Hythe stands in."""
    with pytest.raises(Refused, match="HYTHE_GIT_ALLOW=private"):
        address.parse(f"https://{host}/app", NOTHING)
    address.parse(f"https://{host}/app", ALL)


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fe80::1]", "0.0.0.0", "0x7f.1", "127.1", "2130706433", "224.0.0.1"]
)
def test_some_hosts_are_never_allowed(host: str) -> None:
    """Clouds keep credentials on link-local addresses; a number is a host only to those who want to hide one."""
    with pytest.raises(Refused):
        address.parse(f"https://{host}/app", ALL)


def test_one_bad_address_behind_a_name_is_enough_to_refuse() -> None:
    """A name may lead to several addresses, and the library picks one."""
    address.check_addresses("host.example", ["93.184.216.34"], NOTHING)
    with pytest.raises(Refused, match=r"127\.0\.0\.1"):
        address.check_addresses("host.example", ["93.184.216.34", "127.0.0.1"], NOTHING)


def test_a_refused_password_is_not_repeated() -> None:
    """Errors are logged and shown."""
    with pytest.raises(Refused) as refused:
        address.parse("https://user:hunter2-secret@host.example/app", NOTHING)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "branch", ["main", "release/2.1", "feature/ünïcode", "a;b$(id)", "x@y", "-".join("ab")]
)
def test_a_name_git_takes_for_a_branch_is_taken(branch: str) -> None:
    """Shell metacharacters are legal in a branch's name, and harmless: no shell sees them."""
    assert address.check_branch(branch) == branch


@pytest.mark.parametrize(
    "branch",
    [
        "",
        "--upload-pack=touch /x",
        "-x",
        "a..b",
        "a b",
        "a~1",
        "a^",
        "a:b",
        "a?",
        "a*",
        "a[",
        "a\\b",
        "/a",
        "a/",
        "a//b",
        "a.lock",
        "a.lock/b",
        ".a",
        "a/.b",
        "a.",
        "@",
        "a@{1}",
        "HEAD",
        "HEAD^{/x}",
        "refs/heads/main",
        "a\x7f",
    ],
)
def test_a_name_git_would_not_take_for_a_branch_is_refused(branch: str) -> None:
    """A branch ends up in a refspec, where some characters mean something."""
    with pytest.raises(Refused) as refused:
        address.check_branch(branch)
    assert refused.value.field == "branch"


def test_a_path_stays_inside_the_repository() -> None:
    """A path is a folder of the repository, however it is written."""
    assert address.inside("./deploy//web/", "path") == "deploy/web"
    assert address.inside("", "path") == ""
    for path in ("/etc", "../x", "a/../../x", "a\\b"):
        with pytest.raises(Refused) as refused:
            address.inside(path, "path")
        assert refused.value.field == "path"


def test_a_host_key_is_read_from_a_known_hosts_line() -> None:
    """People paste what ssh-keyscan prints."""
    where = address.parse("ssh://git@host.example:2222/app", NOTHING)
    assert address.host_key(KEY, where) == KEY
    assert address.host_key(f"[host.example]:2222 {KEY} a comment", where) == KEY
    for wrong in (
        f"host.example {KEY}",
        f"@cert-authority * {KEY}",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-dss AAAA",
    ):
        with pytest.raises(Refused) as refused:
            address.host_key(wrong, where)
        assert refused.value.field == "known_host"
    shorter = "ssh-rsa " + KEY.split()[1]
    with pytest.raises(Refused):
        address.host_key(shorter, where)


def test_the_published_host_keys_have_the_published_fingerprints() -> None:
    """A typing error in a built-in key would lock people out, or worse."""
    assert (
        address.fingerprint(address.PUBLISHED["github.com"])
        == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"
    )
    assert (
        address.fingerprint(address.PUBLISHED["gitlab.com"])
        == "SHA256:eUXGGm1YGsMAS7vkcx6JOJdOGHPem5gQp4taiCfCLB8"
    )
    assert all(base64.b64decode(key.split()[1]) for key in address.PUBLISHED.values())


def test_an_unknown_word_in_the_setting_is_said() -> None:
    """A typing error must not quietly allow less, or more."""
    assert address.allowed(" http, private,") == ALL
    with pytest.raises(Misconfigured, match="htttp"):
        address.allowed("htttp")
