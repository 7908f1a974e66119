"""What the deploy service is told from outside, besides what every service is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from hythe_events.settings import ServiceSettings


class DeploySettings(ServiceSettings):
    """Each is the environment variable `HYTHE_<NAME>`."""

    stacks_dir: Path = Path("/opt/stacks")
    """One folder per stack. The Docker daemon must see it under the same path."""
    docker_host: str = "unix:///var/run/docker.sock"
    settle: float = Field(default=1.5, ge=0.1, le=600)
    """Seconds that a service without a healthcheck must run without a restart to count as healthy."""
    deadline: float = Field(default=120.0, ge=1, le=86_400)
    """Seconds after which services that are still not healthy count as failed."""
    lease: float = Field(default=10.0, ge=1, le=600)
    """Seconds after which the lease of a process that went away may be taken by another."""
    rehearse: bool = True
    """Whether a changed service is first tried beside the running one, where that is sound."""
    probe: bool = True
    """Whether a service that passed its rehearsal counts as healthy as soon as its own healthcheck, run at once, passes;
    otherwise Docker's first probe, one interval after the start, is waited for as with any other service."""
    at_once: int = Field(default=4, ge=1, le=64)
    """Stacks that are deployed at the same time."""
