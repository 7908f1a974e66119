"""The words in which events are told."""

from typing import Any
from uuid import UUID

import pytest

from hythe_cli import story
from hythe_events import build, deploy, webhooks
from hythe_events.catalog import EVENTS
from hythe_events.language import BlobRef

ID = UUID("0192f0c1-7a2b-7def-8000-123456789abc")


def test_a_failed_deployment_is_told_with_its_reason() -> None:
    """The reason is what somebody looks for at night."""
    told = story.tell(
        deploy.DeployCompleted(
            deployment=ID, stack="web", outcome="rolled_back", reason="web: unhealthy after 2 s"
        )
    )
    assert told.text == "rolled_back: web: unhealthy after 2 s"
    assert told.tone == "bad"


def test_a_push_is_told_with_who_what_and_where() -> None:
    """One line, whatever the commit message holds."""
    said = webhooks.WebhookReceived(
        source="web",
        provider="github",
        delivery="d1",
        repository="me/web",
        ref="refs/heads/main",
        before=None,
        after="1a2b3c4d" + "0" * 32,
        commit=webhooks.Commit(id="1a2b3c4d" + "0" * 32, message="Fix it\n\nfor \x1b[31mgood"),
        sender="octocat",
        body_sha256="0" * 64,
    )
    assert story.tell(said).text == "webhook received: octocat pushed 1a2b3c4d “Fix it …” to main of me/web"


def test_a_delivery_that_led_to_nothing_says_why() -> None:
    """“Why did nothing happen” has an answer."""
    said = webhooks.DeliveryRouted(
        deployments=(), not_concerned=(webhooks.NotConcerned(stack="web", reason="listens to branch main"),)
    )
    assert story.tell(said).text == "nothing to deploy: web: listens to branch main"


def test_a_service_name_with_an_escape_stays_a_name() -> None:
    """Compose files come from outside too."""
    said = build.BuildStarted(deployment=ID, stack="web", services=("a\x1b]0;x\x07",))
    assert "\x1b" not in story.tell(said).text


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_every_event_has_words_of_its_own(kind: str) -> None:
    """A new event is not finished until somebody can read it."""
    event = EVENTS[kind]
    fields: dict[str, Any] = {
        name: _some(name, field.annotation) for name, field in event.model_fields.items()
    }
    made = event.model_construct(None, **fields)
    assert story.tell(made).text not in {"", kind}


def _some(name: str, annotation: object) -> object:
    if annotation is BlobRef:
        return BlobRef(key="k", size=1, sha256="0" * 64)
    known: dict[str, object] = {
        "services": {},
        "deployments": (),
        "not_concerned": (),
        "grants": (),
        "image": build.Image(reference="web", digest="sha256:" + "0" * 64),
        "seconds": 1.0,
        "commit": None,
    }
    return known.get(name, "word")
