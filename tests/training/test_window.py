import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import distrain
from distrain import Engine, Events, State, create_supervised_trainer, supervised_training_step
from distrain.errors import CheckpointError
from distrain.training.window import AccumulationWindow

pytestmark = pytest.mark.filterwarnings("ignore:The run goes on inside an epoch")  # all batches are the same


class Unsized:
    """Data that does not tell its length."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def batches(n=7, size=4):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator)) for _ in range(n)]


def setting(num_micro=3, tail="carry", **options):
    """Return a trainer, its model, and what its optimizer saw: iteration -> gradient at each step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, gradient_accumulation_steps=num_micro, accumulation_tail=tail, **options
    )
    steps = {}
    optimizer.register_step_pre_hook(lambda *_: steps.update({trainer.state.iteration: model.weight.grad.clone()}))
    return trainer, model, steps


def mean_gradient(model, data):
    """The gradient of the mean loss over these batches, each weighing the same."""
    loss = torch.stack([mse_loss(model(x), y) for x, y in data]).mean()
    return torch.autograd.grad(loss, model.weight)[0]


@pytest.mark.parametrize("wrap", [list, Unsized], ids=["sized", "unsized"])
@pytest.mark.parametrize(
    ("tail", "expected"),
    [("carry", [3, 6, 9, 12]), ("flush", [3, 6, 7, 10, 13, 14]), ("drop", [3, 6, 10, 13])],
)
def test_a_tail_is_carried_flushed_or_dropped(tail, expected, wrap):
    trainer, _, steps = setting(tail=tail)
    trainer.run(wrap(batches()), max_epochs=2)
    assert list(steps) == expected


@pytest.mark.parametrize("wrap", [list, Unsized], ids=["sized", "unsized"])
@pytest.mark.parametrize("num", [4, 5])
def test_a_flushed_tail_steps_with_the_mean_of_what_it_holds(wrap, num):
    trainer, model, steps = setting(tail="flush")
    data = batches(num)
    expected = {}
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=3), lambda: expected.update(tail=mean_gradient(model, data[3:]))
    )
    trainer.run(wrap(data))
    assert list(steps) == [3, num]
    assert torch.allclose(steps[num], expected["tail"])


def test_a_known_tail_is_flushed_inside_its_last_iteration():
    trainer, _, steps = setting(tail="flush")
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: seen.append(list(steps)))
    trainer.run(batches(4))
    assert seen == [[3, 4]]


def test_max_iters_ends_a_flushed_run_with_a_step():
    trainer, _, steps = setting(tail="flush")
    trainer.run(batches(7), max_iters=11)
    assert list(steps) == [3, 6, 7, 10, 11]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("tail", "expected"), [("flush", [3, 5, 8, 11]), ("drop", [3, 8, 11])])
def test_an_epoch_that_a_handler_ends_has_a_tail_too(tail, expected, skip):
    trainer, _, steps = setting(tail=tail)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: trainer.terminate_epoch(skip))
    trainer.run(batches(6), max_epochs=2)
    assert list(steps) == expected


def test_a_run_that_is_terminated_keeps_its_window_and_goes_on_with_it():
    trainer, model, steps = setting(tail="flush")
    data = batches(6)
    expected = mean_gradient(model, data[:3])
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.terminate)
    trainer.run(data)
    assert (list(steps), trainer.state.accumulation.held) == ([], 2)
    state = {**trainer.state_dict(), "max_epochs": 1}
    trainer.load_state_dict(state)
    trainer.run([data[2], *data[:5]], epoch_length=6)
    assert torch.allclose(steps[3], expected)


def test_a_new_run_does_not_take_the_gradients_that_the_last_one_left():
    data = batches(4)
    trainer, _, steps = setting(tail="carry")
    trainer.run(data)
    assert trainer.state.accumulation.held == 1
    first = steps[3].clone()
    trainer, model, steps = setting(tail="carry")
    trainer.run(data)
    with torch.no_grad():
        model.load_state_dict(setting()[1].state_dict())
    trainer.run(data)
    assert torch.equal(steps[3], first)


@pytest.mark.parametrize("done", [4, 5])
def test_a_window_resumed_without_its_gradients_is_the_mean_of_what_it_holds(done):
    trainer, model, steps = setting()
    data = batches(7)
    trainer.load_state_dict({"iteration": done, "epoch_length": 7, "max_epochs": 1})
    expected = mean_gradient(model, data[: 6 - done])
    trainer.run(data)
    assert list(steps) == [6]
    assert torch.allclose(steps[6], expected)


@pytest.mark.parametrize("tail", ["flush", "drop"])
def test_a_window_does_not_go_on_into_the_next_epoch_of_a_run_terminated_at_an_epochs_end(tmp_path, tail):
    """The end of the epoch is not fired then: the checkpoint is of the iteration."""

    def run(folder, stop_at=None):
        trainer, model, steps = setting(tail=tail)
        distrain.Checkpointer(directory=folder).attach(trainer, model=model)
        if stop_at is not None:
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), trainer.terminate, skip_completed=False)
        trainer.run(batches(1) * 7, max_epochs=2)
        return model.weight.detach(), list(steps)

    whole, steps = run(tmp_path / "whole")
    _, before = run(tmp_path / "cut", stop_at=7)
    again, after = run(tmp_path / "cut")
    assert before + after == steps
    assert torch.equal(again, whole)


@pytest.mark.parametrize(("tail", "expected"), [("flush", [3, 6, 7, 10, 13, 14]), ("drop", [3, 6, 10, 13])])
@pytest.mark.parametrize("whose", ["ours", "ignite's"])
def test_a_step_alone_knows_the_tail_of_an_epoch_of_known_length(ignite, whose, tail, expected):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = supervised_training_step(model, optimizer, mse_loss, gradient_accumulation_steps=3, accumulation_tail=tail)
    engine = (Engine if whose == "ours" else ignite.Engine)(step)
    steps = []
    optimizer.register_step_pre_hook(lambda *_: steps.append(engine.state.iteration))
    engine.run(batches(), max_epochs=2)
    assert steps == expected


def test_a_step_alone_says_what_flushes_the_tail_of_an_epoch_of_unknown_length():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = supervised_training_step(
        model, optimizer, mse_loss, gradient_accumulation_steps=3, accumulation_tail="flush"
    )
    with pytest.warns(RuntimeWarning, match=r"epoch 1 .* 1 micro-batches .* not used.*EPOCH_COMPLETED, step.end_epoch"):
        Engine(step).run(Unsized(batches()), max_epochs=2)
    engine, steps = Engine(step), []
    optimizer.register_step_pre_hook(lambda *_: steps.append(engine.state.iteration))
    engine.add_event_handler(Events.EPOCH_COMPLETED, step.end_epoch)
    engine.run(Unsized(batches()), max_epochs=2)
    assert steps == [3, 6, 7, 10, 13, 14]


class StopError(Exception):
    pass


def run_until(folder, stop_at=None, **options):
    """Run, or go on with, two epochs of seven equal batches; return the weights, the losses and the steps."""
    trainer, model, steps = setting(max_grad_norm=1.0, **options)
    distrain.Checkpointer(every=1, directory=folder).attach(trainer, model=model)
    losses = {}

    @trainer.on(Events.ITERATION_COMPLETED)
    def follow():
        losses[trainer.state.iteration] = trainer.state.output
        if trainer.state.iteration == stop_at:
            raise StopError

    with pytest.raises(StopError) if stop_at else contextlib.nullcontext():
        trainer.run(batches(1) * 7, max_epochs=2)
    return model.weight.detach(), losses, steps


@pytest.mark.parametrize("options", [{}, {"amp_mode": "amp", "scaler": True}], ids=["plain", "amp"])
@pytest.mark.parametrize("tail", ["carry", "flush", "drop"])
@pytest.mark.parametrize("stop_at", [2, 3, 4, 9, 12])
def test_a_run_stopped_inside_a_window_goes_on_with_its_gradients(tmp_path, tail, stop_at, options):
    options = {"tail": tail, **options}
    weight, losses, steps = run_until(tmp_path / "whole", **options)
    _, losses_before, steps_before = run_until(tmp_path / "cut", stop_at, **options)
    again, losses_after, steps_after = run_until(tmp_path / "cut", **options)
    assert {**losses_before, **losses_after} == losses
    assert torch.equal(again, weight)
    assert [*steps_before, *(i for i in steps_after if i not in steps_before)] == list(steps)
    assert all(torch.equal(gradient, steps[i]) for i, gradient in {**steps_before, **steps_after}.items())


def test_a_checkpoint_between_windows_holds_no_gradients(tmp_path):
    run_until(tmp_path, 5)
    holds = {
        path.name: bool(torch.load(path / "state.pt", weights_only=True)["windows"]) for path in tmp_path.glob("step-*")
    }
    assert holds == {"step-00000002": True, "step-00000003": False, "step-00000004": True}


def test_a_checkpoint_inside_a_window_warns_a_trainer_that_has_none(tmp_path):
    run_until(tmp_path, 3)
    (tmp_path / "step-00000002").rename(tmp_path / "kept")
    for path in tmp_path.glob("step-*"):
        (path / "state.pt").unlink()
        (path / "meta.json").unlink()
        path.rmdir()
    (tmp_path / "kept").rename(tmp_path / "step-00000002")
    with pytest.warns(RuntimeWarning, match="gradients of 2 micro-batches on 1 ranks, and this trainer accumulates"):
        run_until(tmp_path, num_micro=1)


def at(iteration):
    return State(iteration=iteration, epoch=1)


def one_window(num_micro, sizes=(3,)):
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    return AccumulationWindow(torch.optim.SGD(parameters, lr=1.0), num_micro), parameters


def test_a_saved_window_of_another_size_keeps_its_mean():
    saved, parameters = one_window(4)
    parameters[0].grad = torch.full((3,), 2.0)  # two micro-batches of gradient 4, each divided by 4
    saved.add(at(1))
    saved.add(at(2))
    window, parameters = one_window(8)
    window.load_state_dict(saved.state_dict())
    assert window.held == 2
    assert torch.equal(parameters[0].grad, torch.full((3,), 1.0))
    assert not window.opens(at(3))
    window.load_state_dict(saved.state_dict())
    assert window.opens(at(5))


def test_a_saved_window_that_does_not_fit_is_refused():
    saved, parameters = one_window(4)
    parameters[0].grad = torch.ones(3)
    saved.add(at(1))
    for sizes in ((3, 3), (2,)):
        window, _ = one_window(4, sizes)
        with pytest.raises(CheckpointError, match="do not fit the"):
            window.load_state_dict(saved.state_dict())


def test_the_saved_gradients_are_copies():
    window, parameters = one_window(2)
    parameters[0].grad = torch.ones(3)
    window.add(at(1))
    state = window.state_dict()
    parameters[0].grad.zero_()
    assert torch.equal(state["gradients"][0], torch.ones(3))
    window.load_state_dict(state)
    parameters[0].grad.zero_()
    assert torch.equal(state["gradients"][0], torch.ones(3))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"accumulation_tail": "flsh"}, ValueError, "accumulation_tail is 'flsh'; it must be one of 'carry', 'flush'"),
        ({"accumulation_tail": "flsh"}, ValueError, "Did you mean flush"),
        ({"gradient_accumulation_steps": 2.0}, TypeError, "gradient_accumulation_steps is 2.0"),
        ({"gradient_accumulation_steps": True}, TypeError, "gradient_accumulation_steps is True"),
        ({"gradient_accumulation_steps": "2"}, TypeError, "gradient_accumulation_steps is '2'; it must be a whole"),
        ({"gradient_accumulation_steps": None}, TypeError, "gradient_accumulation_steps is None"),
        ({"gradient_accumulation_steps": np.int64(0)}, ValueError, "must be strictly positive"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    model = nn.Linear(3, 1)
    with pytest.raises(error, match=message):
        create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), mse_loss, **options)


def test_numbers_of_numpy_are_numbers():
    trainer, _, steps = setting(np.int64(2), max_grad_norm=np.float32(1))
    trainer.run(batches(4))
    assert list(steps) == [2, 4]
