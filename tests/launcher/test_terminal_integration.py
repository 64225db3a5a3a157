"""`distrain launch` on a terminal: one rank shown sees a terminal too, can ask, and can be interrupted."""

from __future__ import annotations

import contextlib
import fcntl
import json
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
from tests.support.processes import descendants, kill_all, wait_until

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

SAVE = """\
import os, signal, sys
def save(*_):
    open(f"saved-{os.environ['RANK']}", "w").close()
    sys.exit()
signal.signal(signal.SIGHUP, save)
print("ready", flush=True)
while True:
    signal.pause()
"""

GO_ON = """\
import os, sys, time
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
print("still here", flush=True)
print("on both", file=sys.stderr)
"""

FLOOD = """\
import os, time
for n in range(100_000):
    print("line", n)
open("printed", "w").close()
while not os.path.exists("go"):
    time.sleep(0.05)
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

    def close(self) -> None:
        """Close the window."""
        os.close(self.master)
        self.master = -1

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
def terminal(*args, cwd, before=()) -> Iterator[Screen]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 132, 0, 0))
    whole = {key: value for key, value in {**os.environ, **environment()}.items() if value is not None}
    for name in ("COLUMNS", "LINES"):
        whole.pop(name, None)
    process = subprocess.Popen(
        [*before, *command(*args)],
        cwd=cwd,
        env=whole,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one system call, no threads here
    )
    os.close(slave)
    screen = Screen(master, process)
    try:
        yield screen
    finally:
        tree = descendants(process.pid)
        if process.poll() is None:
            process.kill()
            process.wait()
        kill_all(tree)
        if screen.master >= 0:
            screen.close()


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


def test_a_rank_killed_at_a_prompt_leaves_the_terminal_as_it_was(tmp_path, script):
    shell = ("sh", "-c", 'stty -a; "$@"; echo ended with $?; stty -a', "sh")
    program = "import os, signal, tty; tty.setcbreak(0); os.kill(os.getpid(), signal.SIGKILL)"
    with terminal("--nproc", "1", script(program), cwd=tmp_path, before=shell) as screen:
        assert screen.end() == 0
    before, _, after = screen.text.partition("ended with 137\r\n")
    assert "icanon" in after
    assert before.startswith(after)


def test_two_shown_ranks_share_the_screen_in_prefixed_lines(tmp_path, script):
    program = script("import os, sys; print('tty', sys.stdout.isatty())")
    with terminal("--nproc", "2", "--log-ranks", "all", program, cwd=tmp_path) as screen:
        assert screen.end() == 0
    host = socket.gethostname()
    assert {f"[{host}:0] tty False", f"[{host}:1] tty False"} <= set(screen.text.split("\r\n"))


def test_a_terminal_that_closes_has_the_ranks_save(tmp_path, script):
    with terminal("--nproc", "2", "--device", "cpu", "--run-dir", "run", script(SAVE), cwd=tmp_path) as screen:
        wait_for_both(tmp_path, "ready")
        screen.close()
        assert screen.process.wait(30) == 129
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("interrupted", 129)


@pytest.mark.deep
def test_a_run_that_hears_no_hangup_goes_on_without_its_terminal(tmp_path, script):
    ignoring = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh")
    args = ("--nproc", "2", "--device", "cpu", "--run-dir", "run", script(GO_ON))
    with terminal(*args, cwd=tmp_path, before=ignoring) as screen:
        wait_for_both(tmp_path, "ready")
        screen.close()
        (tmp_path / "go").touch()
        assert screen.process.wait(30) == 0
    wait_for_both(tmp_path, "still here")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "succeeded"


@pytest.mark.deep
def test_a_screen_that_stands_still_stops_no_rank_and_shows_all_later(tmp_path, script):
    with terminal("--device", "cpu", "--run-dir", "run", script(FLOOD), cwd=tmp_path) as screen:
        screen.wait_for("run directory run")
        screen.type("\x13")  # Ctrl-S
        wait_until((tmp_path / "printed").exists, 30, what="the rank has printed all")
        screen.type("\x11")
        screen.wait_for("line 99999")
        (tmp_path / "go").touch()
        assert screen.end() == 0
    lines = [line for line in screen.text.replace("\r", "").splitlines() if line.startswith("line ")]
    assert lines == [f"line {n}" for n in range(100_000)]


def wait_for_both(folder, text):
    """Return once two ranks have printed `text`."""
    for path in (folder / "run" / "attempt-0" / f"rank-{rank}" / "stdout.log" for rank in (0, 1)):
        wait_until(lambda path=path: path.exists() and text in path.read_text(), 60, what=f"{text!r} in {path}")
