import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import distrain
from distrain import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from distrain.training import detached_loss

SPECIFICATION = [
    "model",
    "optimizer",
    "loss_fn",
    "device",
    "non_blocking",
    "prepare_batch",
    "output_transform",
    "deterministic",
    "amp_mode",
    "scaler",
    "gradient_accumulation_steps",
]

EXTRAS = [
    "model_transform",
    "model_fn",
    "amp_dtype",
    "max_grad_norm",
    "accumulation_tail",
    "nonfinite_loss",
    "set_to_none",
]


def parts(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def batches(n=6, size=4):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator)) for _ in range(n)]


def test_the_signature_is_the_specifications():
    parameters = inspect.signature(create_supervised_trainer).parameters
    assert [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == SPECIFICATION
    assert [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY] == EXTRAS


@pytest.mark.parametrize("num_micro", [1, 3])
@pytest.mark.parametrize("amp", [False, True])
def test_it_trains_as_the_loop_written_by_hand(num_micro, amp):
    data = batches()
    model, optimizer = parts()
    losses = []
    for i, (x, y) in enumerate(data, 1):
        with torch.autocast("cpu", enabled=amp):
            loss = mse_loss(model(x), y)
        losses.append(loss.item())
        (loss / num_micro).backward()
        if i % num_micro == 0:
            optimizer.step()
            optimizer.zero_grad()
    expected = [p.clone() for p in model.parameters()]

    model, optimizer = parts()
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, amp_mode="amp" if amp else None, gradient_accumulation_steps=num_micro
    )
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(trainer.state.output))
    trainer.run(data)
    assert seen == pytest.approx(losses, abs=0)
    assert all(torch.equal(a, b) for a, b in zip(expected, model.parameters(), strict=True))


def test_gradients_stay_until_the_next_window():
    model, optimizer = parts()
    trainer = create_supervised_trainer(model, optimizer, mse_loss, gradient_accumulation_steps=2)
    norms = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: norms.append(model.weight.grad.norm().item()))
    trainer.run(batches(4))
    assert all(norm > 0 for norm in norms)


def test_the_scaler_is_in_the_state_and_is_used():
    model, optimizer = parts()
    trainer = create_supervised_trainer(model, optimizer, mse_loss, amp_mode="amp", scaler=True)
    assert trainer.state.scaler.get_scale() == 65536
    trainer.run(batches(2))
    assert trainer.state.scaler.state_dict()["_growth_tracker"] == 2
    own = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer = create_supervised_trainer(model, optimizer, mse_loss, amp_mode="amp", scaler=own)
    assert trainer.state.scaler is own
    assert not hasattr(create_supervised_trainer(model, optimizer, mse_loss).state, "scaler")


def test_transforms_and_model_fn_are_called_with_what_is_promised():
    model, optimizer = parts()
    trainer = create_supervised_trainer(
        model,
        optimizer,
        mse_loss,
        output_transform=lambda x, y, y_pred, loss: (x, y, y_pred, loss),
        model_fn=lambda model, x: {"out": model(x)},
        model_transform=lambda output: output["out"],
    )
    data = batches(1)
    x, y, y_pred, loss = trainer.run(data).output
    assert x is data[0][0]
    assert y is data[0][1]
    assert y_pred.shape == (4, 1)
    assert loss.requires_grad


def test_the_detached_output_does_not_wait_for_the_device(monkeypatch):
    model, optimizer = parts()
    trainer = create_supervised_trainer(model, optimizer, mse_loss, output_transform=detached_loss)

    def refuse(*args):
        raise AssertionError("a host sync in the step")

    for name in ("item", "cpu", "tolist", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    output = trainer.run(batches(3)).output
    assert output.shape == ()
    assert not output.requires_grad


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amp_mode": "bf16"}, ValueError, "amp_mode is 'bf16'; it must be None or one of 'amp', 'apex'"),
        ({"amp_mode": "apx"}, ValueError, "Did you mean apex"),
        ({"amp_mode": "amp", "device": "mps"}, ValueError, "amp_mode cannot be used with mps device"),
        ({"device": "xla"}, RuntimeError, "In order to run on TPU, please install PyTorch XLA"),
        ({"scaler": True}, ValueError, "scaler argument is True, but amp_mode is None"),
        ({"scaler": "yes", "amp_mode": "amp"}, TypeError, "scaler is 'yes'; it must be True, False or a torch.amp."),
        ({"gradient_accumulation_steps": 0}, ValueError, "must be strictly positive"),
        ({"gradient_accumulation_steps": -1}, ValueError, "must be strictly positive"),
        ({"amp_mode": "apex"}, ModuleNotFoundError, "Please install apex from https://github.com/nvidia/apex.*25.05"),
        ({"amp_mode": "amp", "amp_dtype": "fp16"}, ValueError, "amp_dtype is 'fp16'; .* one of 'float16', 'bfloat16'"),
        ({"amp_mode": "amp", "amp_dtype": torch.float32}, ValueError, "amp_dtype is torch.float32"),
        ({"amp_dtype": "float16"}, ValueError, "amp_dtype is torch.float16, but amp_mode is None"),
        ({"max_grad_norm": 0}, ValueError, "max_grad_norm is 0; it must be a number above 0"),
        ({"max_grad_norm": float("nan")}, ValueError, "max_grad_norm is nan"),
        ({"nonfinite_loss": "rase"}, ValueError, "nonfinite_loss is 'rase'; .*Did you mean raise"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        create_supervised_trainer(*parts(), mse_loss, **options)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda model, optimizer: (optimizer, model, mse_loss), "optimizer is of type Linear; it must have a step()"),
        (lambda model, optimizer: (model, None, mse_loss), "optimizer is None; it must have a step()"),
        (lambda model, optimizer: (model, optimizer, "mse"), "loss_fn is 'mse'; it must be callable"),
    ],
)
def test_parts_in_another_order_are_refused(parts, message):
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=re.escape(message)):
        create_supervised_trainer(*parts(model, torch.optim.SGD(model.parameters(), lr=0.1)))


def test_a_device_that_torch_does_not_know_is_refused():
    with pytest.raises(ValueError, match="torch knows no device 'gpu'; give one such as"):
        create_supervised_evaluator(nn.Linear(2, 1), device="gpu")


def test_a_deterministic_trainer_is_a_deterministic_engine():
    from distrain import DeterministicEngine

    assert isinstance(create_supervised_trainer(*parts(), mse_loss, deterministic=True), DeterministicEngine)


@pytest.mark.parametrize("amp_mode", [None, "amp"])
def test_the_evaluator_evaluates(amp_mode):
    class Metric:
        def attach(self, engine, name):
            engine.add_event_handler(Events.COMPLETED, lambda: engine.state.metrics.update({name: 1}))

    model = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.9)).train()
    evaluator = create_supervised_evaluator(model, {"m": Metric()}, amp_mode=amp_mode)
    data = batches(1)
    state = evaluator.run(data)
    y_pred, y = state.output
    assert isinstance(evaluator, Engine)
    assert y is data[0][1]
    assert not y_pred.requires_grad
    assert torch.allclose(y_pred.float(), model[0](data[0][0]), atol=0.05)
    assert state.metrics == {"m": 1}
    with pytest.raises(ValueError, match="one of 'amp', 'apex'"):
        create_supervised_evaluator(model, amp_mode="x")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["accuracy"], "metrics is of type list; it must be a dict of metrics by their names"),
        ({"accuracy": mse_loss}, r"metrics\['accuracy'\] is of type function; it must have an attach"),
    ],
)
def test_metrics_that_are_none_are_refused(metrics, message):
    with pytest.raises(TypeError, match=message):
        create_supervised_evaluator(nn.Linear(2, 1), metrics)


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "bfloat16", torch.bfloat16, None])
def test_amp_computes_in_the_type_asked_for(dtype):
    model, optimizer = parts()
    seen = []
    options = {"amp_mode": "amp", "amp_dtype": dtype}
    create_supervised_trainer(
        model,
        optimizer,
        lambda y_pred, y: seen.append(y_pred.dtype) or mse_loss(y_pred, y),
        output_transform=lambda x, y, y_pred, loss: seen.append(loss.dtype),
        **options,
    ).run(batches(1))
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.bfloat16
    assert seen == [expected, torch.float32]
    assert create_supervised_evaluator(model, **options).run(batches(1)).output[0].dtype == expected
    assert model.weight.dtype == model.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"amp_mode": "amp", "scaler": True}], ids=["plain", "scaler"])
def test_clipping_is_by_the_norm_of_the_unscaled_mean_gradient(options):
    data = batches(2)
    model, optimizer = parts()
    with torch.autocast("cpu", enabled=bool(options)):
        loss = (mse_loss(model(data[0][0]), data[0][1]) + mse_loss(model(data[1][0]), data[1][1])) / 2
    loss.backward()
    norm = torch.sqrt(model.weight.grad.pow(2).sum() + model.bias.grad.pow(2).sum())
    before = [p.detach().clone() for p in model.parameters()]
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, gradient_accumulation_steps=2, max_grad_norm=norm.item() / 4, **options
    )
    assert trainer.state.grad_norm is None
    trainer.run(data)
    assert isinstance(trainer.state.grad_norm, torch.Tensor)
    assert trainer.state.grad_norm.item() == pytest.approx(norm.item(), rel=2e-2 if options else 1e-6)
    moved = torch.sqrt(sum((p - q).pow(2).sum() for p, q in zip(model.parameters(), before, strict=True)))
    assert moved.item() == pytest.approx(0.1 * norm.item() / 4, rel=1e-4)


def test_an_infinite_max_norm_only_measures():
    model, optimizer = parts()
    expected, expected_optimizer = parts()
    create_supervised_trainer(expected, expected_optimizer, mse_loss).run(batches())
    trainer = create_supervised_trainer(model, optimizer, mse_loss, max_grad_norm=float("inf"))
    trainer.run(batches())
    assert torch.equal(model.weight, expected.weight)
    assert trainer.state.grad_norm > 0


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_begin_a_window_as_none_or_as_zeros(set_to_none):
    model, optimizer = parts()
    trainer = create_supervised_trainer(model, optimizer, mse_loss, set_to_none=set_to_none)
    trainer.run(batches(1))
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(model.weight.grad))
    trainer.run(batches(1))
    if set_to_none:
        assert seen == [None]
    else:
        # The very tensor that later takes the gradient, so what it was is seen in its sharing only.
        assert seen[0] is model.weight.grad


def test_learning_rate_schedulers_find_the_optimizers_step():
    model, optimizer = parts()
    trainer = create_supervised_trainer(model, optimizer, mse_loss)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: scheduler.step())  # noqa: PLW0108  # it takes an epoch
    trainer.run(batches(2))
    assert scheduler.get_last_lr() == pytest.approx([0.001])


def test_the_steps_run_on_an_engine_of_ones_own():
    data = batches()
    expected, optimizer = parts()
    create_supervised_trainer(expected, optimizer, mse_loss, gradient_accumulation_steps=2).run(data)
    model, optimizer = parts()
    step = distrain.supervised_training_step(model, optimizer, mse_loss, gradient_accumulation_steps=2)
    Engine(step).run(data)
    assert torch.equal(model.weight, expected.weight)


def test_a_compiled_model_trains_as_the_plain_one():
    expected, optimizer = parts()
    create_supervised_trainer(expected, optimizer, mse_loss).run(batches())
    model, optimizer = parts()
    compiled = torch.compile(model, backend="eager")
    create_supervised_trainer(compiled, optimizer, mse_loss).run(batches())
    assert torch.allclose(model.weight, expected.weight)


def test_modules_stay_small():
    folder = Path(inspect.getfile(create_supervised_trainer)).parent
    long = {path.name: n for path in folder.glob("*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}
