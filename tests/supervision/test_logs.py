"""Output of the ranks: followed from files, copied from pseudo-terminals."""

from __future__ import annotations

import io
import os

import pytest

from distrain.supervision.logs import Console, PseudoTerminal, tail_lines


class Screen:
    def __init__(self):
        self.stdout, self.stderr = io.BytesIO(), io.BytesIO()

    def __call__(self, name="stdout"):
        return getattr(self, name).getvalue()

    def console(self, *, prefixed=False):
        return Console(prefixed=prefixed, stdout=self.stdout, stderr=self.stderr)


@pytest.fixture
def screen():
    return Screen()


def test_one_rank_is_copied_byte_for_byte_as_it_comes(tmp_path, screen):
    console = screen.console()
    path = tmp_path / "stdout.log"
    console.follow(rank=0, host="h", stream="stdout", path=path)
    console.show()
    path.write_bytes(b"10%\r20%")
    console.show()
    assert screen() == b"10%\r20%"
    with path.open("ab") as file:
        file.write(b"\r30%\n")
    console.finish()
    assert screen() == b"10%\r20%\r30%\n"


def test_several_ranks_are_shown_in_whole_prefixed_lines(tmp_path, screen):
    console = screen.console(prefixed=True)
    files = [(tmp_path / str(rank)).open("ab", buffering=0) for rank in (0, 1)]
    for rank in (0, 1):
        console.follow(rank=rank, host="h", stream="stderr", path=tmp_path / str(rank))
    files[0].write(b"first ha")
    files[1].write(b"whole\n")
    console.show()
    files[0].write(b"lf\nunfinished")
    console.show()
    for file in files:
        file.close()
    assert screen("stderr") == b"[h:1] whole\n[h:0] first half\n"
    console.finish()
    assert screen("stderr").endswith(b"[h:0] unfinished\n")


def test_our_own_lines_begin_at_the_left_margin(screen):
    console = screen.console()
    console.say("one")
    console.write("stderr", b"50%")
    console.say("two")
    assert screen("stderr") == b"one\n50%\ntwo\n"


def test_a_rank_on_a_pseudo_terminal_sees_one_and_its_output_is_kept_as_written(tmp_path, screen):
    terminal = PseudoTerminal(screen.console())
    try:
        out, err = (os.open(name, os.O_WRONLY | os.O_NOCTTY) for name in terminal.names)
        assert os.isatty(out)
        terminal.record_to(tmp_path / "out", tmp_path / "err")
        os.write(out, b"line\n")
        os.write(err, b"\x1b[31mred\x1b[0m\n")
        terminal.drain()
        os.close(out)
        os.close(err)
        terminal.drain()
    finally:
        terminal.close()
    assert (tmp_path / "out").read_bytes() == screen("stdout") == b"line\n"
    assert (tmp_path / "err").read_bytes() == screen("stderr") == b"\x1b[31mred\x1b[0m\n"


def test_a_reader_that_went_away_is_not_written_to_again():
    read_end, write_end = os.pipe()
    stream = os.fdopen(write_end, "wb")
    console = Console(prefixed=False, stdout=stream, stderr=io.BytesIO())
    os.close(read_end)
    console.write("stdout", b"lost\n")
    console.write("stdout", b"lost too\n")
    stream.close()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", []), (b"a\nb\nc\n", ["b", "c"]), (b"only", ["only"]), (b"\xff\n", ["\ufffd"])],
)
def test_tail(tmp_path, content, expected):
    (tmp_path / "log").write_bytes(content)
    assert tail_lines(tmp_path / "log", 2) == expected


def test_the_tail_of_no_file_is_empty(tmp_path):
    assert tail_lines(tmp_path / "none", 2) == []


def test_the_tail_of_a_huge_file_reads_its_end_only(tmp_path):
    (tmp_path / "log").write_text("x" * 100_000 + "\nlast\n")
    assert tail_lines(tmp_path / "log", 1, nbytes=64) == ["last"]
