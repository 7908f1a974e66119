"""The command line: a table of commands, and what becomes of an error.

Each group of commands is a module of its own, imported only when one of its commands is called. What the exit codes
mean stands in `shown.py`.
"""

import sys
from collections.abc import Sequence

import cyclopts
from pydantic import ValidationError

from hythe_cli import shown
from hythe_events.errors import HytheError

app = cyclopts.App(
    name="hythe",
    help="Takes a push to a running, healthy Docker Compose stack, and can say of every deployment what happened and why.",
    help_epilogue="Every command has --help; those that answer something have --json. Exit codes: 0 done and good, "
    "1 done and bad, 2 not understood, 3 refused or not found, 4 not running or not reachable, 130 Ctrl-C.",
)
RUN = cyclopts.Group("Run it", sort_key=1)
USE = cyclopts.Group("Deploy", sort_key=2)
LOOK = cyclopts.Group("The log", sort_key=3)
WORK = cyclopts.Group("This checkout and this machine", sort_key=4)

COMMANDS = {
    "demo": (
        "hythe_cli.demo.tale:demo",
        RUN,
        "A push becomes a running stack, before your eyes: sets up all it needs.",
    ),
    "up": ("hythe_cli.up:up", RUN, "Run Hythe on this machine until Ctrl-C."),
    "stack": (
        "hythe_cli.stacks:app",
        USE,
        "Where stacks come from, and what each runs: add, list, show, grant.",
    ),
    "source": ("hythe_cli.stacks:sources", USE, "Webhook sources: add, on, off."),
    "deploy": (
        "hythe_cli.deployments:deploy",
        USE,
        "Bring a stack to a commit, or to the tip of its branch.",
    ),
    "cancel": ("hythe_cli.deployments:cancel", USE, "Stop a deployment that waits or is being built."),
    "rollback": ("hythe_cli.deployments:rollback", USE, "Take a stack back to an earlier deployment."),
    "history": ("hythe_cli.deployments:history", USE, "The latest deployments."),
    "show": ("hythe_cli.deployments:show", USE, "One deployment, now or at any moment of its past."),
    "logs": ("hythe_cli.deployments:logs", USE, "The log of a deployment's build, live or finished."),
    "deliveries": (
        "hythe_cli.deployments:deliveries",
        USE,
        "The latest webhook deliveries, and what became of each.",
    ),
    "events": ("hythe_cli.events:app", LOOK, "What happened, event by event: tail, stream."),
    "verify": ("hythe_cli.events:verify", LOOK, "Recompute the log's chain of hashes and check its seals."),
    "projections": ("hythe_cli.events:projections", LOOK, "The tables made from the log: rebuild."),
    "parked": ("hythe_cli.events:parked", LOOK, "Messages that were put aside: list, retry."),
    "check": (
        "hythe_cli.checks:check",
        WORK,
        "Check format, lint, types, import contracts, fast tests, locked packages.",
    ),
    "test": ("hythe_cli.checks:test", WORK, "Run every test, on the real parts; arguments go on to pytest."),
    "bench": (
        "hythe_cli.benches:bench",
        WORK,
        "Measure Hythe beside its peers; arguments go on to the bench.",
    ),
    "doctor": ("hythe_cli.doctor:doctor", WORK, "Say what this machine lacks, and how to mend it."),
}
for name, (where, group, summary) in COMMANDS.items():
    app.command(where, name=name, group=group, help=summary)
app.register_install_completion_command(group=WORK)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name (those of this process when None) and return its exit code.

    An error is one line on standard error that says what to do.
    """
    try:
        result = app(arguments, print_error=False, exit_on_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        shown.complain(f"{' '.join(str(error).split())} (./hythe --help lists the commands)")
        return shown.USAGE
    except ValidationError as error:
        from hythe_cli.asking import field_error

        shown.complain(str(field_error(error)))
        return shown.USAGE
    except HytheError as error:
        shown.complain(shown.told(error))
        return shown.exit_code(error)
    except KeyboardInterrupt:
        return shown.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        return shown.GOOD
    return result if isinstance(result, int) else shown.GOOD


def main() -> None:
    """The program `hythe`."""
    sys.exit(run())


if __name__ == "__main__":
    main()
