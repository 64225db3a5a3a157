"""The end of a log as a terminal shows it."""

from __future__ import annotations

import pytest

from distrain.supervision.screen import lines_left


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"a\nb\nc\n", ["b", "c"]),
        (b"only", ["only"]),
        (b"a\n\n", ["a", ""]),
        (b"\xff\n", ["\ufffd"]),
        (b"important\n" + b"".join(b"\r%d/400" % n for n in range(400)), ["important", "399/400"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"1/2\r2/2\r\n", ["2/2"]),
        ("a\vb\fc\x1cd\u2028e\n".encode(), ["a\vb\fc\x1cd\u2028e"]),
    ],
)
def test_the_last_lines(tmp_path, content, expected):
    (tmp_path / "log").write_bytes(content)
    assert lines_left(tmp_path / "log", 2) == expected


def test_no_file_has_no_lines(tmp_path):
    assert lines_left(tmp_path / "none", 2) == []


def test_of_a_huge_file_the_end_only_is_read(tmp_path):
    (tmp_path / "log").write_text("x" * 100_000 + "\nlast\n")
    assert lines_left(tmp_path / "log", 1, nbytes=64) == ["last"]
