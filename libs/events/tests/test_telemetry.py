"""Spans that join into one trace, and metrics that Prometheus reads."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.parser import text_string_to_metric_families

from hythe_events import telemetry as telemetry_module
from hythe_events.errors import HytheError
from hythe_events.settings import ServiceSettings
from hythe_events.telemetry import Telemetry, current_traceparent, setup, span, traceparent

INCOMING = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest_asyncio.fixture(loop_scope="session")
async def exporting(spans: InMemorySpanExporter) -> AsyncIterator[Telemetry]:
    telemetry = setup("build", ServiceSettings(), exporter=spans)
    yield telemetry
    await telemetry.close()


@pytest_asyncio.fixture(loop_scope="session")
async def silent() -> AsyncIterator[Telemetry]:
    telemetry = setup("build", ServiceSettings())
    yield telemetry
    await telemetry.close()


async def test_a_span_joins_the_trace_it_was_given(exporting: Telemetry, spans: InMemorySpanExporter) -> None:
    """One trace runs from the webhook to the deployment: the parent comes from a header or an event."""
    with exporting.span("BUILD shop", kind="consumer", parent=INCOMING, links=[INCOMING]):
        leads_to = current_traceparent()
        with exporting.span("pull"):
            pass
    pull, build = spans.get_finished_spans()
    assert build.context.trace_id == int(INCOMING.split("-")[1], 16)
    assert build.parent is not None
    assert build.parent.span_id == int(INCOMING.split("-")[2], 16)
    assert build.kind is SpanKind.CONSUMER
    assert [link.context.trace_id for link in build.links] == [build.context.trace_id]
    assert leads_to == f"00-{build.context.trace_id:032x}-{build.context.span_id:016x}-01"
    assert pull.parent is not None
    assert pull.parent.span_id == build.context.span_id


async def test_the_next_service_goes_on_with_the_same_trace(
    exporting: Telemetry, spans: InMemorySpanExporter
) -> None:
    """The traceparent that one service leaves is the parent of the next one's span."""
    with exporting.span("POST /api/webhooks", kind="server"):
        stored = current_traceparent()
    with exporting.span("SYNC shop", kind="consumer", parent=stored):
        pass
    assert len({finished.context.trace_id for finished in spans.get_finished_spans()}) == 1


async def test_a_failed_span_tells_our_sentence_and_no_other_errors_text(
    exporting: Telemetry, spans: InMemorySpanExporter
) -> None:
    """A driver's error may hold an address with a password; a span may not."""
    with pytest.raises(HytheError), exporting.span("ours"):
        raise HytheError("the image could not be built")
    with pytest.raises(ValueError), exporting.span("theirs"):
        raise ValueError("cannot connect to postgresql://user:hunter2@host")
    ours, theirs = spans.get_finished_spans()
    assert ours.status.status_code is StatusCode.ERROR
    assert ours.status.description == "the image could not be built"
    assert theirs.attributes is not None
    assert theirs.attributes["error.type"] == "ValueError"
    assert "hunter2" not in theirs.to_json()


async def test_a_service_that_exports_nothing_still_hands_the_trace_on(silent: Telemetry) -> None:
    """Whoever listens further down the line must see one trace."""
    assert not silent.exporting
    assert current_traceparent() is None
    with silent.span("a", parent=INCOMING), silent.span("b"):
        assert current_traceparent() == INCOMING
    assert current_traceparent() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        INCOMING.upper(),
        INCOMING + "-00",
        "01" + INCOMING[2:],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        INCOMING + "\n",
    ],
)
async def test_a_malformed_traceparent_counts_as_none(
    exporting: Telemetry, silent: Telemetry, text: str
) -> None:
    """It comes from an HTTP header, which anybody may write; the log accepts no control characters."""
    assert traceparent(text) is None
    with silent.span("a", parent=text):
        assert current_traceparent() is None
    with exporting.span("a", parent=text, links=[text]):
        pass


async def test_services_in_one_process_keep_their_traces_apart() -> None:
    """Flow tests run all services in one process, each in its own task."""
    seen: dict[str, list[str]] = {}

    async def one(service: str) -> None:
        spans = InMemorySpanExporter()
        telemetry = setup(service, ServiceSettings(), exporter=spans)
        await asyncio.sleep(0)
        with span(f"of {service}"):
            await asyncio.sleep(0)
        seen[service] = [finished.name for finished in spans.get_finished_spans()]
        await telemetry.close()

    async with asyncio.TaskGroup() as group:
        for service in ("git", "build"):
            group.create_task(one(service))
    assert seen == {"git": ["of git"], "build": ["of build"]}


async def test_metrics_are_prometheus_text(silent: Telemetry) -> None:
    """The names that dashboards and alerts are written against."""
    silent.message_handled("build.requested", "done", 0.2)
    silent.message_handled("build.requested", "done", 0.2)
    silent.message_parked("build.requested")
    silent.relayed(41, 42)
    silent.run_finished("shop", "BUILD", "success", 12.5)
    families = text_string_to_metric_families(silent.metrics_text().decode())
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    build = ("service", "build")
    event = ("event", "build.requested")
    assert values["hythe_messages_handled_total", event, ("outcome", "done"), build] == 2
    assert values["hythe_message_seconds_count", event, build] == 2
    assert values["hythe_parked_total", event, build] == 1
    assert values["hythe_relay_position", build] == 41
    assert values["hythe_log_head", build] == 42
    assert (
        values[
            "cicd_pipeline_run_duration_seconds_sum",
            ("cicd_pipeline_action_name", "BUILD"),
            ("cicd_pipeline_name", "shop"),
            ("cicd_pipeline_result", "success"),
            build,
        ]
        == 12.5
    )
    assert ("process_resident_memory_bytes",) in values


async def test_two_services_in_one_process_have_metrics_of_their_own() -> None:
    """A registry for each: a second service in the process must not clash with the first."""
    first, second = setup("git", ServiceSettings()), setup("build", ServiceSettings())
    first.message_parked("webhook.received")
    assert b'event="webhook.received"' not in second.metrics_text()
    await first.close()
    await second.close()


async def test_spans_reach_an_otlp_endpoint() -> None:
    """The exporter is the real one, and what is left is sent when the service closes."""
    received = asyncio.Event()
    request_line: list[bytes] = []

    async def collector(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request_line.append(await reader.readline())
        length = 0
        while (line := await reader.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = await reader.readexactly(length)
        assert b"hythe-build" in body or body.startswith(b"\x1f\x8b")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()
        received.set()

    async with await asyncio.start_server(collector, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        telemetry = setup("build", ServiceSettings(otlp_endpoint=f"http://127.0.0.1:{port}"))
        with telemetry.span("BUILD shop"):
            pass
        await telemetry.close()
        async with asyncio.timeout(10):
            await received.wait()
    assert request_line == [b"POST /v1/traces HTTP/1.1\r\n"]


def test_a_service_that_exports_nothing_does_not_load_the_sdk() -> None:
    """Its import takes a tenth of a second of every start, and of every command of the command line."""
    source = Path(telemetry_module.__file__).read_text()
    at_import = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in at_import if "opentelemetry" in line]
