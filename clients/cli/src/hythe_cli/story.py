"""What happened, in a sentence per event: the words that `deploy --follow`, `show`, `events` and the demo have in common.

Pure: an event goes in, a sentence comes out, already harmless to a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from hythe_cli.shown import harmless, one_harmless_line, short
from hythe_events import build, deploy, git, log, webhooks
from hythe_events.deployment import Deployment
from hythe_events.envelope import Envelope
from hythe_events.language import Event

Tone = Literal["plain", "good", "bad", "quiet"]
STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "red", "quiet": "dim"}


@dataclass(frozen=True)
class Told:
    """One event as a sentence, and how it sounds."""

    text: str
    tone: Tone = "plain"

    @property
    def style(self) -> str:
        """The style to print it in."""
        return STYLES[self.tone]


def tell(event: Event) -> Told:
    """What this event says happened."""
    match event:
        case webhooks.SourceCreated() as said:
            return Told(f"webhook source {said.source} made for {said.provider}")
        case webhooks.SourceSwitched() as said:
            return Told(f"webhook source {said.source} switched {'on' if said.on else 'off'}")
        case webhooks.WebhookReceived() as said:
            return Told(f"webhook received: {_push(said)}")
        case webhooks.DeliveryIgnored() as said:
            return Told(f"webhook ignored: {_line(said.event)}: {_line(said.reason)}", "quiet")
        case webhooks.DeliveryRouted() as said:
            return _routed(said)
        case git.RepositorySaved() as said:
            return Told(f"{said.stack} comes from {_line(said.url)}, branch {_line(said.branch)}")
        case git.DeploymentRequested() as said:
            what = short(said.commit) if said.commit else f"the tip of {_ref(said.ref)}"
            return Told(f"deployment of {said.stack} to {what} asked for by {_line(said.asked_by)}")
        case git.BuildRequested() as said:
            return Told(
                f"source fetched: commit {short(said.commit)}, {_size(said.source.size)}, {_line(said.compose_file)}"
            )
        case build.BuildStarted() as said:
            return Told(f"building {_names(said.services)}" if said.services else "nothing to build", "quiet")
        case build.ImageBuilt() as said:
            return Told(
                f"image of {_line(said.service)} built in {said.seconds:.1f} s: {_digest(said.image.digest)}"
            )
        case build.CancelRequested() as said:
            return Told(f"{_line(said.asked_by)} asked to cancel{_because(said.reason)}")
        case build.BuildFinished() as said:
            tone: Tone = "plain" if said.outcome == "succeeded" else "bad"
            return Told(f"build {said.outcome}{_because(said.reason)}", tone)
        case deploy.RollbackRequested() as said:
            return Told(
                f"rollback of {said.stack} to deployment {short(said.to)} asked for by {_line(said.asked_by)}{_because(said.reason)}"
            )
        case deploy.DeployStarted() as said:
            instead = f", in place of deployment {short(said.replaces)}" if said.replaces else ""
            return Told(f"deploying {said.stack}{instead}", "quiet")
        case deploy.DeployStepCompleted() as said:
            detail = f": {_line(said.detail)}" if said.detail else ""
            return Told(f"{said.step.replace('_', ' ')} done in {said.seconds:.1f} s{detail}")
        case deploy.DeployHealthChecked() as said:
            return _health(said)
        case deploy.DeployRollbackStarted() as said:
            return Told(f"putting back what ran before: {_line(said.reason)}", "bad")
        case deploy.DeployCompleted() as said:
            return Told(
                f"{said.outcome}{_because(said.reason)}", "good" if said.outcome == "succeeded" else "bad"
            )
        case deploy.StackLiveChanged() as said:
            return Told(f"{said.stack} now runs deployment {short(said.deployment)}")
        case deploy.CommitRejected() as said:
            return Told(f"commit {short(said.commit)} of {said.stack} is rejected{_because(said.reason)}")
        case deploy.StackGranted() as said:
            return Told(
                f"{said.stack} is allowed {_names(said.grants) if said.grants else 'nothing beyond the ordinary'}"
            )
        case log.ChainSealed() as said:
            return Told(f"log sealed at position {said.position}", "quiet")
        case log.MessageParked() as said:
            return Told(f"{said.service} put {said.event_type} aside: {_line(said.reason)}", "bad")
        case log.MessageRetried() as said:
            return Told(f"{_line(said.asked_by)} asked {said.service} to try {short(said.event)} again")
        case other:
            return Told(other.type)


def timeline(events: Sequence[Envelope[Event]]) -> list[tuple[int, datetime, float, Told]]:
    """A stream's events as (version, time, seconds since the first, what happened)."""
    return [
        (event.version, event.at, (event.at - events[0].at).total_seconds(), tell(event.data))
        for event in events
    ]


def took(state: Deployment) -> float | None:
    """Seconds from request to outcome; None while it goes on."""
    if state.requested_at is None or state.finished_at is None:
        return None
    return (state.finished_at - state.requested_at).total_seconds()


def _push(said: webhooks.WebhookReceived) -> str:
    message = f" “{one_harmless_line(said.commit.message)}”" if said.commit and said.commit.message else ""
    return f"{_line(said.sender)} pushed {short(said.after)}{message} to {_ref(said.ref)} of {_line(said.repository)}"


def _routed(said: webhooks.DeliveryRouted) -> Told:
    if said.deployments:
        return Told(f"it concerns {_names([to.stack for to in said.deployments])}")
    reasons = [f"{other.stack}: {other.reason}" for other in said.not_concerned]
    return Told(f"nothing to deploy: {_line(said.reason or '; '.join(reasons))}", "quiet")


def _health(said: deploy.DeployHealthChecked) -> Told:
    services = "; ".join(f"{_line(name)} {_line(service.detail)}" for name, service in said.services.items())
    return Told(
        f"{'healthy' if said.healthy else 'not healthy'}: {services}", "good" if said.healthy else "bad"
    )


def _line(text: str) -> str:
    return harmless(text)


def _names(names: Sequence[str]) -> str:
    return ", ".join(_line(name) for name in names)


def _ref(ref: str) -> str:
    return _line(ref.removeprefix("refs/heads/"))


def _digest(digest: str) -> str:
    return digest[: len("sha256:") + 12]


def _because(reason: str | None) -> str:
    return f": {_line(reason)}" if reason else ""


def _size(number: int) -> str:
    return f"{number / 1_000_000:.1f} MB" if number >= 1_000_000 else f"{number / 1000:.1f} kB"
