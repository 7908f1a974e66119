"""What a forge means: signatures by the forge's own vectors, and pushes in one shape."""

from __future__ import annotations

import hmac
import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from multidict import CIMultiDict

from hythe_events.errors import Refused
from hythe_events.webhooks import DeliveryIgnored, WebhookReceived
from hythe_webhooks import forges
from hythe_webhooks.forges import generic, github
from hythe_webhooks.forges.reading import NotAuthentic, prove

SECRET = b"It's a Secret to Everybody"
HELLO = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def signed(body: bytes, **more: str) -> CIMultiDict[str]:
    """The headers of a GitHub delivery."""
    return CIMultiDict(
        {
            "X-Hub-Signature-256": "sha256=" + hmac.digest(SECRET, body, "sha256").hex(),
            "X-GitHub-Event": "push",
            "X-GitHub-Delivery": "0b989ba4-242f-11e5-81e1-c7b6966d2516",
            "Content-Type": "application/json",
        }
        | {name.replace("_", "-"): value for name, value in more.items()}
    )


def push_of(document: dict[str, Any], **changed: Any) -> WebhookReceived | DeliveryIgnored:
    """What GitHub told with this push."""
    body = json.dumps(document | changed).encode()
    return github.parse("ferry", signed(body), body, SECRET)


# -- signatures


def test_githubs_own_vector_is_right() -> None:
    """docs.github.com, "Validating webhook deliveries", testing the payload validation."""
    prove([HELLO], b"Hello, World!", SECRET)


@pytest.mark.parametrize(
    ("secret", "body", "digest"),
    [
        (SECRET, b"Hello World!", "a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9"),
    ],
)
def test_other_vectors_of_the_same_scheme_are_right(secret: bytes, body: bytes, digest: str) -> None:
    """Atlassian's documentation has one for the same algorithm."""
    prove([f"sha256={digest}"], body, secret)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["sha256="],
        [HELLO[:-1]],
        [HELLO + "0"],
        [HELLO[:-1] + "8"],
        [HELLO.upper()],
        ["sha256=" + HELLO[7:].upper()],
        ["SHA256=" + HELLO[7:]],
        [HELLO[7:]],
        [" " + HELLO],
        [HELLO + "\n"],
        ["sha1=" + HELLO[7:]],
        ["sha512=" + HELLO[7:]],
        [HELLO, HELLO],
        [HELLO + "," + HELLO],
        [HELLO + ", sha256=" + "0" * 64],
        ["sha256=" + "0" * 64],
        ["sha256=" + "z" * 64],
        ["sha256=" + "-" * 64],
        ["sha256=" + "\u0661" * 64],
        ["sha256=" + HELLO[7:-1] + "\udc80"],
        ["sha256=" + HELLO[7:39]],
    ],
)
def test_every_other_spelling_is_wrong(values: list[str]) -> None:
    """One header, one spelling: whatever a verifier takes besides is a way in."""
    with pytest.raises(NotAuthentic):
        prove(values, b"Hello, World!", SECRET)


@pytest.mark.parametrize("secret", [b"", b"null", b"None", b"undefined"])
def test_the_secrets_that_careless_code_ends_with_prove_nothing(secret: bytes) -> None:
    """An unset secret that became the text "null" has opened other tools' doors."""
    body = b"{}"
    with pytest.raises(NotAuthentic):
        prove(["sha256=" + hmac.digest(secret, body, "sha256").hex()], body, SECRET)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1} ',
        b'{"a":"\\u00e9"}',
        '{"a":"é"}'.encode(),
        b'{"b":1,"a":1.0}',
        b'{"a":1}\r\n',
        b"\xef\xbb\xbf{}",
        b"\xff\x00",
        b"",
    ],
)
def test_the_raw_bytes_are_signed(body: bytes) -> None:
    """A body that was parsed and written again is another body."""
    prove(["sha256=" + hmac.digest(SECRET, body, "sha256").hex()], body, SECRET)


def test_nothing_in_the_body_is_looked_at_before_the_signature_is_right() -> None:
    """Whoever does not know the secret must not reach the parser."""
    headers = signed(b"{}")
    with pytest.raises(NotAuthentic):
        github.parse("ferry", headers, b'{"ref":1,"ref":2', SECRET)
    with pytest.raises(NotAuthentic):
        generic.parse("ferry", headers, b"{", SECRET)


@pytest.mark.parametrize(
    "name", ["X-Hub-Signature", "X-Gitlab-Token", "X-Gitea-Signature", "X-Hythe-Signature"]
)
def test_another_forges_header_is_no_proof(name: str) -> None:
    """The forge is fixed by the path; no header chooses a weaker scheme."""
    body = b"{}"
    headers = signed(body)
    headers[name] = headers.pop("X-Hub-Signature-256")
    with pytest.raises(NotAuthentic):
        github.parse("ferry", headers, body, SECRET)


# -- GitHub


def test_a_push_is_told_in_hythes_words(push_document: dict[str, Any]) -> None:
    """One shape for every forge: what a stack needs to be brought to a commit."""
    told = push_of(push_document)
    assert isinstance(told, WebhookReceived)
    assert told.source == "ferry"
    assert told.provider == "github"
    assert told.delivery == "0b989ba4-242f-11e5-81e1-c7b6966d2516"
    assert told.repository == "quayside/ferry"
    assert told.ref == "refs/heads/main"
    assert told.before == "17a3c9e0b2d84f5561e7f8a90b1c2d3e4f506172"
    assert told.after == "c0ffee254729296a45a3885639ac7e10f9d54979"
    assert told.commit is not None
    assert told.commit.message.startswith('Café opens at 6 — "first boat" <ok>\n\n')
    assert told.commit.author == "Ines Rye"
    assert told.sender == "inesrye"
    assert told.changed_paths == (
        "config/timetable.env",
        "compose.yaml",
        "web/cafe.html",
        "web/bar.html",
        "web/app.py",
    )


def test_a_form_carries_the_same_push(push_document: dict[str, Any]) -> None:
    """GitHub's other content type: the MAC is over the form's raw bytes, the JSON is in `payload`."""
    text = json.dumps(push_document, ensure_ascii=False)
    for body in (urlencode({"payload": text}).encode(), f"payload={quote(text, safe='')}".encode()):
        told = github.parse(
            "ferry",
            signed(body, Content_Type="application/x-www-form-urlencoded; charset=utf-8"),
            body,
            SECRET,
        )
        assert isinstance(told, WebhookReceived)
        assert told.model_copy(update={"body_sha256": ""}) == push_of(push_document).model_copy(
            update={"body_sha256": ""}
        )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"other=1",
        b"payload=%7B%7D&payload=%7B%7D",
        b"payload",
        "payload=é".encode(),
        b"&" * 100,
        b"payload=%ff",
    ],
)
def test_a_form_without_one_payload_is_refused(body: bytes) -> None:
    """Two payloads are two meanings."""
    with pytest.raises(Refused) as refused:
        github.parse("ferry", signed(body, Content_Type="application/x-www-form-urlencoded"), body, SECRET)
    assert refused.value.field in {"payload", "body"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"deleted": True, "after": "0" * 40, "head_commit": None}, "deleted"),
        ({"after": "0" * 40}, "deleted"),
        ({"ref": "refs/tags/v1"}, "tag"),
        ({"ref": "refs/notes/commits"}, "not a branch"),
        ({"ref": "main"}, "not a branch"),
        ({"ref": ""}, "not a branch"),
    ],
)
def test_a_push_that_leaves_no_branch_to_deploy_is_ignored_with_its_reason(
    push_document: dict[str, Any], changed: dict[str, Any], reason: str
) -> None:
    """Deleting a branch deploys nothing, and the log says so."""
    told = push_of(push_document, **changed)
    assert isinstance(told, DeliveryIgnored)
    assert reason in told.reason


@pytest.mark.parametrize("event", ["ping", "pull_request", "create", "delete", "release", "some_new_event"])
def test_what_is_not_a_push_is_ignored_with_its_reason(event: str) -> None:
    """A pull request from a fork must never build; an event that GitHub invents tomorrow is no error."""
    body = b'{"zen":"Keep it logically awesome.","hook_id":1}'
    told = github.parse("ferry", signed(body, X_GitHub_Event=event), body, SECRET)
    assert isinstance(told, DeliveryIgnored)
    assert told.event == event
    assert event in told.reason


def test_a_new_branch_has_no_before_and_no_known_paths(push_document: dict[str, Any]) -> None:
    """GitHub lists only commits that no other branch has: what changed is not told."""
    told = push_of(push_document, created=True, before="0" * 40, commits=[])
    assert isinstance(told, WebhookReceived)
    assert told.before is None
    assert told.changed_paths is None


def test_a_forced_push_has_no_known_paths(push_document: dict[str, Any]) -> None:
    """What the forced push took away is not in its list of commits."""
    told = push_of(push_document, forced=True)
    assert isinstance(told, WebhookReceived)
    assert told.forced
    assert told.changed_paths is None


def test_a_list_of_commits_that_was_cut_has_no_known_paths(push_document: dict[str, Any]) -> None:
    """Paths that are not told must not look like paths that did not change."""
    told = push_of(push_document, commits=[{"modified": ["a"]}] * github.MOST_COMMITS)
    assert isinstance(told, WebhookReceived)
    assert told.changed_paths is None


def test_more_paths_than_an_event_can_carry_are_not_told(push_document: dict[str, Any]) -> None:
    """An event has to fit on the bus; without paths every stack is concerned."""
    told = push_of(push_document, commits=[{"modified": [f"{n:0200}" for n in range(2000)]}])
    assert isinstance(told, WebhookReceived)
    assert told.changed_paths is None


def test_branches_with_slashes_and_sha256_repositories_are_all_right(push_document: dict[str, Any]) -> None:
    """Both exist."""
    told = push_of(push_document, ref="refs/heads/a/b/c", after="ab" * 32)
    assert isinstance(told, WebhookReceived)
    assert told.after == "ab" * 32


def test_a_message_that_no_database_would_take_is_cut_and_cleaned(push_document: dict[str, Any]) -> None:
    """PostgreSQL's text knows no NUL, and an event holds 20,000 characters of a message."""
    head = push_document["head_commit"] | {
        "message": "\x00" + "x" * 50_000,
        "author": {"name": "a\nb\x1b[31m"},
    }
    told = push_of(push_document, head_commit=head)
    assert isinstance(told, WebhookReceived)
    assert told.commit is not None
    assert told.commit.message == "\ufffd" + "x" * 19_999
    assert told.commit.author == "a b [31m"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"ref": 1}, "ref"),
        ({"ref": "refs/heads/a\nb"}, "ref"),
        ({"ref": "refs/heads/" + "x" * 3000}, "ref"),
        ({"after": "c0ffee"}, "after"),
        ({"after": "main"}, "after"),
        ({"after": "-" * 40}, "after"),
        ({"before": "x"}, "before"),
        ({"repository": {"links": {"clone": "boom"}}}, "repository.full_name"),
        ({"repository": "boom"}, "repository"),
        ({"commits": [{"added": "boom"}]}, "commits.0.added"),
        ({"head_commit": {"id": 1, "message": "m"}}, "head_commit.id"),
        ({"forced": "yes"}, "forced"),
        ({"deleted": 0}, "deleted"),
    ],
)
def test_a_field_that_is_not_what_was_expected_is_named(
    push_document: dict[str, Any], changed: dict[str, Any], field: str
) -> None:
    """The answer is read by somebody who has to mend the sender."""
    with pytest.raises(Refused) as refused:
        push_of(push_document, **changed)
    assert refused.value.field == field
    assert field in str(refused.value)


@pytest.mark.parametrize("name", ["X-GitHub-Event", "X-GitHub-Delivery"])
@pytest.mark.parametrize("value", [None, "", "two words", "\udcff", "x" * 201, "é"])
def test_a_header_that_is_missing_or_odd_is_named(name: str, value: str | None) -> None:
    """A delivery without an id could not be told from its redelivery."""
    headers = signed(b"{}")
    del headers[name]
    if value is not None:
        headers[name] = value
    with pytest.raises(Refused) as refused:
        github.parse("ferry", headers, b"{}", SECRET)
    assert refused.value.field == name


def test_a_header_given_twice_is_refused() -> None:
    """Which of the two was meant?"""
    headers = signed(b"{}")
    headers.add("X-GitHub-Delivery", "another")
    with pytest.raises(Refused):
        github.parse("ferry", headers, b"{}", SECRET)


# -- everybody else


def generic_push(document: object, **headers: str) -> WebhookReceived | DeliveryIgnored:
    """What a generic sender told."""
    body = json.dumps(document).encode()
    sent = CIMultiDict({"X-Hythe-Signature": "sha256=" + hmac.digest(SECRET, body, "sha256").hex()})
    sent.update({name.replace("_", "-"): value for name, value in headers.items()})
    return generic.parse("ci", sent, body, SECRET)


GENERIC = {
    "ref": "refs/heads/main",
    "commit": "c0ffee254729296a45a3885639ac7e10f9d54979",
    "repository": "ferry",
}


def test_a_generic_push_is_told_in_the_same_shape() -> None:
    """Three fields are enough; the delivery is named by its body."""
    told = generic_push(GENERIC)
    assert isinstance(told, WebhookReceived)
    assert told.provider == "generic"
    assert told.after == GENERIC["commit"]
    assert told.delivery == told.body_sha256
    assert told.changed_paths is None


def test_a_generic_delivery_can_be_named() -> None:
    """A sender that retries says so by its Idempotency-Key."""
    told = generic_push(GENERIC | {"changed_paths": ["a", "a", "b"]}, Idempotency_Key="job-17")
    assert isinstance(told, WebhookReceived)
    assert told.delivery == "job-17"
    assert told.changed_paths == ("a", "b")


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "body"),
        ("text", "body"),
        ({}, "ref"),
        (GENERIC | {"ref": "main"}, "ref"),
        (GENERIC | {"commit": "c0ffee"}, "commit"),
        (GENERIC | {"after": "a" * 40}, "commit"),
        ({"ref": "refs/heads/main", "repository": "ferry"}, "commit"),
        (GENERIC | {"repository": None}, "repository"),
        (GENERIC | {"changed_paths": [1]}, "changed_paths.0"),
    ],
)
def test_a_generic_field_that_is_wrong_is_named(document: object, field: str) -> None:
    """The README says what is expected; the answer says what was wrong."""
    with pytest.raises(Refused) as refused:
        generic_push(document)
    assert refused.value.field == field


def test_a_generic_deletion_is_ignored_with_its_reason() -> None:
    """All zeros: the branch is gone."""
    assert isinstance(generic_push(GENERIC | {"commit": "0" * 40}), DeliveryIgnored)
    assert isinstance(generic_push(GENERIC | {"ref": "refs/tags/v1"}), DeliveryIgnored)


# -- paths


def test_the_path_names_forge_and_source() -> None:
    """One URL per source; `github` alone is a source of that name."""
    assert forges.at("/api/webhooks/github/ferry") == (github, "ferry")
    assert forges.at("/api/webhooks/ferry") == (generic, "ferry")
    assert forges.at("/api/webhooks/github") == (generic, "github")
    assert forges.path_of("github", "ferry") == "/api/webhooks/github/ferry"
    assert forges.path_of("generic", "ferry") == "/api/webhooks/ferry"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/webhooks/",
        "/api/webhooks/github/",
        "/api/webhooks/github/ferry/",
        "/api/webhooks/gitlab/ferry",
        "/api/webhooks/github/../ferry",
        "/api/webhooks/github/%66erry",
        "/api/webhooks/github/%2e%2e",
        "/api/webhooks/github/ferry%00",
        "/api/webhooks/GitHub/ferry",
        "/api/webhooks/github/Ferry",
        "/api/webhooks/github/" + "f" * 64,
        "/api/webhooks/github/ferry?secret=x",
        "//api/webhooks/github/ferry",
        "/api/webhooks/github//ferry",
        "http://ferry/api/webhooks/github/ferry",
        "/api/webhooks/github/ferry\n",
    ],
)
def test_every_other_path_is_nowhere(path: str) -> None:
    """The raw request target has to fit, letter by letter."""
    assert forges.at(path) is None
