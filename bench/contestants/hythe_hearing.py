"""A service of ours that hears deliveries, and whose relay publishes the log. Its handler does nothing but look at the clock.

Prints a line for each event it hears: the event's id, and the machine's monotonic clock when the handler was entered.
With `--deaf` it only relays.
"""

from __future__ import annotations

import sys
import time

from hythe_events.envelope import Envelope
from hythe_events.service import on, service, start
from hythe_events.settings import ServiceSettings
from hythe_events.webhooks import WebhookReceived


async def on_webhook_received(heard: Envelope[WebhookReceived]) -> None:
    sys.stdout.write(f"{heard.id} {time.monotonic()}\n")
    sys.stdout.flush()


async def main() -> None:
    async with service("git", ServiceSettings()) as hythe:
        deaf = "--deaf" in sys.argv
        await hythe.run(hears=[] if deaf else [on(WebhookReceived, on_webhook_received, at_once=4)])


if __name__ == "__main__":
    start(main)
