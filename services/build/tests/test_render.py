"""The compose file as Compose understands it, by the real `docker-compose`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import pytest

from hythe_build.render import Renderer, RenderRefused
from hythe_build.source import Source

OpenSource = Callable[[Mapping[str, bytes | str]], Awaitable[Source]]


async def test_everything_compose_knows_is_resolved(open_source: OpenSource) -> None:
    """`extends`, `include`, `.env` and defaults: what Compose would build is what we build."""
    source = await open_source(
        {
            "app/compose.yaml": "include: [more/db.yaml]\nservices:\n  web:\n    extends: {file: common.yaml, service: base}\n"
            "    build: {context: ./web, args: {V: '${VERSION}', D: '${NONE:-default}'}}\n",
            "app/common.yaml": "services:\n  base:\n    environment: {A: b}\n",
            "app/more/db.yaml": "services:\n  db:\n    build: .\n",
            "app/.env": "VERSION=7\n",
        }
    )
    root, model = await Renderer().model(source, "app/compose.yaml", stack="app", sha256="1")
    assert model["services"]["web"]["build"]["args"] == {"V": "7", "D": "default"}
    assert model["services"]["web"]["build"]["context"] == f"{root}/app/web"
    assert model["services"]["db"]["build"]["context"] == f"{root}/app/more"
    assert model["services"]["web"]["environment"] == {"A": "b"}


async def test_nothing_of_ours_can_be_read_by_a_compose_file(
    open_source: OpenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository must not be able to ask for the password of our database."""
    monkeypatch.setenv("HYTHE_POSTGRES_URL", "canary")
    source = await open_source(
        {
            "compose.yaml": "services:\n  web:\n    build: {context: ., args: {A: '${HYTHE_POSTGRES_URL:-nothing}'}}\n"
        }
    )
    _, model = await Renderer().model(source, "compose.yaml", stack="app", sha256="1")
    assert model["services"]["web"]["build"]["args"] == {"A": "nothing"}


async def test_an_environment_file_that_only_the_server_has_is_no_obstacle(open_source: OpenSource) -> None:
    """Secrets are not in the repository; the build does not need them."""
    source = await open_source(
        {"compose.yaml": "services:\n  web:\n    build: .\n    env_file: [secret.env]\n"}
    )
    _, model = await Renderer().model(source, "compose.yaml", stack="app", sha256="1")
    assert "web" in model["services"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("services: [", r"compose\.yaml is not YAML"),
        ("services:\n  web: {bild: .}\n", "bild"),
        ("services:\n  web:\n    image: '${X?it must be set}'\n", "it must be set"),
        ("- 1\n", r"compose\.yaml must be a mapping"),
        ("", r"compose\.yaml: "),
    ],
)
async def test_a_file_that_compose_refuses_is_refused_in_its_words(
    open_source: OpenSource, text: str, says: str
) -> None:
    """One line, and no path of this machine in it."""
    source = await open_source({"compose.yaml": text})
    with pytest.raises(RenderRefused, match=says) as refused:
        await Renderer().model(source, "compose.yaml", stack="app", sha256="1")
    assert str(source.folder) not in str(refused.value)


async def test_a_compose_file_that_is_not_there_is_named(open_source: OpenSource) -> None:
    """It may have been renamed in the commit."""
    with pytest.raises(RenderRefused, match=r"no compose file app/compose\.yaml in the repository"):
        await Renderer().model(await open_source({"a": "b"}), "app/compose.yaml", stack="app", sha256="1")


@pytest.mark.parametrize(
    "text",
    [
        "include: [../outside.yaml]\n",
        "include: ['https://example.org/x.yaml']\n",
        "include: ['git@example.org:x.git']\n",
        "include: ['oci://example.org/x']\n",
        "include: [{path: a.yaml, env_file: /etc/passwd}]\n",
        "include: ['${WHERE}/x.yaml']\n",
        "services: {web: {extends: {file: /etc/passwd, service: root}}}\n",
        "services: {web: {extends: {file: ../../x.yaml, service: a}}}\n",
        "services: {web: {image: x, label_file: [/etc/passwd]}}\n",
        "include: [inside.yaml]\n",
    ],
)
async def test_a_compose_file_may_not_reach_out_of_the_repository(open_source: OpenSource, text: str) -> None:
    """Compose would read any file of this machine, or fetch from anywhere, and quote it in its complaint."""
    inside = "services: {a: {extends: {file: ../../etc/passwd, service: root}}}\n"
    with pytest.raises(RenderRefused, match="must name a file of the repository"):
        await Renderer().model(
            await open_source({"compose.yaml": text, "inside.yaml": inside}),
            "compose.yaml",
            stack="app",
            sha256="1",
        )


async def test_the_same_source_is_rendered_once(open_source: OpenSource) -> None:
    """A redeployment of the same commit does not wait for Compose."""
    renderer = Renderer()
    files = {"compose.yaml": "services: {web: {build: .}}\n"}
    first = await renderer.model(await open_source(files), "compose.yaml", stack="app", sha256="1")
    again = await open_source(files)
    assert await renderer.model(again, "compose.yaml", stack="app", sha256="1") is first
    assert not again.folder.exists()
    assert await renderer.model(again, "compose.yaml", stack="app", sha256="2") is not first


async def test_the_stacks_name_is_the_projects_name(open_source: OpenSource) -> None:
    """A repository cannot take another stack's name."""
    source = await open_source({"compose.yaml": "name: other\nservices: {web: {build: .}}\n"})
    _, model = await Renderer().model(source, "compose.yaml", stack="app", sha256="1")
    assert model["name"] == "app"
