"""`distrain launch --device xla` on a host with two chips, one process each. The chips are fake.

torch_xla's launch is a stand-in that starts the processes as the real one does on a TPU host, and their reductions go
over gloo; host, runner, ranks and all they do are real.
"""

from __future__ import annotations

import json
import socket
import sys

import pytest

from tests.support.processes import REPOSITORY, run

pytestmark = [pytest.mark.xla, pytest.mark.usefixtures("xla_device")]

SITE = """
import sys

if any("xla_runner" in word for word in sys.orig_argv):
    import torch_xla
    from tests.support import fake_replicas

    torch_xla.launch = fake_replicas.launch
"""

LAUNCH = """
import os, sys
from dataclasses import replace
from pathlib import Path

from distrain.launcher.run import run
from distrain.plan import Program, resolve

plan = resolve(Program(kind="script", target="train.py"), {"device": "xla", "run_dir": "run"}, environ=os.environ)
sys.exit(run(replace(plan, nproc=2), environ=os.environ))  # as many as the host would have chips
"""

TRAIN = """
import json, os, sys
import torch, distrain

with distrain.init() as world:
    torch.manual_seed(world.rank)
    model = torch.nn.Linear(2, 1).to(world.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = distrain.prepare(model, optimizer)
    x = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    loader = distrain.dataloader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), 4)
    trainer = distrain.create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss, device=world.device)
    trainer.run(loader, max_epochs=2)
    if world.rank == 1 and FAILS:
        sys.exit(7)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    print(json.dumps({**{name: os.environ[name] for name in names}, "device": str(world.device),
                      "steps": trainer.state.iteration, "weight": model.weight.detach().cpu().tolist()}), flush=True)
"""


def launched(folder, *, fails=False):
    (folder / "sitecustomize.py").write_text(SITE)
    (folder / "train.py").write_text(TRAIN.replace("FAILS", str(fails)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"PYTHONPATH": f"{folder}:{REPOSITORY}", "PJRT_DEVICE": "CPU", "MASTER_PORT": str(port)}
    return run([sys.executable, "-c", LAUNCH], cwd=folder, env=env, deadline_s=100)


def test_each_fake_chip_has_a_process_and_they_train_together(tmp_path):
    done = launched(tmp_path)
    assert done.returncode == 0, done.stderr
    logs = [tmp_path / f"run/attempt-0/rank-{rank}/stdout.log" for rank in (0, 1)]
    one, other = (json.loads(log.read_text().splitlines()[-1]) for log in logs)
    for rank, each in enumerate((one, other)):
        assert (each["RANK"], each["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (each["WORLD_SIZE"], each["LOCAL_WORLD_SIZE"], each["device"]) == ("2", "2", "xla:0")
        assert each["steps"] == 6
    assert one["weight"] == other["weight"]


def test_the_fake_chip_whose_process_fails_is_named_and_its_code_is_the_runs(tmp_path):
    done = launched(tmp_path, fails=True)
    assert done.returncode == 7, done.stderr
    assert "root cause: rank 1 on" in done.stderr
