"""What the git service is told from outside, beside what all services share."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from hythe_events.settings import ServiceSettings
from hythe_git.address import Allowed, allowed
from hythe_git.tree import Limits


class GitSettings(ServiceSettings):
    """Each is the environment variable `HYTHE_<NAME>`."""

    home: Path = Path("~/.local/share/hythe")
    git_dir: Path | None = None
    """Where the mirrors are; default `HYTHE_HOME/git`. All of it can be had again from the remotes."""
    git_allow: str = ""
    """What is let through beside https and ssh to public hosts, separated by commas: `http`, `private`."""
    git_max_files: int = Field(default=50_000, ge=1)
    """How many files and folders a source may have."""
    git_max_bytes: int = Field(default=256 * 1024 * 1024, ge=1024)
    """How large a source may be, in bytes, and how much one fetch may bring."""
    git_seconds: float = Field(default=300.0, gt=0)
    """How long one fetch may take."""
    git_patience: float = Field(default=600.0, ge=0)
    """How long a host that does not answer is asked again, in seconds from when the deployment was asked for."""

    @property
    def mirrors(self) -> Path:
        """The folder of the mirrors, as an absolute path."""
        return (self.git_dir or self.home / "git").expanduser().absolute()

    @property
    def limits(self) -> Limits:
        """How large a source may be."""
        return Limits(files=self.git_max_files, size=self.git_max_bytes)

    @property
    def allowed(self) -> Allowed:
        """`git_allow` as a set. Raises Misconfigured for a word it does not know."""
        return allowed(self.git_allow)
