"""What a launch leaves in the temporary directory: no more than `python train.py` would."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from pathlib import Path

import pytest

from tests.support.launching import launch, launching
from tests.support.processes import descendants, is_alive, wait_until

PROGRAM = """\
import multiprocessing, os, signal, sys, time
from multiprocessing import util
import torch.multiprocessing

torch.multiprocessing.set_sharing_strategy("file_system")
shared = torch.ones(1000).share_memory_()  # starts a manager, which has a folder for its socket
lock = multiprocessing.get_context("spawn").Lock()  # which the resource tracker unlinks
print("semaphore", lock._semlock.name, flush=True)

def listen():
    import multiprocessing.connection
    with multiprocessing.connection.Listener(family="AF_UNIX"):
        print("listens", flush=True)
        time.sleep(1000)

child = multiprocessing.get_context("fork").Process(target=listen)  # as a DataLoader's
child.start()
if sys.argv[1] == "wait":
    child.join()
while not util.get_temp_dir() or not os.listdir(util.get_temp_dir()):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary():
    with tempfile.TemporaryDirectory() as name:  # pytest's own are too long for sockets below
        yield Path(name)


def test_nothing_is_left_behind_ranks_that_are_killed_and_little_behind_a_killed_launch(tmp_path, temporary):
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    env = {"TMPDIR": str(temporary)}
    with launching("--nproc", "2", "--device", "cpu", script, "wait", cwd=tmp_path, env=env) as live:
        for rank in (0, 1):
            live.wait_for_output("listens", rank=rank)
        tree = descendants(live.process.pid)
        (mine,) = temporary.glob("distrain-*")
        assert len(list(mine.rglob("listener-*"))) == len(list(temporary.glob("torch-shm-dir-*"))) == 2
        live.process.kill()
        live.process.wait()
        wait_until(lambda: not any(is_alive(each.pid) for each in tree), 20, what="the launch's processes end")
    wait_until(lambda: left(temporary) == [mine.name], 20, what="only the launch's own folder is left")
    assert not semaphores(live.run_dir, 2)
    options = ("--nproc", "2", "--device", "cpu", "--run-dir", tmp_path / "again")
    launch(*options, script, "die", cwd=tmp_path, env=env).check(128 + signal.SIGKILL)
    assert left(temporary) == []
    assert not semaphores(tmp_path / "again", 1)


def left(temporary: Path) -> list[str]:
    """Return what is in the temporary directory, but for the one folder that every import of torch's compiler makes."""
    return [name for name in os.listdir(temporary) if not name.startswith("torchinductor_")]


def semaphores(run_dir: Path, at_least: int) -> list[str]:
    """Return those of the semaphores that the ranks made that are still there."""
    logs = [path.read_text() for path in run_dir.rglob("stdout.log")]
    names = [name for text in logs for name in re.findall(r"semaphore /(\S+)", text)]
    assert len(names) >= at_least
    return [name for name in names if os.path.exists(f"/dev/shm/sem.{name}")]
