"""Starts the git service."""

from hythe_events.git import DeploymentRequested, ListRepositories, RequestDeployment, SaveRepository
from hythe_events.service import answers, on, service, start
from hythe_events.webhooks import WebhookReceived
from hythe_git.handlers import GitHandlers
from hythe_git.mirror import Mirrors
from hythe_git.repositories import RepositoriesTable, SavedRepositories
from hythe_git.settings import GitSettings


async def main() -> None:
    settings = GitSettings()
    allow, limits, seconds = settings.allowed, settings.limits, settings.git_seconds
    async with service("git", settings) as hythe:
        handlers = GitHandlers(
            store=hythe.store,
            blobs=hythe.blobs,
            secrets=hythe.secrets,
            mirrors=Mirrors(settings.mirrors, limits=limits, allow=allow, seconds=seconds),
            repositories=SavedRepositories(hythe.store),
            allow=allow,
            patience=settings.git_patience,
        )
        await hythe.run(
            hears=[
                on(WebhookReceived, handlers.on_webhook_received, at_once=4),
                on(DeploymentRequested, handlers.on_deployment_requested, at_once=4),
            ],
            serves=[
                answers(SaveRepository, handlers.save_repository),
                answers(RequestDeployment, handlers.deploy),
                answers(ListRepositories, handlers.repositories),
            ],
            projections=[RepositoriesTable()],
        )


if __name__ == "__main__":
    start(main)
