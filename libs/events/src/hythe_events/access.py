"""Who may say what, and to whom: one table, from which the grants in Postgres and the permissions in NATS are made.

`SAYS` is enforced in Postgres by the function that appends: a service's role may write only these event types, to
streams of these categories. On the bus a service may ask and answer only under its own name; events are published by
the relay alone, from the log, so a service that was taken over cannot put words in another's mouth.
"""

from __future__ import annotations

from collections.abc import Iterable

SERVICES = ("webhooks", "git", "build", "deploy")

SAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "webhooks": {
        "source": ("source.created", "source.switched"),
        "delivery": ("webhook.received", "delivery.ignored"),
        "parked": ("message.parked", "message.retried"),
    },
    "git": {
        "repository": ("repository.saved",),
        "delivery": ("delivery.routed",),
        "deployment": ("deployment.requested", "build.requested", "deploy.completed"),
        "parked": ("message.parked", "message.retried"),
    },
    "build": {
        "deployment": ("build.started", "build.image_built", "build.cancel_requested", "build.finished"),
        "parked": ("message.parked", "message.retried"),
    },
    "deploy": {
        "deployment": (
            "rollback.requested",
            "deploy.started",
            "deploy.step_completed",
            "deploy.health_checked",
            "deploy.rollback_started",
            "deploy.completed",
        ),
        "stack": ("stack.live_changed", "stack.commit_rejected", "stack.granted"),
        "parked": ("message.parked", "message.retried"),
    },
    "relay": {"chain": ("chain.sealed",)},
}

SAID_BY: dict[str, str] = {
    kind: service
    for service, says in sorted(SAYS.items(), key=lambda item: item[0] == "deploy")
    for kinds in says.values()
    for kind in kinds
}
"""Which service an event type is said by; where several may say it, the one that usually does."""

HEARS: dict[str, tuple[str, ...]] = {
    "webhooks": (),
    "git": ("webhook.received", "deployment.requested"),
    "build": ("build.requested",),
    "deploy": ("build.finished", "rollback.requested"),
}
"""Which event types each service's durable consumers deliver, besides its own `message.retried`."""

STREAM = "HYTHE"
LOGS = "LOGS"
BLOBS = "blobs"
"""The JetStream streams: events, live log lines (`log.<deployment>`), and the bucket of the object store."""

EVENT_SUBJECTS = tuple(
    f"{word}.>"
    for word in sorted(
        {kind.split(".")[0] for says in SAYS.values() for kinds in says.values() for kind in kinds}
    )
)
"""What the stream `HYTHE` holds: every event type's first word, and nothing else."""

ROLE = "hythe_{service}"
"""The Postgres role of a service."""


def consumer_name(service: str, event_type: str) -> str:
    """The durable consumer by which `service` hears `event_type`."""
    return f"{service}-{event_type.replace('.', '-')}"


def nats_permissions(user: str) -> dict[str, list[str]]:
    """What a NATS user may publish and subscribe to, as subject lists.

    Users: the four services; `relay`, which alone publishes events and looks after the streams; `client`, which asks
    and watches. Every user has its own inbox prefix (`_INBOX_<user>`), so that nobody reads another's answers.
    """
    # A consumer without a name lives as long as its reader. One with a name could be another's durable one, so nobody
    # but the relay may name, change or delete a consumer.
    inbox = f"_INBOX_{user}.>"
    look = [
        f"$JS.API.STREAM.INFO.{STREAM}",
        f"$JS.API.STREAM.INFO.{LOGS}",
        f"$JS.API.STREAM.INFO.OBJ_{BLOBS}",
        "$JS.API.INFO",
    ]
    micro = ["$SRV.PING", "$SRV.INFO", "$SRV.STATS", "$SRV.PING.>", "$SRV.INFO.>", "$SRV.STATS.>"]
    read_blobs = [
        f"$JS.API.STREAM.MSG.GET.OBJ_{BLOBS}",
        f"$JS.API.DIRECT.GET.OBJ_{BLOBS}.>",
        f"$JS.API.DIRECT.GET.OBJ_{BLOBS}",
        f"$JS.API.CONSUMER.CREATE.OBJ_{BLOBS}",
        f"$JS.FC.OBJ_{BLOBS}.>",
    ]
    write_blobs = [f"$O.{BLOBS}.>", f"$JS.API.STREAM.PURGE.OBJ_{BLOBS}"]
    read_logs = [
        f"$JS.API.CONSUMER.CREATE.{LOGS}",
        f"$JS.FC.{LOGS}.>",
    ]
    if user == "relay":
        return {
            "publish": [*EVENT_SUBJECTS, "$JS.API.>", *micro],
            "subscribe": [inbox],
        }
    if user == "client":
        watch = [f"$JS.API.CONSUMER.CREATE.{STREAM}", f"$JS.FC.{STREAM}.>"]
        return {
            "publish": ["command.>", "query.>", *look, *micro, *watch, *read_blobs, *read_logs],
            "subscribe": [inbox],
        }
    consumers = [
        f"$JS.API.CONSUMER.{verb}.{STREAM}.{consumer_name(user, kind)}"
        for kind in (*HEARS[user], "message.retried")
        for verb in ("INFO", "MSG.NEXT")
    ]
    acks = [f"$JS.ACK.{STREAM}.{consumer_name(user, kind)}.>" for kind in (*HEARS[user], "message.retried")]
    publish = [*look, *consumers, *acks, "_INBOX_client.>"]
    subscribe = [inbox, f"command.{user}.>", f"query.{user}.>", *micro]
    if user in ("git", "build", "deploy"):
        publish += [*read_blobs, *write_blobs]
        publish += [f"$JS.API.DIRECT.GET.{STREAM}"]
        subscribe += ["query.log.>"]
    if user in ("build", "deploy"):
        publish += ["log.>"]
    return {"publish": publish, "subscribe": subscribe}


def nats_authorization(public_keys: dict[str, str]) -> str:
    """The `authorization` block of a NATS server's configuration: one nkey user per entry of `public_keys`."""

    def subjects(allowed: Iterable[str]) -> str:
        return "[" + ", ".join(f'"{subject}"' for subject in allowed) + "]"

    users = "\n".join(
        f"    {{ nkey: {key}, permissions: {{\n"
        f"        publish: {{ allow: {subjects(allowed['publish'])} }}\n"
        f"        subscribe: {{ allow: {subjects(allowed['subscribe'])} }}\n"
        f"    }} }}  # {user}"
        for user, key in public_keys.items()
        for allowed in (nats_permissions(user),)
    )
    return f"authorization {{\n  users: [\n{users}\n  ]\n}}\n"
