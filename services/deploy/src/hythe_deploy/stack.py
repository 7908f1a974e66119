"""One stack: what it runs, what it ran before, what it is allowed, and which commits it was taken back from.

A commit that was rolled back from stays rejected until a newer one has gone live.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from hythe_events.decider import Decider
from hythe_events.deploy import CommitRejected, Grant, Manifest, StackGranted, StackLiveChanged
from hythe_events.envelope import Envelope
from hythe_events.errors import NotFound, UnknownEvent
from hythe_events.language import Event, one_line


@dataclass(frozen=True)
class Live:
    """What a stack ran, from some moment on."""

    deployment: UUID
    manifest: Manifest
    commit: str | None
    requested_position: int


@dataclass(frozen=True)
class Stack:
    """`history` holds what went live, oldest first; its last is what runs now."""

    name: str = ""
    history: tuple[Live, ...] = ()
    grants: frozenset[Grant] = frozenset()
    rejected: frozenset[str] = frozenset()

    @property
    def live(self) -> Live | None:
        """What runs now; None before the first deployment has succeeded."""
        return self.history[-1] if self.history else None

    def was(self, deployment: UUID) -> Live | None:
        """What went live with `deployment`, the last time it did."""
        return next((live for live in reversed(self.history) if live.deployment == deployment), None)

    def rollback_target(self, to: UUID | None) -> Live:
        """What a rollback to `to`, or by default to what ran before, brings back. Raises NotFound."""
        if to is not None:
            found = self.was(to)
            if found is None:
                raise NotFound(f"deployment {to} never went live on stack {self.name}", field="to")
            return found
        if not self.history:
            raise NotFound(f"nothing was ever deployed to stack {self.name}", field="stack")
        now = self.history[-1].deployment
        before = next((live for live in reversed(self.history) if live.deployment != now), None)
        if before is None:
            raise NotFound(f"stack {self.name} has no deployment before the one that runs", field="to")
        return before


@dataclass(frozen=True)
class GoLive:
    """A deployment runs, verified. `rejecting` is the commit that it was rolled back from, if it is a rollback."""

    stack: str
    live: Live
    rollback: bool = False
    rejecting: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class PutBack:
    """`deployment` runs no more, after it had gone live: what it replaced runs again."""

    deployment: UUID
    replaces: UUID | None


@dataclass(frozen=True)
class GiveGrants:
    """From now on the stack is allowed exactly `grants`."""

    stack: str
    grants: tuple[Grant, ...]


Asked = GoLive | PutBack | GiveGrants


def evolve(state: Stack, event: Envelope[Event]) -> Stack:
    """`state` after `event`."""
    match event.data:
        case StackLiveChanged() as said:
            live = Live(said.deployment, said.manifest, said.commit, said.requested_position)
            return replace(state, name=said.stack, history=(*state.history, live), rejected=frozenset())
        case CommitRejected() as said:
            return replace(state, name=said.stack, rejected=state.rejected | {said.commit})
        case StackGranted() as said:
            return replace(state, name=said.stack, grants=frozenset(said.grants))
        case unexpected:
            raise UnknownEvent(f"{unexpected.type} has no business in the stream of a stack")


def decide(asked: Asked, state: Stack) -> Sequence[Event]:
    """What `asked` leads to; `[]` when it is so already."""
    match asked:
        case GoLive(stack=stack, live=live):
            if state.live is not None and state.live.deployment == live.deployment:
                return []
            rejected = (
                (state.rejected | {asked.rejecting or ""}) - {"", live.commit} if asked.rollback else set()
            )
            reason = None if asked.reason is None else one_line(asked.reason)
            return [
                _live_changed(stack, live),
                *(CommitRejected(stack=stack, commit=commit, reason=reason) for commit in sorted(rejected)),
            ]
        case PutBack(deployment=deployment, replaces=replaces):
            if state.live is None or state.live.deployment != deployment or replaces is None:
                return []
            before = state.was(replaces)
            assert before is not None, "what was replaced had gone live"
            kept = (CommitRejected(stack=state.name, commit=commit) for commit in sorted(state.rejected))
            return [_live_changed(state.name, before), *kept]
        case GiveGrants(stack=stack, grants=grants):
            wanted = tuple(sorted(set(grants)))
            return (
                []
                if state.grants == set(wanted) and state.name
                else [StackGranted(stack=stack, grants=wanted)]
            )


def _live_changed(stack: str, live: Live) -> StackLiveChanged:
    return StackLiveChanged(
        stack=stack,
        deployment=live.deployment,
        manifest=live.manifest,
        commit=live.commit,
        requested_position=live.requested_position,
    )


decider: Decider[Stack, Asked] = Decider(Stack(), evolve, decide)
