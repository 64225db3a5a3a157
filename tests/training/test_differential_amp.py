"""Mixed precision: our trainer beside the loop written by hand, and beside ignite's step.

ignite's autocast is for CUDA only. Here its step runs under the region of the CPU, put in its place; what surrounds the
region is its own.
"""

import contextlib
import sys
import types

import pytest
import torch
from torch.nn.functional import mse_loss

import distrain
from tests.training.twins import MODELS, OPTIMIZERS, Twin, batches, compare, require_same

DTYPES = [torch.bfloat16, torch.float16]
SCALES = {"none": None, "small": 8.0, "default": 2.0**16, "too large": 2.0**40}


def multiplied(y_pred, y):
    """A loss that is another one outside the autocast region, where products are not rounded."""
    return mse_loss(y_pred @ torch.full((1, 2), 0.3), y @ torch.full((1, 2), 0.3))


def scaler_of(scale):
    return None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)


def trained_by_hand(model, optimizer, data, *, num_micro, dtype, scale, loss_fn):
    """Train a model by a plain loop; return model, scaler and losses."""
    torch.manual_seed(0)
    model = MODELS[model]()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    scaler, losses = scaler_of(scale), []
    model.train()
    for i, (x, y) in enumerate(data, 1):
        if (i - 1) % num_micro == 0:
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = loss_fn(model(x), y)
        losses.append(loss.item())
        part = loss / num_micro
        (part if scaler is None else scaler.scale(part)).backward()
        if i % num_micro == 0:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
    return model, optimizer, scaler, losses


@pytest.mark.parametrize("scale", sorted(SCALES))
@pytest.mark.parametrize("num_micro", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("model", "optimizer"), [("mlp", "momentum"), ("batch norm", "adamw"), ("dropout", "two groups")]
)
def test_beside_the_loop_written_by_hand(model, optimizer, dtype, num_micro, scale):
    data, loss_fn = batches(7), multiplied if model == "mlp" else mse_loss
    by_hand = trained_by_hand(
        model, optimizer, data, num_micro=num_micro, dtype=dtype, scale=SCALES[scale], loss_fn=loss_fn
    )
    twin = Twin(
        distrain,
        model=model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        amp_mode="amp",
        amp_dtype=dtype,
        scaler=scaler_of(SCALES[scale]) or False,
        gradient_accumulation_steps=num_micro,
    )
    losses = []
    twin.on("ITERATION_COMPLETED")(lambda: losses.append(twin.trainer.state.output))
    twin.trainer.run(data)
    require_same(losses, by_hand[3])
    require_same(dict(twin.model.state_dict()), dict(by_hand[0].state_dict()))
    require_same(twin.optimizer.state_dict(), by_hand[1].state_dict())
    if scale != "none":
        require_same(twin.trainer.state.scaler.state_dict(), by_hand[2].state_dict())


@pytest.mark.parametrize("num_micro", [1, 2])
def test_a_new_scaler_is_the_default_one(num_micro):
    by_hand = trained_by_hand(
        "mlp", "adam", batches(), num_micro=num_micro, dtype=None, scale=2.0**16, loss_fn=mse_loss
    )
    twin = Twin(distrain, optimizer="adam", amp_mode="amp", scaler=True, gradient_accumulation_steps=num_micro)
    twin.trainer.run(batches())
    require_same(dict(twin.model.state_dict()), dict(by_hand[0].state_dict()))


def test_a_scale_that_is_too_large_keeps_the_weights_and_shrinks():
    twin = Twin(distrain, amp_mode="amp", amp_dtype=torch.float16, scaler=scaler_of(2.0**40))
    before = twin.learnt()["weights"]
    twin.trainer.run(batches(5))
    require_same(twin.learnt()["weights"], before)
    assert twin.trainer.state.scaler.get_scale() == 2.0**35


@contextlib.contextmanager
def autocast_of_the_cpu():
    """Give the CPU's autocast region to who asks for CUDA's."""

    class OfTheCpu(torch.amp.autocast):
        def __init__(self, device_type, enabled):
            assert (device_type, enabled) == ("cuda", True)
            super().__init__("cpu")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.amp, "autocast", OfTheCpu)
        yield


@pytest.mark.parametrize("scale", sorted(SCALES))
@pytest.mark.parametrize("num_micro", [1, 2, 5])
@pytest.mark.parametrize("model", ["mlp", "batch norm", "dropout", "tied"])
def test_beside_the_step_of_ignite(ignite, model, num_micro, scale):
    scalers = {}

    def make(api, *args, **options):
        scalers[api] = scaler_of(SCALES[scale])
        with contextlib.nullcontext() if api is distrain else autocast_of_the_cpu():
            return api.create_supervised_trainer(*args, scaler=scalers[api] or False, **options)

    def script(twin):
        if scale != "none":
            twin.on("ITERATION_COMPLETED")(lambda: twin.trace.append(scalers[twin.api].state_dict()))
        twin.run(max_epochs=2)
        twin.run(max_epochs=3)

    compare(
        ignite,
        script,
        model=model,
        make=make,
        loss_fn=multiplied,
        amp_mode="amp",
        output_transform=lambda x, y, y_pred, loss: (y_pred.detach(), loss.item()),
        gradient_accumulation_steps=num_micro,
    )


@pytest.mark.parametrize("options", ["nothing", "model_transform", "model_fn"])
def test_the_evaluation_beside_ignites(ignite, options):
    """The parts of the model are inside the region on both."""
    given = {
        "nothing": {},
        "model_transform": {"model_transform": lambda output: output @ torch.ones(1, 2)},
        "model_fn": {"model_fn": lambda model, x: model(x) @ torch.ones(1, 2)},
    }[options]
    outputs = []
    for api in (distrain, ignite):
        torch.manual_seed(0)
        model = MODELS["dropout"]()
        with contextlib.nullcontext() if api is distrain else autocast_of_the_cpu():
            evaluator = api.create_supervised_evaluator(model, amp_mode="amp", **given)
        outputs.append(evaluator.run(batches(2)).output)
    require_same(*outputs)
    assert outputs[0][0].dtype == torch.bfloat16


class Apex(types.ModuleType):
    """Stands in for `apex.amp`: scales the loss by 8 and unscales the gradients, and records both."""

    def __init__(self):
        super().__init__("apex.amp")
        self.calls = []

    @contextlib.contextmanager
    def scale_loss(self, loss, optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        optimizer.zero_grad()
        yield loss * 8
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad.div_(8)
            if gradient is not None:
                parameter.grad.add_(gradient)
        self.calls.append((loss.item(), len(parameters)))


@pytest.mark.parametrize("num_micro", [1, 2, 3])
def test_fake_apex_is_used_as_ignite_uses_it(ignite, monkeypatch, num_micro):
    apex = types.ModuleType("apex")
    apex.amp = Apex()
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.amp", apex.amp)

    def script(twin):
        apex.amp.calls.clear()
        twin.run(max_epochs=2)
        twin.trace.append(list(apex.amp.calls))

    trace = compare(ignite, script, amp_mode="apex", gradient_accumulation_steps=num_micro)
    assert len(trace[-1]) == 12
