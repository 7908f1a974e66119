"""What a stack runs, ran and may: given what happened, when this is asked, then that is told."""

from __future__ import annotations

from uuid import UUID

import pytest

from hythe_deploy.stack import GiveGrants, GoLive, Live, PutBack, Stack, decider, evolve
from hythe_events.decider import fold
from hythe_events.deploy import CommitRejected, Manifest, StackGranted, StackLiveChanged
from hythe_events.errors import NotFound
from hythe_events.language import BlobRef
from hythe_events.testing import given, told

A, B, R = UUID(int=1), UUID(int=2), UUID(int=3)
BLOB = BlobRef(key="f" * 64, size=1, sha256="f" * 64)
MANIFEST = Manifest(services={}, compose=BLOB, compose_sha256="f" * 64)


def went(deployment: UUID, commit: str, position: int) -> StackLiveChanged:
    return StackLiveChanged(
        stack="shop",
        deployment=deployment,
        manifest=MANIFEST,
        commit=commit * 40,
        requested_position=position,
    )


def live(deployment: UUID, commit: str, position: int) -> Live:
    return Live(deployment, MANIFEST, commit * 40, position)


def test_what_goes_live_is_told_once() -> None:
    """D5: after a crash behind it, it is found to be so already."""
    given(decider).when(GoLive("shop", live(A, "a", 1))).then(went(A, "a", 1))
    given(decider, went(A, "a", 1)).when(GoLive("shop", live(A, "a", 1))).then_nothing()


def test_a_rollback_rejects_the_commit_it_left() -> None:
    """Both are told together: there is no moment at which the broken commit could slip back in."""
    back = GoLive("shop", live(R, "a", 9), rollback=True, rejecting="b" * 40, reason="too slow")
    given(decider, went(A, "a", 1), went(B, "b", 2)).when(back).then(
        went(R, "a", 9), CommitRejected(stack="shop", commit="b" * 40, reason="too slow")
    )


def test_a_second_rollback_keeps_the_first_rejection() -> None:
    """Going back two steps leaves both broken commits rejected."""
    history = (
        went(A, "a", 1),
        went(B, "b", 2),
        went(R, "c", 3),
        CommitRejected(stack="shop", commit="b" * 40),
    )
    back = GoLive("shop", live(UUID(int=4), "a", 9), rollback=True, rejecting="c" * 40)
    given(decider, *history).when(back).then(
        went(UUID(int=4), "a", 9),
        CommitRejected(stack="shop", commit="b" * 40),
        CommitRejected(stack="shop", commit="c" * 40),
    )


def test_a_newer_commit_ends_the_rejection() -> None:
    """Once something newer is live, the past is not held against anybody."""
    state = fold(
        evolve,
        told("stack-shop", went(R, "a", 3), CommitRejected(stack="shop", commit="b" * 40), went(B, "c", 5)),
        Stack(),
    )
    assert state.rejected == frozenset()


def test_what_is_put_back_is_live_again() -> None:
    """A deployment that failed after it had gone live leaves the log saying what runs."""
    given(decider, went(A, "a", 1), went(B, "b", 2)).when(PutBack(B, A)).then(went(A, "a", 1))
    given(decider, went(A, "a", 1)).when(PutBack(B, A)).then_nothing()


def test_a_rollback_goes_to_what_ran_before() -> None:
    """Without a target it is the last deployment that was another one."""
    state = fold(evolve, told("stack-shop", went(A, "a", 1), went(B, "b", 2), went(B, "b", 2)), Stack("shop"))
    assert state.rollback_target(None).deployment == A
    assert state.rollback_target(B).deployment == B


@pytest.mark.parametrize(
    ("events", "to", "says"),
    [
        ((), None, "nothing was ever deployed to stack shop"),
        ((went(A, "a", 1),), None, "stack shop has no deployment before the one that runs"),
        ((went(A, "a", 1),), B, "never went live on stack shop"),
    ],
)
def test_a_rollback_to_nothing_is_refused(
    events: tuple[StackLiveChanged, ...], to: UUID | None, says: str
) -> None:
    """It is said up front, not found out half-way."""
    with pytest.raises(NotFound, match=says):
        fold(evolve, told("stack-shop", *events), Stack("shop")).rollback_target(to)


def test_grants_are_the_whole_list() -> None:
    """What is not in it is taken away; the same list again is no news."""
    given(decider).when(GiveGrants("shop", ("privileged", "host-files"))).then(
        StackGranted(stack="shop", grants=("host-files", "privileged"))
    )
    before = StackGranted(stack="shop", grants=("privileged",))
    given(decider, before).when(GiveGrants("shop", ())).then(StackGranted(stack="shop", grants=()))
    given(decider, before).when(GiveGrants("shop", ("privileged",))).then_nothing()
