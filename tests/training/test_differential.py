"""The same training on our trainer and on ignite's: options, models, accumulation, runs, ends and resumptions.

Its companions are `test_differential_programs` (drawn at random), `_handlers` (ignite's own on our trainer), `_amp`
(mixed precision) and `_errors`. Where we differ on purpose is told in `test_differences`.
"""

import itertools

import pytest
import torch
from torch.nn.functional import l1_loss

from tests.engine.script import label
from tests.training.twins import MODELS, OPTIMIZERS, Pair, Record, Twin, Unsized, batches, compare, loader


@pytest.mark.parametrize("num_micro", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer(ignite, optimizer, num_micro):
    compare(
        ignite,
        lambda twin: twin.run(max_epochs=2),
        optimizer=optimizer,
        gradient_accumulation_steps=num_micro,
    )


@pytest.mark.parametrize("num_micro", [1, 2, 3, 5])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model(ignite, model, num_micro):
    def script(twin):
        twin.run(max_epochs=2)
        twin.run(max_epochs=3)

    compare(ignite, script, model=model, gradient_accumulation_steps=num_micro)


def seen(x, y, y_pred, loss):
    return x, y, y_pred.detach(), loss.item()


OPTIONS = {
    "nothing": {},
    "device as text": {"device": "cpu"},
    "device": {"device": torch.device("cpu")},
    "device with index": {"device": torch.device("cpu", 0)},
    "non_blocking": {"device": "cpu", "non_blocking": True},
    "prepare_batch": {
        "prepare_batch": lambda batch, device, non_blocking: (batch[0] * 2, batch[1]),
        "device": "cpu",
    },
    "prepare_batch that tells what it got": {
        "prepare_batch": lambda batch, **kwargs: (batch[0], batch[1] + len(kwargs) + 2 * kwargs["non_blocking"]),
        "non_blocking": True,
    },
    "model_transform": {"model_transform": lambda output: output.tanh()},
    "model_fn": {"model_fn": lambda model, x: model(x) + x.sum(1, keepdim=True)},
    "model_fn and model_transform": {
        "model_fn": lambda model, x: {"out": model(x), "other": None},
        "model_transform": lambda output: output["out"],
    },
    "model_fn that runs the model twice": {"model_fn": lambda model, x: model(x) + model(-x)},
    "output_transform": {"output_transform": seen},
    "output_transform to a dictionary": {"output_transform": lambda x, y, y_pred, loss: {"loss": loss.item(), "n": 4}},
    "output_transform to a tensor": {"output_transform": lambda x, y, y_pred, loss: loss.detach()},
    "output_transform to nothing": {"output_transform": lambda x, y, y_pred, loss: None},
    "loss as a module": {"loss_fn": torch.nn.SmoothL1Loss()},
    "loss of several parts": {"loss_fn": lambda y_pred, y: l1_loss(y_pred, y) + 0.1 * y_pred.square().mean()},
    "no amp": {"amp_mode": None, "scaler": False},
    "deterministic": {"deterministic": True},
}


@pytest.mark.parametrize("num_micro", [1, 3, 4])
@pytest.mark.parametrize("options", sorted(OPTIONS))
def test_every_option(ignite, options, num_micro):
    compare(
        ignite,
        lambda twin: twin.run(max_epochs=2),
        model="dropout",
        gradient_accumulation_steps=num_micro,
        **OPTIONS[options],
    )


NESTS = {
    "dict": (lambda x: {"a": x, "b": x * 2}, lambda model, x: model(x["a"] + x["b"])),
    "list": (lambda x: [x, x * 2], lambda model, x: model(x[0] - x[1])),
    "tuple": (lambda x: (x, x * 2), lambda model, x: model(x[0] - x[1])),
    "named tuple": (lambda x: Pair(x, x * 2), lambda model, x: model(x.first * x.second)),
    "deep": (lambda x: {"a": [x, (x, Pair(x, "text"))]}, lambda model, x: model(x["a"][1][1].first)),
}


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("nest", sorted(NESTS))
def test_nested_inputs(ignite, nest, device):
    wrap, model_fn = NESTS[nest]
    compare(
        ignite,
        lambda twin: twin.run(lambda: batches(wrap=wrap)),
        device=device,
        model_fn=model_fn,
        output_transform=seen,
    )


def test_batches_of_a_class_of_ones_own(ignite):
    compare(
        ignite,
        lambda twin: twin.run(lambda: [Record(*pair) for pair in batches()]),
        prepare_batch=lambda batch, device, non_blocking: (batch.first, batch.second),
        output_transform=seen,
    )


GOALS = [{}, {"max_epochs": 1}, {"max_epochs": 3}, {"max_iters": 4}, {"max_iters": 11}]
DATA = {
    "list": lambda: batches(5),
    "one": lambda: batches(1),
    "without a length": lambda: Unsized(4),
    "iterator": lambda: iter(batches(13)),
    "endless": lambda: itertools.cycle(batches(4)),
    "loader": lambda: loader(5),
    "loader that shuffles": lambda: loader(5, shuffle=True),
}


@pytest.mark.parametrize(("epoch_length", "num_micro"), [(None, 1), (None, 3), (3, 1), (8, 3)])
@pytest.mark.parametrize("goal", GOALS, ids=label)
@pytest.mark.parametrize("data", sorted(DATA))
def test_every_way_to_run(ignite, data, goal, epoch_length, num_micro):
    if data == "endless" and epoch_length is None and "max_iters" not in goal:
        epoch_length = 5  # it would never end
    if data == "iterator" and epoch_length is not None and "max_iters" in goal:
        epoch_length = 13  # else ignite runs empty epochs for ever once the data have ended

    def script(twin):
        torch.manual_seed(3)
        twin.run(DATA[data], epoch_length=epoch_length, **goal)

    compare(ignite, script, model="linear", gradient_accumulation_steps=num_micro)


ACTIONS = {
    "terminate": lambda trainer: trainer.terminate(),
    "terminate, skip": lambda trainer: trainer.terminate(skip_completed=True),
    "terminate_epoch": lambda trainer: trainer.terminate_epoch(),
    "terminate_epoch, skip": lambda trainer: trainer.terminate_epoch(skip_epoch_completed=True),
    "interrupt": lambda trainer: trainer.interrupt(),
}
MOMENTS = [
    ("STARTED", {}),
    ("EPOCH_STARTED", {"once": 2}),
    ("GET_BATCH_COMPLETED", {"once": 6}),
    ("ITERATION_COMPLETED", {"once": 1}),
    ("ITERATION_COMPLETED", {"once": 6}),
    ("ITERATION_COMPLETED", {"once": 7}),
    ("EPOCH_COMPLETED", {"once": 1}),
    ("EPOCH_COMPLETED", {"once": 3}),
]
# On STARTED and EPOCH_STARTED there is no epoch to end.
CUTS = [
    (moment, action)
    for moment in MOMENTS
    for action in sorted(ACTIONS)
    if not (action.startswith("terminate_epoch") and moment[0] in ("STARTED", "EPOCH_STARTED"))
]


@pytest.mark.parametrize("num_micro", [1, 3])
@pytest.mark.parametrize(("moment", "action"), CUTS, ids=label)
def test_a_training_cut_short_and_gone_on_with(ignite, moment, action, num_micro):
    event, filters = moment

    def script(twin):
        calls = itertools.count()

        @twin.on(event, **filters)
        def cut(trainer):
            if next(calls) < 2:
                ACTIONS[action](trainer)

        for _ in range(3):
            twin.run(max_epochs=3)

    compare(ignite, script, gradient_accumulation_steps=num_micro)


SECOND_RUNS = [{}, {"max_epochs": 2}, {"max_epochs": 5}, {"max_iters": 3}, {"max_iters": 17}, {"epoch_length": 4}]


@pytest.mark.parametrize("reset", [(), ("max_epochs",), ("max_iters",)], ids=["kept", "no epochs", "no iters"])
@pytest.mark.parametrize("second", SECOND_RUNS, ids=label)
@pytest.mark.parametrize("first", [{"max_epochs": 2}, {"max_iters": 7}], ids=label)
def test_a_second_run(ignite, first, second, reset):
    def script(twin):
        twin.run(lambda: batches(4), **first)
        for name in reset:
            setattr(twin.trainer.state, name, None)
        twin.run(lambda: batches(4), **second)

    compare(ignite, script, gradient_accumulation_steps=2)


@pytest.mark.parametrize("where", ["between epochs", "inside an epoch"])
@pytest.mark.parametrize("num_micro", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_training_resumed_by_its_state(ignite, optimizer, num_micro, where):
    """At the end of a window: inside one, ignite loses what the window held."""

    def script(twin):
        @twin.on("ITERATION_COMPLETED", once=6 if where == "between epochs" else 12)
        def stop(trainer):
            trainer.terminate()

        num = 6 if where == "between epochs" else 8
        twin.run(lambda: batches(num), max_epochs=4)
        saved = {name: getattr(twin, name).state_dict() for name in ("trainer", "model", "optimizer")}
        twin.trace.append(dict(saved["trainer"]))
        resumed = Twin(twin.api, optimizer=optimizer, **twin.options)
        for name, state in saved.items():
            getattr(resumed, name).load_state_dict(state)
        resumed.run(lambda: batches(num))
        twin.trace.append(resumed.trace)

    trace = compare(ignite, script, optimizer=optimizer, gradient_accumulation_steps=num_micro)
    assert [entry[0] for entry in trace[-1]].count("ITERATION_COMPLETED") in (18, 20)


def test_an_error_in_the_step_and_a_handler_that_swallows_it(ignite):
    def script(twin):
        def loss_fn(y_pred, y):
            raise RuntimeError("on purpose")

        twin.on("EXCEPTION_RAISED")(lambda trainer, error: twin.trace.append(("swallowed", str(error))))
        twin.run(max_epochs=2)
        other = Twin(twin.api, loss_fn=loss_fn)
        other.run(max_epochs=2)
        twin.trace.append(other.trace)

    trace = compare(ignite, script)
    assert ("run", "raised", "RuntimeError", "") in trace[-1]


def test_the_mode_of_the_model_is_set_in_every_iteration(ignite):
    def script(twin):
        twin.model.eval()
        twin.on("ITERATION_COMPLETED", every=2)(lambda _: twin.model.eval())
        twin.run(max_epochs=2)

    trace = compare(ignite, script, model="batch norm")
    assert {entry[-1]["training"] for entry in trace if entry[0] == "ITERATION_COMPLETED"} == {True}


def test_handlers_that_change_gradients_weights_and_batches(ignite):
    def script(twin):
        @twin.on("ITERATION_STARTED", every=2)
        def change_batch(trainer):
            x, y = trainer.state.batch
            trainer.state.batch = (x + 1, y)

        @twin.on("ITERATION_COMPLETED", once=3)
        def change_weights():
            for parameter in twin.model.parameters():
                parameter.data.mul_(0.5)

        @twin.on("ITERATION_COMPLETED", every=3)
        def change_gradients():
            for parameter in twin.model.parameters():
                parameter.grad.mul_(0.5)

        twin.run(max_epochs=2)

    compare(ignite, script, gradient_accumulation_steps=4)


def test_two_trainers_on_one_model(ignite):
    def script(twin):
        other = twin.api.create_supervised_trainer(twin.model, twin.optimizer, l1_loss, gradient_accumulation_steps=2)
        twin.on("EPOCH_COMPLETED")(lambda: other.run(batches(4, seed=5)))
        twin.run(max_epochs=3)

    compare(ignite, script, gradient_accumulation_steps=3)
