"""Every event there is, by type: the one list that the store, the bus and the documents are made from.

To add an event: write its class in the module of the service that says it, name it here, say in `access.py` who may
say it, and commit its golden example under `tests/contract/golden/`.
"""

from __future__ import annotations

import json

from hythe_events import build, deploy, git, log, webhooks
from hythe_events.errors import UnknownEvent
from hythe_events.language import Event

EVENTS: dict[str, type[Event]] = {
    event.type: event
    for event in (
        webhooks.SourceCreated,
        webhooks.SourceSwitched,
        webhooks.WebhookReceived,
        webhooks.DeliveryIgnored,
        webhooks.DeliveryRouted,
        git.RepositorySaved,
        git.DeploymentRequested,
        git.BuildRequested,
        build.BuildStarted,
        build.ImageBuilt,
        build.CancelRequested,
        build.BuildFinished,
        deploy.RollbackRequested,
        deploy.DeployStarted,
        deploy.DeployStepCompleted,
        deploy.DeployHealthChecked,
        deploy.DeployRollbackStarted,
        deploy.DeployCompleted,
        deploy.StackLiveChanged,
        deploy.CommitRejected,
        deploy.StackGranted,
        log.ChainSealed,
        log.MessageParked,
        log.MessageRetried,
    )
}

_validators = {name: (event, event.__pydantic_validator__.validate_json) for name, event in EVENTS.items()}


def decode(event_type: str, schema_number: int, data: str | bytes) -> Event:
    """The typed event in the JSON text `data`, lifted to today's shape.

    Raises UnknownEvent for a type or a schema number that this version does not know: a reader that skipped it would
    fold a wrong state. Raises pydantic's ValidationError, a ValueError, when the data does not fit.
    """
    known = _validators.get(event_type)
    if known is None:
        raise UnknownEvent(f"the log holds an event of type {event_type}, which this version does not know")
    event, validate = known
    if schema_number == event.schema_number:
        decoded: Event = validate(data)
        return decoded
    return _lift(event, schema_number, data)


def _lift(event: type[Event], number: int, data: str | bytes) -> Event:
    shape = json.loads(data)
    while number != event.schema_number:
        if number not in event.lifts:
            raise UnknownEvent(
                f"the log holds {event.type} in shape {number}; this version reads up to shape {event.schema_number}"
            )
        shape = event.lifts[number](shape)
        number += 1
    return event.model_validate_json(json.dumps(shape))
