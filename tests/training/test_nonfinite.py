import logging
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from distrain import Events, create_supervised_trainer
from distrain.errors import DistrainError, NonFiniteLossError


def run(bad_iterations, policy, *, value=math.nan, num_micro=1, num=6, **options):
    """Train; return the iterations at which the optimizer stepped, and the trainer."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = [(torch.randn(4, 3), torch.full((4, 1), value if i in bad_iterations else 0.0)) for i in range(1, num + 1)]
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, nonfinite_loss=policy, gradient_accumulation_steps=num_micro, **options
    )
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(trainer.state.iteration))
    trainer.run(data)
    return steps, trainer, model


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("num_micro", "expected"), [(1, [1, 3, 4, 6]), (2, [4]), (3, [])])
def test_skip_leaves_out_the_step_of_the_whole_window(value, num_micro, expected, caplog):
    steps, _, model = run({2, 5}, "skip", value=value, num_micro=num_micro)
    assert steps == expected
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 2
    assert warned[0].startswith("The loss of iteration 2 is not finite. The optimizer's step of iteration")


def test_a_dropped_window_does_not_spoil_the_next():
    steps, trainer, _ = run({7}, "raise", num_micro=3, num=7, accumulation_tail="drop")
    assert steps == [3, 6]
    trainer.run([(torch.ones(4, 3), torch.zeros(4, 1))], max_epochs=2)
    assert steps == [3, 6, 10, 13]


def test_skip_leaves_the_scale_as_it_is():
    steps, trainer, _ = run({2}, "skip", num=3, amp_mode="amp", scaler=True)
    assert steps == [1, 3]
    assert trainer.state.scaler.get_scale() == 65536
    assert trainer.state.scaler.state_dict()["_growth_tracker"] == 2


def test_ignore_trains_on():
    steps, _, model = run({2}, "ignore")
    assert steps == [1, 2, 3, 4, 5, 6]
    assert model.weight.isnan().all()


@pytest.mark.parametrize("num_micro", [1, 3])
def test_raise_names_the_iteration_and_leaves_the_weights_alone(num_micro):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, nonfinite_loss="raise", gradient_accumulation_steps=num_micro
    )
    before = {}
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: before.update(model.state_dict()))
    data = [(torch.ones(4, 3), torch.full((4, 1), math.nan if i == 4 else 0.0)) for i in range(6)]
    with pytest.raises(NonFiniteLossError, match=r"The loss of iteration 5 is not finite\. No rank has stepped"):
        trainer.run(data)
    assert trainer.state.iteration == (5 if num_micro == 1 else 6)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert issubclass(NonFiniteLossError, DistrainError)
    assert issubclass(NonFiniteLossError, ArithmeticError)


def test_only_the_decision_waits_for_the_device(monkeypatch):
    synced = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: synced.append(self.shape) or tolist(self))

    def refuse(*_):
        raise AssertionError("a host sync in the step")

    for name in ("item", "cpu", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    run((), "skip", num_micro=3, output_transform=lambda x, y, y_pred, loss: loss.detach())
    assert synced == [(1,), (1,)]
