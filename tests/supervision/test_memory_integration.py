"""A real kill for memory, in a control group made for it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distrain.supervision.memory import OomWatch
from tests.support.processes import wait_until

LIMIT = 96 << 20

EATER = """
import sys, time
sys.stdin.readline()
held = [bytearray(16 << 20) for _ in range(3)]
print("some", flush=True)
sys.stdin.readline()
while True:
    held.append(bytearray(b"x") * (8 << 20))
"""


def new_group() -> Path | None:
    for mount, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(mount, f"distrain-test-{secrets.token_hex(4)}")
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(LIMIT))
        except OSError:
            folder.rmdir()
            continue
        return folder
    return None


@pytest.fixture
def small_group():
    """A control group with little memory, which this process may put others into."""
    folder = new_group()
    if folder is None:
        pytest.skip("no control group for memory can be made here")
    yield folder
    wait_until(lambda: not (folder / "cgroup.procs").read_text(), 10, what="the control group to be empty")
    folder.rmdir()


def test_a_kill_by_the_kernel_and_one_from_outside(small_group):
    with subprocess.Popen(
        [sys.executable, "-c", EATER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as eater:
        (small_group / "cgroup.procs").write_text(str(eater.pid))
        watch = OomWatch(pid=eater.pid)
        eater.stdin.write("begin\n")
        eater.stdin.flush()
        assert eater.stdout.readline() == "some\n"
        watch.sample(time.monotonic_ns(), {5: eater.pid})
        eater.stdin.write("go on\n")
        eater.stdin.flush()
        assert eater.wait(60) == -signal.SIGKILL
    text = watch.verdict(5)
    assert text.startswith("killed by the kernel, out of memory: the control group's limit is 96 MiB and its oom_kill")
    assert "rank 5 had " in text

    watch.begin()
    with subprocess.Popen(
        [sys.executable, "-c", EATER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as eater:
        (small_group / "cgroup.procs").write_text(str(eater.pid))
        os.kill(eater.pid, signal.SIGKILL)
        assert eater.wait(60) == -signal.SIGKILL
    assert watch.verdict(5) is None
