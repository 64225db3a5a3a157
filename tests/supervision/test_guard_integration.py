"""The guard above a process, which ends what that leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distrain.supervision.guard import NAME
from tests.support.processes import REPOSITORY, descendants, is_alive, kill_all, run, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are handed on by Linux only")

GUARDED = """\
import os, subprocess, sys, threading
if "threads" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
from distrain.supervision.guard import guarded
guard = guarded(int(sys.argv[1]))
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(guard, os.getpid(), os.getppid(), child.pid, threading.active_count(), *os.environ.keys() & {"_DISTRAIN_GUARD"},
      flush=True)
if "end" in sys.argv:
    sys.exit(7)
threading.Event().wait()
"""
PARENT = """\
import os, subprocess, sys
sys.exit(subprocess.call([sys.executable, "-c", sys.argv[1], str(os.getpid()), *sys.argv[2:]]))
"""


@contextlib.contextmanager
def family(*args: str) -> Iterator[tuple[subprocess.Popen[bytes], int, int, int, int]]:
    """Start a parent and a guarded process; yield the parent, the pids of guard, process and child, and the threads."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, GUARDED, *args], cwd=REPOSITORY, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        guard, process, its_parent, child, num_threads = map(int, parent.stdout.readline().split())
        assert its_parent == guard
        yield parent, guard, process, child, num_threads
    finally:
        tree = descendants(parent.pid)
        parent.kill()
        parent.communicate()
        kill_all(tree)


@pytest.mark.parametrize("args", [(), ("threads",)], ids=str)
@pytest.mark.parametrize("victims", ["process", "parent", "both"])
def test_it_ends_what_is_left_when_others_are_killed(victims, args):
    """Also below an interpreter with threads, which no fork has; then the process is a fresh one."""
    with family(*args) as (parent, guard, process, child, num_threads):
        assert num_threads == 1 + len(args)
        struck = {"process": [process], "parent": [parent.pid], "both": [parent.pid, process]}[victims]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in struck:
                os.kill(pid, number)
        wait_until(lambda: not any(map(is_alive, (guard, process, child))), 30, what="nothing is left")
        assert parent.wait(30) == (128 + signal.SIGKILL if victims == "process" else -signal.SIGKILL)


def test_no_signal_reaches_it_and_none_of_its_names_is_another_ones():
    with family() as (_, guard, process, child, _):
        wait_until(lambda: Path(f"/proc/{guard}/comm").read_text().strip() == NAME, 30, what="its name")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            os.kill(guard, number)
        words = Path(f"/proc/{guard}/cmdline").read_bytes().decode()
        assert words.startswith(f"{NAME}: ")
        assert "python" not in words
        assert "distrain" not in words
        assert os.getsid(guard) != os.getsid(process)
        os.kill(process, signal.SIGKILL)  # without a guard the child would stay
        wait_until(lambda: not any(map(is_alive, (guard, process, child))), 30, what="nothing is left")


def test_it_ends_with_the_exit_code_of_the_process_and_what_that_has_started():
    done = run([sys.executable, "-c", PARENT, GUARDED, "end"], cwd=REPOSITORY).check(7)
    assert not is_alive(int(done.stdout.split()[3]))


def test_the_process_goes_on_without_it_only_once_it_has_asked_to():
    with family() as (_, guard, process, child, _):
        os.kill(guard, signal.SIGKILL)
        wait_until(lambda: not is_alive(process), 30, what="the process ends with its guard")
        os.kill(child, signal.SIGKILL)
