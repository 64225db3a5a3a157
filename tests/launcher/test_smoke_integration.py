"""`distrain launch --smoke`, whole: the table, the exit code, the second start, and that nothing is left behind."""

from __future__ import annotations

import signal

import pytest

from tests.support.launching import launch, launching
from tests.support.processes import REPOSITORY, wait_until

DIGITS = REPOSITORY / "launch" / "scripts" / "train-digits.py"

TRAINER = """
import subprocess, sys
import torch
from torch import nn
import distrain

class Drifts(nn.Module):
    "Its output depends on how often it was called, which no state dict holds."

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1 + 0.1 * self.calls)

with distrain.init(seed=0) as world:
    data = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.randn(40, 1))
    loader = distrain.dataloader(data, 4, shuffle=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    left_out = None
    BROKEN
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model, optimizer = distrain.prepare(model, optimizer)
    trainer = distrain.create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
    objects = {"model": model, "optimizer": optimizer, "loader": loader}
    objects.pop(left_out, None)
    distrain.Checkpointer(every=100, directory="checkpoints").attach(trainer, **objects)
    trainer.run(loader, max_epochs=50)
    if world.is_main:
        print("ended in iteration", trainer.state.iteration, sys.argv[1:])
"""


def smoke(folder, broken="pass", *args, text=TRAINER, options=(), env=None):
    """Run a smoke test of a script; return its exit code, what it printed, and the verdicts by name."""
    (folder / "train.py").write_text(text.replace("BROKEN", broken))
    (folder / "tmp").mkdir(exist_ok=True)
    env = {"TMPDIR": str(folder / "tmp"), **(env or {})}
    done = launch("--smoke", *options, folder / "train.py", *args, cwd=folder, env=env)
    words = {"passed", "FAILED", "could"}
    rows = [line.split() for line in done.stderr.splitlines() if line.startswith("  ")]
    return done, {row[0]: row[1] for row in rows if len(row) > 1 and row[1] in words}


def table_of(text):
    """Return the rows of the table, without the losses, whose last digits are the machine's."""
    return [line for line in text.splitlines() if " passed " in line and " losses " not in line]


def kept(folder):
    """Return the run directories that are still there; torch has temporary files of its own."""
    return list((folder / "tmp").glob("distrain-*"))


def test_a_script_that_is_right_passes_and_nothing_of_it_is_kept(tmp_path):
    mine = tmp_path / "checkpoints" / "step-00000100"
    mine.mkdir(parents=True)
    (mine / "state.pt").write_text("not to be read")
    done, verdicts = smoke(tmp_path, "pass", "--lr", "3")
    assert done.returncode == 0, done.stderr
    names = ("script", "losses", "gradients", "weights", "data", "checkpoint", "processes")
    assert verdicts == dict.fromkeys(names, "passed")
    assert "starting all ranks again from the checkpoint after iteration 3" in done.stderr
    assert "resumed after iteration 3 of 4: data, losses and weights as without the stop" in done.stderr
    assert done.stderr.splitlines()[-1] == "all passed"
    assert done.stdout == "ended in iteration 4 ['--lr', '3']\n"  # the first start ends with its trainer's run
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "tmp", "train.py"]
    assert [path.name for path in mine.parent.iterdir()] == ["step-00000100"]
    assert (mine / "state.pt").read_text() == "not to be read"
    assert not kept(tmp_path)


@pytest.mark.deep
def test_among_three_ranks_the_second_start_is_exact_too(tmp_path):
    done, verdicts = smoke(tmp_path, options=("--nproc", "3"))
    assert done.returncode == 0, done.stderr
    assert verdicts["checkpoint"] == "passed"


@pytest.mark.deep
def test_the_digits_pass(tmp_path):
    (tmp_path / "tmp").mkdir()
    done = launch("--smoke", DIGITS, cwd=tmp_path, env={"TMPDIR": str(tmp_path / "tmp")})
    assert done.returncode == 0, done.stderr
    assert "1,438 samples, each on one rank" in done.stderr
    assert done.stderr.splitlines()[-1] == "all passed"
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    shown = (REPOSITORY / "README.md").read_text().split("## A smoke test")[1].split("It ends with 0")[0]
    assert [row.split() for row in table_of(shown)] == [row.split() for row in table_of(done.stderr)]


@pytest.mark.deep
@pytest.mark.parametrize(
    ("broken", "why", "todo"),
    [
        (
            "model.append(Drifts())",
            "rank 0: the loss of iteration 4 is",
            "something the training depends on is in no state_dict",
        ),
        (
            "left_out = 'optimizer'",
            "rank 0: other weights at the end than without the stop",
            "attach what is missing: AdamW",
        ),
        ("left_out = 'loader'", "iteration 4 got other data", "the loader of distrain.dataloader. Attached are model"),
        ("left_out = 'model'", "rank 0: the loss of iteration 4 is", "Attached are optimizer, loader"),
    ],
    ids=["a counter", "optimizer", "loader", "model"],
)
def test_a_checkpoint_that_forgets_something(tmp_path, broken, why, todo):
    done, verdicts = smoke(tmp_path, broken)
    assert done.returncode == 1
    assert [name for name, verdict in verdicts.items() if verdict != "passed"] == ["checkpoint"]
    assert why in done.stderr
    assert todo in done.stderr


@pytest.mark.deep
def test_a_checkpoint_that_forgets_what_the_weights_do_not_show(tmp_path):
    text = TRAINER.replace(
        "    objects = ",
        """    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    trainer.on(distrain.Events.EPOCH_COMPLETED)(lambda _: scheduler.step())
    average = torch.optim.swa_utils.AveragedModel(model)
    trainer.on(distrain.Events.ITERATION_COMPLETED)(lambda _: average.update_parameters(model))
    objects = """,
    )
    done, _ = smoke(tmp_path, text=text)
    assert done.returncode == 1
    assert "other state at the end than without the stop: StepLR, AveragedModel" in done.stderr
    kept_too = '"model": model, "scheduler": scheduler, "average": average'
    done, _ = smoke(tmp_path, text=text.replace('"model": model', kept_too))
    assert done.returncode == 0, done.stderr


@pytest.mark.deep
def test_a_process_that_is_left_behind(tmp_path):
    done, verdicts = smoke(tmp_path, "subprocess.Popen(['sleep', '987'], start_new_session=True)")
    assert done.returncode == 1
    assert [name for name, verdict in verdicts.items() if verdict != "passed"] == ["processes"]
    assert "4 left when the ranks of 2 starts had ended: sleep 987 (pid" in done.stderr


@pytest.mark.deep
def test_what_was_seen_before_a_crash_is_told_and_kept(tmp_path):
    broken = "trap = nn.Linear(4, 1); model.append(nn.Identity()); model[0].trap = trap"
    done, verdicts = smoke(tmp_path, broken)
    assert done.returncode == 1
    assert verdicts["script"] == verdicts["gradients"] == "FAILED"
    assert "2 of 6 parameters that require one got none: 0.trap.weight, 0.trap.bias" in done.stderr
    assert "root cause: rank" in done.stderr
    (folder,) = kept(tmp_path)
    assert f"logs and findings: {folder}" in done.stderr
    assert (folder / "smoke/start-0/rank-1.json").is_file()


def test_a_script_that_ends_with_a_code_of_its_own_has_failed(tmp_path):
    done, verdicts = smoke(tmp_path, text="import sys; sys.exit(7)")
    assert done.returncode == 1
    assert verdicts == {"script": "FAILED", "processes": "passed"} | dict.fromkeys(
        ("losses", "gradients", "weights", "data", "checkpoint"), "could"
    )


@pytest.mark.deep
def test_workers_that_cannot_be_looked_into_are_not_started(tmp_path):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    done, verdicts = smoke(tmp_path, text="open('ran', 'w')", env={"PYTHONPATH": str(tmp_path / "hook")})
    assert done.returncode == 1
    assert verdicts["script"] == "FAILED"
    assert "the fork server has 2 threads, so workers start cold" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.deep
def test_an_interrupted_one_says_so_and_leaves_nothing(tmp_path):
    (tmp_path / "train.py").write_text("print('waiting', flush=True)\nimport time\ntime.sleep(600)")
    (tmp_path / "tmp").mkdir()
    with launching("--smoke", "train.py", cwd=tmp_path, env={"TMPDIR": str(tmp_path / "tmp")}) as live:
        wait_until(lambda: any((tmp_path / "tmp").glob("*/smoke/start-0/rank-1.json")), 60, what="the ranks")
        live.process.send_signal(signal.SIGINT)
        code, _, said = live.end()
    assert code == 130
    assert "--run-dir" in said  # it is ignored, with a warning
    assert "ended by SIGINT" in said
    assert not kept(tmp_path)
    assert not (tmp_path / "run").exists()
