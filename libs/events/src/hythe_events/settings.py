"""What every service is told from outside: environment variables `HYTHE_…`, and files in one folder for secrets.

| file in `secrets_dir` | holds |
| --- | --- |
| `postgres_password` | the password of the service's Postgres role |
| `nats_seed` | the seed of the service's nkey |
| `relay_postgres_password`, `relay_nats_seed` | the same for the relay; absent where the service runs none |
| `seal_key` | the Ed25519 private key (32 raw bytes, hex) that seals the log; absent where the service runs no relay |
| `master_key` | the key that wraps every stack's data keys (32 raw bytes, hex) |
| `master_key_former` | the master key before, only while a rotation is under way |
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from hythe_events.errors import Misconfigured


class ServiceSettings(BaseSettings):
    """Settings that all services share. Each is the environment variable `HYTHE_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="HYTHE_", frozen=True, extra="ignore")

    postgres_url: str = "postgresql://127.0.0.1:5432/hythe"
    """Host, port and database; role and password are added from the service's name and its secrets."""
    nats_url: str = "nats://127.0.0.1:4222"
    nats_monitor_url: str = "http://127.0.0.1:8222"
    """Where NATS tells its own settings; asked once to prove that it keeps what it confirms."""
    bus_max_bytes: int = Field(default=4 * 1024**3, ge=16 * 1024**2)
    """How much the stream of events may hold; beyond it the relay waits and says so."""
    secrets_dir: Path = Path("/run/secrets")
    health_host: str = "127.0.0.1"
    health_port: int = Field(default=0, ge=0, le=65535)
    """Where `/livez`, `/readyz` and `/metrics` are; 0 takes any free port and says which."""
    ack_wait: float = Field(default=30.0, ge=0.5, le=3600)
    """Seconds after which a message whose handler gave no sign of life comes again."""
    grace: float = Field(default=20.0, ge=0.0)
    """Seconds that work under way has to end once the service was asked to stop."""
    relay: bool = True
    """Whether this process may lead the relay that publishes the log; it needs the relay's secrets."""
    otlp_endpoint: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    def secret(self, name: str) -> str:
        """The content of the file `name` in `secrets_dir`, without the last newline. Raises Misconfigured."""
        path = self.secrets_dir / name
        try:
            return path.read_text().rstrip("\n")
        except OSError as error:
            raise Misconfigured(
                f"the secret file {name} cannot be read from HYTHE_SECRETS_DIR: {error.strerror}"
            ) from error

    def has_secret(self, name: str) -> bool:
        """Whether the file `name` is there."""
        return (self.secrets_dir / name).is_file()
