"""Takes a forge's webhook, proves who sent it, and stores it before answering."""

from __future__ import annotations

from hythe_events.service import answers, service, start
from hythe_events.webhooks import CreateSource, ListDeliveries, SwitchSource
from hythe_webhooks.app import Webhooks
from hythe_webhooks.handlers import Handlers
from hythe_webhooks.read_models import WebhookEvents
from hythe_webhooks.server import Body, listening_socket, serve
from hythe_webhooks.settings import WebhooksSettings
from hythe_webhooks.sources import Sources


async def main() -> None:
    settings = WebhooksSettings()
    with listening_socket(settings) as bound:
        async with service("webhooks", settings) as hythe:
            sources = Sources(hythe.store, hythe.secrets)
            handlers = Handlers(hythe.store, hythe.secrets, sources)
            webhooks = Webhooks(
                hythe.store, hythe.secrets, sources, hythe.telemetry, Body(settings), settings
            )
            await hythe.run(
                serves=[
                    answers(CreateSource, handlers.create_source),
                    answers(SwitchSource, handlers.switch_source),
                    answers(ListDeliveries, handlers.deliveries),
                ],
                projections=[WebhookEvents()],
                alongside=[lambda: serve(webhooks.receive, settings, bound)],
            )


if __name__ == "__main__":
    start(main)
