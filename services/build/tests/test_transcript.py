"""The log of one build."""

from __future__ import annotations

from hythe_build.transcript import LIMIT, PIECE, Lines, Transcript


class Listener:
    def __init__(self) -> None:
        self.lines: list[bytes] = []

    async def __call__(self, line: bytes) -> None:
        self.lines.append(line)


async def test_every_line_goes_out_live_and_is_kept() -> None:
    """Who watches and who reads later see the same."""
    live = Listener()
    log = Transcript(live)
    await log.say("web", b"\x1b[31mraw \xff\xfe bytes")
    await log.say("web", b"")
    await log.note("done")
    assert live.lines == [b"web | \x1b[31mraw \xff\xfe bytes", b"web | ", b"hythe | done"]
    assert log.kept() == b"".join(line + b"\n" for line in live.lines)


async def test_a_log_that_never_ends_is_cut_with_a_notice() -> None:
    """A build that prints without end must not fill the disk; its last word is still told."""
    live = Listener()
    log = Transcript(live)
    for _ in range(12):
        await log.say("web", b"y" * 1_000_000)
    await log.note("failed: web: exit code 1")
    assert LIMIT - PIECE - 100 < len(log.kept()) < LIMIT + 200
    assert log.kept().endswith(b"the rest of it is left out\nhythe | failed: web: exit code 1\n")
    assert sum(b"left out" in line for line in live.lines) == 1


async def test_a_line_that_never_ends_comes_in_pieces() -> None:
    """The bus takes messages of a limited size, and a page lines of a limited length."""
    live = Listener()
    await Transcript(live).say("web", b"x" * (PIECE * 2 + 5))
    assert [len(line) - len(b"web | ") for line in live.lines] == [PIECE, PIECE, 5]


def test_chunks_become_lines_wherever_they_are_cut() -> None:
    """A pipe cuts where it likes."""
    whole = "one\r\ntwo\n\nprogress\rbar\nünï\nno end".encode()
    expected = [b"one", b"two", b"", b"progress\rbar", "ünï".encode(), b"no end"]
    for cut in range(len(whole)):
        lines = Lines()
        assert [*lines.feed(whole[:cut]), *lines.feed(whole[cut:]), *lines.end()] == expected


def test_a_stream_without_line_ends_does_not_pile_up() -> None:
    """Ten megabytes on one line must not be held until they end."""
    lines = Lines()
    said = [line for _ in range(100) for line in lines.feed(b"x" * 100_000)] + lines.end()
    assert b"".join(said) == b"x" * 10_000_000
    assert max(map(len, said)) <= PIECE
