"""What is written and sent: one event of 498 bytes, and pushes as GitHub sends them, 7 to 8 kB each.

The push follows GitHub's documented `push` event; the organisation, its people and its commits are made up.
Imports nothing but the standard library: the contestants read it from two different virtual environments.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

EVENT_TYPE = "deploy.step_completed"

EVENT: dict[str, Any] = {
    "deployment": "0199f3a4-6f2e-7c31-9a55-1c7f0be2d9a4",
    "stack": "shop",
    "step": "pull",
    "detail": "storefront: quay.example/shop/storefront@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15 is "
    "here; orders: quay.example/shop/orders@sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae is "
    "here; ledger: quay.example/shop/ledger@sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9 was pulled",
    "seconds": 2.367,
    "manifest": None,
}
EVENT["detail"] += "." * (498 - len(json.dumps(EVENT, separators=(",", ":"))))
EVENT_JSON = json.dumps(EVENT, separators=(",", ":"))
assert len(EVENT_JSON) == 498, "every contestant stores the same 498 bytes"

OWNER, NAME = "quay", "shop"


def _sha(*words: object) -> str:
    return hashlib.sha1("/".join(map(str, words)).encode(), usedforsecurity=False).hexdigest()


def _person(login: str, number: int, kind: str) -> dict[str, Any]:
    api, html = f"https://api.github.com/users/{login}", f"https://github.com/{login}"
    return {
        "login": login,
        "id": number,
        "node_id": "MDQ6VXNlcj" + str(number),
        "avatar_url": f"https://avatars.githubusercontent.com/u/{number}?v=4",
        "gravatar_id": "",
        "url": api,
        "html_url": html,
        "followers_url": f"{api}/followers",
        "following_url": f"{api}/following{{/other_user}}",
        "gists_url": f"{api}/gists{{/gist_id}}",
        "starred_url": f"{api}/starred{{/owner}}{{/repo}}",
        "subscriptions_url": f"{api}/subscriptions",
        "organizations_url": f"{api}/orgs",
        "repos_url": f"{api}/repos",
        "events_url": f"{api}/events{{/privacy}}",
        "received_events_url": f"{api}/received_events",
        "type": kind,
        "user_view_type": "public",
        "site_admin": False,
    }


def _repository() -> dict[str, Any]:
    api = f"https://api.github.com/repos/{OWNER}/{NAME}"
    html = f"https://github.com/{OWNER}/{NAME}"
    owner = {"name": OWNER, "email": "crew@tidewater.example"} | _person(OWNER, 48103377, "Organization")
    links = {
        "forks_url": "/forks",
        "keys_url": "/keys{/key_id}",
        "collaborators_url": "/collaborators{/collaborator}",
        "teams_url": "/teams",
        "hooks_url": "/hooks",
        "issue_events_url": "/issues/events{/number}",
        "events_url": "/events",
        "assignees_url": "/assignees{/user}",
        "branches_url": "/branches{/branch}",
        "tags_url": "/tags",
        "blobs_url": "/git/blobs{/sha}",
        "git_tags_url": "/git/tags{/sha}",
        "git_refs_url": "/git/refs{/sha}",
        "trees_url": "/git/trees{/sha}",
        "statuses_url": "/statuses/{sha}",
        "languages_url": "/languages",
        "stargazers_url": "/stargazers",
        "contributors_url": "/contributors",
        "subscribers_url": "/subscribers",
        "subscription_url": "/subscription",
        "commits_url": "/commits{/sha}",
        "git_commits_url": "/git/commits{/sha}",
        "comments_url": "/comments{/number}",
        "issue_comment_url": "/issues/comments{/number}",
        "contents_url": "/contents/{+path}",
        "compare_url": "/compare/{base}...{head}",
        "merges_url": "/merges",
        "archive_url": "/{archive_format}{/ref}",
        "downloads_url": "/downloads",
        "issues_url": "/issues{/number}",
        "pulls_url": "/pulls{/number}",
        "milestones_url": "/milestones{/number}",
        "notifications_url": "/notifications{?since,all,participating}",
        "labels_url": "/labels{/name}",
        "releases_url": "/releases{/id}",
        "deployments_url": "/deployments",
    }
    return (
        {
            "id": 733910442,
            "node_id": "R_kgDOK756Sg",
            "name": NAME,
            "full_name": f"{OWNER}/{NAME}",
            "private": True,
            "owner": owner,
            "html_url": html,
            "description": "The shop on the quay: storefront, orders and the ledger, one compose file",
            "fork": False,
            "url": api,
        }
        | {name: api + path for name, path in links.items()}
        | {
            "created_at": 1703065411,
            "updated_at": "2026-11-20T08:14:55Z",
            "pushed_at": 1763902387,
            "git_url": f"git://github.com/{OWNER}/{NAME}.git",
            "ssh_url": f"git@github.com:{OWNER}/{NAME}.git",
            "clone_url": f"{html}.git",
            "svn_url": html,
            "homepage": None,
            "size": 18342,
            "stargazers_count": 3,
            "watchers_count": 3,
            "language": "Python",
            "has_issues": True,
            "has_projects": False,
            "has_downloads": True,
            "has_wiki": False,
            "has_pages": False,
            "has_discussions": False,
            "forks_count": 0,
            "mirror_url": None,
            "archived": False,
            "disabled": False,
            "open_issues_count": 12,
            "license": None,
            "allow_forking": False,
            "is_template": False,
            "web_commit_signoff_required": False,
            "topics": [],
            "visibility": "private",
            "forks": 0,
            "open_issues": 12,
            "watchers": 3,
            "default_branch": "main",
            "stargazers": 3,
            "master_branch": "main",
            "organization": OWNER,
            "custom_properties": {},
        }
    )


def _commit(number: int, message: str, modified: list[str]) -> dict[str, Any]:
    sha = _sha("commit", number)
    person = {"name": "Maren Vik", "email": "maren@tidewater.example", "username": "marenvik"}
    return {
        "id": sha,
        "tree_id": _sha("tree", number),
        "distinct": True,
        "message": message,
        "timestamp": "2026-11-23T13:53:05+01:00",
        "url": f"https://github.com/{OWNER}/{NAME}/commit/{sha}",
        "author": person | {"date": "2026-11-23T13:53:05+01:00"},
        "committer": person | {"date": "2026-11-23T13:53:05+01:00"},
        "added": [],
        "removed": [],
        "modified": modified,
    }


def push(number: int) -> bytes:
    """The body of one `push` delivery, compact JSON as GitHub sends it; another `number` is another push."""
    commit = _commit(
        number,
        f"Round the ledger's totals once, at the end ({number})\n\nThe storefront rounded each line.",
        ["storefront/totals.py", "compose.yaml"],
    )
    before = _sha("commit", number - 1)
    document = {
        "ref": "refs/heads/main",
        "before": before,
        "after": commit["id"],
        "repository": _repository(),
        "pusher": {"name": "marenvik", "email": "maren@tidewater.example"},
        "organization": {
            "login": OWNER,
            "id": 48103377,
            "node_id": "O_kgDOAt4CUQ",
            "url": f"https://api.github.com/orgs/{OWNER}",
            "repos_url": f"https://api.github.com/orgs/{OWNER}/repos",
            "events_url": f"https://api.github.com/orgs/{OWNER}/events",
            "hooks_url": f"https://api.github.com/orgs/{OWNER}/hooks",
            "issues_url": f"https://api.github.com/orgs/{OWNER}/issues",
            "members_url": f"https://api.github.com/orgs/{OWNER}/members{{/member}}",
            "public_members_url": f"https://api.github.com/orgs/{OWNER}/public_members{{/member}}",
            "avatar_url": "https://avatars.githubusercontent.com/u/48103377?v=4",
            "description": "Boats, bread and a small shop",
        },
        "sender": _person("marenvik", 5501923, "User"),
        "created": False,
        "deleted": False,
        "forced": False,
        "base_ref": None,
        "compare": f"https://github.com/{OWNER}/{NAME}/compare/{before[:12]}...{commit['id'][:12]}",
        "commits": [commit],
        "head_commit": commit,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def signature(secret: bytes, body: bytes) -> str:
    """The value of `X-Hub-Signature-256`."""
    return "sha256=" + hmac.digest(secret, body, "sha256").hex()
