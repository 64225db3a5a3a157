"""The other example scripts do what they say, and the profiles without hardware start a real run."""

import re

import pytest

from tests.support.launching import launch
from tests.support.processes import REPOSITORY
from tests.support.ranks import run_ranks

SCRIPTS = REPOSITORY / "launch" / "scripts"
CPU = ("--nproc", "2", "--device", "cpu")

pytestmark = pytest.mark.deep


def test_characters_beats_counting_pairs_on_unseen_text(tmp_path):
    done = launch(*CPU, SCRIPTS / "train-characters.py", "--epochs", "1", cwd=tmp_path).check()
    ((alone, after),) = re.findall(r"counting characters ([\d.]+), pairs of them ([\d.]+),", done.stdout)
    (trained,) = re.findall(r"epoch 1: ([\d.]+)", done.stdout)
    assert float(trained) < float(after) - 0.5 < float(alone) - 0.5
    sample = done.stdout.partition("It writes:\n\n")[2]
    assert len(sample) >= 300


def check_steps(stdout, nan_at):
    """Two ranks, 1,797 digits: 29 micro-batches an epoch, in three windows of 8 and a tail of 5."""
    assert "1797 digits, 32 × 2 at a time: 29 micro-batches an epoch" in stdout
    assert "windows of 8: 3 whole ones and a tail of 5, 4 steps an epoch" in stdout
    ends = [end for end in (8, 16, 24, 29, 37, 45, 53, 58) if not end - 8 < nan_at <= end]
    steps = re.findall(r"iteration +(\d+): (\d) × 2 micro-batches, gradient norm [\d.]+", stdout)
    assert [(int(end), int(held)) for end, held in steps] == [(end, 5 if end in (29, 58) else 8) for end in ends]
    assert f"{len(ends)} of 2 × 4 steps in 58 iterations" in stdout


def test_accumulation_steps_at_each_windows_end_and_leaves_the_nan_out(tmp_path):
    args = ("--epochs", "2", "--nan-at", "11")
    done = launch(*CPU, SCRIPTS / "train-amp-accumulation.py", *args, cwd=tmp_path).check()
    check_steps(done.stdout, nan_at=11)
    assert "not finite on rank 1 (iteration 11)" in done.stderr
    first, second = re.findall(r"epoch \d: loss (\S+)", done.stdout)
    assert first == "nan"
    assert float(second) < 2  # it was 2.3 at the start: the weights are whole


def test_accumulation_under_torchrun(tmp_path):
    done = run_ranks(tmp_path, SCRIPTS / "train-amp-accumulation.py", args=["--epochs", "2"]).check()
    check_steps(done.stdout, nan_at=0)
    first, second = re.findall(r"epoch \d: loss ([\d.]+)", done.stdout)
    assert float(second) < float(first) < 2.4


def test_after_the_loss_of_a_rank_losses_and_weights_are_those_of_a_run_without(tmp_path):
    few = ("--epochs", "1", "--every", "5", "--fail-at", "13")
    script = SCRIPTS / "resume-after-failure.py"
    lost = launch(*CPU, "--max-restarts", "1", script, *few, cwd=tmp_path).check()
    whole = launch(*CPU, script, *few, "--without-failure", cwd=tmp_path).check()
    assert "attempt 0 failed, starting the next · root cause: rank 1" in lost.stderr
    assert "SIGKILL" in lost.stderr
    assert lost.stdout.splitlines()[0] == "going on from step-00000010"
    assert "29 steps" in whole.stdout
    assert lost.stdout.splitlines()[1:] == whole.stdout.splitlines()
    assert len(set(re.findall(r"\b[0-9a-f]{16}\b", whole.stdout))) == 2


@pytest.mark.parametrize("profile", ["cpu-2", "ci"])
def test_a_profile_without_hardware_starts_a_real_run(tmp_path, profile):
    done = launch("--profile", profile, SCRIPTS / "train-digits.py", "--epochs", "1", cwd=tmp_path).check()
    assert "2 ranks on cpu" in done.stderr
    assert re.search(r"test accuracy [\d.]+% after 1 epochs", done.stdout)
