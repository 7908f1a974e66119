"""From a rendered compose file to a list of images."""

from __future__ import annotations

from typing import Any

import pytest

from hythe_build.plan import ImageBuild, PlanRefused, image_name, images


def planned(build: Any, service: str = "web") -> ImageBuild:
    [one] = images({"services": {service: {"build": build}}}, stack="app", root="/src")
    return one


def test_only_services_with_a_build_are_built() -> None:
    """A service that only names an image is pulled by deploy."""
    model = {"services": {"web": {"build": {"context": "/src"}}, "db": {"image": "postgres:18"}}}
    assert [each.service for each in images(model, stack="app", root="/src")] == ["web"]
    assert images({"services": {}}, stack="app", root="/src") == ()
    assert images({}, stack="app", root="/src") == ()


def test_a_build_is_read_with_everything_that_changes_the_image() -> None:
    """What is left out here would silently be built differently from what the file says."""
    build = {
        "context": "/src/web",
        "dockerfile": "../docker/Dockerfile.web",
        "target": "run",
        "args": {"B": "2", "A": 1, "UNSET": None},
        "labels": {"team": "blue"},
        "network": "none",
        "extra_hosts": ["a:1.2.3.4"],
        "shm_size": "67108864",
        "no_cache": True,
        "pull": True,
        "platforms": ["linux/amd64"],
        "tags": ["x:y"],
        "x-own": {"any": "thing"},
    }
    assert planned(build) == ImageBuild(
        service="web",
        name="hythe/app-web",
        context="web",
        dockerfile="docker/Dockerfile.web",
        target="run",
        args={"A": "1", "B": "2"},
        labels={"team": "blue"},
        network="none",
        extra_hosts=("a:1.2.3.4",),
        shm_size=67108864,
        no_cache=True,
        pull=True,
        platform="linux/amd64",
    )


def test_a_dockerfile_may_stand_in_the_compose_file() -> None:
    """It is sent beside the context, so the builder needs nothing special for it."""
    assert planned({"context": "/src", "dockerfile_inline": "FROM scratch"}).inline == "FROM scratch"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("secrets", [{"source": "token"}]),
        ("ssh", ["default"]),
        ("additional_contexts", {"a": "/"}),
        ("cache_to", ["type=local,dest=/x"]),
        ("privileged", True),
        ("entitlements", ["network.host"]),
        ("isolation", "hyperv"),
        ("ulimits", {"nofile": 1}),
        ("a_key_of_next_year", 1),
    ],
)
def test_what_the_builder_cannot_do_is_refused_by_name(key: str, value: Any) -> None:
    """An image built without what its file asks for is worse than none."""
    with pytest.raises(PlanRefused, match=rf"web: build\.{key} is not possible") as refused:
        planned({"context": "/src", key: value})
    assert refused.value.field == f"services.web.build.{key}"


@pytest.mark.parametrize("context", ["/", "/src/../etc", "/srcs", "..", "/home/x"])
def test_a_context_outside_of_the_source_is_refused(context: str) -> None:
    """It would put files of this machine into an image."""
    with pytest.raises(PlanRefused, match=r"build\.context leads out of the repository"):
        planned({"context": context})


@pytest.mark.parametrize(
    "context", ["https://x.example/a.git", "git@x.example:a.git", "github.com/a/b", "oci://x"]
)
def test_a_context_from_elsewhere_is_refused(context: str) -> None:
    """Only the commit that was pushed is built."""
    with pytest.raises(PlanRefused, match="not an address"):
        planned({"context": context})


def test_a_dockerfile_outside_of_the_source_is_refused() -> None:
    """As for the context."""
    with pytest.raises(PlanRefused, match=r"build\.dockerfile leads out"):
        planned({"context": "/src/web", "dockerfile": "../../x"})


@pytest.mark.parametrize(
    "build", [{"network": "host"}, {"network": "container:db"}, {"platforms": ["linux/amd64", "linux/arm64"]}]
)
def test_the_hosts_network_and_several_platforms_are_refused(build: dict[str, Any]) -> None:
    """A build must not reach what only this machine can reach; an image is for one platform."""
    with pytest.raises(PlanRefused):
        planned({"context": "/src", **build})


def test_our_own_labels_cannot_be_claimed() -> None:
    """They decide which image is taken for which source."""
    with pytest.raises(PlanRefused, match="Hythe's own"):
        planned({"context": "/src", "labels": {"dev.hythe.inputs": "x"}})


def test_an_image_is_named_as_docker_allows_and_names_stay_apart() -> None:
    """Compose allows service names that Docker does not allow in an image's name."""
    assert image_name("app", "web") == "hythe/app-web"
    odd = [image_name("app", name) for name in ("Web", "we.b", "we_b", "we--b", "web-")]
    assert len(set(odd)) == len(odd)
    assert all(name.startswith("hythe/app-we") for name in odd)
