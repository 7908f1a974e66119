"""`python -m bench append|replay|webhooks|relay|pipeline`: one JSON line on standard output for each figure.

Progress goes to standard error. The exit code is 0 unless something broke: a slow figure is a figure, not a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys

from bench.figures import Figure

BENCHES = {
    "append": "appending to the log, beside message-db, a plain table, eventsourcing and COPY",
    "replay": "reading a million events, beside eventsourcing and message-db",
    "webhooks": "receiving signed pushes, beside Debian's webhook and a bare aiohttp handler",
    "relay": "from the log to a handler: delay and throughput",
    "pipeline": "push to healthy, beside git fetch, docker build and docker-compose up by hand",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure Hythe beside its peers, in turns, on this machine.",
        epilog="\n".join(f"  {name:<10} {what}" for name, what in BENCHES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*BENCHES, "all"], help="what to measure")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of each contestant (3; fewer is a try, not a figure)"
    )
    parser.add_argument("--json", action="store_true", help="figures only: no progress on standard error")
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if asked.json:
        from bench import figures

        figures.quiet = True
    for name in BENCHES if asked.name == "all" else [asked.name]:
        found: list[Figure] = asyncio.run(importlib.import_module(f"bench.{name}").run(asked.rounds))
        for figure in found:
            print(figure.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
