"""What a forge gets answered, over real HTTP, and what is in the log afterwards."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hythe_events import streams
from hythe_events.errors import StoreUnavailable
from hythe_events.secrets import MasterKeys, Secrets
from hythe_events.telemetry import setup
from hythe_events.testing import MemoryKeys, MemoryStore
from hythe_events.webhooks import DeliveryIgnored, SwitchSource, WebhookReceived
from hythe_webhooks.settings import WebhooksSettings
from hythe_webhooks.testing import Receiver, because, opened, sign

DELIVERY = "0b989ba4-242f-11e5-81e1-c7b6966d2516"


async def test_a_push_is_answered_202_and_is_in_the_log(receiver: Receiver, push_body: bytes) -> None:
    """The answer names the event that was stored."""
    answered = await receiver.post(push_body)
    [event] = await receiver.store.read(streams.delivery("ferry", DELIVERY))
    assert answered.status == 202
    assert answered.body == {"delivery": DELIVERY, "event": str(event.id), "status": "accepted"}
    assert answered.headers["Content-Type"] == "application/json"
    assert isinstance(event.data, WebhookReceived)
    assert event.correlation == event.id
    assert event.actor == "github:inesrye"


async def test_the_evidence_opens_to_the_very_bytes(receiver: Receiver, push_body: bytes) -> None:
    """Who doubts what a forge sent can look, and nobody can look without the key."""
    await receiver.post(push_body)
    [event] = await receiver.store.read(streams.delivery("ferry", DELIVERY))
    sealed = await receiver.store.evidence(event.id)
    assert sealed is not None
    assert b"quayside" not in sealed
    place: dict[str, Any] = {"kind": "evidence", "owner": "ferry", "name": DELIVERY, "version": 1}
    assert await receiver.secrets.opened_bytes(**place, sealed=sealed) == push_body


async def test_a_redelivery_gets_the_first_answer(receiver: Receiver, push_body: bytes) -> None:
    """W7: the answer may have been lost; asking again must not make a second event."""
    first = await receiver.post(push_body)
    again = await receiver.post(push_body)
    assert (again.status, again.body) == (first.status, first.body)
    assert len(await receiver.store.read_all(0)) == 2  # the source and the delivery


async def test_identical_deliveries_at_once_are_one(receiver: Receiver, push_body: bytes) -> None:
    """W10: a proxy that retries too early sends both at the same moment."""
    answered = await asyncio.gather(*(receiver.post(push_body) for _ in range(20)))
    assert {each.status for each in answered} == {202}
    assert len({each.body["event"] for each in answered}) == 1
    assert len(await receiver.store.read(streams.delivery("ferry", DELIVERY))) == 1


async def test_the_same_id_with_another_body_is_409(receiver: Receiver, push_body: bytes) -> None:
    """Even correctly signed, it is a replayed id; the first delivery stays as it is."""
    first = await receiver.post(push_body)
    other = push_body.replace(b"refs/heads/main", b"refs/heads/evil")
    answered = await receiver.post(other)
    assert answered.status == 409
    assert answered.headers["Content-Type"] == "application/problem+json"
    assert (await receiver.post(push_body)).body == first.body


async def test_a_ping_is_answered_2xx_with_a_stored_reason(receiver: Receiver) -> None:
    """GitHub shows a red cross for anything else; "why did nothing happen" is answered by the log."""
    answered = await receiver.post(b'{"zen":"Design for failure.","hook_id":1}', X_GitHub_Event="ping")
    [event] = await receiver.store.read(streams.delivery("ferry", DELIVERY))
    assert answered.status == 200
    assert answered.body["status"] == "ignored"
    assert isinstance(event.data, DeliveryIgnored)
    assert answered.body == {
        "delivery": DELIVERY,
        "event": str(event.id),
        "status": "ignored",
        "reason": event.data.reason,
    }


async def test_an_unknown_source_is_answered_as_a_wrong_signature_is(
    receiver: Receiver, push_body: bytes
) -> None:
    """Nobody learns which sources there are: every byte of both answers is the same, but for the date."""
    wrong = await receiver.post(push_body, X_Hub_Signature_256=sign(push_body, "not the secret"))
    unknown = await receiver.post(push_body, path="/api/webhooks/github/nobody")
    missing = await receiver.post(push_body, X_Hub_Signature_256=None)
    assert wrong.status == unknown.status == missing.status == 401
    assert wrong.body == unknown.body == missing.body
    assert list(wrong.headers) == list(unknown.headers) == list(missing.headers)
    assert len(await receiver.store.read_all(0)) == 1


async def test_an_unknown_source_costs_what_a_wrong_signature_costs(push_body: bytes) -> None:
    """WH6: both are looked up as often and compared as often; only noise is left to measure."""

    class Counted(MemoryStore):
        reads = 0

        async def read(self, *args: Any, **kwargs: Any) -> Any:
            self.reads += 1
            return await super().read(*args, **kwargs)

    store = Counted("webhooks")
    async with opened(store, clock=lambda: 0.0) as receiver:
        await receiver.create()
        costs = []
        for source in ("ferry", "nobody"):
            store.reads = 0
            for _ in range(10):
                wrong = sign(push_body, "not the secret")
                await receiver.post(
                    push_body, path=f"/api/webhooks/github/{source}", X_Hub_Signature_256=wrong
                )
            costs.append(store.reads)
        assert costs == [1, 1]


async def test_the_event_belongs_to_the_trace_of_its_request(push_body: bytes) -> None:
    """One trace from the HTTP request to the deployment: the event hands it on."""
    exporter = InMemorySpanExporter()
    telemetry = setup("webhooks", WebhooksSettings(), exporter=exporter)
    try:
        async with opened(telemetry=telemetry) as receiver:
            await receiver.create()
            await receiver.post(push_body)
            [event] = await receiver.store.read(streams.delivery("ferry", DELIVERY))
        [span] = exporter.get_finished_spans()
        assert span.context is not None
        assert event.traceparent.startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
        assert span.attributes is not None
        assert span.attributes["http.response.status_code"] == 202
        assert (
            b'hythe_webhooks_answered_total{service="webhooks",status="202"} 1.0' in telemetry.metrics_text()
        )
    finally:
        await telemetry.close()


async def test_a_source_of_another_forge_is_an_unknown_source(receiver: Receiver, push_body: bytes) -> None:
    """The forge is fixed by the path: GitHub's secret does not open the generic door."""
    answered = await receiver.post(
        push_body, path="/api/webhooks/ferry", X_Hub_Signature_256=None, X_Hythe_Signature=sign(push_body)
    )
    assert answered.status == 401


async def test_a_generic_push_is_received(receiver: Receiver) -> None:
    """Any script can deploy: three fields and a signature."""
    await receiver.create("ci", "generic")
    body = json.dumps({"ref": "refs/heads/main", "commit": "a" * 40, "repository": "ferry"}).encode()
    answered = await receiver.post(
        body, path="/api/webhooks/ci", X_Hub_Signature_256=None, X_Hythe_Signature=sign(body)
    )
    assert answered.status == 202
    assert answered.body["delivery"] == (await receiver.store.read_all(0))[-1].data.body_sha256


async def test_a_source_that_is_off_refuses_and_tells_only_its_owner(
    receiver: Receiver, push_body: bytes
) -> None:
    """Whoever cannot sign gets the same 401 as ever."""
    await receiver.handlers.switch_source(SwitchSource(source="ferry", on=False), because())
    assert (await receiver.post(push_body)).status == 403
    assert (await receiver.post(push_body, X_Hub_Signature_256=sign(b"else"))).status == 401
    await receiver.handlers.switch_source(SwitchSource(source="ferry", on=True), because())
    assert (await receiver.post(push_body)).status == 202


async def test_every_two_hundredth_is_stored_before_it_is_answered(push_body: bytes) -> None:
    """P1: no 202 without the event. The store holds every append back; nothing is answered until it lets go."""

    class Slow(MemoryStore):
        asked, go = asyncio.Event(), asyncio.Event()

        async def append(self, stream: str, *args: Any, **kwargs: Any) -> Any:
            if stream.startswith("delivery-"):
                self.asked.set()
                await self.go.wait()
            return await super().append(stream, *args, **kwargs)

    store = Slow("webhooks")
    async with opened(store) as receiver:
        await receiver.create()
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            posting = group.create_task(receiver.post(push_body))
            await store.asked.wait()
            assert not posting.done()
            store.go.set()
        assert posting.result().status == 202


async def test_without_the_store_it_is_503_and_try_again(push_body: bytes) -> None:
    """The forge keeps the delivery and shows it as failed; nothing pretends to be stored."""

    class Away(MemoryStore):
        away = False

        async def append(self, *args: Any, **kwargs: Any) -> Any:
            if self.away:
                raise StoreUnavailable
            return await super().append(*args, **kwargs)

        async def read(self, *args: Any, **kwargs: Any) -> Any:
            if self.away:
                raise StoreUnavailable
            return await super().read(*args, **kwargs)

    store = Away("webhooks")
    async with opened(store) as receiver:
        await receiver.create()
        store.away = True
        for source in ("ferry", "nobody"):
            answered = await receiver.post(push_body, path=f"/api/webhooks/github/{source}")
            assert answered.status == 503
            assert int(answered.headers["Retry-After"]) > 0
            assert answered.headers["Content-Type"] == "application/problem+json"
        store.away = False
        assert (await receiver.post(push_body)).status == 202


async def test_an_error_of_ours_is_a_500_without_a_word_about_the_inside(push_body: bytes) -> None:
    """A traceback in an answer is a gift to whoever looks for a way in."""

    class Broken(MemoryStore):
        broken = False

        async def read(self, *args: Any, **kwargs: Any) -> Any:
            if self.broken:
                raise RuntimeError("the password is hunter2")
            return await super().read(*args, **kwargs)

    store = Broken("webhooks")
    async with opened(store) as receiver:
        await receiver.create()
        store.broken = True
        answered = await receiver.post(push_body)
        assert answered.status == 500
        assert "hunter2" not in json.dumps(answered.body)
        assert answered.headers["Content-Type"] == "application/problem+json"


async def test_a_source_beyond_its_rate_is_told_when_to_come_back(push_body: bytes) -> None:
    """Another source is not concerned, and neither is whoever cannot sign: 401 costs no token."""
    async with opened(rate=0.01, burst=3) as receiver:
        await receiver.create()
        await receiver.create("other")
        for _ in range(5):
            await receiver.post(push_body, X_Hub_Signature_256=sign(b"else"))
        posted = [await receiver.post(push_body, X_GitHub_Delivery=f"d-{n}") for n in range(4)]
        assert [each.status for each in posted] == [202, 202, 202, 429]
        assert int(posted[-1].headers["Retry-After"]) >= 1
        assert (await receiver.post(push_body, path="/api/webhooks/github/other")).status == 202


async def test_what_another_process_made_is_known_at_once(push_body: bytes) -> None:
    """Several processes share one port; a source is made in one of them."""
    store, keys = MemoryStore("webhooks"), MemoryKeys()
    seals = [Secrets(keys, lambda: MasterKeys(b"m" * 32)) for _ in range(2)]
    async with opened(store, seals[0]) as one, opened(store, seals[1]) as other:
        await one.create()
        assert (await other.post(push_body)).status == 202


@pytest.mark.parametrize(
    ("sent", "status", "field"),
    [
        ({"method": "GET"}, 405, "method"),
        ({"method": "PUT"}, 405, "method"),
        ({"method": "OPTIONS"}, 405, "method"),
        ({"path": "/"}, 404, "path"),
        ({"path": "/api/webhooks/github/ferry?x=1"}, 404, "path"),
        ({"path": "/api/webhooks/gitlab/ferry"}, 404, "path"),
        ({"Content_Type": "text/plain"}, 415, "Content-Type"),
        ({"Content_Type": "application/xml"}, 415, "Content-Type"),
        ({"Content_Type": None}, 415, "Content-Type"),
        ({"Content_Encoding": "gzip"}, 415, "Content-Encoding"),
        ({"Content_Encoding": "br"}, 415, "Content-Encoding"),
        ({"X_Hub_Signature_256": "sha256=00"}, 401, "X-Hub-Signature-256"),
        ({"X_Hub_Signature_256": None, "X_Hub_Signature": "sha1=" + "0" * 40}, 401, "X-Hub-Signature-256"),
        ({"X_GitHub_Delivery": None}, 400, "X-GitHub-Delivery"),
        ({"X_GitHub_Delivery": "two words"}, 400, "X-GitHub-Delivery"),
        ({"X_GitHub_Event": None}, 400, "X-GitHub-Event"),
        ({"X_GitHub_Event": "Push!"}, 400, "X-GitHub-Event"),
    ],
)
async def test_every_refusal_names_what_was_wrong(
    receiver: Receiver, push_body: bytes, sent: dict[str, Any], status: int, field: str
) -> None:
    """application/problem+json with the field; nothing is stored."""
    answered = await receiver.post(push_body, **sent)
    assert (answered.status, answered.body["field"]) == (status, field)
    assert answered.headers["Content-Type"] == "application/problem+json"
    assert answered.body["detail"]
    assert len(await receiver.store.read_all(0)) == 1


async def test_content_types_may_carry_parameters(receiver: Receiver, push_body: bytes) -> None:
    """`; charset=utf-8` is common, and so are capitals."""
    assert (await receiver.post(push_body, Content_Type="Application/JSON; charset=utf-8")).status == 202


LEAF_VALUES: list[Any] = [None, True, 0, -1.5, 10**30, "", "\x00", "x" * 1_000_000, [], [[]], {}, {"": {}}]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside `value`, containers included."""
    inside: list[tuple[Any, ...]] = [path] if path else []
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, each in members:
        inside += leaves(each, (*path, key))
    return inside


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """`value` with what stands at `path` replaced."""
    if not path:
        return by
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


@pytest.mark.slow
async def test_no_confusion_of_types_is_ever_our_error(
    receiver: Receiver, push_document: dict[str, Any]
) -> None:
    """WH11: every value of a push, in turn, is something else. Each answer is 2xx or names a field; none is 5xx."""
    sent = 0
    for path in leaves(push_document):
        for value in LEAF_VALUES:
            if isinstance(value, str) and len(value) > 100 and path[0] == "repository" and len(path) > 2:
                continue  # a megabyte of what nobody reads, once is enough
            body = json.dumps(replaced(push_document, path, value)).encode()
            sent += 1
            answered = await receiver.post(body, X_GitHub_Delivery=f"leaf-{sent}")
            assert answered.status in {200, 202, 400}, (path, value, answered)
            assert answered.status != 400 or answered.body["field"], (path, value, answered)
    assert sent > 1000
    assert (await receiver.post(json.dumps(push_document).encode())).status == 202


async def test_no_confusion_of_types_is_our_error_on_the_generic_path_either(receiver: Receiver) -> None:
    """WH11 for whoever writes the sender by hand."""
    await receiver.create("ci", "generic")
    whole: dict[str, Any] = {
        "ref": "refs/heads/main",
        "commit": "a" * 40,
        "before": "b" * 40,
        "repository": "ferry",
        "message": "m",
        "author": "a",
        "sender": "s",
        "forced": False,
        "changed_paths": ["a"],
    }
    for path in leaves(whole):
        for number, value in enumerate(LEAF_VALUES):
            body = json.dumps(replaced(whole, path, value)).encode()
            answered = await receiver.post(
                body,
                path="/api/webhooks/ci",
                X_Hub_Signature_256=None,
                X_Hythe_Signature=sign(body),
                Idempotency_Key=f"{'-'.join(map(str, path))}-{number}",
            )
            assert answered.status in {202, 400}, (path, value, answered)
            assert answered.status != 400 or answered.body["field"], (path, value, answered)
