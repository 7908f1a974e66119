"""What can go wrong, and whether trying again helps.

An error's docstring is the sentence a person reads when nothing more specific is known. `retry` is the one bit the
bus needs: a message whose handling raised an error with `retry = True` comes again later, any other is parked with
the reason. A driver's own errors are wrapped where the driver is used; nobody above it catches them.
"""

from __future__ import annotations


class HytheError(Exception):
    """Something Hythe was asked to do could not be done."""

    retry = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class Refused(HytheError):
    """The request was understood and refused; asking again the same way changes nothing."""

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotFound(Refused):
    """What was asked for does not exist."""


class NotNow(HytheError):
    """It cannot be done at this moment, but later it can."""

    retry = True


class StoreUnavailable(NotNow):
    """The event store does not answer; check that Postgres runs and that the address and password are right."""


class BusUnavailable(NotNow):
    """The bus does not answer; check that NATS runs and that the address and the key are right."""


class VersionConflict(NotNow):
    """Somebody else wrote to the stream first."""

    def __init__(self, stream: str, expected: int, found: int) -> None:
        super().__init__(f"stream {stream} was expected at version {expected} and found at version {found}")
        self.stream = stream
        self.expected = expected
        self.found = found


class NotPermitted(HytheError):
    """This service may not write that event to that stream."""


class UnknownEvent(HytheError):
    """The log holds an event that this version of Hythe does not know; run a version that does."""


class Misconfigured(HytheError):
    """A setting is wrong; the message says which and what was expected."""
