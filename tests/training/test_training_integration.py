import contextlib
import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import TensorDataset

import distrain
from distrain.errors import CheckpointError
from distrain.runtime.environment import PLACEMENT
from distrain.training import unwrap
from tests.support.processes import REPOSITORY, wait_until
from tests.support.ranks import run_alone

WRITER = """
    import os, resource, signal, sys
    import torch
    import distrain

    model = torch.nn.Linear(1000, 2000)     # 8 MB
    trainer = distrain.Engine(lambda engine, batch: 0.0)
    checkpointer = distrain.Checkpointer(every=1, directory=sys.argv[1])
    checkpointer.attach(trainer, model=model)
    print("resumed", checkpointer.resumed_from, flush=True)

    @trainer.on(distrain.Events.ITERATION_STARTED(once=3))
    def trouble():
        if sys.argv[2] == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
            return
        name, number = sys.argv[2].split(":")
        real, calls = getattr(os, name), []
        def deadly(*args, **kwargs):
            calls.append(1)
            if len(calls) == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(os, name, deadly)

    trainer.run(range(5))
    print("ended", flush=True)
"""


two = pytest.mark.distributed(nproc=2)

X = torch.arange(48.0).reshape(16, 3) / 48
Y = X.sum(1, keepdim=True)


def gathered(value):
    box = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@two
def test_shards_are_disjoint_complete_and_equally_many(world):
    loader = distrain.dataloader(torch.arange(17), 4, shuffle=True)
    epochs = [[batch.tolist() for batch in loader] for _ in range(2)]
    ranks = gathered(epochs)
    for epoch in range(2):
        assert sorted(i for rank in ranks for b in rank[epoch] for i in b) == list(range(17))
        assert len({len(rank[epoch]) for rank in ranks}) == 1
    assert epochs[0] != epochs[1]


@two
def test_a_wrapped_model_starts_as_rank_zeros_and_is_not_wrapped_again(world):
    torch.manual_seed(world.rank)
    bare = nn.Linear(3, 1)
    model = distrain.prepare(bare)
    assert unwrap(model) is bare
    assert len({str(weight) for weight in gathered(bare.weight.tolist())}) == 1
    with pytest.raises(ValueError, match="wrapped in DistributedDataParallel already"):
        distrain.prepare(model)


@two
@pytest.mark.parametrize("is_first", [False, True])
def test_what_trains_after_it_was_frozen_is_reduced_where_it_was_not_prepared_so(world, is_first):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = sgd(model)
    options = {"find_unused_parameters": True}
    if is_first:
        wrapped, optimizer = distrain.prepare(model, optimizer, ddp_options=options)
    model[0].requires_grad_(False)  # torch's
    if not is_first:
        wrapped, optimizer = distrain.prepare(model, optimizer)
    trainer = distrain.create_supervised_trainer(wrapped, optimizer, mse_loss)
    data = [(torch.full((1, 2), world.rank + 1.0), torch.ones(1, 1))] * 2
    trainer.run(data)
    model[0].requires_grad_(True)  # as above
    says = pytest.warns(RuntimeWarning, match="2 parameters were frozen when the model was prepared, and train now")
    with contextlib.nullcontext() if is_first else says:
        trainer.run(data)
    weights = gathered([each.tolist() for each in model.parameters()])
    assert (weights[0] == weights[1]) is is_first


@two
def test_a_model_that_is_frozen_as_a_whole_and_that_an_optimizer_has_is_warned_of(world):
    model, teacher = nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False)  # torch's
    distrain.prepare(model, teacher, sgd(model))
    with pytest.warns(RuntimeWarning, match="All parameters of the Linear are frozen, so it is not wrapped"):
        distrain.prepare(teacher, sgd(teacher))


@two
def test_what_is_spread_over_the_ranks_is_neither_wrapped_nor_saved_in_part(world, tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Linear(2, 4)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"spread over the ranks .*: leave prepare\(\) out"):
        distrain.prepare(model, optimizer)
    trainer = distrain.create_supervised_trainer(model, optimizer, mse_loss)
    for name, each in {"model": model, "optimizer": optimizer}.items():
        with pytest.raises(CheckpointError, match=f"weights of {name} are spread over the ranks"):
            distrain.Checkpointer(directory=tmp_path).attach(trainer, **{name: each})
    trainer.run([(torch.ones(1, 2), torch.ones(1, 4))])
    assert trainer.state.iteration == 1


@two
def test_accumulation_reduces_once_a_window_and_is_the_whole_batch_on_one_process(world):
    bare = nn.Linear(3, 1)
    model, optimizer = distrain.prepare(bare, sgd(bare))
    reductions = []

    def count(state, bucket):
        reductions.append(1)
        tensor = bucket.buffer().div_(world.world_size)
        return dist.all_reduce(tensor, async_op=True).get_future().then(lambda future: future.value()[0])

    model.register_comm_hook(None, count)
    reference = nn.Linear(3, 1)
    reference.load_state_dict(bare.state_dict())
    step = sgd(reference)
    for half in (slice(0, 8), slice(8, 16)):
        step.zero_grad()
        mse_loss(reference(X[half]), Y[half]).backward()
        step.step()
    parts = [(X[i : i + 2], Y[i : i + 2]) for i in range(2 * world.rank, 16, 4)]
    distrain.create_supervised_trainer(model, optimizer, mse_loss, gradient_accumulation_steps=2).run(parts)
    assert len(reductions) == 2
    assert torch.allclose(reference.weight, bare.weight, atol=1e-6)
    assert torch.allclose(reference.bias, bare.bias, atol=1e-6)


@two
@pytest.mark.parametrize("make", [float, torch.tensor])
def test_the_aggregated_loss_is_weighted_by_samples_and_on_rank_zero_only(world, make):
    sizes, losses = [[3, 1], [2, 5]][world.rank], [[1.0, 2.0], [4.0, 8.0]][world.rank]
    engine = distrain.Engine(lambda engine, batch: make(losses[engine.state.iteration - 1]))
    distrain.LossAggregator(every=1).attach(engine)
    engine.run([torch.zeros(n) for n in sizes])
    if world.is_main:
        assert engine.state.metrics["loss"] == pytest.approx((2 + 40) / 6, abs=1e-9)
        assert engine.state.metrics["epoch_loss"] == pytest.approx((3 + 8 + 2 + 40) / 11, abs=1e-9)
    else:
        assert engine.state.metrics == {}


def trained(model, folder, max_epochs):
    optimizer = sgd(model)
    loader = distrain.dataloader(TensorDataset(X, Y), 4, shuffle=True)
    trainer = distrain.create_supervised_trainer(model, optimizer, mse_loss)
    checkpointer = distrain.Checkpointer(every=3, directory=folder)
    checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader)
    trainer.run(loader, max_epochs=max_epochs)
    return checkpointer, trainer


@two
def test_two_ranks_save_each_its_random_state_and_one_alone_goes_on(tmp_path, monkeypatch):
    with distrain.init(seed=0) as world:
        torch.manual_seed(100 + world.rank)
        model = distrain.prepare(nn.Linear(3, 1))
        trained(model, tmp_path, 2)
        weight, drawn = unwrap(model).weight.detach().clone(), torch.rand(1).item()
        other = distrain.prepare(nn.Linear(3, 1))
        checkpointer, trainer = trained(other, tmp_path, 2)
        assert checkpointer.resumed_from.name == "step-00000004"
        assert torch.equal(unwrap(other).weight, weight)
        assert torch.rand(1).item() == drawn
        assert len(set(gathered(drawn))) == 2
        assert trainer.state.iteration == 4
    if world.rank == 0:
        for name in PLACEMENT:
            monkeypatch.delenv(name)
        checkpointer, trainer = trained(nn.Linear(3, 1), tmp_path, 3)
        assert checkpointer.resumed_from.name == "step-00000004"
        assert (trainer.state.epoch, trainer.state.iteration) == (3, 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "fsync:1",
        *(pytest.param(each, marks=pytest.mark.deep) for each in ("rename:1", "fsync:2", "fsync:3", "fsync:4")),
    ],
)
def test_sigkill_at_any_moment_of_a_write_leaves_a_whole_checkpoint(tmp_path, moment):
    folder = tmp_path / "checkpoints"
    killed = run_alone(tmp_path, WRITER, args=[str(folder), moment])
    assert killed.returncode == -signal.SIGKILL
    whole = "step-00000003" if moment == "fsync:4" else "step-00000002"
    again = run_alone(tmp_path, WRITER, args=[str(folder), "fsync:1000"]).check()
    assert again.stdout.splitlines()[0].endswith(whole)
    assert sorted(os.listdir(folder)) == [".incarnations", *(f"step-0000000{n}" for n in (3, 4, 5))]


@pytest.mark.slow
def test_sigkill_from_outside_while_it_writes(tmp_path):
    folder = tmp_path / "checkpoints"
    program = tmp_path / "endless.py"
    program.write_text(
        "import sys, torch, distrain\n"
        "trainer = distrain.Engine(lambda engine, batch: 0.0)\n"
        "model = torch.nn.Linear(2000, 2000)\n"
        "checkpointer = distrain.Checkpointer(every=1, directory=sys.argv[1])\n"
        "checkpointer.attach(trainer, model=model)\n"
        "trainer.run(range(10**6))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(program), str(folder)], env=env)
    try:

        def writes():
            names = os.listdir(folder) if folder.is_dir() else []
            return any(n.startswith("step-") for n in names) and any(n.startswith(".draft-") for n in names)

        wait_until(writes, 60, poll_s=0.001)
    finally:
        process.kill()
        process.wait()
    code = (
        "import sys, torch, distrain\n"
        "checkpointer = distrain.Checkpointer(directory=sys.argv[1])\n"
        "trainer = distrain.Engine(lambda engine, batch: 0)\n"
        "checkpointer.attach(trainer, model=torch.nn.Linear(2000, 2000))\n"
        "assert checkpointer.resumed_from is not None\n"
        "trainer.add_event_handler(distrain.Events.ITERATION_COMPLETED, trainer.terminate)\n"
        "trainer.run(range(10**6))\n"
    )
    done = run_alone(tmp_path, code, args=[str(folder)]).check()
    assert "damaged" not in done.stderr
    assert [name for name in os.listdir(folder) if not name.startswith("step-")] == [".incarnations"]


@pytest.mark.slow
def test_a_full_disk_is_an_error_that_helps_and_the_checkpoint_before_survives(tmp_path):
    folder = tmp_path / "checkpoints"
    done = run_alone(tmp_path, WRITER, args=[str(folder), "full"]).check(1)
    assert "distrain.errors.CheckpointError: The checkpoint" in done.stderr
    assert "could not be written" in done.stderr
    assert "Free some space" in done.stderr
    assert sorted(os.listdir(folder)) == [".incarnations", "step-00000001", "step-00000002"]
    assert "step-00000002" in run_alone(tmp_path, WRITER, args=[str(folder), "fsync:1000"]).check().stdout
