"""The factories: a trainer and an evaluator for a supervised model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distrain.engine import Engine
from distrain.training.batches import prepare_batch as _prepare_batch
from distrain.training.precision import check_amp_mode, choose_scaler
from distrain.training.steps import (
    call_model,
    checked_accumulation,
    loss_item,
    prediction_and_target,
    same,
    supervised_evaluation_step,
    supervised_evaluation_step_amp,
    supervised_training_step,
    supervised_training_step_amp,
)
from distrain.training.wrapping import device_of

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["create_supervised_evaluator", "create_supervised_trainer"]


def create_supervised_trainer(  # noqa: PLR0917  # the specification's order
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., torch.Tensor] | nn.Module,
    device: str | torch.device | None = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the specification's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] = loss_item,
    deterministic: bool = False,  # noqa: FBT001, FBT002  # as above
    amp_mode: str | None = None,
    scaler: bool | torch.amp.GradScaler = False,  # noqa: FBT001, FBT002  # as above
    gradient_accumulation_steps: int = 1,
    *,
    model_transform: Callable[[Any], Any] = same,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
) -> Engine:
    """Return an engine that trains a model; `trainer.run(loader, max_epochs=…)` starts it.

    Args:
        model: The model, on its device already; it is never moved here.
        optimizer: Its optimizer.
        loss_fn: A function of prediction and target that returns a 0-dim tensor.
        device: Where the batches go; None leaves them where they are.
        non_blocking: Let copies from pinned memory to the GPU overlap with the host's work.
        prepare_batch: A function of `batch, device, non_blocking` that returns `(x, y)`.
        output_transform: A function of `x, y, y_pred, loss`; what it returns is `state.output`. `loss.item()` by
            default, which waits for the device in each iteration; `detached_loss` does not.
        deterministic: Use a `DeterministicEngine`.
        amp_mode: None, `amp` (torch's autocast) or `apex`.
        scaler: With `amp`: True for a new GradScaler, or one of your own. It is `state.scaler`. Ignored with `apex`.
        gradient_accumulation_steps: Micro-batches in a window; the optimizer steps at its end with the mean of their
            gradients. Under DDP only the last one communicates.
        model_transform: A function of the model's output that returns `y_pred`.
        model_fn: A function of model and `x` that returns the model's output.

    Raises:
        ValueError: The mode is unknown or does not go with the device or the scaler, or the number of micro-batches is
            not positive.
        RuntimeError: The device is XLA and torch_xla is missing.
        ModuleNotFoundError: `apex` was asked for and is missing.
    """
    checked_accumulation(gradient_accumulation_steps)
    where = device_of(model) if device is None else torch.device(device)
    _check_xla(where)
    check_amp_mode(amp_mode, where, scaler)
    if where.type == "xla" or amp_mode == "apex":
        raise NotImplementedError(f"Training with {'device xla' if where.type == 'xla' else 'apex'} is not there yet.")
    used_scaler = choose_scaler(scaler, where) if amp_mode == "amp" else None
    common: dict[str, Any] = {
        "device": device,
        "non_blocking": non_blocking,
        "prepare_batch": prepare_batch,
        "model_transform": model_transform,
        "output_transform": output_transform,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "model_fn": model_fn,
    }
    if amp_mode == "amp":
        step = supervised_training_step_amp(model, optimizer, loss_fn, scaler=used_scaler, **common)
    else:
        step = supervised_training_step(model, optimizer, loss_fn, **common)
    trainer = _engine_class(deterministic=deterministic)(step)
    if used_scaler is not None:
        trainer.state.scaler = used_scaler
    return trainer


def create_supervised_evaluator(  # noqa: PLR0917  # the specification's order
    model: nn.Module,
    metrics: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # ignite's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any], Any] = prediction_and_target,
    amp_mode: str | None = None,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
) -> Engine:
    """Return an engine that evaluates a model: `model.eval()`, no gradients.

    Args:
        model: The model, on its device already.
        metrics: Metrics by name; each has `attach(engine, name)`, as ignite's have.
        device: Where the batches go; None leaves them where they are.
        non_blocking: As for `create_supervised_trainer`.
        prepare_batch: As there.
        model_transform: As there.
        output_transform: A function of `x, y, y_pred`; what it returns is `state.output`, `(y_pred, y)` by default.
        amp_mode: None or `amp`.
        model_fn: As there.

    Raises:
        ValueError: The mode is unknown or does not go with the device.
        RuntimeError: The device is XLA and torch_xla is missing.
    """
    where = device_of(model) if device is None else torch.device(device)
    _check_xla(where)
    check_amp_mode(amp_mode, where, scaler=False)
    factory = supervised_evaluation_step_amp if amp_mode == "amp" else supervised_evaluation_step
    evaluator = Engine(factory(model, device, non_blocking, prepare_batch, model_transform, output_transform, model_fn))
    for name, metric in (metrics or {}).items():
        metric.attach(evaluator, name)
    return evaluator


def _engine_class(*, deterministic: bool) -> type[Engine]:
    if not deterministic:
        return Engine
    from distrain.engine import DeterministicEngine

    return DeterministicEngine


def _check_xla(device: torch.device) -> None:
    if device.type == "xla" and importlib.util.find_spec("torch_xla") is None:
        raise RuntimeError(
            "In order to run on TPU, please install PyTorch XLA: `pip install distrain[xla]` brings the torch_xla and "
            "the torch that fit each other."
        )
