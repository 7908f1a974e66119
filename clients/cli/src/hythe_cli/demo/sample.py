"""The sample repository that the demo pushes: a web page served by a static busybox, in an image made from nothing.

No image registry is needed: the Dockerfile begins `FROM scratch`.
"""

from __future__ import annotations

PAGE = "index.html"
HELLO = "Hello from version {version}\n"


def compose_file(port: int) -> str:
    """The compose file: one service, published on this machine only, with a health check that asks for the page."""
    return f"""\
services:
  web:
    build: .
    ports: ["127.0.0.1:{port}:8080"]
    stop_signal: SIGKILL
    healthcheck:
      test: [CMD, /busybox, wget, -q, -O, /dev/null, "http://127.0.0.1:8080/{PAGE}"]
      interval: 500ms
      timeout: 2s
      retries: 3
"""


DOCKERFILE = """\
FROM scratch
COPY busybox /busybox
COPY page /www
EXPOSE 8080
CMD ["/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
"""


def first_version(busybox: bytes, port: int) -> dict[str, str | bytes | None]:
    """The files of a commit that works."""
    return {
        "compose.yaml": compose_file(port),
        "Dockerfile": DOCKERFILE,
        "busybox": busybox,
        f"page/{PAGE}": HELLO.format(version=1),
    }


def broken_version() -> dict[str, str | bytes | None]:
    """What the second commit changes: the page moves, and the health check asks for it in vain."""
    return {f"page/{PAGE}": None, "page/moved/index.html": HELLO.format(version=2)}


def mended_version() -> dict[str, str | bytes | None]:
    """What the third commit changes: the page is back where it belongs, and says something else."""
    return {f"page/{PAGE}": HELLO.format(version=3), "page/moved/index.html": None}
