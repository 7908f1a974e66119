"""Where source may come from: the rules for URLs, hosts, users, branches, paths and host keys.

A repository's URL is typed by a person and then handed to a Git library, so it is taken apart here first. Only https
and ssh to public hosts pass; `HYTHE_GIT_ALLOW` opens plain http, and hosts in private networks. Nothing that begins
with a dash passes, for a Git or SSH program could take it for an option; nothing passes that holds a password, for
URLs are shown and logged. Link-local addresses, where clouds keep their machines' credentials, never pass.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from hythe_events.errors import Misconfigured, Refused

Allowed = frozenset[Literal["http", "private"]]
Scheme = Literal["https", "http", "ssh"]

_PORTS: dict[str, int] = {"https": 443, "http": 80, "ssh": 22}
_host = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_user = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_number = re.compile(r"(?:0[xX][0-9A-Fa-f]*|[0-9]+)")
_path = re.compile(r"[\x21-\x7e\u00a1-\uffff]+")
_scp = re.compile(r"(?P<user>[^@:/]+)@(?P<host>[^:/]+):(?P<path>.+)")
_bad_in_ref = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_key_types = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")

PUBLISHED = {
    "github.com": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
    "gitlab.com": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfuCHKVTjquxvt6CM6tdG4SLp1Btn/nOeHHE5UOzRdf",
}
"""Host keys that the hosts themselves publish (docs.github.com "GitHub's SSH key fingerprints", docs.gitlab.com "SSH
host keys fingerprints"); who uses these hosts need not name a key."""


@dataclass(frozen=True)
class Address:
    """A repository's URL, taken apart. `url` is what the Git library gets: it holds no password."""

    url: str
    scheme: Scheme
    host: str
    port: int
    user: str | None

    @property
    def known_as(self) -> str:
        """How a `known_hosts` file calls the host."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"


def allowed(text: str) -> Allowed:
    """`HYTHE_GIT_ALLOW` as a set. Raises Misconfigured."""
    words = {word.strip() for word in text.split(",") if word.strip()}
    if unknown := words - {"http", "private"}:
        raise Misconfigured(f"HYTHE_GIT_ALLOW knows http and private, not {', '.join(sorted(unknown))}")
    return frozenset(word for word in ("http", "private") if word in words)


def parse(url: str, allow: Allowed) -> Address:
    """`url` taken apart. Raises Refused, naming the field `url`, and never repeats a password."""
    if any(ord(c) <= 0x20 or ord(c) == 0x7F for c in url):
        raise _no("holds a space or a control character")
    if "://" not in url:
        return _parse_scp(url, allow)
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        raise _no("cannot be read: host or port is malformed") from error
    scheme = parts.scheme
    if scheme not in ("https", "http", "ssh"):
        raise _no(f"begins with {scheme}://; it must begin with https:// or ssh://")
    if scheme == "http" and "http" not in allow:
        raise _no(
            "begins with http://, which anybody on the way can read and change; use https, or set HYTHE_GIT_ALLOW=http"
        )
    if parts.password is not None or (scheme != "ssh" and parts.username is not None):
        raise _no("holds a user or a password; give them as user and token, so that the token is kept sealed")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise _no("holds ? or #; it must end with the repository's path")
    if parts.netloc.endswith(":") or port == 0:
        raise _no("names no port after the colon")
    user = _checked_user(parts.username)
    _check_host(host, allow)
    _check_path(parts.path.removeprefix("/"))
    return Address(url, scheme, host, port or _PORTS[scheme], user)  # type: ignore[arg-type]  # checked above


def _parse_scp(url: str, allow: Allowed) -> Address:
    found = _scp.fullmatch(url)
    if found is None:
        raise _no("must look like https://host/path, ssh://user@host/path or user@host:path")
    user = _checked_user(found["user"])
    _check_host(found["host"], allow)
    _check_path(found["path"])
    return Address(url, "ssh", found["host"].lower(), 22, user)


def _no(why: str) -> Refused:
    return Refused(f"url {why}", field="url")


def _checked_user(user: str | None) -> str | None:
    if user is not None and not _user.fullmatch(user):
        raise _no("holds a user that is not made of letters, digits, dots, dashes and underscores")
    return user


def _check_path(path: str) -> None:
    if not path.strip("/") or not _path.fullmatch(path):
        raise _no("names no repository after the host")
    if any(part.startswith("-") or part == ".." for part in path.split("/")):
        raise _no("holds a path with .. or with a part that begins with a dash")


def _check_host(host: str, allow: Allowed) -> None:
    address = _literal(host)
    if address is not None:
        check_address(host, str(address), allow, field="url")
    elif not _host.fullmatch(host):
        raise _no("names no host, or one that is not made of letters, digits, dots and dashes")
    elif _number.fullmatch(host.rsplit(".", 1)[-1]):
        raise _no("names a host by a number that is not a plain address")
    elif "private" not in allow and (host.lower() == "localhost" or host.lower().endswith(".localhost")):
        raise _no("names this very machine; set HYTHE_GIT_ALLOW=private if that is meant")


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def check_address(host: str, address: str, allow: Allowed, *, field: str | None = None) -> None:
    """Refuses what `host` must not lead to: this machine and private networks unless allowed, link-local always.

    Called for the address in a URL, and again for every address a name leads to, when it is about to be used.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if found.is_link_local or found.is_multicast or found.is_unspecified:
        raise Refused(f"{host} leads to {address}, which is never fetched from", field=field)
    if not found.is_global and "private" not in allow:
        raise Refused(
            f"{host} leads to {address} in a private network; set HYTHE_GIT_ALLOW=private if that is meant",
            field=field,
        )


def check_addresses(host: str, addresses: Iterable[str], allow: Allowed) -> None:
    """`check_address` for all: one bad address is enough to refuse."""
    for address in addresses:
        check_address(host, address, allow)


def check_branch(branch: str) -> str:
    """`branch`, if git would take it as a branch's name (git-check-ref-format(1)). Raises Refused."""
    parts = branch.split("/")
    bad = (
        _bad_in_ref.search(branch)
        or branch.startswith(("-", "/", "refs/"))
        or branch.endswith(("/", "."))
        or branch in ("", "@", "HEAD")
        or any(part.startswith(".") or part.endswith(".lock") for part in parts)
    )
    if bad:
        raise Refused(
            "branch is not a name that git takes for a branch, such as main or release/2", field="branch"
        )
    return branch


def inside(path: str, field: str) -> str:
    """`path` inside the repository, without `.` and needless slashes. Raises Refused naming `field`."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\\" in path:
        raise Refused(f"{field} must be a path inside the repository, such as deploy/web", field=field)
    return "/".join(parts)


def host_key(text: str, address: Address) -> str:
    """A host key as `type base64`, from that or a whole `known_hosts` line. Raises Refused naming `known_host`."""
    words = text.split()
    if words and words[0].startswith("@"):
        raise Refused(
            "known_host must be a host key; markers such as @cert-authority are not read", field="known_host"
        )
    if words and words[0] not in _key_types:
        pattern = words.pop(0)
        if not pattern.startswith("|") and address.known_as not in pattern.split(","):
            raise Refused(
                f"known_host names {pattern}, but the url leads to {address.known_as}", field="known_host"
            )
    if len(words) < 2 or words[0] not in _key_types or not _fits(words[0], words[1]):
        raise Refused(
            f"known_host must be a line as ssh-keyscan -p {address.port} {address.host} prints it",
            field="known_host",
        )
    return f"{words[0]} {words[1]}"


def _fits(kind: str, encoded: str) -> bool:
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return False
    return blob[: 4 + len(kind)] == len(kind).to_bytes(4) + kind.encode() and len(blob) > 4 + len(kind)


def fingerprint(key: str) -> str:
    """What ssh shows of a host key `type base64`: SHA256 and its hash in base64 without padding."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
