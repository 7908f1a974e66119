"""`hythe check` and `hythe test`: is this checkout right?

    check    format, lint, types, import contracts, fast tests, known holes in the locked packages; a minute or so
    test     every test, on a real Postgres, NATS, git and Docker; what is missing is installed, or fails

Both work on the checkout that the command itself was set up from, wherever they are called.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import hythe_cli
from hythe_cli import shown
from hythe_cli.home import default_home
from hythe_cli.local.engine import ensure_engine, ensure_packages, static_busybox
from hythe_cli.local.processes import installed_program, run_to_end
from hythe_events.errors import Misconfigured

PytestArguments = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]

WHOLE_SUITE = ("-q", "-n", "2", "--dist", "loadfile")
"""Most tests wait for servers, containers and deadlines: two at a time take three quarters of the time of one."""
FAST = "not real and not slow"
LOCKS = ("requirements.lock", "requirements-dev.lock")


@dataclass(frozen=True)
class Verdict:
    """How one check went: `line` says it in a few words, `details` is what the tool printed, worth reading if bad."""

    good: bool
    line: str
    details: str = ""


def checkout() -> Path:
    """The folder of this checkout.

    Raises Misconfigured when the command runs from an installed package: there is nothing to check there.
    """
    root = Path(hythe_cli.__file__).resolve().parents[4]
    if not (root / "requirements.lock").exists():
        raise Misconfigured("this command needs a checkout of Hythe: run ./hythe in one")
    return root


async def check() -> int:
    """Check format, lint, types, import contracts, fast tests, and the locked packages for known holes."""
    root = checkout()
    python = sys.executable
    checks: list[tuple[str, Callable[[], Awaitable[Verdict]]]] = [
        ("format", lambda: _tool(root, python, "-m", "ruff", "format", "--check", ".")),
        ("lint", lambda: _tool(root, python, "-m", "ruff", "check", "--output-format=concise", ".")),
        ("imports", lambda: _tool(root, str(installed_program("lint-imports")), "--no-logo")),
        ("types", lambda: _tool(root, python, "-m", "mypy", "--no-color-output")),
        ("known holes", lambda: known_holes(root)),
        (
            "fast tests",
            lambda: _tool(root, python, "-m", "pytest", "-q", "-m", FAST, "-p", "no:cacheprovider"),
        ),
    ]
    # Two at a time: types and tests each keep a core busy.
    turns = asyncio.Semaphore(2)

    async def one(name: str, run: Callable[[], Awaitable[Verdict]]) -> bool:
        async with turns:
            since = time.monotonic()
            verdict = await run()
        shown.say(
            f"{'ok ' if verdict.good else 'BAD'} {name:<12} {verdict.line} ({time.monotonic() - since:.1f} s)",
            style="" if verdict.good else "red",
        )
        if not verdict.good and verdict.details:
            sys.stdout.write(verdict.details.rstrip() + "\n")
            sys.stdout.flush()
        return verdict.good

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(name, run)) for name, run in checks]
    return shown.GOOD if all(task.result() for task in tasks) else shown.BAD


async def test(*arguments: PytestArguments) -> int:
    """Run every test on the real parts; arguments go on to pytest, as in `hythe test -k rollback -x`."""
    root = checkout()
    await ensure_packages({"git": "git"}, _announce)
    await static_busybox(_announce)
    engine = await ensure_engine(_announce, log=default_home() / "log" / "dockerd.log", ends_with_us=True)
    try:
        told = arguments or WHOLE_SUITE
        pytest = await asyncio.create_subprocess_exec(sys.executable, "-m", "pytest", *told, cwd=root)
        try:
            return await pytest.wait()
        finally:
            # On Ctrl-C pytest heard it too, and ends by itself once its fixtures are put away.
            await asyncio.shield(pytest.wait())
    finally:
        await engine.stop()


async def known_holes(root: Path) -> Verdict:
    """Ask the vulnerability service about every locked package. A service that does not answer is said, not held
    against the checkout."""
    arguments = [word for lock in LOCKS for word in ("-r", str(root / lock))]
    code, output = await run_to_end(
        str(installed_program("pip-audit")),
        *("--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json", "--timeout=10"),
        *arguments,
        seconds=180,
    )
    return read_audit(code, output)


def read_audit(code: int, output: str) -> Verdict:
    """What pip-audit's exit code and output mean."""
    at = output.find('{"dependencies"')
    try:
        packages = json.JSONDecoder().raw_decode(output[at:])[0]["dependencies"] if at >= 0 else None
    except (ValueError, KeyError):
        packages = None
    if packages is None:
        reason = (output.strip().splitlines() or [f"exit code {code}"])[-1]
        return Verdict(True, f"NOT CHECKED: the vulnerability service could not be asked ({reason[:200]})")
    answered = [package for package in packages if "skip_reason" not in package]
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in "
        + (", ".join(hole.get("fix_versions", [])) or "no version yet")
        for package in answered
        for hole in package.get("vulns", [])
    ]
    if holes:
        return Verdict(False, f"{len(holes)} in the locked packages", "\n".join(holes))
    if not answered:
        return Verdict(
            True, f"NOT CHECKED: the vulnerability service knows none of the {len(packages)} packages"
        )
    unknown = len(packages) - len(answered)
    return Verdict(
        True, f"none in {len(answered)} packages" + (f", {unknown} NOT CHECKED" if unknown else "")
    )


async def _tool(root: Path, *argv: str) -> Verdict:
    """Run a tool in the checkout; its last line is the verdict in words."""
    code, output = await run_to_end(
        *argv, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, cwd=root, seconds=900
    )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return Verdict(code == 0, lines[-1][:100] if lines else "clean", output)


def _announce(line: str) -> None:
    shown.complain(line)
