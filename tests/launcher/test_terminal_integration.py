"""`distrain launch` on a terminal: one rank shown sees a terminal too, can ask, and can be interrupted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from tests.support.launching import command, environment
from tests.support.processes import descendants, kill_all

ASK = """\
import shutil, sys
print(sys.stdin.isatty(), sys.stdout.isatty(), sys.stderr.isatty(), shutil.get_terminal_size().columns)
name = input("name? ")
print("hello", name)
for percent in (10, 100):
    print(f"\\r{percent}%", end="", file=sys.stderr)
"""

COUNT = """\
import time
print("counting", end="", flush=True)
while True:
    time.sleep(1)
"""


class Screen:
    """A terminal with somebody in front of it."""

    def __init__(self, master: int, process: subprocess.Popen):
        self.master = master
        self.process = process
        self.text = ""

    def wait_for(self, text: str, deadline_s: float = 30) -> None:
        end = time.monotonic() + deadline_s
        while text not in self.text:
            assert time.monotonic() < end, f"{text!r} did not appear:\n{self.text}"
            self._read(0.1)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self.master], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.text += data.decode()
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self, deadline_s: float = 30) -> int:
        end = time.monotonic() + deadline_s
        while self.process.poll() is None:
            assert time.monotonic() < end, self.text
            self._read(0.1)
        while select.select([self.master], [], [], 0)[0] and self._read(0):
            pass
        return self.process.returncode


@contextlib.contextmanager
def terminal(*args, cwd) -> Iterator[Screen]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 132, 0, 0))
    whole = {key: value for key, value in {**os.environ, **environment()}.items() if value is not None}
    for name in ("COLUMNS", "LINES"):
        whole.pop(name, None)
    process = subprocess.Popen(
        command(*args),
        cwd=cwd,
        env=whole,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one system call, no threads here
    )
    os.close(slave)
    try:
        yield Screen(master, process)
    finally:
        tree = descendants(process.pid)
        if process.poll() is None:
            process.kill()
            process.wait()
        kill_all(tree)
        os.close(master)


@pytest.fixture
def script(tmp_path):
    def write(text):
        (tmp_path / "train.py").write_text(text)
        return "train.py"

    return write


def test_the_shown_rank_has_a_terminal_can_ask_and_leaves_its_output_on_disk(tmp_path, script):
    with terminal("--run-dir", "run", script(ASK), cwd=tmp_path) as screen:
        screen.wait_for("name? ")
        screen.type("ada\n")
        assert screen.end() == 0
    assert "True True True 132" in screen.text
    assert "hello ada" in screen.text
    assert "\r10%\r100%\r\ndistrain: finished" in screen.text
    folder = tmp_path / "run" / "attempt-0" / "rank-0"
    assert (folder / "stdout.log").read_bytes() == b"True True True 132\nhello ada\n"
    assert (folder / "stderr.log").read_bytes() == b"name? \r10%\r100%"


def test_ctrl_c_ends_the_run_with_130_and_no_traceback_of_ours(tmp_path, script):
    with terminal("--nproc", "2", script(COUNT), cwd=tmp_path) as screen:
        screen.wait_for("counting")
        screen.type("\x03")
        assert screen.end() == 130
    assert "SIGINT: passed on to the ranks" in screen.text
    assert "distrain/launcher" not in screen.text
    assert screen.text.count("KeyboardInterrupt") == 1


def test_two_shown_ranks_share_the_screen_in_prefixed_lines(tmp_path, script):
    program = script("import os, sys; print('tty', sys.stdout.isatty())")
    with terminal("--nproc", "2", "--log-ranks", "all", program, cwd=tmp_path) as screen:
        assert screen.end() == 0
    host = socket.gethostname()
    assert {f"[{host}:0] tty False", f"[{host}:1] tty False"} <= set(screen.text.split("\r\n"))
