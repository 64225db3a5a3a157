"""Whatever is killed with SIGKILL, at whatever moment: no process of the run survives it."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.support.launching import launching
from tests.support.processes import descendants, is_alive, wait_until

FAMILY = """\
import os, subprocess, sys, time
import torch
from torch.utils.data import DataLoader

class Endless:
    def __len__(self):
        return 1 << 30
    def __getitem__(self, index):
        time.sleep(0.01)
        return index

if __name__ == "__main__":
    subprocess.Popen([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '600'])"])
    torch.distributed.init_process_group("gloo")
    print("going", flush=True)
    for batch in DataLoader(Endless(), num_workers=2):
        torch.distributed.all_reduce(torch.ones(1))
"""

ENDS_S = 20

KILLS = int(os.environ.get("DISTRAIN_TEST_KILLS", "25"))
"""How often each kind is killed in the deep tests."""


def of_the_run(pid: int, known: set[int]) -> set[int]:
    """Return what lives of a run now; who has lost its parent is a child of this process, the reaper of orphans."""
    return {process.pid for process in descendants(os.getpid())} - known | ({pid} if is_alive(pid) else set())


@pytest.fixture
def family(tmp_path):
    (tmp_path / "train.py").write_text(FAMILY)
    return "train.py"


def kill_and_look(live, victim: int, known: set[int]) -> None:
    tree = {process.pid for process in descendants(live.process.pid)}
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: live.process.poll() is not None and not of_the_run(live.process.pid, known),
        ENDS_S,
        what=f"nothing is left after {victim} was killed",
    )
    assert not any(is_alive(pid) for pid in tree)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [2, pytest.param(KILLS, marks=pytest.mark.deep)])
def test_the_supervisor_is_killed_at_any_moment(tmp_path, family, count):
    """From its first breath to the middle of the training: 0 to 5 seconds."""
    draw = random.Random(count)
    for _ in range(count):
        known = {process.pid for process in descendants(os.getpid())}
        with launching("--nproc", "2", "--device", "cpu", family, cwd=tmp_path) as live:
            end = time.monotonic() + draw.uniform(0, 5)
            wait_until(lambda end=end: time.monotonic() > end, 10, what="the moment")
            kill_and_look(live, live.process.pid, known)


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [KILLS])
def test_any_member_of_the_run_is_killed_at_any_moment(tmp_path, family, count):
    """A grandchild alone may die without the run noticing; then the next one is drawn."""
    draw = random.Random(count)
    killed = 0
    while killed < count:
        known = {process.pid for process in descendants(os.getpid())}
        with launching("--nproc", "2", "--device", "cpu", "--grace", "2", family, cwd=tmp_path) as live:
            live.wait_for("worker_started", 2)
            if draw.random() < 0.8:
                live.wait_for_output("going")
            while killed < count and live.process.poll() is None:
                tree = descendants(live.process.pid)
                victim = draw.choice(tree).pid if tree else live.process.pid
                os.kill(victim, signal.SIGKILL)
                killed += 1
                end = time.monotonic() + 0.3
                wait_until(lambda end=end: time.monotonic() > end or live.process.poll() is not None, 5, what="a while")
            if live.process.poll() is None:
                kill_and_look(live, live.process.pid, known)
            wait_until(lambda known=known: not of_the_run(live.process.pid, known), ENDS_S, what="nothing is left")


@pytest.mark.deep
def test_the_terminal_is_closed(tmp_path, family):
    """The shell's SIGHUP: every process hears of it, and nothing stays."""
    known = {process.pid for process in descendants(os.getpid())}
    with launching("--nproc", "2", "--device", "cpu", "--grace", "2", family, cwd=tmp_path) as live:
        live.wait_for_output("going")
        live.process.send_signal(signal.SIGHUP)
        assert live.end()[0] == 128 + signal.SIGHUP
        assert not of_the_run(live.process.pid, known)
