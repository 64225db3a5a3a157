"""Output of the ranks: followed from files, copied from pseudo-terminals."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import pty
import time
from pathlib import Path

import pytest

from distrain.supervision.logs import Console, PseudoTerminal, tail_lines
from distrain.supervision.output import Output


class Screen:
    """Two files in place of our streams, which take everything at once."""

    def __init__(self, folder):
        self._files = {name: (folder / f"screen-{name}").open("w+b") for name in ("stdout", "stderr")}

    def __call__(self, name="stdout"):
        return os.pread(self._files[name].fileno(), 1 << 22, 0)

    def fileno(self):
        return self._files["stdout"].fileno()

    def console(self, *, prefixed=False):
        return Console(prefixed=prefixed, **{name: Output(file.fileno()) for name, file in self._files.items()})

    def close(self):
        for file in self._files.values():
            file.close()


@pytest.fixture
def screen(tmp_path):
    screen = Screen(tmp_path)
    yield screen
    screen.close()


@pytest.fixture
def pipe():
    """A pipe with nobody reading, unless the test does: its two ends."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def finish(console):
    console.finish(patience_s=0, is_urgent=lambda: False)


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
    finish(console)
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
    finish(console)
    assert screen("stderr").endswith(b"[h:0] unfinished\n")


@pytest.fixture
def rank(tmp_path, screen):
    """One of several ranks that are shown: what shows it, and its file."""
    console = screen.console(prefixed=True)
    with (tmp_path / "log").open("ab", buffering=0) as file:
        console.follow(rank=0, host="h", stream="stdout", path=tmp_path / "log")
        yield console, file


def show_until(console, condition):
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s
        console.show()
        time.sleep(0.01)


def test_a_progress_bar_among_several_ranks_is_seen_while_it_grows(rank, screen):
    console, file = rank
    file.write(b"begin\n\r10%\r20%\r30")
    show_until(console, lambda: b"20%" in screen())
    assert screen() == b"[h:0] begin\n[h:0] 20%\n"
    file.write(b"%\r99%\r100%\nnext\n")
    console.show()
    assert screen().endswith(b" 20%\n[h:0] 30%\r[h:0] 99%\r[h:0] 100%\n[h:0] next\n")
    finish(console)
    assert screen().endswith(b"next\n")


def test_a_progress_bar_is_shown_twice_a_second_at_most(rank, screen):
    console, file = rank
    shown = []
    began_s = time.monotonic()
    for n in itertools.count():
        file.write(b"%d%%\r" % n)
        console.show()
        shown = screen().splitlines()
        if len(shown) == 2:
            break
        assert time.monotonic() < began_s + 10
    assert time.monotonic() > began_s + 0.9
    assert shown[1] == b"[h:0] %d%%" % n
    finish(console)
    assert screen().splitlines() == shown


def test_a_carriage_return_that_was_shown_as_an_end_and_its_newline_are_one_line(rank, screen):
    console, file = rank
    file.write(b"line\r")
    show_until(console, screen)
    file.write(b"\nnext\r\n\r\n")
    finish(console)
    assert screen() == b"[h:0] line\n[h:0] next\r\n[h:0] \r\n"


def test_a_bar_that_has_cleared_itself_hides_no_step(rank, screen):
    console, file = rank
    file.write(b"90%\r   \r")
    show_until(console, screen)
    finish(console)
    assert screen() == b"[h:0] 90%\n"


def test_a_line_without_end_is_shown_in_pieces_and_whole_characters(rank, screen):
    console, file = rank
    file.write("a€".encode() * 100_000)
    while console.show():
        pass
    (piece,) = screen().splitlines()
    assert 1 << 18 < len(piece) < 1.3 * (1 << 18)
    assert piece.decode().endswith("[goes on]")
    file.write(b"\n")
    finish(console)
    pieces = screen().decode().replace("[h:0] ", "").replace(" [goes on]", "").splitlines()
    assert len(pieces) == 2
    assert "".join(pieces) == "a€" * 100_000


def test_a_line_without_end_takes_time_in_proportion_to_its_length(rank, screen):
    console, file = rank
    file.truncate(80 << 20)
    began_s = time.monotonic()
    finish(console)
    assert time.monotonic() - began_s < 10
    assert os.fstat(screen.fileno()).st_size > 80 << 20


def test_a_signal_ends_what_is_shown_at_the_end_also_where_a_reader_takes_all(tmp_path, screen):
    console = screen.console()
    with (tmp_path / "log").open("wb") as file:
        file.truncate(50 << 20)
    for rank in range(3):
        console.follow(rank=rank, host="h", stream="stdout", path=tmp_path / "log")
    signals = iter([False, True])
    console.finish(patience_s=0, is_urgent=lambda: next(signals, False))
    assert os.fstat(screen.fileno()).st_size < 1 << 20
    assert console.trouble == "a signal left the rest of what the ranks print unshown; it is in their logs"
    console.say("ours")
    assert screen("stderr").endswith(b"ours\n")


def test_our_own_lines_begin_at_the_left_margin(screen):
    console = screen.console()
    console.say("one")
    console.write("stderr", b"50%")
    console.say("two")
    assert screen("stderr") == b"one\n50%\ntwo\n"


def test_a_rank_on_a_pseudo_terminal_sees_one_and_its_output_is_kept_as_written(tmp_path, screen):
    console = screen.console()
    terminal = PseudoTerminal(console)
    try:
        out, err = (os.open(name, os.O_WRONLY | os.O_NOCTTY) for name in terminal.names)
        assert os.isatty(out)
        for stream in ("stdout", "stderr"):
            console.follow(rank=0, host="h", stream=stream, path=tmp_path / stream)
        terminal.record_to(tmp_path / "stdout", tmp_path / "stderr")
        os.write(out, b"line\n")
        os.write(err, b"\x1b[31mred\x1b[0m\n")
        terminal.drain()
        os.close(out)
        os.close(err)
        terminal.drain()
    finally:
        terminal.close()
    finish(console)
    assert (tmp_path / "stdout").read_bytes() == screen("stdout") == b"line\n"
    assert (tmp_path / "stderr").read_bytes() == screen("stderr") == b"\x1b[31mred\x1b[0m\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without room")
def test_what_a_full_disk_cannot_keep_is_shown_all_the_same(tmp_path, screen):
    console = screen.console()
    terminal = PseudoTerminal(console)
    try:
        console.follow(rank=0, host="h", stream="stdout", path=tmp_path / "none")
        terminal.record_to(Path("/dev/full"), tmp_path / "stderr")
        out = os.open(terminal.names[0], os.O_WRONLY | os.O_NOCTTY)
        os.write(out, b"line\n")
        os.close(out)
        terminal.drain()
    finally:
        terminal.close()
    assert screen() == b"line\n"
    assert terminal.trouble == "/dev/full is incomplete: No space left on device"


def read_up_to(fd, end):
    data = b""
    while not data.endswith(end):
        data += os.read(fd, 4096)
    return data


def test_a_slow_reader_holds_nobody_up_and_loses_nothing(tmp_path, screen, pipe):
    read_fd, write_fd = pipe
    stdout = Output(write_fd)
    console = Console(prefixed=True, stdout=stdout, stderr=stdout)
    wanted = [b"[h:%d] line %d" % (rank, n) for n in range(20_000) for rank in (0, 1)]
    for rank in (0, 1):
        (tmp_path / str(rank)).write_bytes(b"".join(b"line %d\n" % n for n in range(20_000)))
        console.follow(rank=rank, host="h", stream="stdout", path=tmp_path / str(rank))
    assert not console.show()
    assert console.awaited() == {write_fd}
    console.say("ours")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        reader = pool.submit(read_up_to, read_fd, b"end\n")
        console.finish(patience_s=10, is_urgent=lambda: False)
        stdout.write(b"end\n")
        stdout.drain(10, lambda: False)
        shown = reader.result(10)
    lines = shown.splitlines()
    assert sorted(lines) == sorted([*wanted, b"ours", b"end"])


def test_a_reader_that_takes_nothing_is_left_at_the_end(tmp_path, screen, pipe):
    console = Console(prefixed=False, stdout=Output(pipe[1]), stderr=Output(None))
    (tmp_path / "log").write_bytes(b"x" * 200_000)
    console.follow(rank=0, host="h", stream="stdout", path=tmp_path / "log")
    signals = iter([False, True])
    console.finish(patience_s=1e9, is_urgent=lambda: next(signals, False))
    assert console.trouble == "standard output was given up: nobody reads it; what the ranks print is in their logs"


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe):
    os.set_blocking(pipe[1], False)
    output = Output(pipe[1])
    output.write(b"x" * 200_000)
    nbytes = 0
    while output.is_behind:
        nbytes += len(os.read(pipe[0], 1 << 16))
        output.flush()
    assert nbytes + len(os.read(pipe[0], 1 << 17)) == 200_000


def test_a_stopped_terminal_holds_nobody_up():
    master, slave = pty.openpty()
    try:
        output = Output(slave)
        output.write(b"x" * 1_000_000)
        assert output.is_behind
        assert os.get_blocking(slave)
    finally:
        os.close(master)
        os.close(slave)
    output.flush()
    assert not output.is_open
    assert output.trouble == ""


def test_a_reader_that_went_away_is_not_written_to_again():
    read_fd, write_fd = os.pipe()
    output = Output(write_fd)
    os.close(read_fd)
    output.write(b"lost\n")
    assert not output.is_open
    assert output.trouble == ""
    output.write(b"lost too\n")
    os.close(write_fd)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without room")
def test_a_stream_without_room_is_given_up_and_the_reason_told(screen):
    with open("/dev/full", "wb") as full:
        console = Console(prefixed=False, stdout=Output(full.fileno()), stderr=Output(None))
        console.write("stdout", b"lost\n")
        console.say("lost too")
    assert console.trouble.startswith("standard output was given up: No space left on device; ")


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
def test_tail(tmp_path, content, expected):
    (tmp_path / "log").write_bytes(content)
    assert tail_lines(tmp_path / "log", 2) == expected


def test_the_tail_of_no_file_is_empty(tmp_path):
    assert tail_lines(tmp_path / "none", 2) == []


def test_the_tail_of_a_huge_file_reads_its_end_only(tmp_path):
    (tmp_path / "log").write_text("x" * 100_000 + "\nlast\n")
    assert tail_lines(tmp_path / "log", 1, nbytes=64) == ["last"]
