"""apex without a CUDA device: a recording stand-in for the module `apex.amp`. With one: `test_cuda`."""

import contextlib
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import distrain


class RecordingAmp(types.ModuleType):
    """Stands in for `apex.amp`: records the calls, scales the loss by 8 and unscales the gradients, as apex does."""

    scale = 8.0

    def __init__(self):
        super().__init__("apex.amp")
        self.calls = []
        self.loaded = None

    def initialize(self, models, optimizers, **options):
        self.calls.append(("initialize", models, optimizers, options))
        return models, optimizers

    @contextlib.contextmanager
    def scale_loss(self, loss, optimizer):
        self.calls.append(("scale_loss", loss.item()))
        kept = [None if p.grad is None else p.grad.clone() for g in optimizer.param_groups for p in g["params"]]
        optimizer.zero_grad()
        yield loss * self.scale
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad.div_(self.scale)
            if gradient is not None:
                parameter.grad.add_(gradient)

    def state_dict(self):
        return {"loss_scaler0": {"loss_scale": self.scale, "unskipped": 3}}

    def load_state_dict(self, state):
        self.loaded = state


@pytest.fixture
def fake_amp(monkeypatch):
    amp = RecordingAmp()
    apex = types.ModuleType("apex")
    apex.amp = amp
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.amp", amp)
    return amp


OFF = {"enabled": False}


def parts():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def batches(n=6):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)) for _ in range(n)]


def test_fake_prepare_initialises_everything_in_one_call(fake_amp):
    model, optimizer = parts()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    prepared = distrain.prepare(model, scheduler, optimizer, amp_mode="apex", opt_level="O2", amp_options=OFF)
    assert prepared == (model, scheduler, optimizer)
    assert fake_amp.calls == [("initialize", [model], [optimizer], {"opt_level": "O2", "enabled": False})]


def test_fake_prepare_hands_out_what_apex_returns(fake_amp):
    model, optimizer = parts()
    other = parts()
    fake_amp.initialize = lambda models, optimizers, **_: ([other[0]], [other[1]])
    assert distrain.prepare(optimizer, model, amp_mode="apex", amp_options=OFF) == (other[1], other[0])


@pytest.mark.parametrize("num_micro", [1, 3])
def test_fake_the_step_goes_through_scale_loss(fake_amp, num_micro):
    expected, optimizer = parts()
    distrain.create_supervised_trainer(
        expected, optimizer, mse_loss, gradient_accumulation_steps=num_micro, max_grad_norm=0.5
    ).run(batches())
    model, optimizer = parts()
    trainer = distrain.create_supervised_trainer(
        model, optimizer, mse_loss, amp_mode="apex", gradient_accumulation_steps=num_micro, max_grad_norm=0.5
    )
    losses = []
    trainer.add_event_handler(distrain.Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output))
    trainer.run(batches())
    assert fake_amp.calls == [("scale_loss", pytest.approx(loss / num_micro)) for loss in losses]
    assert torch.allclose(model.weight, expected.weight)


def test_fake_the_loss_scales_are_saved_and_restored(fake_amp, tmp_path):
    for _ in range(2):
        model, optimizer = parts()
        trainer = distrain.create_supervised_trainer(model, optimizer, mse_loss, amp_mode="apex")
        distrain.Checkpointer(directory=tmp_path).attach(trainer, model=model, optimizer=optimizer)
        trainer.run(batches())
    assert fake_amp.loaded == {"loss_scaler0": {"loss_scale": 8.0, "unskipped": 3}}


def test_fake_a_scaler_is_ignored_with_a_warning(fake_amp):
    model, optimizer = parts()
    with pytest.warns(UserWarning, match="scaler is ignored with amp_mode='apex'"):
        trainer = distrain.create_supervised_trainer(model, optimizer, mse_loss, amp_mode="apex", scaler=True)
    assert not hasattr(trainer.state, "scaler")
    trainer.run(batches(1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"opt_level": "02"}, ValueError, "opt_level is '02'; it must be one of 'O0', 'O1', 'O2', 'O3'"),
        ({}, ValueError, "apex computes on CUDA only, and Linear is on cpu"),
        ({"amp_mode": "apx"}, ValueError, "amp_mode is 'apx'; .*Did you mean apex"),
    ],
)
def test_fake_what_cannot_be_is_refused(fake_amp, options, error, message):
    with pytest.raises(error, match=message):
        distrain.prepare(*parts(), **{"amp_mode": "apex", **options})
    assert fake_amp.calls == []


def test_fake_a_wrapped_model_is_refused_before_apex_sees_it(fake_amp):
    with pytest.raises(ValueError, match=r"wrapped in DataParallel already.*apex's amp.initialize, could not"):
        distrain.prepare(nn.DataParallel(nn.Linear(2, 1)), amp_mode="apex", amp_options=OFF)
    assert fake_amp.calls == []


@pytest.mark.parametrize("installed", [False, True], ids=["no apex", "apex without amp"])
def test_without_apex_amp_it_is_said_where_to_get_it(monkeypatch, installed):
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex") if installed else None)
    message = r"install apex from .*last release that has apex\.amp is tag 25\.05"
    with pytest.raises(ModuleNotFoundError, match=message):
        distrain.prepare(*parts(), amp_mode="apex", amp_options=OFF)
    with pytest.raises(ModuleNotFoundError, match=message):
        distrain.create_supervised_trainer(*parts(), mse_loss, amp_mode="apex")
