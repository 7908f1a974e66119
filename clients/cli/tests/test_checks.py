"""`hythe check` and `hythe test`: what the tools say must reach the reader as it was meant."""

import json

import pytest

from hythe_cli.checks import checkout, read_audit

HOLE = {"id": "GHSA-1", "fix_versions": ["2.0"]}


def audited(*packages: dict[str, object]) -> str:
    return "WARNING: something else first\n" + json.dumps({"dependencies": packages, "fixes": []}) + "\n"


def test_a_known_hole_fails_the_check_and_says_where_it_is_mended() -> None:
    """The reader needs the package, the advisory and the version to move to."""
    verdict = read_audit(1, audited({"name": "a", "version": "1.0", "vulns": [HOLE]}))
    assert not verdict.good
    assert verdict.details == "a 1.0: GHSA-1, mended in 2.0"


def test_packages_without_holes_pass() -> None:
    """The number says how much was looked at."""
    verdict = read_audit(0, audited({"name": "a", "version": "1.0", "vulns": []}))
    assert (verdict.good, verdict.line) == (True, "none in 1 packages")


@pytest.mark.parametrize(
    ("code", "output"),
    [
        (1, "requests.exceptions.ConnectionError: nobody there"),
        (-9, "pip-audit was not done after 180 s"),
        (1, ""),
        (0, audited({"name": "a", "skip_reason": "not found"}, {"name": "b", "skip_reason": "not found"})),
    ],
)
def test_a_service_that_does_not_answer_is_said_and_not_held_against_the_checkout(
    code: int, output: str
) -> None:
    """A check must not fail because a network is closed, and must not pretend to have looked."""
    verdict = read_audit(code, output)
    assert verdict.good
    assert "NOT CHECKED" in verdict.line


def test_a_package_the_service_does_not_know_is_counted() -> None:
    """Half an answer is not a whole one."""
    verdict = read_audit(
        0, audited({"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"})
    )
    assert verdict.line == "none in 1 packages, 1 NOT CHECKED"


def test_the_checkout_is_found_from_anywhere() -> None:
    """`hythe check` works from every folder."""
    assert (checkout() / "hythe").exists()
