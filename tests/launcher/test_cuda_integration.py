"""Launches on a CUDA device: `pytest -m gpu`. One GPU is enough; two ranks share it over gloo, which NCCL refuses."""

from __future__ import annotations

import json
import re
import signal
import textwrap
from pathlib import Path

import pytest
import torch

from tests.support.launching import events, launch, launching
from tests.support.processes import REPOSITORY
from tests.support.real_parts import missing

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

STOPPED = """
    import hashlib, os, sys, time
    import torch, distrain
    from torch.utils.data import TensorDataset

    epochs, pause_s = int(sys.argv[1]), float(sys.argv[2])
    if os.environ["WORLD_SIZE"] == "2":  # on the same GPU
        torch.distributed.init_process_group("gloo")
    with distrain.init(seed=0, device="cuda:0") as world:
        torch.use_deterministic_algorithms(True)
        model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
        model, optimizer = distrain.prepare(model, optimizer)
        x = torch.arange(120.0).reshape(40, 3) / 120
        dataset = TensorDataset(x, x.sum(1, keepdim=True))
        loader = distrain.dataloader(dataset, 2, shuffle=True, seed=3, num_workers=2, pin_memory=True)
        trainer = distrain.create_supervised_trainer(
            model, optimizer, torch.nn.functional.mse_loss, device=world.device, non_blocking=True,
            amp_mode="amp", scaler=True, gradient_accumulation_steps=3, max_grad_norm=1.0,
            output_transform=distrain.detached_loss,
        )
        distrain.LossAggregator(every=5).attach(trainer)
        checkpointer = distrain.Checkpointer(every=10**6)
        checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader)

        @trainer.on(distrain.Events.ITERATION_STARTED)
        def pause():
            time.sleep(pause_s)
            if trainer.state.iteration == 5:
                print("on the way on", world.device, flush=True)

        if checkpointer.resumed_from:
            print("going on from", checkpointer.resumed_from.name, flush=True)
        trainer.run(loader, max_epochs=epochs)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()]).cpu().numpy().tobytes()
        print("weights", hashlib.sha256(weights).hexdigest(), flush=True)
"""

FAULTS = """
    import os, signal, sys
    import torch, distrain
    import torch.distributed as dist

    def out_of_memory():
        return torch.empty(1 << 44, device="cuda")

    def device_side_assert():
        torch.nn.functional.cross_entropy(torch.randn(4, 3, device="cuda"), torch.full((4,), 9, device="cuda"))
        torch.cuda.synchronize()

    def fork_behind_cuda():
        from torch.utils.data import DataLoader
        return next(iter(DataLoader([1, 2], num_workers=1, collate_fn=lambda batch: torch.tensor(batch).cuda())))

    def endless_kernel():
        torch.cuda._sleep(1 << 50)
        dist.all_reduce(torch.ones(1, device="cuda"))
        torch.cuda.synchronize()

    def killed():
        os.kill(os.getpid(), signal.SIGKILL)

    torch.cuda.set_device(0)
    dist.init_process_group("nccl")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1).cuda(), device_ids=[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(20):
        model(torch.ones(2, 4, device="cuda")).sum().backward()
        optimizer.step()
        if step == 5 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            globals()[sys.argv[1]]()
    torch.cuda.synchronize()
    print("finished in attempt", os.environ["TORCHELASTIC_RESTART_COUNT"], flush=True)
    dist.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def cuda():
    if not torch.cuda.is_available():
        missing("torch sees no CUDA device")


@pytest.fixture
def written(tmp_path):
    """Return `write(text)`, which makes a script of a program's text."""

    def write(text):
        (tmp_path / "train.py").write_text(textwrap.dedent(text))
        return "train.py"

    return write


def test_without_an_option_the_digits_train_on_the_gpu(tmp_path):
    script = REPOSITORY / "launch" / "scripts" / "train-digits.py"
    done = launch("--nproc", "1", "--run-dir", "run", script, "--amp", "--epochs", "4", cwd=tmp_path).check()
    assert "1 rank on cuda" in done.stderr
    (accuracy,) = re.findall(r"test accuracy ([\d.]+)%", done.stdout)
    assert float(accuracy) > 95


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_stopped_run_goes_on_to_the_very_same_end(tmp_path, written, nproc):
    script = written(STOPPED)
    env = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    options = ("--nproc", str(nproc))
    whole = launch(*options, "--run-dir", "whole", script, "10", "0", cwd=tmp_path, env=env).check().stdout
    with launching(*options, script, "10", "0.02", cwd=tmp_path, env=env) as live:
        for rank in range(nproc):
            live.wait_for_output("on the way on cuda:0", rank=rank)
        live.process.send_signal(signal.SIGTERM)
        code, _, err = live.end()
    assert code == 75, err
    (step,) = re.findall(r"SIGTERM: stopped after step (\d+), saved in \S+", err)
    done = launch(*options, "--run-dir", "run", script, "10", "0", cwd=tmp_path, env=env).check()
    assert f"going on from step-{int(step):08d}" in done.stdout
    assert done.stdout.splitlines()[-1] == whole.splitlines()[-1]
    assert done.stdout.splitlines()[-1].startswith("weights ")


def test_a_killed_rank_is_started_again_on_its_gpu(tmp_path, written):
    done = launch("--max-restarts", "1", "--run-dir", "run", written(FAULTS), "killed", cwd=tmp_path).check()
    assert "finished in attempt 1" in done.stdout


@pytest.mark.parametrize(
    ("fault", "kind", "hint"),
    [
        ("out-of-memory", "torch.OutOfMemoryError: CUDA out of memory", "Make the batch smaller"),
        ("device-side-assert", ".*Error: CUDA error: device-side assert triggered", "CUDA_LAUNCH_BLOCKING=1"),
        ("fork-behind-cuda", "RuntimeError: .*Cannot re-initialize CUDA", "multiprocessing_context='spawn'"),
    ],
)
def test_the_report_of_a_failure_on_the_device_is_right(tmp_path, written, fault, kind, hint):
    name = fault.replace("-", "_")
    done = launch("--run-dir", "run", written(FAULTS), name, cwd=tmp_path).check(1)
    report = done.stderr[done.stderr.index("root cause: ") :]
    assert re.match(rf"root cause: rank 0 on [^:]+: {kind}", report), report
    assert f"in {name}" in report, report
    assert hint in report, report


def test_a_kernel_that_does_not_end_is_a_hang(tmp_path, written):
    with launching("--hang-timeout", "5", written(FAULTS), "endless_kernel", cwd=tmp_path) as live:
        code, _, err = live.end()
    assert code == 124, err
    assert re.search(r"root cause: rank 0 on .*: Hang: no step for \d+ s", err), err
    assert "in endless_kernel" in err, err
    assert "(nccl:all_reduce)" in err, err
    record = json.loads((tmp_path / "run" / "attempt-0" / "rank-0" / "flight.json").read_text())
    assert record["entries"][-1]["profiling_name"] == "nccl:all_reduce"


def test_two_ranks_on_one_gpu_are_told_what_to_do(tmp_path, written):
    script = written(FAULTS)
    count = str(torch.cuda.device_count() + 1)
    done = launch("--device", "cuda", "--nproc", count, script, "killed", cwd=tmp_path)
    assert done.returncode == 2
    assert f"--nproc: got {count} ranks for {torch.cuda.device_count()} visible GPU" in done.stderr


def test_nccl_refuses_a_shared_gpu_and_the_report_says_so(tmp_path, written):
    done = launch("--nproc", "2", "--run-dir", "run", written(FAULTS), "killed", cwd=tmp_path)
    report = done.stderr[done.stderr.index("root cause: ") :]
    assert done.returncode == 1
    assert "Duplicate GPU detected" in report, report


def test_a_smoke_test_leaves_the_gpu_alone(tmp_path):
    script = REPOSITORY / "launch" / "scripts" / "train-digits.py"
    done = launch("--smoke", script, cwd=tmp_path).check()
    assert "all passed" in done.stdout + done.stderr


def test_ranks_can_be_bound_to_the_cpus_near_their_gpu(tmp_path):
    (tmp_path / "train.py").write_text("import os\nprint(len(os.sched_getaffinity(0)), 'CPUs')\n")
    done = launch("--nproc", "1", "--numa-binding", "node", "--run-dir", "run", "train.py", cwd=tmp_path).check()
    assert re.search(r"\d+ CPUs", done.stdout)


def test_the_fork_server_does_not_take_the_device(tmp_path, written):
    """Otherwise no rank could use it: CUDA does not live through a fork."""
    with launching("--nproc", "1", written(STOPPED), "1000", "0.02", cwd=tmp_path) as live:
        live.wait_for_output("on the way on cuda:0")
        (started,) = events(live.run_dir, "worker_started")
        rank = Path("/proc", str(started["pid"]))
        server = Path("/proc", (rank / "stat").read_text().rpartition(")")[2].split()[1])
        assert ["/dev/nvidia" in (each / "maps").read_text() for each in (rank, server)] == [True, False]
