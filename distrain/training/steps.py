"""The steps: what an engine does with one batch.

A training step with accumulation over N micro-batches does, in this order:

    zero_grad            when (iteration - 1) % N == 0, so gradients stay for handlers until the next window
    model.train()
    prepare_batch, model_fn, model_transform, loss_fn
    (loss / N).backward()     under DDP without communication, except in the last micro-batch of a window
    optimizer.step()     when iteration % N == 0
    output_transform     with the loss itself, not divided
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from distrain.training.batches import prepare_batch as _prepare_batch
from distrain.training.precision import autocast
from distrain.training.wrapping import device_of, is_ddp

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from distrain.engine import Engine

__all__ = [
    "detached_loss",
    "supervised_evaluation_step",
    "supervised_evaluation_step_amp",
    "supervised_training_step",
    "supervised_training_step_amp",
]

Step: TypeAlias = "Callable[[Engine, Any], Any]"
Device: TypeAlias = str | torch.device | None


def detached_loss(x: Any, y: Any, y_pred: Any, loss: torch.Tensor) -> torch.Tensor:  # noqa: ARG001  # its interface
    """Give the loss as a detached tensor: an `output_transform` without a host sync in the step.

    The default, `loss.item()`, waits for the device in every iteration. With this one `state.output` is a 0-dim tensor
    on the device, which `LossAggregator` takes as it is.

    Args:
        x: The input.
        y: The target.
        y_pred: The prediction.
        loss: The loss, a 0-dim tensor.
    """
    return loss.detach()


def loss_item(x: Any, y: Any, y_pred: Any, loss: torch.Tensor) -> Any:  # noqa: ARG001  # as above
    """Give the loss as a number: the default `output_transform`. It waits for the device."""
    return loss.item()


def prediction_and_target(x: Any, y: Any, y_pred: Any) -> tuple[Any, Any]:  # noqa: ARG001  # as above
    """Give `(y_pred, y)`: the default `output_transform` of an evaluation."""
    return y_pred, y


def same(output: Any) -> Any:
    """Give the model's output as it is: the default `model_transform`."""
    return output


def call_model(model: nn.Module, x: Any) -> Any:
    """Call the model with the input: the default `model_fn`."""
    return model(x)


def supervised_training_step(  # noqa: PLR0917  # the specification's order
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., torch.Tensor] | nn.Module,
    device: Device = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the specification's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] = loss_item,
    gradient_accumulation_steps: int = 1,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
) -> Step:
    """Return the training step in full precision; see `create_supervised_trainer` for the arguments."""
    num_micro = checked_accumulation(gradient_accumulation_steps)
    without_sync = _without_sync(model, num_micro)

    def step(engine: Engine, batch: Any) -> Any:
        iteration = engine.state.iteration
        if (iteration - 1) % num_micro == 0:
            optimizer.zero_grad()
        model.train()
        x, y = prepare_batch(batch, device=device, non_blocking=non_blocking)
        with without_sync(iteration):
            y_pred = model_transform(model_fn(model, x))
            loss = loss_fn(y_pred, y)
            (loss / num_micro if num_micro > 1 else loss).backward()
        if iteration % num_micro == 0:
            optimizer.step()
        return output_transform(x, y, y_pred, loss)

    return step


def supervised_training_step_amp(  # noqa: PLR0917  # the specification's order
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., torch.Tensor] | nn.Module,
    device: Device = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the specification's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] = loss_item,
    scaler: torch.amp.GradScaler | None = None,
    gradient_accumulation_steps: int = 1,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
) -> Step:
    """Return the training step under torch's autocast; see `create_supervised_trainer` for the arguments.

    The scaler, when there is one, scales each backward pass and unscales before the optimizer's step, which it skips
    when a gradient is not finite.
    """
    num_micro = checked_accumulation(gradient_accumulation_steps)
    without_sync = _without_sync(model, num_micro)
    region = autocast(_compute_device(device, model))

    def step(engine: Engine, batch: Any) -> Any:
        iteration = engine.state.iteration
        if (iteration - 1) % num_micro == 0:
            optimizer.zero_grad()
        model.train()
        x, y = prepare_batch(batch, device=device, non_blocking=non_blocking)
        with without_sync(iteration):
            with region:
                y_pred = model_transform(model_fn(model, x))
                loss = loss_fn(y_pred, y)
            part = loss / num_micro if num_micro > 1 else loss
            (part if scaler is None else scaler.scale(part)).backward()
        if iteration % num_micro == 0:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
        return output_transform(x, y, y_pred, loss)

    return step


def supervised_evaluation_step(  # noqa: PLR0917  # the specification's order
    model: nn.Module,
    device: Device = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the specification's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any], Any] = prediction_and_target,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
) -> Step:
    """Return the evaluation step in full precision; see `create_supervised_evaluator` for the arguments."""
    return _evaluation_step(
        model, device, non_blocking, prepare_batch, model_transform, output_transform, model_fn, nullcontext()
    )


def supervised_evaluation_step_amp(  # noqa: PLR0917  # the specification's order
    model: nn.Module,
    device: Device = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the specification's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any], Any] = prediction_and_target,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
) -> Step:
    """Return the evaluation step under torch's autocast; see `create_supervised_evaluator` for the arguments."""
    region = autocast(_compute_device(device, model))
    return _evaluation_step(
        model, device, non_blocking, prepare_batch, model_transform, output_transform, model_fn, region
    )


def checked_accumulation(steps: int) -> int:
    """Return the number of micro-batches in a window.

    Args:
        steps: What the user gave.

    Raises:
        ValueError: It is not positive.
    """
    if steps <= 0:
        raise ValueError(
            "Gradient_accumulation_steps must be strictly positive. "
            "No gradient accumulation if the value set to one (default)."
        )
    return steps


def _evaluation_step(  # noqa: PLR0917  # private, called above only
    model: nn.Module,
    device: Device,
    non_blocking: bool,  # noqa: FBT001  # private, called above only
    prepare_batch: Callable[..., Any],
    model_transform: Callable[[Any], Any],
    output_transform: Callable[[Any, Any, Any], Any],
    model_fn: Callable[[nn.Module, Any], Any],
    region: AbstractContextManager[Any],
) -> Step:
    def step(engine: Engine, batch: Any) -> Any:  # noqa: ARG001  # the engine's interface
        model.eval()
        with torch.no_grad():
            x, y = prepare_batch(batch, device=device, non_blocking=non_blocking)
            with region:
                y_pred = model_transform(model_fn(model, x))
            return output_transform(x, y, y_pred)

    return step


def _without_sync(model: nn.Module, num_micro: int) -> Callable[[int], AbstractContextManager[Any]]:
    """Return what surrounds forward and backward of an iteration: DDP's `no_sync`, except at a window's end."""
    nothing = nullcontext()
    if num_micro == 1 or not is_ddp(model):
        return lambda _: nothing
    no_sync: Callable[[], AbstractContextManager[Any]] = model.no_sync  # type: ignore[assignment]
    return lambda iteration: nothing if iteration % num_micro == 0 else no_sync()


def _compute_device(device: Device, model: nn.Module) -> torch.device:
    return device_of(model) if device is None else torch.device(device)
