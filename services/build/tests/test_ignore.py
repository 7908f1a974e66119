"""`.dockerignore`, as Docker reads it; `test_context.py` compares with the real thing."""

from __future__ import annotations

import pytest

from hythe_build.ignore import BadPattern, Ignore


@pytest.mark.parametrize(
    ("patterns", "path", "left_out"),
    [
        ("*.log", "a.log", True),
        ("*.log", "sub/b.log", False),
        ("**/*.log", "sub/b.log", True),
        ("**/*.log", "a.log", True),
        ("node_modules", "node_modules/x/y", True),
        ("node_modules", "sub/node_modules/x", False),
        ("**/node_modules", "sub/node_modules/x", True),
        ("/top", "top/x", True),
        ("sub/", "sub/x", True),
        ("./sub//x/../y", "sub/y", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[a-c].txt", "b.txt", True),
        ("[^a-c].txt", "b.txt", False),
        ("a\\*b", "a*b", True),
        ("a\\*b", "axb", False),
        ("**", "anything/at/all", True),
        ("sub/**", "sub/a/b", True),
        ("sub/**", "sub", False),
        ("**/x/**/y", "a/x/b/c/y", True),
        ("*\n!keep", "keep", False),
        ("*\n!keep", "other", True),
        ("sub\n!sub/keep", "sub/keep", False),
        ("sub\n!sub/keep", "sub/lost", True),
        ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", True),
        ("*.md\n!README*.md\nREADME-secret.md", "README-1.md", False),
        ("# comment", "# comment", False),
        ("  spaces  ", "spaces", True),
        ("\n\n", "x", False),
        (".", "x", False),
        ("a.b+c(d)$", "a.b+c(d)$", True),
        ("a.b", "axb", False),
        ("ünï*", "ünïcode", True),
    ],
)
def test_a_pattern_leaves_out_what_docker_leaves_out(patterns: str, path: str, left_out: bool) -> None:
    """The rules are not `.gitignore`'s: a wrong guess puts secrets into an image, or leaves the program out of it."""
    assert Ignore(patterns.encode()).leaves_out(path) is left_out


def test_a_byte_order_mark_and_windows_line_ends_change_nothing() -> None:
    """Editors add them unasked."""
    assert Ignore(b"\xef\xbb\xbfa.txt\r\nb.txt\r\n").leaves_out("a.txt")
    assert Ignore(b"\xef\xbb\xbfa.txt\r\nb.txt\r\n").leaves_out("b.txt")


@pytest.mark.parametrize("patterns", ["!", "[a", "[z-a]"])
def test_a_pattern_that_cannot_be_read_is_refused(patterns: str) -> None:
    """Guessing what was meant would put something into the image that was to be left out."""
    with pytest.raises(BadPattern, match=r"\.dockerignore"):
        Ignore(patterns.encode())


def test_a_pattern_made_to_hang_us_is_matched_quickly_and_right() -> None:
    """A regular expression would try for hours; the answer is the same as for a pattern of the same meaning."""
    hostile = Ignore(b"*a*a*a*a*a*a*a*a*b\n")
    assert not hostile.leaves_out("a" * 250)
    assert hostile.leaves_out("a" * 250 + "b")
    folders = Ignore(b"**/**/**/**/**/x\n")
    assert folders.leaves_out("x")
    assert folders.leaves_out("d/" * 200 + "x")
    assert not folders.leaves_out("d/" * 200 + "y")
    assert Ignore(b"**/*.Tests/**/*.c?/**").leaves_out("a/b.Tests/c/d.cs/e")
    assert not Ignore(b"**/*.Tests/**/*.c?/**").leaves_out("a/b.Test/c/d.cs/e")
