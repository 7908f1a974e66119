"""The folder names of this project are fixed, and four of them are traps. These tests hold them for good.

Each trap has cost somebody a day: services/build vanishing from a commit, its tests never running, its package
shadowed by another of the same name, and two test files of one name failing to import.
"""

import importlib.metadata
import importlib.util
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MEMBERS = sorted(
    folder.parent
    for part in ("libs", "services", "clients")
    for folder in (ROOT / part).glob("*/pyproject.toml")
)


def settings(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False, timeout=30
    )


def test_no_source_file_is_ignored_by_git() -> None:
    """A stock `build/` in .gitignore silently leaves out services/build; ours is anchored."""
    sources = [
        str(file.relative_to(ROOT))
        for member in MEMBERS
        for file in [*member.glob("src/**/*"), *member.glob("tests/**/*"), member / "pyproject.toml"]
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert any(name.startswith("services/build/") for name in sources)
    assert git("check-ignore", "--no-index", *sources).stdout == ""
    assert git("check-ignore", "--no-index", "build/left-over").stdout.strip() == "build/left-over"


def test_pytest_looks_into_every_member(request: pytest.FixtureRequest) -> None:
    """pytest's own default leaves out every folder named "build", and with it services/build."""
    left_out = request.config.getini("norecursedirs")
    assert not {member.name for member in MEMBERS} & set(left_out)
    looked_into = [ROOT / name for name in request.config.getini("testpaths")]
    assert all(any(member.is_relative_to(path) for path in looked_into) for member in MEMBERS)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_member_has_a_name_that_nobody_else_has(member: Path) -> None:
    """A distribution or package named plainly `build` or `git` loses to the well-known ones of that name."""
    name = settings(member)["project"]["name"]
    package = name.replace("-", "_")
    assert name == f"hythe-{member.name}"
    assert importlib.metadata.distribution(name).version == settings(member)["project"]["version"]
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin == str(member / "src" / package / "__init__.py"), (
        "the package of this checkout is the one in use"
    )
    assert [folder.name for folder in (member / "src").iterdir() if folder.is_dir()] == [package]


def test_test_files_of_equal_names_do_not_meet(request: pytest.FixtureRequest) -> None:
    """Two services may each have a test_handlers.py: pytest must not import tests by their bare names."""
    assert request.config.getoption("importmode") == "importlib"
    packages = [folder for member in MEMBERS for folder in (member / "tests").rglob("__init__.py")]
    assert packages == [], "an __init__.py turns the tests of two members into one package"


def test_every_member_is_in_the_workspace() -> None:
    """A member that the set-up script or the tools do not know is neither installed nor checked."""
    names = [str(member.relative_to(ROOT)) for member in MEMBERS]
    assert sorted(settings(ROOT)["tool"]["uv"]["workspace"]["members"]) == names
    packages = {settings(member)["project"]["name"].replace("-", "_") for member in MEMBERS}
    assert set(settings(ROOT)["tool"]["importlinter"]["root_packages"]) == packages
    script = (ROOT / "hythe").read_text()
    listed = script[script.index("members=(") + len("members=(") :].split(")")[0].split()
    assert sorted(listed) == names
    types = settings(ROOT)["tool"]["mypy"]["mypy_path"]
    assert {f"$MYPY_CONFIG_FILE_DIR/{name}/src" for name in names} <= set(types)


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_holds_hashes_and_no_address(lock: str) -> None:
    """What is installed is decided by hashes, from wherever the reader's own settings fetch packages."""
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert "file:" not in text
    assert not any(line.startswith(("-", ".", "/")) for line in text.splitlines())
    pinned = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert all("==" in line and line.endswith("\\") for line in pinned), (
        "every package is pinned and has hashes"
    )
    assert not (ROOT / "uv.lock").exists()


def test_everything_a_member_needs_is_locked() -> None:
    """A dependency that was added without locking it would be missing in a fresh clone."""
    locked = {
        line.split("==")[0].lower()
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line and not line.startswith((" ", "#"))
    }
    for member in MEMBERS:
        for needed in settings(member)["project"]["dependencies"]:
            name = needed.split("<")[0].split(">")[0].split("[")[0].strip().lower()
            assert name in locked or name == "hythe-events", (
                f"{member.name} needs {name}, which is not locked"
            )
