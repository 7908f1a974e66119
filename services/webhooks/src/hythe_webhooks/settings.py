"""What the webhooks service is told from outside, besides what every service is told."""

from __future__ import annotations

from pydantic import Field

from hythe_events.settings import ServiceSettings

MEGABYTE = 1024 * 1024


class WebhooksSettings(ServiceSettings):
    """Settings of the webhooks service. Each is the environment variable `HYTHE_<NAME>`; times are in seconds."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    """Where forges post to; 0 takes any free port."""
    reuse_port: bool = False
    """Lets several processes listen on one port; the kernel shares the connections among them."""
    max_body: int = Field(default=5 * MEGABYTE, ge=1024, le=25 * MEGABYTE)
    """Bytes of the largest body that is read; a larger one is answered 413. GitHub sends at most 25 MB."""
    head_seconds: float = Field(default=10.0, gt=0)
    """How long a new connection may take to send its first request's head."""
    body_seconds: float = Field(default=30.0, gt=0)
    """How long a body may take to arrive."""
    idle_seconds: float = Field(default=90.0, gt=0)
    """How long a kept connection may wait between an answer and the end of the next request's head."""
    rate: float = Field(default=2_000.0, gt=0)
    """Deliveries a second that one source may go on posting, in each process; beyond it they are answered 429."""
    burst: int = Field(default=500_000, ge=1)
    """Deliveries that one source may post at once before `rate` counts."""
