import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.launching import launch, launching
from tests.support.processes import REPOSITORY, wait_until
from tests.support.ranks import run_alone, run_ranks

SCRIPT = REPOSITORY / "launch" / "scripts" / "train-digits.py"
END = re.compile(r"test accuracy ([\d.]+)% after (\d+) epochs, run directory (\S+)\n")

pytestmark = pytest.mark.slow


def end_of(text):
    (found,) = END.findall(text)
    return float(found[0]), int(found[1]), found[2]


def test_two_ranks_learn_the_digits(tmp_path):
    done = run_ranks(tmp_path, SCRIPT, args=["--epochs", "8"]).check()
    accuracy, epochs, run_dir = end_of(done.stdout)
    assert accuracy >= 97
    assert epochs == 8
    assert os.path.dirname(run_dir) == str(tmp_path / "runs")
    found = [name for name in os.listdir(os.path.join(run_dir, "checkpoints")) if name.startswith("step-")]
    assert sorted(found) == ["step-00000161", "step-00000184"]


@pytest.mark.deep
def test_killed_under_distrain_launch_it_goes_on_to_the_very_same_end(tmp_path):
    ends = []
    for interrupted in (True, False):
        run_dir = tmp_path / f"run-{interrupted}"
        args = ["--nproc", "2", "--device", "cpu", "--run-dir", run_dir, SCRIPT, "--epochs", "8"]
        if interrupted:
            with launching(*args, cwd=tmp_path) as live:
                live.wait_for_checkpoint(run_dir)
                live.process.kill()
        done = launch(*args, cwd=tmp_path).check()
        assert ("going on from" in done.stdout) == interrupted
        assert f"run directory {run_dir}" in done.stdout
        assert f"run directory {os.path.relpath(run_dir, tmp_path)}" in done.stderr.splitlines()[-1]
        ends.append(end_of(done.stdout)[:2])
    assert ends[0] == ends[1]
    assert ends[0][0] >= 97


@pytest.mark.deep
@pytest.mark.timeout(400)
def test_interrupted_it_goes_on_also_alone_and_in_mixed_precision(tmp_path):
    run_dir = tmp_path / "run"
    env = {"DISTRAIN_RUN_DIR": str(run_dir)}
    whole = {**os.environ, **env, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, str(SCRIPT), "--epochs", "1000"], env=whole, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (run_dir / "checkpoints").is_dir() and any(run_dir.glob("checkpoints/step-*")), 90)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    steps = sorted(path.name for path in run_dir.glob("checkpoints/step-*"))
    goal = int(steps[-1].removeprefix("step-")) // 45 + 3
    # bfloat16 is slow on a CPU without instructions for it, hence three epochs only.
    done = run_alone(tmp_path, SCRIPT, ["--epochs", str(goal), "--amp"], env=env, deadline_s=220).check()
    assert f"going on from {run_dir}/checkpoints/{steps[-1]}" in done.stdout
    accuracy, epochs, where = end_of(done.stdout)
    assert (epochs, where) == (goal, str(run_dir))
    assert accuracy >= 90
