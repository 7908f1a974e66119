"""Traces and metrics: what a service did, how long it took, and which request it belongs to.

```
HTTP request ──traceparent──► event in the log ──NATS header──► handler's span ──► the event it leads to …
```

One trace runs from the webhook to the deployment: a span takes its parent as a W3C `traceparent` text and gives its
own to whatever it leads to. Spans are exported over OTLP when `HYTHE_OTLP_ENDPOINT` is set. Without it a span costs
well under a microsecond, and a `traceparent` that came in is still handed on. How many traces are kept is decided by
OpenTelemetry's own variables: `OTEL_TRACES_SAMPLER=parentbased_traceidratio`, `OTEL_TRACES_SAMPLER_ARG=0.01`.

Metrics are Prometheus text on the health port. They are kept by `prometheus_client` itself: counting through the
OpenTelemetry SDK takes 7 µs a time, twenty times as long, and the webhook path counts ten thousand times a second.

Names follow OpenTelemetry's semantic conventions 1.44 for CI/CD, VCS and messaging. Neither spans nor labels may hold
a secret, and labels hold nothing of which there is no end: no commit, no deployment.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from hythe_events.errors import HytheError
from hythe_events.settings import ServiceSettings

if TYPE_CHECKING:  # the SDK takes a tenth of a second to import, and only an exporting service needs it
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan

PIPELINE_NAME = "cicd.pipeline.name"
PIPELINE_ACTION = "cicd.pipeline.action.name"
PIPELINE_RESULT = "cicd.pipeline.result"
PIPELINE_RUN_ID = "cicd.pipeline.run.id"
PIPELINE_RUN_STATE = "cicd.pipeline.run.state"
TASK_NAME = "cicd.pipeline.task.name"
TASK_TYPE = "cicd.pipeline.task.type"
TASK_RUN_ID = "cicd.pipeline.task.run.id"
TASK_RUN_RESULT = "cicd.pipeline.task.run.result"
VCS_PROVIDER = "vcs.provider.name"
VCS_REPOSITORY_NAME = "vcs.repository.name"
VCS_REPOSITORY_URL = "vcs.repository.url.full"
VCS_REF_NAME = "vcs.ref.head.name"
VCS_REF_REVISION = "vcs.ref.head.revision"
VCS_REF_TYPE = "vcs.ref.head.type"
MESSAGING_SYSTEM = "messaging.system"
MESSAGING_DESTINATION = "messaging.destination.name"
MESSAGING_OPERATION = "messaging.operation.type"
MESSAGING_ID = "messaging.message.id"
ERROR_TYPE = "error.type"
"""Attribute names, copied from the conventions: the package that ships them calls them private."""

PipelineAction = Literal["BUILD", "RUN", "SYNC"]
PipelineResult = Literal["success", "failure", "error", "timeout", "cancellation", "skip"]
TaskType = Literal["build", "test", "deploy"]
Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, str | int | float | bool]

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    900.0,
)
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Span(Protocol):
    """What a block under `span` may tell of itself."""

    def set(self, name: str, value: str | int | float | bool) -> None:
        """Tell an attribute."""

    def fail(self, reason: str) -> None:
        """Say that it failed, with a reason that is fit to be read by anybody."""


class _Unheard:
    """A span that nobody exports."""

    def set(self, name: str, value: str | int | float | bool) -> None:
        """Nobody listens."""

    def fail(self, reason: str) -> None:
        """Nobody listens."""


class _Exported:
    """A span of the OpenTelemetry SDK."""

    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    def set(self, name: str, value: str | int | float | bool) -> None:
        self._span.set_attribute(name, value)

    def fail(self, reason: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, reason))


_UNHEARD = _Unheard()
_SILENCE: AbstractContextManager[Span] = nullcontext(_UNHEARD)
_handed_on: ContextVar[str | None] = ContextVar("hythe_traceparent", default=None)
_ours: ContextVar[Telemetry | None] = ContextVar("hythe_telemetry", default=None)
_latest: list[Telemetry] = []


class Telemetry:
    """The traces and metrics of one service. Made by `setup`; `close` sends what has not been sent yet.

    The metrics are attributes; a service adds its own with `counter`, `gauge` and `histogram`.
    """

    def __init__(self, service: str, provider: TracerProvider | None) -> None:
        self.service = service
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("hythe")
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.handled = self.counter(
            "hythe_messages_handled", "Messages handled, by what came of it.", "event", "outcome"
        )
        self.message_seconds = self.histogram(
            "hythe_message_seconds", "How long a message was handled.", "event"
        )
        self.parked = self.counter(
            "hythe_parked", "Messages put aside because they could not be handled.", "event"
        )
        self.relay_position = self.gauge("hythe_relay_position", "How far the log is published on the bus.")
        self.log_head = self.gauge("hythe_log_head", "The last position of the log.")
        self.run_seconds = self.histogram(
            "cicd_pipeline_run_duration_seconds",
            "How long builds and deployments took, by what came of them.",
            *("cicd_pipeline_name", "cicd_pipeline_action_name", "cicd_pipeline_result"),
        )

    # -- metrics

    def counter(self, name: str, says: str, *labels: str) -> Counter:
        """A count that only grows; `_total` is added to its name, and the label `service` to its labels."""
        return Counter(name, says, ("service", *labels), registry=self.registry)

    def gauge(self, name: str, says: str, *labels: str) -> Gauge:
        """A value that goes up and down."""
        return Gauge(name, says, ("service", *labels), registry=self.registry)

    def histogram(self, name: str, says: str, *labels: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        """How values spread; unless told otherwise, seconds between a millisecond and a quarter of an hour."""
        return Histogram(name, says, ("service", *labels), registry=self.registry, buckets=buckets)

    def message_handled(self, event_type: str, outcome: str, seconds: float) -> None:
        """Count a message. `outcome` is one of a few words: `done`, `again`, `parked`."""
        self.handled.labels(self.service, event_type, outcome).inc()
        self.message_seconds.labels(self.service, event_type).observe(seconds)

    def message_parked(self, event_type: str) -> None:
        """Count a message that was put aside."""
        self.parked.labels(self.service, event_type).inc()

    def relayed(self, position: int, head: int) -> None:
        """Say how far the relay is, and how long the log is."""
        self.relay_position.labels(self.service).set(position)
        self.log_head.labels(self.service).set(head)

    def run_finished(
        self, pipeline: str, action: PipelineAction, result: PipelineResult, seconds: float
    ) -> None:
        """Count a build (`BUILD`) or a deployment (`RUN`) of the stack `pipeline` that ended."""
        self.run_seconds.labels(self.service, pipeline, action, result).observe(seconds)

    def metrics_text(self) -> bytes:
        """All metrics as Prometheus text (`prometheus_client.CONTENT_TYPE_LATEST`)."""
        return prometheus_client.generate_latest(self.registry)

    # -- traces

    @property
    def exporting(self) -> bool:
        """Whether spans go anywhere."""
        return self._tracer is not None

    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        attributes: Attributes | None = None,
        parent: str | None = None,
        links: Sequence[str] = (),
    ) -> AbstractContextManager[Span]:
        """A span around a block; without `parent` it belongs to the span around it.

        `parent` and `links` are W3C traceparents; one that is not well formed counts as none. A consumer whose message
        waited long names its sender as parent and as link. An error that leaves the block marks the span with its
        class and, if it is one of ours, its sentence; never with a traceback, which could hold anything.
        """
        if self._tracer is None:
            return _SILENCE if parent is None else _handing_on(traceparent(parent))
        return self._exported_span(name, kind, attributes, parent, links)

    @contextmanager
    def _exported_span(
        self, name: str, kind: Kind, attributes: Attributes | None, parent: str | None, links: Sequence[str]
    ) -> Iterator[Span]:
        from opentelemetry.trace import Link, SpanKind, get_current_span

        assert self._tracer is not None
        linked = [
            Link(get_current_span(_context(link)).get_span_context()) for link in links if traceparent(link)
        ]
        with self._tracer.start_as_current_span(
            name,
            context=_context(parent) if traceparent(parent) else None,
            kind=SpanKind[kind.upper()],
            attributes=attributes,
            links=linked,
            record_exception=False,
            set_status_on_exception=False,
        ) as made:
            span = _Exported(made)
            try:
                yield span
            except BaseException as error:
                span.set(ERROR_TYPE, type(error).__name__)
                span.fail(str(error) if isinstance(error, HytheError) else type(error).__name__)
                raise

    async def close(self) -> None:
        """Send what has not been sent yet, for at most a few seconds. May be called twice."""
        if self._provider is not None:
            await asyncio.to_thread(self._provider.shutdown)
            self._provider = None
        if self in _latest:
            _latest.remove(self)


def setup(service: str, settings: ServiceSettings, *, exporter: SpanExporter | None = None) -> Telemetry:
    """The telemetry of `service`, from now on that of this task and those it starts.

    Spans go to `exporter`, at once (tests: OpenTelemetry's `InMemorySpanExporter`), or in batches to the OTLP endpoint
    in the settings, or nowhere.
    """
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    telemetry = Telemetry(service, _provider(service, settings.otlp_endpoint, exporter))
    _ours.set(telemetry)
    _latest.append(telemetry)
    return telemetry


def _provider(service: str, endpoint: str | None, exporter: SpanExporter | None) -> TracerProvider | None:
    if exporter is None and not endpoint:
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    resource = Resource.create({"service.namespace": "hythe", "service.name": f"hythe-{service}"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    elif endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        path = "/v1/traces"
        whole = endpoint if endpoint.endswith(path) else endpoint.rstrip("/") + path
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=whole, timeout=3)))
    return provider


def span(
    name: str,
    *,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
    parent: str | None = None,
    links: Sequence[str] = (),
) -> AbstractContextManager[Span]:
    """`Telemetry.span` of the service this task belongs to. Before `setup`, nothing is exported."""
    telemetry = _ours.get() or (_latest[-1] if _latest else None)
    if telemetry is None:
        return _SILENCE if parent is None else _handing_on(traceparent(parent))
    return telemetry.span(name, kind=kind, attributes=attributes, parent=parent, links=links)


def current_traceparent() -> str | None:
    """The W3C traceparent of the span around this line, for whatever it leads to; None outside of any.

    Where nothing is exported it is the one that came in, so that a trace is not cut by a service that tells nothing.
    """
    telemetry = _ours.get() or (_latest[-1] if _latest else None)
    if telemetry is not None and telemetry.exporting:
        from opentelemetry.trace import get_current_span

        around = get_current_span().get_span_context()
        if around.is_valid:
            return f"00-{around.trace_id:032x}-{around.span_id:016x}-{int(around.trace_flags):02x}"
    return _handed_on.get()


def traceparent(text: str | None) -> str | None:
    """`text`, if it is a well-formed W3C traceparent (version 00), else None. It may come from anybody."""
    return text if text is not None and _TRACEPARENT.fullmatch(text) else None


def _context(text: str | None) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": text or ""})


@contextmanager
def _handing_on(text: str | None) -> Iterator[Span]:
    token = _handed_on.set(text)
    try:
        yield _UNHEARD
    finally:
        _handed_on.reset(token)
