"""The trainer on a CUDA device: `pytest -m gpu`."""

import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import distrain
from distrain import Events, create_supervised_evaluator, create_supervised_trainer
from tests.support.real_parts import missing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:The run goes on inside an epoch"),  # all batches are the same
]


@pytest.fixture(autouse=True)
def cuda():
    if not torch.cuda.is_available():
        missing("torch sees no CUDA device")


def parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1)).cuda()
    return model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


def batches(n=6, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, generator=generator).to(device), torch.randn(8, 1, generator=generator).to(device))
        for _ in range(n)
    ]


@contextlib.contextmanager
def waits_are_errors():
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls it a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


OPTIONS = {
    "plain": {},
    "amp": {"amp_mode": "amp"},
    "bfloat16": {"amp_mode": "amp", "amp_dtype": "bfloat16"},
    "scaler": {"amp_mode": "amp", "scaler": True},
}


@pytest.mark.parametrize("num_micro", [1, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_trains_as_the_loop_written_by_hand(options, num_micro):
    amp = bool(options)
    dtype = torch.bfloat16 if "amp_dtype" in options else torch.float16
    scaler = torch.amp.GradScaler("cuda", enabled="scaler" in options)
    model, optimizer = parts()
    losses = []
    for i, (x, y) in enumerate(batches(device="cuda"), 1):
        with torch.autocast("cuda", dtype=dtype, enabled=amp):
            loss = mse_loss(model(x), y)
        losses.append(loss.item())
        scaler.scale(loss / num_micro).backward()
        if i % num_micro == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    expected = [p.clone() for p in model.parameters()]

    model, optimizer = parts()
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, device="cuda", non_blocking=True, gradient_accumulation_steps=num_micro, **options
    )
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(trainer.state.output))
    trainer.run(batches())
    assert seen == losses
    assert all(torch.equal(a, b) for a, b in zip(expected, model.parameters(), strict=True))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_no_step_waits_for_the_device(options):
    model, optimizer = parts()
    trainer = create_supervised_trainer(
        model,
        optimizer,
        mse_loss,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        output_transform=distrain.detached_loss,
        **options,
    )
    data = batches(12, "cuda")
    trainer.run(data[:2])
    with waits_are_errors():
        output = trainer.run(data).output
    assert output.is_cuda
    assert torch.isfinite(output)
    assert torch.isfinite(trainer.state.grad_norm)


def test_the_default_output_waits_so_the_guard_above_can_fail():
    model, optimizer = parts()
    trainer = create_supervised_trainer(model, optimizer, mse_loss)
    data = batches(1, "cuda")
    with waits_are_errors(), pytest.raises(RuntimeError, match="synchroniz"):
        trainer.run(data)


def test_the_evaluator_computes_in_the_type_asked_for():
    model, _ = parts()
    for options, dtype in ((OPTIONS["amp"], torch.float16), (OPTIONS["bfloat16"], torch.bfloat16)):
        y_pred, y = create_supervised_evaluator(model, device="cuda", **options).run(batches(1)).output
        assert (y_pred.dtype, y_pred.is_cuda, y.is_cuda) == (dtype, True, True)


@pytest.mark.parametrize("stop_at", [2, 4, 5])
def test_a_run_stopped_inside_a_window_goes_on_exactly(tmp_path, stop_at):
    def run(folder, stop=None):
        model, optimizer = parts()
        trainer = create_supervised_trainer(
            model, optimizer, mse_loss, amp_mode="amp", scaler=True, gradient_accumulation_steps=3
        )
        distrain.Checkpointer(every=1, directory=folder).attach(trainer, model=model, optimizer=optimizer)
        losses = {}

        @trainer.on(Events.ITERATION_COMPLETED)
        def follow():
            losses[trainer.state.iteration] = trainer.state.output
            if trainer.state.iteration == stop:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            trainer.run(batches(1, "cuda") * 6)
        return model, losses

    model, losses = run(tmp_path / "whole")
    _, before = run(tmp_path / "cut", stop_at)
    again, after = run(tmp_path / "cut")
    assert {**before, **after} == losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_deterministic_trainer_saves_every_devices_random_state():
    trainer = create_supervised_trainer(*parts(), mse_loss, device="cuda", deterministic=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of operations that have no deterministic form
        trainer.run(batches())
    assert len(trainer.state_dict()["rng_states"]["cuda"]) == torch.cuda.device_count()
    torch.use_deterministic_algorithms(mode=False)


def test_a_checkpoint_holds_every_devices_random_state(tmp_path):
    trainer = create_supervised_trainer(*parts(), mse_loss, device="cuda")
    distrain.Checkpointer(directory=tmp_path).attach(trainer)
    trainer.run(batches(2))
    (saved,) = torch.load(tmp_path / "step-00000002" / "state.pt", weights_only=True)["random"]
    assert len(saved["cuda"]) == torch.cuda.device_count()


def loss_by_its_name_in_torch(y_pred, y):
    """apex puts its own function there, which computes in float32."""
    return torch.nn.functional.mse_loss(y_pred, y)


@pytest.mark.filterwarnings("ignore")  # apex has not changed for years, Python and torch have
@pytest.mark.parametrize("opt_level", ["O1", "O2"])
def test_apex_trains_and_its_scale_comes_back(tmp_path, opt_level):
    try:
        from apex import amp
    except ImportError:
        missing("apex.amp is not installed; tag 25.05 is the last that has it")
    seen = []
    for epochs in (1, 2):
        model, optimizer = distrain.prepare(
            *parts(), amp_mode="apex", opt_level=opt_level, amp_options={"verbosity": 0, "loss_scale": "dynamic"}
        )
        trainer = create_supervised_trainer(
            model, optimizer, loss_by_its_name_in_torch, device="cuda", amp_mode="apex", gradient_accumulation_steps=2
        )
        distrain.Checkpointer(directory=tmp_path).attach(trainer, model=model, optimizer=optimizer)
        seen.append(amp.state_dict()["loss_scaler0"]["unskipped"])
        trainer.run(batches(), max_epochs=epochs)
    assert seen[0] == 0
    assert seen[1] > 0
