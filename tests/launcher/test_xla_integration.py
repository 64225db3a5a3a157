"""`distrain launch --device xla` with the real torch_xla, on one device: the CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal

import pytest
import torch

from tests.launcher import programs
from tests.support.launching import launch, launching
from tests.support.processes import REPOSITORY, descendants, is_alive, wait_until

pytestmark = [pytest.mark.xla, pytest.mark.usefixtures("xla_device")]

CPU = {"PJRT_DEVICE": "CPU"}

DIGITS = REPOSITORY / "launch" / "scripts" / "train-digits.py"

SPEAK = """
import json, os, sys
import torch_xla
import distrain

def rank_main(index):
    with distrain.init() as world:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "DISTRAIN_DEVICE")
        print(json.dumps({"device": str(world.device), "args": sys.argv[1:], "name": __name__, "index": index,
                          **{name: os.environ[name] for name in names}}), flush=True)

torch_xla.launch(rank_main)
"""

FAIL_ONCE = """
import os, sys
import torch_xla
print("attempt", os.environ["TORCHELASTIC_RESTART_COUNT"], torch_xla.device(), flush=True)
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    {how}
"""

WAIT = """
import os, pathlib, signal, subprocess, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("told").touch(), exit(0)))
child = subprocess.Popen(["sleep", "600"])
print("waiting", flush=True)
time.sleep(600)
"""


def run(folder, text, *options):
    (folder / "train.py").write_text(text)
    return launch("--device", "xla", "--run-dir", "run", *options, cwd=folder, env=CPU, deadline_s=110)


def test_torch_xla_starts_the_rank_and_the_script_may_call_its_launch_too(tmp_path):
    done = run(tmp_path, SPEAK, "train.py", "--x", "1")
    assert done.returncode == 0, done.stderr
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert said == {
        "device": "xla:0",
        "args": ["--x", "1"],
        "name": "__main__",
        "index": 0,
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "DISTRAIN_DEVICE": "xla",
    }
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "succeeded"


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("sys.exit(3)", 3, "root cause: rank 0 on"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("os.kill(os.getpid(), 9)", 137, "SIGKILL"),
    ],
)
def test_its_end_is_the_runs(tmp_path, how, code, said):
    done = run(tmp_path, FAIL_ONCE.format(how=how), "train.py")
    assert done.returncode == code
    assert said in done.stderr
    assert "torch_xla/" not in done.stderr
    assert "xla_runner" not in done.stderr


def test_a_failed_rank_is_started_again(tmp_path):
    done = run(tmp_path, FAIL_ONCE.format(how="sys.exit(3)"), "--max-restarts", "1", "--retry", "always", "train.py")
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / f"run/attempt-{n}/rank-0/stdout.log").read_text() for n in (0, 1)]
    assert [text.strip() for text in logs] == ["attempt 0 xla:0", "attempt 1 xla:0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_supervisor_that_is_ended(tmp_path, number):
    (tmp_path / "train.py").write_text(WAIT)
    with launching("--device", "xla", "train.py", cwd=tmp_path, env=CPU) as live:
        live.wait_for_output("waiting", deadline_s=60)
        tree = descendants(live.process.pid)
        assert len(tree) >= 3  # the host, the rank, and what the rank has started
        os.kill(live.process.pid, number)
        live.process.wait(30)
        wait_until(lambda: not any(is_alive(each.pid) for each in tree), 30, what="the end of all")
    assert (tmp_path / "told").exists() is (number == signal.SIGTERM)


@pytest.mark.timeout(300)  # XLA compiles for most of it, and on a busy machine that takes its time
def test_the_digits_go_on_from_a_checkpoint_to_the_very_same_end(tmp_path):
    ends = []
    for name in ("whole", "cut"):
        done = launch(
            *("--device", "xla", "--run-dir", name, DIGITS, "--epochs", "2"), cwd=tmp_path, env=CPU, deadline_s=110
        ).check()
        assert ("going on from" in done.stdout) == (name == "cut")
        accuracy = re.search(r"test accuracy ([\d.]+)% after 2 epochs", done.stdout)
        first, last = sorted((tmp_path / name / "checkpoints").glob("step-*"))
        state = torch.load(last / "state.pt", map_location="cpu", weights_only=True)
        ends.append((accuracy[1], last.name, state["objects"]["model"]))
        if name == "whole":  # the other run finds what this one had saved after its first epoch
            shutil.copytree(first, tmp_path / "cut" / "checkpoints" / first.name)
    (accuracy, newest, weights), (*same, others) = ends
    assert [accuracy, newest] == same
    assert float(accuracy) > 90
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_trainer_that_is_asked_to_end_saves_and_ends_with_75(tmp_path):
    (tmp_path / "train.py").write_text(programs.ENDLESS)
    with launching("--device", "xla", "train.py", cwd=tmp_path, env=CPU) as live:
        live.wait_for_output("iteration 2", deadline_s=60)
        live.process.send_signal(signal.SIGTERM)
        code, _, said = live.end(60)
    assert code == 75, said
    assert "preempted after" in said
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


def test_other_numbers_of_processes_are_refused(tmp_path):
    done = run(tmp_path, SPEAK, "--nproc", "2", "train.py")
    assert done.returncode == 2
    assert "--nproc: got '2' for device xla" in done.stderr
