"""What the engine tells while it builds. The messages were recorded from Docker Engine 20.10."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from hythe_build.progress import ClassicProgress, KitProgress, Progress


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3, value])
    size = len(value)
    head = bytes([number << 3 | 2])
    while size > 0x7F:
        head += bytes([size & 0x7F | 0x80])
        size >>= 7
    return head + bytes([size]) + value


def trace(*parts: bytes) -> dict[str, str]:
    return {"id": "moby.buildkit.trace", "aux": base64.b64encode(b"".join(parts)).decode()}


def vertex(
    digest: bytes, name: bytes, *, cached: bool = False, done: bool = False, error: bytes = b""
) -> bytes:
    body = field(1, digest) + field(2, b"sha256:input") + field(3, name)
    body += field(4, 1) if cached else b""
    body += field(5, b"\x08\x01")
    body += field(6, b"\x08\x02") if done else b""
    body += field(7, error) if error else b""
    return field(1, body)


def log(digest: bytes, message: bytes) -> bytes:
    return field(3, field(1, digest) + field(2, b"\x08\x01") + field(3, 1) + field(4, message))


RECORDED = (
    "CrICCkdzaGEyNTY6ODYwNTE0M2IzNmI3Zjk1NmJiZjYwMzcyNWE0ODRkMmU5ODVkZGQ5NWY4MTI2MGNiMDZmZGZlYzBkMjZlOGNm"
    "NBJHc2hhMjU2OmNkNGIwZjBmODRkZDc4NTU4NDBhZjNlMzg2MTVhMjliYmRiYjg2OGUzZTQzZGEyYmVjNWViNDBmMWYyNmE3Y2Qa"
    "NlsyLzJdIFJVTiBbIi9iaW4vYnVzeWJveCIsInNoIiwiLWMiLCJlY2hvIGhpOyBleGl0IDIiXSoMCMmEkdgGEO2orc0DMgwIyoSR"
    "2AYQhp/5sAI6SmV4ZWN1dG9yIGZhaWxlZCBydW5uaW5nIFsvYmluL2J1c3lib3ggc2ggLWMgZWNobyBoaTsgZXhpdCAyXTogZXhp"
    "dCBjb2RlOiAy"
)


def read(progress: Progress, *messages: dict[str, Any]) -> list[bytes]:
    return [line for message in messages for line in progress.read(message)] + progress.end()


def test_a_recorded_failure_is_read() -> None:
    """A real message of a real engine, byte for byte."""
    progress = KitProgress()
    said = read(
        progress, {"id": "moby.buildkit.trace", "aux": RECORDED}, {"error": "executor failed: exit code: 2"}
    )
    step = 'RUN ["/bin/busybox","sh","-c","echo hi; exit 2"]'
    assert said == [f"[2/2] {step}".encode()]
    assert progress.failure() == f"step 2/2 {step}: exit code 2"


def test_buildkits_log_reads_as_steps_and_their_output() -> None:
    """Internal steps are noise; output is kept byte for byte, and steps that run side by side do not mix lines."""
    progress = KitProgress()
    said = read(
        progress,
        trace(vertex(b"i", b"[internal] load remote build context")),
        trace(vertex(b"a", b"[1/3] FROM base", cached=True), vertex(b"b", b"[build 2/3] RUN make")),
        trace(log(b"b", b"half "), log(b"a", b"other\n")),
        trace(log(b"b", b"line \xff\n"), vertex(b"b", b"[build 2/3] RUN make", done=True)),
        {"id": "moby.image.id", "aux": {"ID": "sha256:abc"}},
        {"stream": "Successfully tagged x\n"},
    )
    assert said == [b"[1/3] FROM base  (cached)", b"[build 2/3] RUN make", b"other", b"half line \xff"]
    assert progress.image == "sha256:abc"
    assert progress.error is None


def test_the_step_that_failed_is_named_and_not_one_that_was_stopped_with_it() -> None:
    """Steps that run beside the failing one are cancelled; they are not the reason."""
    progress = KitProgress()
    read(
        progress,
        trace(vertex(b"a", b"[other 2/2] RUN sleep", error=b"context canceled")),
        trace(vertex(b"b", b"[build 2/3] RUN make", error=b"exit code: 2")),
        {"error": 'process "/bin/sh -c make" did not complete successfully: exit code: 2'},
    )
    assert progress.failure() == "step 2/3 RUN make: exit code 2"


def test_an_error_outside_of_any_step_is_told_without_the_engines_wrapping() -> None:
    """The user wrote a Dockerfile and not an LLB definition."""
    progress = KitProgress()
    wrapped = "failed to solve with frontend dockerfile.v0: failed to create LLB definition: "
    progress.read({"error": wrapped + "dockerfile parse error line 1: unknown instruction: FOO"})
    assert progress.failure() == "dockerfile parse error line 1: unknown instruction: FOO"


@pytest.mark.parametrize(
    "aux", ["!", "CgE=", base64.b64encode(b"\x0a\xff\xff").decode(), base64.b64encode(b"\xff" * 40).decode()]
)
def test_a_message_that_cannot_be_read_does_not_end_the_build(aux: str) -> None:
    """A newer engine may send what nobody here knows; the build goes on without that line."""
    progress = KitProgress()
    said = progress.read({"id": "moby.buildkit.trace", "aux": aux})
    assert all(b"could not be read" in line for line in said)


def test_the_classic_builders_log_reads_as_it_was_printed() -> None:
    """The colour that the engine adds to stderr is its own, and goes."""
    progress = ClassicProgress()
    said = read(
        progress,
        {"stream": "Step 1/3 : FROM base"},
        {"stream": "\n"},
        {"stream": " ---> 556a4beb0c87\n"},
        {"stream": "Step 2/3 : ENV X=1"},
        {"stream": "\n"},
        {"stream": " ---> Using cache\n"},
        {"stream": " ---> 2d9bd77aaef6\n"},
        {"stream": "Step 3/3 : RUN make"},
        {"stream": "\n"},
        {"stream": "hi\n"},
        {"stream": "\x1b[91merr\n\x1b[0m"},
        {"stream": " ---> 16dea4c7b76b\n"},
        {"status": "Downloading", "id": "abc", "progressDetail": {"current": 1}},
        {"status": "Pull complete", "id": "abc", "progressDetail": {}},
        {"aux": {"ID": "sha256:16de"}},
    )
    assert said == [
        b"Step 1/3 : FROM base",
        b" ---> 556a4beb0c87",
        b"Step 2/3 : ENV X=1",
        b" ---> Using cache",
        b" ---> 2d9bd77aaef6",
        b"Step 3/3 : RUN make",
        b"hi",
        b"err",
        b" ---> 16dea4c7b76b",
        b"abc: Pull complete",
    ]
    assert progress.image == "sha256:16de"
    assert progress.made == ["556a4beb0c87", "16dea4c7b76b"]


def test_a_failure_of_the_classic_builder_names_the_step() -> None:
    """Both builders fail in the same words."""
    progress = ClassicProgress()
    read(
        progress,
        {"stream": "Step 2/3 : RUN make"},
        {"error": "The command '/bin/sh -c make' returned a non-zero code: 2", "errorDetail": {"code": 2}},
    )
    assert progress.failure() == "step 2/3 RUN make: exit code 2"
