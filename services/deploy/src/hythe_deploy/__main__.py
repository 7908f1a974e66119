"""Brings a stack to what was built, checks that it runs, and takes it back when it does not."""

from __future__ import annotations

from hythe_deploy.handlers import Handlers
from hythe_deploy.lease import Leases
from hythe_deploy.read_models import DeploymentsTable, Shown, StacksTable
from hythe_deploy.settings import DeploySettings
from hythe_deploy.stacks import Stacks
from hythe_events.build import BuildFinished
from hythe_events.deploy import GrantStack, ListDeployments, ListStacks, Rollback, RollbackRequested
from hythe_events.service import answers, on, service, start


async def main() -> None:
    settings = DeploySettings()
    async with service("deploy", settings) as hythe:
        leases = Leases(hythe.store, settings.lease)
        handlers = Handlers(hythe.store, hythe.blobs, Stacks(settings), leases)
        shown = Shown(hythe.store)
        await hythe.run(
            hears=[
                on(BuildFinished, handlers.on_build_finished, at_once=settings.at_once),
                on(RollbackRequested, handlers.on_rollback_requested, at_once=settings.at_once),
            ],
            serves=[
                answers(Rollback, handlers.rollback),
                answers(GrantStack, handlers.grant),
                answers(ListDeployments, shown.deployments),
                answers(ListStacks, shown.stacks),
            ],
            projections=[DeploymentsTable(), StacksTable()],
        )


if __name__ == "__main__":
    start(main)
