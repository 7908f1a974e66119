"""How much one source may post: a bucket of tokens that fills at a steady rate. Pure: the time comes in."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Bucket:
    """Holds at most `burst` tokens and gains `rate` a second; it starts full."""

    rate: float
    burst: float
    left: float = field(init=False)
    at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.left = self.burst

    def take(self, now: float) -> float:
        """Take a token at the moment `now` (seconds on any clock); 0.0, or the seconds until there will be one."""
        self.left = min(self.burst, self.left + max(0.0, now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return (1 - self.left) / self.rate
        self.left -= 1
        return 0.0
