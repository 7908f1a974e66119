"""What an event store promises: the same tests against the real one on Postgres, and against its double in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from hythe_events import chain
from hythe_events.envelope import Cause
from hythe_events.errors import HytheError, NotPermitted, VersionConflict
from hythe_events.git import DeploymentRequested
from hythe_events.language import Event, new_id
from hythe_events.settings import ServiceSettings
from hythe_events.store import Store
from hythe_events.telemetry import setup
from hythe_events.testing import MemoryStore, MigratedDatabase
from hythe_events.webhooks import SourceCreated, SourceSwitched, WebhookReceived

AnyStore = Store | MemoryStore
DEADLINE = 20.0
BECAUSE = Cause(
    UUID(int=1), UUID(int=2), "cli:test", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
)


@pytest_asyncio.fixture
async def real_stores(database: MigratedDatabase) -> AsyncIterator[dict[str, AnyStore]]:
    async with AsyncExitStack() as stack:
        yield {
            service: await stack.enter_async_context(Store.open(database.dsn(service)))
            for service in ("webhooks", "git")
        }


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.real)])
def stores(request: pytest.FixtureRequest) -> dict[str, AnyStore]:
    """The stores of two services on one log."""
    if request.param == "memory":
        memory = MemoryStore("webhooks")
        return {"webhooks": memory, "git": memory.of("git")}
    real: dict[str, AnyStore] = request.getfixturevalue("real_stores")
    return real


@pytest.fixture
def store(stores: dict[str, AnyStore]) -> AnyStore:
    """The store of the webhooks service."""
    return stores["webhooks"]


def switched(*on: bool) -> list[Event]:
    return [SourceSwitched(source="a", on=each) for each in on]


# -- appending


async def test_what_was_appended_is_what_is_read(store: AnyStore) -> None:
    """The answer of an append is complete: nobody has to read it again."""
    appended = await store.append("source-a", 0, switched(True, False), because=BECAUSE)
    assert await store.read("source-a") == appended
    assert await store.read_all(0) == appended
    assert [event.data for event in appended] == switched(True, False)
    assert [(event.version, event.position) for event in appended] == [(1, 1), (2, 2)]
    first = appended[0]
    assert (first.stream, first.type) == ("source-a", "source.switched")
    assert first.correlation == BECAUSE.correlation
    assert first.causation == BECAUSE.causation
    assert (first.actor, first.traceparent) == (BECAUSE.actor, BECAUSE.traceparent)
    assert first.id.version == 7
    assert abs(datetime.now(UTC) - first.at) < timedelta(minutes=5)


async def test_versions_count_in_a_stream_and_positions_in_the_log(store: AnyStore) -> None:
    """Both without gaps, so that a cursor is one number."""
    for stream in ("source-a", "source-b", "source-a"):
        await store.append(stream, None, switched(True), because=BECAUSE)
    assert [(e.stream, e.version, e.position) for e in await store.read_all(0)] == [
        ("source-a", 1, 1),
        ("source-b", 1, 2),
        ("source-a", 2, 3),
    ]


@pytest.mark.parametrize("expected", [0, 1, 3, 99])
async def test_a_wrong_expected_version_says_what_was_found(store: AnyStore, expected: int) -> None:
    """And appends nothing."""
    await store.append("source-a", 0, switched(True, False), because=BECAUSE)
    with pytest.raises(VersionConflict) as conflict:
        await store.append("source-a", expected, switched(True), because=BECAUSE)
    assert (conflict.value.stream, conflict.value.expected, conflict.value.found) == ("source-a", expected, 2)
    assert conflict.value.retry
    assert (await store.head()).position == 2


async def test_without_an_expected_version_an_append_goes_to_the_end(store: AnyStore) -> None:
    """New stream or old."""
    for version in (1, 2, 3):
        [event] = await store.append("source-a", None, switched(True), because=BECAUSE)
        assert event.version == version


async def test_appending_nothing_is_nothing(store: AnyStore) -> None:
    """A decision that was heard before appends nothing."""
    assert await store.append("source-a", 7, [], because=BECAUSE) == []


async def test_of_two_that_saw_the_same_version_one_wins(store: AnyStore) -> None:
    """Each of the others is told so, and may decide anew."""
    answers = await asyncio.gather(
        *(store.append("source-a", 0, switched(bool(n % 2)), because=BECAUSE) for n in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, list) for answer in answers) == 1
    assert sum(isinstance(answer, VersionConflict) for answer in answers) == 19
    assert (await store.head()).position == 1


async def test_many_at_once_each_get_their_own_answer(store: AnyStore) -> None:
    """They may share a transaction; a conflict or a refusal of one does not touch the others."""
    await store.append("source-0", 0, switched(True), because=BECAUSE)
    bad = DeploymentRequested(
        deployment=uuid4(), stack="s", trigger="command", ref="main", commit=None, asked_by="cli:test"
    )
    answers = await asyncio.gather(
        *(store.append(f"source-{n}", 0, switched(True, False), because=BECAUSE) for n in range(40)),
        store.append("deployment-1", 0, [bad], because=BECAUSE),
        return_exceptions=True,
    )
    assert isinstance(answers[0], VersionConflict)
    assert isinstance(answers[-1], NotPermitted)
    for n, answer in enumerate(answers[1:-1], 1):
        assert isinstance(answer, list)
        assert [(event.stream, event.version) for event in answer] == [(f"source-{n}", 1), (f"source-{n}", 2)]
        assert answer[1].position == answer[0].position + 1
    assert [event.position for event in await store.read_all(0)] == list(range(1, 80))


async def test_a_large_append_is_one(store: AnyStore) -> None:
    """All or none, whatever the size."""
    appended = await store.append("source-a", 0, switched(*[True] * 700), because=BECAUSE)
    assert [event.version for event in appended] == list(range(1, 701))
    assert await store.read("source-a") == appended


# -- who may write what


async def test_a_service_may_write_only_its_own_events(stores: dict[str, AnyStore]) -> None:
    """By the table in `access`: neither another's category, nor another's event in a category they share."""
    for service, stream, events in (
        ("git", "source-a", switched(True)),
        ("git", "repository-a", switched(True)),
        ("webhooks", "delivery-a", switched(True)),
        ("webhooks", "unheard-a", switched(True)),
    ):
        with pytest.raises(NotPermitted):
            await stores[service].append(stream, 0, events, because=BECAUSE)
    assert (await stores["git"].head()).position == 0


async def test_an_append_with_one_event_too_many_appends_none(stores: dict[str, AnyStore]) -> None:
    """All or none."""
    body = "0" * 64
    received = WebhookReceived(
        source="a", provider="generic", delivery="1", repository="r", ref="main", before=None, after="1" * 40,
        commit=None, sender="s", body_sha256=body,
    )  # fmt: skip
    with pytest.raises(NotPermitted):
        await stores["webhooks"].append("delivery-a-1", 0, [received, *switched(True)], because=BECAUSE)
    assert await stores["webhooks"].read("delivery-a-1") == []


@pytest.mark.parametrize("stream", ["", "source", "-a", "Source-a", "source-", "source-a\n", "source-\x7f"])
async def test_a_stream_must_be_named_plainly(store: AnyStore, stream: str) -> None:
    """Category, `-`, and something without control characters."""
    with pytest.raises(HytheError):
        await store.append(stream, 0, switched(True), because=BECAUSE)
    assert (await store.head()).position == 0


# -- again


async def test_appending_the_same_ids_again_changes_nothing(store: AnyStore) -> None:
    """Whatever version is expected the second time: the answer is the first one."""
    ids = [new_id(), new_id()]
    first = await store.append("source-a", 0, switched(True, False), because=BECAUSE, ids=ids)
    assert [event.id for event in first] == ids
    await store.append("source-a", 2, switched(True), because=BECAUSE)
    for expected in (0, None, 2, 3):
        again = await store.append("source-a", expected, switched(True, False), because=BECAUSE, ids=ids)
        assert again == first
    assert (await store.head()).position == 3


async def test_the_same_ids_at_once_are_appended_once(store: AnyStore) -> None:
    """Two deliveries of one command may race."""
    ids = [new_id()]
    answers = await asyncio.gather(
        *(store.append("source-a", None, switched(True), because=BECAUSE, ids=ids) for _ in range(10))
    )
    assert all(answer == answers[0] for answer in answers)
    assert (await store.head()).position == 1


async def test_an_id_of_another_stream_is_refused(store: AnyStore) -> None:
    """It is not the same append, and an id names one event."""
    ids = [new_id()]
    await store.append("source-a", 0, switched(True), because=BECAUSE, ids=ids)
    with pytest.raises(HytheError):
        await store.append("source-b", 0, switched(True), because=BECAUSE, ids=ids)
    assert await store.read("source-b") == []


async def test_ids_that_are_known_in_part_are_refused(store: AnyStore) -> None:
    """Half of it happened before: that is no repetition but a mistake."""
    known = new_id()
    await store.append("source-a", 0, switched(True), because=BECAUSE, ids=[known])
    with pytest.raises(HytheError):
        await store.append("source-a", None, switched(True, False), because=BECAUSE, ids=[known, new_id()])
    assert (await store.head()).position == 1


# -- reading


async def test_a_stream_can_be_read_as_it_was_at_a_version(store: AnyStore) -> None:
    """Time travel, by version."""
    appended = await store.append("source-a", 0, switched(True, False, True), because=BECAUSE)
    assert await store.read("source-a", until=2) == appended[:2]
    assert await store.read("source-a", until=0) == []
    assert await store.read("source-a", until=99) == appended
    assert await store.read("source-a", after=1) == appended[1:]
    assert await store.read("source-a", after=1, until=2) == appended[1:2]
    assert await store.read("source-a", after=99) == []


async def test_a_stream_can_be_read_as_it_was_at_a_moment(store: AnyStore) -> None:
    """Time travel, by time: the moment itself belongs to it."""
    [first] = await store.append("source-a", 0, switched(True), because=BECAUSE)
    while True:  # until the clock shows another microsecond
        [second] = await store.append("source-a", None, switched(False), because=BECAUSE)
        if second.at > first.at:
            break
    just_before = timedelta(microseconds=1)
    assert await store.read("source-a", until=first.at - just_before) == []
    assert first in await store.read("source-a", until=first.at)
    assert second not in await store.read("source-a", until=second.at - just_before)
    assert await store.read("source-a", until=second.at) == await store.read("source-a")


async def test_what_is_not_there_reads_as_nothing(store: AnyStore) -> None:
    """A stream that nothing happened in, and an id that no event has."""
    assert await store.read("source-nobody") == []
    assert await store.find(uuid4()) is None
    assert await store.evidence(uuid4()) is None
    assert await store.read_all(0) == []
    assert await store.head() == (0, chain.START)


async def test_the_log_can_be_read_page_by_page(store: AnyStore) -> None:
    """From any position, by any reader, each event once and in order."""
    await asyncio.gather(
        *(store.append(f"source-{n}", 0, switched(True), because=BECAUSE) for n in range(25))
    )
    seen: list[int] = []
    while page := await store.read_all(seen[-1] if seen else 0, 10):
        assert len(page) <= 10
        seen += [event.position for event in page]
    assert seen == list(range(1, 26))
    assert [[e.position for e in page] async for page in store.replay(after=5, page=8)] == [
        list(range(6, 14)),
        list(range(14, 22)),
        list(range(22, 26)),
    ]


async def test_the_streams_of_a_category_can_be_read_together(store: AnyStore) -> None:
    """Stream by stream, each in its order."""
    for stream in ("source-b", "source-a", "source-b"):
        await store.append(stream, None, switched(True), because=BECAUSE)
    read = [(event.stream, event.version) for event in await store.read_category("source-")]
    assert read == [("source-a", 1), ("source-b", 1), ("source-b", 2)]
    assert await store.read_category("delivery-") == []


async def test_an_event_can_be_found_by_its_id(store: AnyStore) -> None:
    """Wherever it is."""
    appended = await store.append("source-a", 0, switched(True, False), because=BECAUSE)
    for event in appended:
        assert await store.find(event.id) == event


async def test_evidence_is_kept_with_the_first_event(store: AnyStore) -> None:
    """Byte for byte; it is sealed before it gets here."""
    body = bytes(range(256)) * 40
    first, second = await store.append("source-a", 0, switched(True, False), because=BECAUSE, evidence=body)
    assert await store.evidence(first.id) == body
    assert await store.evidence(second.id) is None
    assert [row.evidence for row in await store.read_raw(0)] == [body, None]
    assert [row.evidence for row in await store.read_raw(0, evidence=False)] == [None, None]


@pytest.mark.parametrize(
    "text", ["", "ünïcödé 🚀", "quotes \" ' and \\ back", "\t\n\r", "\x00\x1f", "\u2028</script>"]
)
async def test_any_text_comes_back_as_it_was(stores: dict[str, AnyStore], text: str) -> None:
    """Commit messages come from anybody."""
    asked = DeploymentRequested(
        deployment=uuid4(),
        stack="s",
        trigger="command",
        ref="main",
        commit=None,
        asked_by="cli:test",
        message=text,
    )
    [event] = await stores["git"].append("deployment-1", 0, [asked], because=BECAUSE)
    assert await stores["webhooks"].read("deployment-1") == [event]
    assert event.data == asked


# -- the chain


async def test_the_hash_chain_can_be_computed_again_by_anybody(stores: dict[str, AnyStore]) -> None:
    """Of both services' events, evidence included; the head is its end."""
    webhooks, git = stores["webhooks"], stores["git"]
    await webhooks.append("source-a", 0, switched(True, False), because=BECAUSE, evidence=b"evidence")
    asked = DeploymentRequested(
        deployment=uuid4(), stack="s", trigger="command", ref="ä", commit=None, asked_by="cli:test"
    )
    await git.append("deployment-1", 0, [asked], because=Cause(uuid4(), None, "git:ünï"))
    checked = chain.check(chain.Checked(0, chain.START), await webhooks.read_raw(0))
    assert checked.bad is None
    assert (checked.position, checked.hash) == await git.head()
    assert [event.hash for event in await git.read_all(0)] == [row.hash for row in await git.read_raw(0)]


# -- waiting


async def test_waiting_ends_at_once_when_there_is_something_already(store: AnyStore) -> None:
    """No lost wake-up: what came before counts."""
    await store.append("source-a", 0, switched(True), because=BECAUSE)
    async with asyncio.timeout(DEADLINE):
        await store.beyond(0, timeout=600)


async def test_waiting_ends_when_another_service_appends(stores: dict[str, AnyStore]) -> None:
    """The doorbell rings in every process."""
    waiting = asyncio.create_task(stores["git"].beyond(0, timeout=600))
    await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE):
        await stores["webhooks"].append("source-a", 0, switched(True), because=BECAUSE)
        await waiting


async def test_waiting_ends_after_its_time(store: AnyStore) -> None:
    """The safety net for a ring that was lost."""
    async with asyncio.timeout(DEADLINE):
        await store.beyond(0, timeout=0.01)


# -- traces


async def test_an_event_belongs_to_the_span_that_appended_it(store: AnyStore) -> None:
    """The next service's span becomes a child of it."""
    incoming = "00-11111111111111111111111111111111-2222222222222222-01"
    telemetry = setup("webhooks", ServiceSettings())
    with telemetry.span("handle", parent=incoming):
        [event] = await store.append("source-a", 0, switched(True), because=BECAUSE)
    await telemetry.close()
    assert event.traceparent == incoming


Clock = Callable[[], datetime]


async def test_the_double_shows_whatever_time_a_test_gives_it() -> None:
    """Rules that look at time can be tested without waiting."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    clock: Clock = lambda: at  # noqa: E731
    made = SourceCreated(source="a", provider="github", secret="v1.a.b.c")
    [event] = await MemoryStore(clock=clock).append("source-a", 0, [made], because=BECAUSE)
    assert event.at == at
