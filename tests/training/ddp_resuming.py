"""Those scenarios of `ddp_scenarios` that save and resume."""

from __future__ import annotations

import contextlib
import logging
import warnings

import torch
import torch.distributed as dist

import distrain
from tests.training.ddp_world import (
    DDP_OPTIONS,
    Dropping,
    Run,
    StopError,
    adamw,
    bad_at,
    batch,
    fake_apex,
    reference,
    windows_of,
)


def saved(folder, run, every=1):
    checkpointer = distrain.Checkpointer(every, directory=folder)
    checkpointer.attach(run.trainer, model=run.model, optimizer=run.stepper)
    if checkpointer.resumed_from is not None:
        run.done = int(checkpointer.resumed_from.name.removeprefix("step-"))
    return run


def state_of(run):
    optimizer = [value for each in run.stepper.state.values() for value in each.values()]
    scale = getattr(run.trainer.state, "scaler", None)
    return {
        "optimizer": torch.cat([v.flatten() for v in optimizer]),
        "scaler": None if scale is None else scale.state_dict(),
    }


def resumed(name, get=batch, **setting):
    """Run to the end; run to a stop; resume. Six batches in an epoch, windows of four, other gradients on each rank."""
    stop = setting.pop("stop")
    setting = {"num_micro": 4, "optimizer": adamw, "counts": False, **setting}
    goal = {"get": get, "max_epochs": 2}
    whole = Run(**setting).over(range(6), **goal)
    cut = saved(name, Run(**setting))
    cut.trainer.logger.setLevel(logging.CRITICAL)
    cut.stop_after(stop)
    with contextlib.suppress(StopError):
        cut.over(range(6), **goal)
    again = saved(name, Run(**setting), every=None).over(range(6), **goal)
    losses = {**cut.losses, **again.losses}
    same = {"losses": repr(losses) == repr(whole.losses), "first": min(again.losses)}
    for key, value in state_of(whole).items():
        mine = state_of(again)[key]
        same[key] = torch.equal(mine, value) if isinstance(value, torch.Tensor) else mine == value
    return again.against(whole.weights(), same=same)


def resumed_after(mechanism, how, stop):
    options = {"accumulation_tail": how}
    return resumed(f"{mechanism} {how} {stop}", mechanism=mechanism, options=options, stop=stop)


def resumed_with(name):
    return resumed(f"with {name}", ddp=DDP_OPTIONS[name], options={}, stop=7)


def deterministic_resumed():
    """Each rank has a seed of its own and drops other units."""
    setting = {"make": Dropping, "options": {"deterministic": True}, "counts": False}

    def run(stop=None, folder=None, seed=1):
        run = Run(**setting)
        if folder is not None:
            saved(folder, run).done = 0  # the engine leaves the batches out itself
        if stop is not None:
            run.trainer.logger.setLevel(logging.CRITICAL)
            run.stop_after(stop)
        torch.manual_seed(10 * dist.get_rank() + seed)
        with contextlib.suppress(StopError):
            run.over(range(6), max_epochs=2)
        return run

    whole, cut = run(), run(stop=8, folder="deterministic")
    again = run(folder="deterministic", seed=5)
    seeds = [each.trainer.state.seed for each in (whole, cut, again)]
    return again.against(whole.weights(), losses=[{**cut.losses, **again.losses}, whole.losses], seeds=seeds)


def without_gradients():
    """Only the trainer's own progress comes back: windows of four, three iterations done."""
    run = Run(num_micro=4)
    run.trainer.load_state_dict({"iteration": 3, "epoch_length": 12, "max_epochs": 1})
    run.over(range(12))
    return run.against(reference(windows_of((0,), (1, 2, 3, 4), (5, 6, 7, 8)))[0])


def saved_unevenly():
    """At the end of the data one rank is inside a window and the other is not."""
    run = Run(num_micro=4)
    distrain.Checkpointer(directory="uneven").attach(run.trainer, model=run.model)
    run.over(range((8, 10)[dist.get_rank()]))
    return run.against(reference(windows_of((0, 1, 2, 3), (4, 5, 6, 7)))[0], held=run.trainer.state.accumulation.held)


def before_another_world():
    """An epoch of six and windows of four: the last checkpoint is inside a window."""
    return {"weights": saved("world", Run(num_micro=4, counts=False)).over(range(6)).weights()}


def in_another_world():
    """Two ranks go on where three were."""
    run = Run(num_micro=4, counts=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saved("world", run)
    run.over(range(6), max_epochs=2)
    windows = windows_of((0, 1, 2, 3), size=3) + windows_of((0, 1), (2, 3, 4, 5))
    return run.against(reference(windows)[0], said=[str(each.message) for each in caught])


def apex_resumed():
    amp = fake_apex()
    found = resumed("apex resumed", mechanism="apex", options={}, stop=7)
    return found | {"loaded": amp.loaded}


def nan_resumed():
    """A window that saw a nan before the checkpoint is left out after it."""
    options = {"nonfinite_loss": "skip"}
    return resumed("nan resumed", options=options, stop=7, get=bad_at((1, 5)))
