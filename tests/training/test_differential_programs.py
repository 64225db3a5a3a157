"""Trainings drawn at random, on our trainer and on ignite's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import StepLR

from tests.training.twins import MODELS, OPTIMIZERS, Twin, batches, compare, loader

EVENTS = ["STARTED", "EPOCH_STARTED", "GET_BATCH_STARTED", "GET_BATCH_COMPLETED", "ITERATION_COMPLETED"]
EVENTS += ["EPOCH_COMPLETED", "COMPLETED"]
ACTIONS = {
    "terminate": lambda twin: twin.trainer.terminate(),
    "terminate, skip": lambda twin: twin.trainer.terminate(skip_completed=True),
    "terminate_epoch": lambda twin: twin.trainer.terminate_epoch(),
    "interrupt": lambda twin: twin.trainer.interrupt(),
    "evaluation mode": lambda twin: twin.model.eval(),
    "learning rate": lambda twin: twin.optimizer.param_groups[0].update(lr=0.02),
    "freeze": lambda twin: next(twin.model.parameters()).requires_grad_(False),
    "unfreeze": lambda twin: next(twin.model.parameters()).requires_grad_(True),
    "other data": lambda twin: twin.trainer.set_data(batches(3, seed=7)),
    "scale the gradients": lambda twin: [p.grad.mul_(0.5) for p in twin.model.parameters() if p.grad is not None],
    "draw a number": lambda twin: twin.trace.append(torch.rand(1)),
}

PROGRAMS = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(1, 12), st.sampled_from(sorted(ACTIONS))), max_size=4
)
# Each run goes further than the one before; the other orders are in `test_differential.test_a_second_run`.
RUNS = st.fixed_dictionaries(
    {
        "goal": st.sampled_from(["max_epochs", "max_iters"]),
        "more": st.lists(st.integers(1, 6), min_size=1, max_size=3),
        "num": st.integers(1, 6),
        "shuffle": st.sampled_from([None, False, True]),
    },
    optional={"epoch_length": st.integers(1, 7)},
)
TRAININGS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(sorted(MODELS)),
        "optimizer": st.sampled_from(sorted(OPTIMIZERS)),
        "gradient_accumulation_steps": st.integers(1, 5),
    },
    optional={
        "device": st.sampled_from(["cpu", torch.device("cpu")]),
        "non_blocking": st.booleans(),
        "deterministic": st.just(True),
        "model_transform": st.just(torch.tanh),
        "model_fn": st.just(lambda model, x: model(x) - model(x * 0.5)),
        "prepare_batch": st.just(lambda batch, device, non_blocking: (batch[0] * 3, batch[1])),
    },
)


def apply(twin, program, runs):
    """Attach the program and do the runs, until one raises."""
    for event, once, action in program:
        if not (action == "terminate_epoch" and event in ("STARTED", "EPOCH_STARTED")):
            twin.on(event, once=once)(lambda _, action=action: ACTIONS[action](twin))
    num, shuffle, value = runs["num"], runs["shuffle"], 0
    length = {name: runs[name] for name in ("epoch_length",) if name in runs}
    for more in runs["more"]:
        value += more
        torch.manual_seed(11)
        data = (lambda: batches(num)) if shuffle is None else lambda: loader(num, shuffle=shuffle)
        if not twin.run(data, **{runs["goal"]: value}, **length):
            break


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(training=TRAININGS, program=PROGRAMS, runs=RUNS)
def test_any_training(ignite, training, program, runs):
    compare(ignite, lambda twin: apply(twin, program, runs), **training)


@pytest.mark.deep
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(training=TRAININGS, runs=RUNS, step_size=st.integers(1, 5), every=st.integers(1, 3))
def test_any_training_with_a_scheduler(ignite, training, runs, step_size, every):
    def script(twin):
        scheduler = StepLR(twin.optimizer, step_size, gamma=0.5)
        # Not before the optimizer's first step, of which torch warns.
        num_micro = training["gradient_accumulation_steps"]
        twin.on("ITERATION_COMPLETED", every=num_micro * every)(lambda _: scheduler.step())
        apply(twin, [], runs)

    compare(ignite, script, **training)


@pytest.mark.deep
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(training=TRAININGS, num=st.integers(1, 7), windows=st.integers(1, 5), more=st.integers(0, 9))
def test_any_training_resumed_at_the_end_of_a_window(ignite, training, num, windows, more):
    training = {**training, "deterministic": False}  # what it resumes differs: see its own suite
    stop_at = windows * training["gradient_accumulation_steps"]

    def script(twin):
        twin.on("ITERATION_COMPLETED", once=stop_at)(lambda trainer: trainer.terminate())
        twin.run(lambda: batches(num), max_iters=stop_at + more)
        saved = {name: getattr(twin, name).state_dict() for name in ("trainer", "model", "optimizer")}
        resumed = Twin(twin.api, **training)
        for name, state in saved.items():
            getattr(resumed, name).load_state_dict(state)
        torch.manual_seed(5)
        resumed.run(lambda: batches(num))
        twin.trace.append(resumed.trace)

    compare(ignite, script, **training)
