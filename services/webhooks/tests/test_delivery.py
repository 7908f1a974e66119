"""The rules of one delivery: the four endings of keeping it."""

from __future__ import annotations

import asyncio

import pytest

from hythe_events import streams
from hythe_events.decider import execute
from hythe_events.envelope import Cause
from hythe_events.errors import UnknownEvent
from hythe_events.language import new_id
from hythe_events.testing import MemoryStore, given, told
from hythe_events.webhooks import DeliveryIgnored, DeliveryRouted, SourceSwitched, WebhookReceived
from hythe_webhooks import delivery
from hythe_webhooks.delivery import Keep, SameIdOtherBody

PUSH = WebhookReceived(
    source="ferry",
    provider="github",
    delivery="one",
    repository="quayside/ferry",
    ref="refs/heads/main",
    before=None,
    after="c0ffee254729296a45a3885639ac7e10f9d54979",
    commit=None,
    sender="inesrye",
    body_sha256="1" * 64,
)
PING = DeliveryIgnored(
    source="ferry", provider="github", delivery="two", event="ping", reason="a ping", body_sha256="2" * 64
)


def test_a_push_is_kept() -> None:
    """Done: a delivery that was never heard becomes the event it told."""
    given(delivery.decider).when(Keep(PUSH)).then(PUSH)


def test_what_asks_for_no_deployment_is_kept_with_its_reason() -> None:
    """ "Why did nothing happen" needs an answer in the log."""
    given(delivery.decider).when(Keep(PING)).then(PING)


def test_a_redelivery_changes_nothing() -> None:
    """Heard before: GitHub sends the same id again for three days."""
    given(delivery.decider, PUSH).when(Keep(PUSH)).then_nothing()


def test_a_redelivery_after_it_was_routed_changes_nothing() -> None:
    """The git service writes to the same stream; a redelivery must not make a second deployment."""
    given(delivery.decider, PUSH, DeliveryRouted(deployments=())).when(Keep(PUSH)).then_nothing()


def test_another_body_under_the_same_id_is_refused() -> None:
    """Refused: two different things cannot have one name, and the first must not be overwritten."""
    other = PUSH.model_copy(update={"body_sha256": "3" * 64})
    given(delivery.decider, PUSH).when(Keep(other)).then_raises(SameIdOtherBody, "another body")


def test_a_foreign_event_in_a_delivery_is_an_error() -> None:
    """Folding over what one does not know would give a wrong state."""
    [foreign] = told("delivery-ferry-one", SourceSwitched(source="ferry", on=True))
    with pytest.raises(UnknownEvent):
        delivery.evolve(delivery.UNHEARD, foreign)


async def test_of_two_at_once_one_is_kept_and_both_see_it() -> None:
    """Somebody else was first: the decision is made anew from what they wrote."""
    store = MemoryStore("webhooks")
    stream = streams.delivery("ferry", "one")

    async def keep() -> delivery.Delivery:
        return await execute(
            store, delivery.decider, stream, Keep(PUSH), because=Cause(new_id(), None, "github:inesrye")
        )

    one, two = await asyncio.gather(keep(), keep())
    assert one.event == two.event
    assert len(await store.read(stream)) == 1
