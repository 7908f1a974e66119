"""What the build service is told from outside, beside what all services share."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from hythe_events.settings import ServiceSettings


class BuildSettings(ServiceSettings):
    """Each is the environment variable `HYTHE_<NAME>`."""

    home: Path = Path("~/.local/share/hythe")
    build_dir: Path | None = None
    """Where sources are unpacked while they are built; default `HYTHE_HOME/build`. Nothing in it is kept."""
    docker_host: str = "unix:///var/run/docker.sock"
    build_timeout: float = Field(default=1800.0, gt=0)
    """Seconds that one build may take."""
    build_patience: float = Field(default=120.0, ge=0)
    """Seconds, from when a build was asked for, that a Docker engine which does not answer is tried again."""
    builds_at_once: int = Field(default=2, ge=1, le=64)
    """How many deployments are built at the same time, and how many images."""
    buildkit: bool = True
    """Whether BuildKit is used where the engine has it."""

    @property
    def workshop(self) -> Path:
        """The folder for sources, as an absolute path."""
        return (self.build_dir or self.home / "build").expanduser().absolute()
