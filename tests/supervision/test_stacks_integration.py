"""Stacks of real processes that hang in every way, asked for as the supervisor asks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distrain.supervision.capture import Captured, capture
from distrain.supervision.dumps import STACKS_SIGNAL, last_dump
from distrain.supervision.process_state import catches, native_stack, process_state
from distrain.supervision.stacks import group, odd_ones_out, render
from tests.support.processes import REPOSITORY, children, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process states are read from /proc")

REGISTER = """
import faulthandler, itertools, multiprocessing, os, re, signal, sys, threading
from distrain.supervision.dumps import STACKS_SIGNAL
log = open(sys.argv[1], "a")
faulthandler.register(STACKS_SIGNAL, file=log, all_threads=True)
faulthandler.enable(file=log, all_threads=True)
def ready():
    print("ready", flush=True)
"""
DEADLOCK = """
lock = threading.Lock()
def load():
    with lock:
        ready()
        lock.acquire()
load()
"""
BACKTRACKING = """
def match():
    ready()
    re.match("(a+)+b", "a" * 64)
match()
"""
ENDLESS_SUM = """
def count():
    ready()
    sum(itertools.repeat(0))
count()
"""
WAITING = """
def wait():
    ready()
    signal.sigwait({signal.SIGUSR1})
wait()
"""
STOPPING = """
for _ in range(8):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
def stop():
    ready()
    os.kill(os.getpid(), signal.SIGSTOP)
def go_on():
    signal.pause()
while True:
    stop()
    go_on()
"""
FORKED_CHILD = """
def fetch():
    ready()
    threading.Event().wait()
def work(queue):
    fetch()
def epoch():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    context.Process(target=work, args=(queue,), daemon=True).start()
    queue.get()
epoch()
"""


@contextlib.contextmanager
def rank(tmp_path: Path, body: str, number: int = 0) -> Iterator[tuple[int, Path]]:
    """Yield the pid and the stacks.log of a process that runs `body` and got to where it hangs."""
    script, log = tmp_path / f"train{number}.py", tmp_path / f"stacks{number}.log"
    script.write_text(REGISTER + body)
    command = [sys.executable, str(script), str(log)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid, log
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def until_inside(pid: int, log: Path, function: str) -> Captured:
    """Capture until the innermost frame is in `function`: a process that said `ready` is not there at once."""

    def inside() -> Captured | None:
        captured = capture({0: (pid, log)})[0]
        frames = captured.dump.frames if captured.dump else ()
        return captured if frames and frames[-1].function == function else None

    return wait_until(inside, 20, what=f"the process gets into {function}")


@pytest.mark.parametrize(
    ("body", "innermost", "code"),
    [
        (DEADLOCK, "load", "lock.acquire()"),
        (BACKTRACKING, "match", 're.match("(a+)+b", "a" * 64)'),
        (ENDLESS_SUM, "count", "sum(itertools.repeat(0))"),
    ],
    ids=["deadlock", "regular expression", "endless sum"],
)
def test_a_process_that_hangs_in_c_tells_the_users_line(tmp_path, body, innermost, code):
    with rank(tmp_path, body) as (pid, log):
        shown = lambda: render(group({0: until_inside(pid, log, innermost).dump}), {})
        wait_until(lambda: code in shown(), 20, what="the line is shown")
        captured = until_inside(pid, log, innermost)
        assert [frame.function for frame in captured.dump.frames][:2] == ["<module>", innermost]
        assert captured.dump.main.is_current


def test_a_busy_process_is_told_from_a_waiting_one(tmp_path):
    with rank(tmp_path, ENDLESS_SUM) as (busy, _), rank(tmp_path, DEADLOCK, 1) as (waiting, _):
        wait_until(lambda: process_state(busy).state == "R", 10)
        wait_until(lambda: process_state(waiting).state == "S", 10)


def test_a_stopped_process_is_said_to_be_stopped_and_gives_its_stack_only_when_woken_for_a_moment(tmp_path):
    with contextlib.ExitStack() as stack:
        logs = {number: stack.enter_context(rank(tmp_path, WAITING, number)) for number in range(3)}
        for pid, log in logs.values():
            until_inside(pid, log, "sigwait")
        nbytes = log.stat().st_size
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: process_state(pid).is_stopped, 10)
        captured = capture(logs, timeout_s=20)
        assert captured[2].dump is None
        assert captured[2].state.is_stopped
        assert all(captured[number].dump for number in (0, 1))
        groups = group({number: each.dump for number, each in captured.items()})
        assert odd_ones_out(groups) == (2,)
        text = render(groups, {number: each.state for number, each in captured.items()})
        assert "rank 2, the odd one out (process stopped by a signal, S" in text
        assert log.stat().st_size == nbytes

        woken = capture(logs, timeout_s=20, wake_stopped=True)
        assert woken[2].state.is_stopped
        assert woken[2].dump.frames[-1].function == "sigwait"
        assert not any(process_state(logs[number][0]).is_stopped for number in (0, 1))
        wait_until(lambda: process_state(pid).is_stopped, 10)


def test_a_woken_process_tells_where_it_was_stopped_and_not_where_it_went_on_to(tmp_path):
    for number in range(5):
        with rank(tmp_path, STOPPING, number) as (pid, log):
            wait_until(lambda pid=pid: process_state(pid).is_stopped, 10)
            frames = capture({0: (pid, log)}, timeout_s=20, wake_stopped=True)[0].dump.frames
            assert frames[-1].function == "stop"


def test_a_forked_child_answers_into_the_file_it_inherited(tmp_path):
    with rank(tmp_path, FORKED_CHILD) as (pid, log):
        parent = until_inside(pid, log, "_recv").dump
        assert [frame.function for frame in parent.frames][:2] == ["<module>", "epoch"]
        (child,) = children(pid)
        asked = lambda: capture({0: (child.pid, log)})[0].dump
        wait_until(lambda: (dump := asked()) and "fetch" in [frame.function for frame in dump.frames], 20)
        text = render(group({0: until_inside(pid, log, "_recv").dump}), {})
        assert text.startswith("rank 0, in _recv (multiprocessing/connection.py):\n")
        assert "queue.get()" in text


def test_a_process_without_a_handler_is_left_in_peace(tmp_path):
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", 10)
            assert not catches(process.pid, STACKS_SIGNAL)
            captured = capture({0: (process.pid, tmp_path / "stacks.log")})
            assert captured[0].dump is None
            assert captured[0].state is not None
            assert process.poll() is None
        finally:
            process.kill()


def test_a_process_that_is_gone(tmp_path):
    assert capture({0: (1 << 22, tmp_path / "stacks.log")}) == {0: Captured(state=None, dump=None)}
    assert process_state(1 << 22) is None
    assert not catches(1 << 22, STACKS_SIGNAL)


def test_a_crash_leaves_its_stack(tmp_path):
    with rank(tmp_path, "def crash():\n    ready()\n    os.kill(os.getpid(), signal.SIGSEGV)\ncrash()") as (pid, log):
        wait_until(lambda: process_state(pid).state == "Z", 20)
        dump = last_dump(log)
        assert dump.fatal == "Fatal Python error: Segmentation fault"
        assert dump.frames[-1].function == "crash"


def test_native_frames_where_py_spy_is_installed_and_none_elsewhere(tmp_path, monkeypatch):
    with rank(tmp_path, BACKTRACKING) as (pid, log):
        until_inside(pid, log, "match")
        stack = native_stack(pid)
        beside = Path(sys.executable).with_name("py-spy")
        assert (stack is None) or "match" in stack
        assert stack is None or shutil.which("py-spy") or beside.exists()
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        assert native_stack(pid) is None


@pytest.mark.parametrize(("script", "expected"), [("exit 1", None), ("exec sleep 1000", None), ("echo $*", "dump --")])
def test_a_py_spy_that_fails_or_hangs_is_tolerated(tmp_path, monkeypatch, script, expected):
    fake = tmp_path / "py-spy"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    told = native_stack(os.getpid(), timeout_s=0.2 if expected is None else 10)
    assert told is expected if expected is None else told == f"dump --native --pid {os.getpid()}\n"
