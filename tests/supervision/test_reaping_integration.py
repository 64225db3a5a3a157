"""Parent-death signals and the end of a whole tree, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.support.processes import REPOSITORY, descendants, is_alive, run, wait_until


def python(text: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", text], cwd=REPOSITORY, **options)


CHILD_DIES_WITH_PARENT = """
import os, signal, sys
from distrain.supervision.reaping import die_with_parent
parent = os.getpid()
read, write = os.pipe()
if os.fork() == 0:
    die_with_parent(parent)
    os.write(write, b"x")
    while True: signal.pause()
os.read(read, 1)
print("ready", flush=True)
while True: signal.pause()
"""


def test_a_child_ends_with_its_parent_however_that_ends():
    with python(CHILD_DIES_WITH_PARENT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        (child,) = descendants(parent.pid)
        os.kill(parent.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(child.pid), 20, what="the child ends")


def test_a_child_whose_parent_is_gone_already_ends_at_once():
    text = "from distrain.supervision.reaping import die_with_parent; die_with_parent(1 << 22); print('never')"
    done = run([sys.executable, "-c", text], cwd=REPOSITORY).check(128 + signal.SIGKILL)
    assert done.stdout == ""


KILL_THE_TREE = """
import os, subprocess, sys
from distrain.supervision.reaping import adopt_orphans, descendants, kill_descendants
spared = subprocess.Popen(["sleep", "1000"])
spare = frozenset(descendants(os.getpid()))
adopt_orphans()
shell = subprocess.Popen(["sh", "-c", "setsid sh -c 'sleep 1000 & echo $!; sleep 1000' & wait"], stdout=subprocess.PIPE)
orphan = int(shell.stdout.readline())
shell.kill()
told = {}
print("left", kill_descendants(spare=spare, tell=told.__setitem__))
print("told", told.keys() >= {shell.pid, orphan}, set(told.values()))
print("gone", not os.path.exists(f"/proc/{orphan}"), "spared", spared.poll() is None)
spared.kill()
"""


def test_the_whole_tree_ends_orphans_and_other_sessions_included():
    done = run([sys.executable, "-c", KILL_THE_TREE], cwd=REPOSITORY).check()
    assert done.stdout.splitlines() == ["left []", "told True {-9}", "gone True spared True"]
