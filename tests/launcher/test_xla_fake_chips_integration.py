"""`distrain launch --device xla` on a host with two chips, one process each. The chips are fake, see `fake_replicas`.

torch_xla's launch starts the processes itself; reductions go over gloo. Host, runner, ranks and all they do are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal

import pytest

from tests.launcher import programs
from tests.support import fake_replicas
from tests.support.launching import launch, launching
from tests.support.processes import descendants, is_alive, wait_until

pytestmark = [pytest.mark.xla, pytest.mark.usefixtures("xla_device")]

TRAIN = """
import atexit, json, os, threading
import torch, distrain
atexit.register(lambda: print("exit function", flush=True))

with distrain.init() as world:
    torch.manual_seed(world.rank)
    model = torch.nn.Linear(2, 1).to(world.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = distrain.prepare(model, optimizer)
    x = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    loader = distrain.dataloader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), 4)
    trainer = distrain.create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss, device=world.device)
    trainer.run(loader, max_epochs=2)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    print(json.dumps({**{name: os.environ[name] for name in names}, "device": str(world.device),
                      "is_main_thread": threading.current_thread() is threading.main_thread(),
                      "steps": trainer.state.iteration, "weight": model.weight.detach().cpu().tolist()}), flush=True)
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and world.rank == 1:
    os.kill(os.getpid(), 9)
"""

NO_TRAINER = """
import time
import distrain
with distrain.init() as world:
    print("waiting", flush=True)
    try:
        time.sleep(600)
    finally:
        print("cleaned up", flush=True)
"""


def variables(folder, chips=2, hosts=("localhost",)):
    return {
        **fake_replicas.site(folder),
        **fake_replicas.variables(hosts, 0, chips),
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def log(run_dir, rank, attempt=0, stream="stdout"):
    return (run_dir / f"attempt-{attempt}/rank-{rank}/{stream}.log").read_text()


def test_each_fake_chip_has_a_process_they_train_together_and_begin_again_after_a_failure(tmp_path):
    """The host is one of two of a slice, and is used alone."""
    (tmp_path / "train.py").write_text(TRAIN)
    options = ("--standalone", "--run-dir", "run", "--max-restarts", "1", "--retry", "always", "train.py")
    env = {**variables(tmp_path), **fake_replicas.variables(["h0", "h1"], 1, 2)}
    done = launch(*options, cwd=tmp_path, env=env, deadline_s=100)
    assert done.returncode == 0, done.stderr
    assert "2 ranks on xla" in done.stderr
    assert re.search(r"attempt 0 failed, starting the next · root cause: rank 1 on \S+: SIGKILL", done.stderr)
    for attempt in (0, 1):
        logs = [log(tmp_path / "run", rank, attempt) for rank in (0, 1)]
        assert [text.endswith("exit function\n") for text in logs] == [attempt == 1] * 2
        said = [json.loads(next(line for line in text.splitlines() if line[0] == "{")) for text in logs]
        for rank, each in enumerate(said):
            assert (each["RANK"], each["LOCAL_RANK"]) == (str(rank), str(1 - rank))
            assert (each["WORLD_SIZE"], each["LOCAL_WORLD_SIZE"], each["device"]) == ("2", "2", "xla:0")
            assert (each["steps"], each["is_main_thread"]) == (6, True)
        assert said[0]["weight"] == said[1]["weight"]
        assert said[0]["MASTER_PORT"] == said[1]["MASTER_PORT"] != "29500"


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGTERM, 75, "preempted after"), (signal.SIGINT, 130, "ended by SIGINT")]
)
def test_fake_chips_that_all_get_a_signal_stop_at_the_same_step_and_save(tmp_path, number, code, words):
    """A scheduler sends its signal to every process of a job."""
    (tmp_path / "train.py").write_text(programs.ENDLESS)
    with launching("train.py", cwd=tmp_path, env=variables(tmp_path)) as live:
        for rank in (0, 1):
            live.wait_for_output("iteration 2", rank=rank)
        tree = descendants(live.process.pid)
        for pid in [live.process.pid, *(each.pid for each in tree)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        got, _, err = live.end(60)
    assert got == code, err
    assert words in err
    ends = [log(tmp_path / "run", rank).splitlines()[-1] for rank in (0, 1)]
    step = int(ends[0].split()[-1])
    assert ends == [f"ended after {step}"] * 2
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")] == [f"step-{step:08}"]
    wait_until(lambda: not any(is_alive(each.pid) for each in tree), 30, what="the end of all")


def test_without_a_trainer_ctrl_c_reaches_the_program_on_fake_chips(tmp_path):
    (tmp_path / "train.py").write_text(NO_TRAINER)
    with launching("train.py", cwd=tmp_path, env=variables(tmp_path)) as live:
        for rank in (0, 1):
            live.wait_for_output("waiting", rank=rank)
        live.process.send_signal(signal.SIGINT)
        code, _, err = live.end(60)
    assert code == 130, err
    for rank in (0, 1):
        assert "cleaned up" in log(tmp_path / "run", rank)
        assert "KeyboardInterrupt" in log(tmp_path / "run", rank, stream="stderr")


def test_a_fake_chip_that_finds_another_slice_says_so(tmp_path):
    """The launch knows of this host alone, and torch_xla's bounds tell of a second one."""
    (tmp_path / "train.py").write_text("print(1)")
    env = variables(tmp_path, hosts=("localhost", "h1"))
    done = launch("--run-dir", "run", "train.py", cwd=tmp_path, env=env, deadline_s=100)
    assert done.returncode == 1
    assert "LaunchError: torch_xla finds 4 devices, and 2 ranks were launched, 2 on each host." in done.stderr
