"""The worker half of a smoke test on two real ranks, one script for each thing that can be wrong. The verdicts are the
launcher's.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset, TensorDataset, random_split

import distrain
import distrain.smoke
from distrain.launcher.smoke import SmokeTest
from distrain.rundir import ENV_SMOKE, RunDir

pytestmark = pytest.mark.distributed(nproc=2)


def dataset(num=64):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(num, 4, generator=generator), torch.randn(num, 1, generator=generator))


def sharded(data=None, **options):
    data = dataset() if data is None else data
    return DataLoader(data, 4, sampler=DistributedSampler(data, **options))


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(4, 1)
        self.other = nn.Linear(4, 1)

    def forward(self, x):
        return self.used(x) + self.other(x).detach()


@pytest.fixture
def watched(world, tmp_path):
    """Look on from here; return what judges, once all ranks have ended."""
    conclude = distrain.smoke.install({**os.environ, ENV_SMOKE: str(tmp_path / "smoke")})
    torch.manual_seed(0)

    def judge():
        conclude()
        dist.barrier()
        test = SmokeTest(RunDir(root=tmp_path), 2, "script.py")
        code = test.conclude("")
        return code, {each.name: each for each in test.checks}

    return judge


def loop(model, loader, *, loss_fn=mse_loss, lr=0.1, epochs=100):
    """A loop with nothing of distrain in it; the smoke test ends it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def train():
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss_fn(model(x), y).backward()
                optimizer.step()

    with pytest.raises(SystemExit) as end:
        train()
    assert end.value.code == 0


def standings(checks):
    return {name: each.standing for name, each in checks.items()}


GOOD = dict.fromkeys(("script", "losses", "gradients", "weights", "data", "processes"), "passed") | {
    "checkpoint": "unknown"
}


def test_a_loop_of_torch_alone_that_is_right(watched):
    loop(DistributedDataParallel(nn.Linear(4, 1)), sharded())
    code, checks = watched()
    assert (code, standings(checks)) == (0, GOOD)
    assert checks["script"].why.startswith("ended here after 4 steps")
    assert checks["losses"].why.startswith("8 finite")
    assert checks["data"].why == "64 samples, each on one rank"
    assert checks["checkpoint"].why.startswith("no distrain.Checkpointer is attached")


def only(checks, name):
    """Return the check that failed, which is the only one."""
    assert standings(checks) == {**GOOD, name: "failed"}
    return checks[name].why


def test_a_loss_that_is_not_finite(watched, world):
    calls = []

    def loss_fn(y_pred, y):
        calls.append(1)
        bad = world.rank == 1 and len(calls) == 3
        return mse_loss(y_pred, y) + (float("nan") if bad else 0.0)  # its gradients are those of the rest

    loop(DistributedDataParallel(nn.Linear(4, 1)), sharded(), loss_fn=loss_fn)
    code, checks = watched()
    assert code == 1
    assert only(checks, "losses") == "nan on rank 1 in iteration 3; 1 of 8 are not finite"


def test_a_branch_that_gets_no_gradient(watched):
    loop(DistributedDataParallel(TwoBranches(), find_unused_parameters=True), sharded())
    _, checks = watched()
    assert only(checks, "gradients") == ("2 of 4 parameters that require one got none: other.weight, other.bias")


@pytest.mark.deep
def test_a_gradient_that_is_not_finite(watched):
    class Root(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 0 + (self.bias * 0).sqrt()

    loop(DistributedDataParallel(Root(4, 1)), sharded(), loss_fn=lambda y_pred, y: y_pred.sum(), lr=0.0)
    _, checks = watched()
    assert checks["gradients"].why == "nan or infinite in 1 of 2 parameters, first in step 1: bias"


def test_a_parameter_that_no_optimizer_has_is_told(watched):
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    optimizer = torch.optim.SGD(model["head"].parameters(), lr=0.1)
    for _, (x, y) in zip(range(3), sharded(), strict=False):
        optimizer.zero_grad()
        mse_loss(model["head"](model["body"](x)), y).backward()
        for parameter in model["head"].parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
    _, checks = watched()
    assert checks["gradients"].standing == "passed"
    assert checks["gradients"].why.endswith("no optimizer has body.weight, body.bias")


def test_ranks_with_weights_of_their_own(watched, world):
    torch.manual_seed(world.rank)
    loop(nn.Linear(4, 1), sharded())
    _, checks = watched()
    why = only(checks, "weights")
    assert why == "2 of 2 parameters differ between the ranks, already before the first step: weight, bias"


@pytest.mark.deep
def test_ranks_that_do_not_reduce_their_gradients(watched):
    loop(nn.Linear(4, 1), sharded())
    _, checks = watched()
    assert "differ between the ranks, after 4 steps" in only(checks, "weights")


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.deep)])
def test_a_loader_that_gives_all_ranks_the_same(watched, num_workers):
    loop(DistributedDataParallel(nn.Linear(4, 1)), DataLoader(dataset(), 4, shuffle=True, num_workers=num_workers))
    _, checks = watched()
    assert only(checks, "data") == "every rank gets the same 64 of 64 samples"


def test_a_random_split_that_differs_between_the_ranks(watched, world):
    mine, _ = random_split(dataset(), [0.5, 0.5], generator=torch.Generator().manual_seed(world.rank))
    loop(DistributedDataParallel(nn.Linear(4, 1)), sharded(mine))
    _, checks = watched()
    assert "samples go to several ranks" in only(checks, "data")
    assert "random_split needs the same generator" in checks["data"].todo


def test_a_loader_that_leaves_samples_out(watched, world):
    data = dataset()
    mine = Subset(data, range(world.rank, 64, 2))
    loop(DistributedDataParallel(nn.Linear(4, 1)), DataLoader(mine, 4, sampler=range(20)))
    _, checks = watched()
    assert only(checks, "data") == "24 of 64 samples reach no rank in an epoch"


@pytest.mark.parametrize("num", [61, pytest.param(64, marks=pytest.mark.deep)])
def test_data_that_are_divided_by_hand(watched, world, num):
    loop(DistributedDataParallel(nn.Linear(4, 1)), DataLoader(Subset(dataset(num), range(world.rank, num, 2)), 4))
    _, checks = watched()
    assert standings(checks) == GOOD
    assert checks["data"].why == f"{num} samples, each on one rank"


@pytest.mark.parametrize(
    ("drop_last", "aside"),
    [(False, "1 come twice, to fill the last batches up"), (True, "5 are left out by drop_last")],
)
def test_what_a_sampler_fills_up_and_drop_last_leaves_out_is_told(watched, drop_last, aside):
    loader = DataLoader(dataset(61), 4, sampler=DistributedSampler(dataset(61)), drop_last=drop_last)
    loop(DistributedDataParallel(nn.Linear(4, 1)), loader)
    _, checks = watched()
    assert standings(checks) == GOOD
    assert checks["data"].why == f"61 samples, each on one rank; {aside}"


class Stream(IterableDataset):
    def __init__(self, seed):
        self.seed = seed

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield torch.randn(4, generator=generator), torch.randn(1, generator=generator)


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.deep)])
def test_a_stream_is_judged_by_its_first_batches(watched, world, apart):
    loop(DistributedDataParallel(nn.Linear(4, 1)), DataLoader(Stream(world.rank if apart else 0), 4))
    _, checks = watched()
    if apart:
        assert checks["data"].standing == "unknown"
        assert "the first 4 batches of the ranks differ" in checks["data"].why
    else:
        assert "every rank got the same 4 batches" in only(checks, "data")


def test_data_sets_of_the_ranks_own_are_not_compared_by_number(watched, world):
    torch.manual_seed(world.rank)
    mine = TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
    loop(DistributedDataParallel(nn.Linear(4, 1)), DataLoader(mine, 4))
    _, checks = watched()
    assert standings(checks) == {**GOOD, "data": "unknown"}
    assert checks["data"].why == "each rank has a data set of its own; whether they overlap cannot be seen"


def test_asking_for_the_order_changes_nothing_of_the_training(watched):
    seen = []
    model = DistributedDataParallel(nn.Linear(4, 1))
    loader = DataLoader(dataset(), 4, shuffle=True)
    state = torch.get_rng_state()
    first = [x for x, _ in loader]
    torch.set_rng_state(state)
    loop(model, loader, loss_fn=lambda y_pred, y: (seen.append(y), mse_loss(y_pred, y))[1])
    state = torch.set_rng_state(state) or [y for _, y in loader]
    assert len(first) == 16
    assert all(torch.equal(a, b) for a, b in zip(seen, state, strict=False))


def test_a_shortened_epoch_is_followed_by_a_new_pass_over_the_data(watched):
    passes = []

    class Data(list):
        def __iter__(self):
            passes.append(0)
            for batch in super().__iter__():
                passes[-1] += 1
                yield batch

    batches = Data([(torch.ones(2, 4), torch.ones(2, 1))] * 20)
    model, optimizer = distrain.prepare(net := nn.Linear(4, 1), torch.optim.SGD(net.parameters(), lr=0.1))
    for max_epochs in (3, 1):
        distrain.create_supervised_trainer(model, optimizer, mse_loss).run(batches, max_epochs=max_epochs)
    assert passes == [2, 2, 4]


def test_an_optimizer_that_took_no_step_is_told(watched):
    idle = torch.optim.Adam(nn.Linear(4, 1).parameters())
    loop(DistributedDataParallel(nn.Linear(4, 1)), sharded())
    _, checks = watched()
    assert standings(checks) == GOOD
    assert checks["gradients"].why.endswith("; not exercised, without a step: Adam of 2 parameters")
    del idle


def test_losses_are_told_as_they_were_before_a_scaler(watched):
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    model = DistributedDataParallel(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = next(iter(sharded()))
    scaled = scaler.scale(10 * mse_loss(model(x), y))
    assert torch.isinf(scaled)
    scaled.backward()
    scaler.step(optimizer)
    _, checks = watched()
    assert (checks["losses"].standing, checks["losses"].why[:8]) == ("passed", "2 finite")


def test_a_script_that_trains_nothing(watched):
    code, checks = watched()
    assert code == 0
    assert standings(checks) == {
        **dict.fromkeys(("losses", "gradients", "weights", "data", "checkpoint"), "unknown"),
        "script": "passed",
        "processes": "passed",
    }


def test_an_engine_runs_a_few_iterations_and_fires_all_its_events(watched, tmp_path):
    model, optimizer = distrain.prepare(net := nn.Linear(4, 1), torch.optim.SGD(net.parameters(), lr=0.1))
    trainer = distrain.create_supervised_trainer(model, optimizer, mse_loss)
    fired = []
    for event in (distrain.Events.EPOCH_COMPLETED, distrain.Events.COMPLETED):
        trainer.add_event_handler(event, lambda _, name: fired.append(name), event.name)
    mine = tmp_path / "mine"
    checkpointer = distrain.Checkpointer(directory=mine, stop_on_signals=False)
    loader = distrain.dataloader(dataset(), 4, shuffle=True)
    checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader)
    state = trainer.run(loader, max_epochs=50)
    evaluator = distrain.create_supervised_evaluator(model)
    assert evaluator.run(distrain.dataloader(dataset(), 4)).iteration == 4
    assert (state.iteration, state.epoch) == (4, 2)
    assert fired == ["EPOCH_COMPLETED", "EPOCH_COMPLETED", "COMPLETED"]
    dist.barrier()
    assert not mine.exists()
    code, checks = watched()
    assert (code, standings(checks)) == (0, GOOD)
    assert checks["checkpoint"].why == "it saves at the ends of epochs only, and a smoke test has no whole one"


def test_a_trainer_whose_data_are_a_list(watched, world):
    model, optimizer = distrain.prepare(net := nn.Linear(4, 1), torch.optim.SGD(net.parameters(), lr=0.1))
    trainer = distrain.create_supervised_trainer(model, optimizer, mse_loss, gradient_accumulation_steps=3)
    trainer.run([(torch.ones(2, 4), torch.ones(2, 1))] * 20, max_epochs=3)
    assert trainer.state.iteration == 6
    _, checks = watched()
    assert "every rank got the same 6 batches" in only(checks, "data")
