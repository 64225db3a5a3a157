import contextlib
import json
import os
import re
import signal
import textwrap

import pytest

from tests.support.launching import events, launch, launching
from tests.support.processes import descendants

pytestmark = pytest.mark.slow

PROGRAM = """
    import hashlib, os, signal, sys, time
    import torch, distrain
    from torch.utils.data import TensorDataset

    epochs, pause_s, own = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    num_workers = int(os.environ.get("NUM_WORKERS", "0"))
    with distrain.init(seed=0) as world:
        model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        model, optimizer = distrain.prepare(model, optimizer)
        x = torch.arange(120.0).reshape(40, 3) / 120
        dataset = TensorDataset(x, x.sum(1, keepdim=True))
        loader = distrain.dataloader(dataset, 2, shuffle=True, seed=3, num_workers=num_workers)
        trainer = distrain.create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss)
        checkpointer = distrain.Checkpointer(every=10**6)
        checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader)

        @trainer.on(distrain.Events.ITERATION_STARTED)
        def pause():
            time.sleep(pause_s)
            if trainer.state.iteration == 5:
                print("on the way", flush=True)
                if own == world.rank:
                    os.kill(os.getpid(), signal.SIGTERM)

        if checkpointer.resumed_from:
            print("going on from", checkpointer.resumed_from.name, flush=True)
        trainer.run(loader, max_epochs=epochs)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().tobytes()
        print("weights", hashlib.sha256(weights).hexdigest(), flush=True)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


def options(*more):
    return ["--nproc", "2", "--device", "cpu", *more]


def weights(text):
    (found,) = re.findall(r"weights (\w+)", text)
    return found


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.deep),
        (signal.SIGTERM, 75, "preempted"),
    ],
)
def test_a_stopped_launch_goes_on_to_the_very_same_end(tmp_path, script, number, code, status):
    whole = weights(
        launch(*options("--run-dir", tmp_path / "whole"), script, "30", "0", "-1", cwd=tmp_path).check().stdout
    )
    with launching(*options(), script, "30", "0.02", "-1", cwd=tmp_path) as live:
        live.wait_for_output("on the way")
        live.wait_for_output("on the way", rank=1)
        live.process.send_signal(number)
        ended, _, err = live.end()
    assert ended == code, err
    (step,) = re.findall(rf"{number.name}: stopped after step (\d+), saved in \S+", err)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == [f"step-{int(step):08d}"]
    exits = [event["exit_code"] for event in events(tmp_path / "run", "worker_exited")]
    assert exits == [code, code]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["exit_code"]) == (status, code)
    assert "Traceback" not in err
    assert "root cause" not in err
    if code == 75:
        assert "the state is saved; the same --run-dir goes on from there" in err.splitlines()[-1]
    done = launch(*options("--run-dir", tmp_path / "run"), script, "30", "0", "-1", cwd=tmp_path).check()
    assert f"going on from step-{int(step):08d}" in done.stdout
    assert weights(done.stdout) == whole


@pytest.mark.deep
def test_workers_that_were_told_by_others_are_not_started_again(tmp_path, script):
    run = tmp_path / "run"
    done = launch(*options("--max-restarts", "2", "--run-dir", run), script, "1000", "0.02", "1", cwd=tmp_path).check(
        75
    )
    assert "preempted after" in done.stderr.splitlines()[-1]
    assert "root cause" not in done.stderr
    assert not (run / "failure.json").exists()
    assert not (run / "attempt-1").exists()
    assert json.loads((run / "run.json").read_text())["status"] == "preempted"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.deep)])
def test_a_signal_to_every_process_at_once_is_one_signal(tmp_path, script, number):
    """Slurm signals a step, not a process: the supervisor, the fork server, the agent, the ranks and their children."""
    env = {"NUM_WORKERS": "1", "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node0"}
    with launching(*options(), script, "1000", "0.02", "-1", cwd=tmp_path, env=env) as live:
        live.wait_for_output("on the way")
        live.wait_for_output("on the way", rank=1)
        for pid in [live.process.pid, *(each.pid for each in descendants(live.process.pid))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        ended, _, err = live.end()
    assert ended == 75, err
    exits = [event["exit_code"] for event in events(tmp_path / "run", "worker_exited")]
    assert exits == [75, 75]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "preempted"
    assert re.search(rf"{number.name}: stopped after step \d+, saved in", err)


@pytest.mark.parametrize(
    ("env", "code"),
    [({"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node0"}, 75), pytest.param({}, 143, marks=pytest.mark.deep)],
)
def test_a_job_that_is_asked_to_end_before_its_first_step_has_nothing_to_lose(tmp_path, env, code):
    path = tmp_path / "train.py"
    path.write_text("import time; print('imports', flush=True); time.sleep(600)")
    with launching(*options(), path, cwd=tmp_path, env=env) as live:
        live.wait_for_output("imports", rank=1)
        live.process.send_signal(signal.SIGTERM)
        ended, _, err = live.end()
    assert ended == code, err
    assert ("preempted after" in err and "before the first step: nothing to save" in err) == (code == 75)


def test_a_job_that_was_at_work_is_not_taken_for_one_that_starts(tmp_path):
    """Also when its ranks are killed, or started anew without having come to a step again."""
    path = tmp_path / "train.py"
    path.write_text(
        "import os, time, distrain\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    distrain.heartbeat()\n"
        "    raise SystemExit(1)\n"
        "print('again', flush=True)\n"
        "time.sleep(600)\n"
    )
    env = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node0"}
    flags = ["--nproc", "1", "--device", "cpu", "--max-restarts", "1", "--retry", "always"]
    with launching(*flags, path, cwd=tmp_path, env=env) as live:
        live.wait_for_output("again", attempt=1)
        live.process.send_signal(signal.SIGTERM)
        ended, _, err = live.end()
    assert ended == 143, err
