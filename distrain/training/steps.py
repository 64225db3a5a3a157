"""The steps that an engine can run on a batch: four that train, two that evaluate, and their default parts.

All four that train are one step, drawn in `training_step`, with another mechanism. They may be given to an engine of
ours or of ignite's: `Engine(supervised_training_step(model, optimizer, loss_fn))`. With an `accumulation_tail`, see
`TrainingStep.end_epoch`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from distrain.runtime import xla
from distrain.training import mechanisms
from distrain.training.apex_amp import import_apex_amp
from distrain.training.batches import prepare_batch as _prepare_batch
from distrain.training.forward import call_model, forward_of, same
from distrain.training.precision import autocast, checked_dtype
from distrain.training.spmd import over_all_devices
from distrain.training.training_step import TrainingStep, training_step
from distrain.training.window import checked_num_micro
from distrain.training.wrapping import ddp_of, device_of

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from typing_extensions import Unpack

    from distrain.engine import Engine
    from distrain.training.training_step import StepExtras

__all__ = [
    "detached_loss",
    "supervised_evaluation_step",
    "supervised_evaluation_step_amp",
    "supervised_training_step",
    "supervised_training_step_amp",
    "supervised_training_step_apex",
    "supervised_training_step_tpu",
]

Step: TypeAlias = "Callable[[Engine, Any], Any]"
Device: TypeAlias = str | torch.device | None
AmpDtype: TypeAlias = torch.dtype | str | None


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


def supervised_training_step(  # noqa: PLR0917  # the reference's order
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., torch.Tensor] | nn.Module,
    device: Device = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the reference's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] = loss_item,
    gradient_accumulation_steps: int = 1,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
    **extras: Unpack[StepExtras],
) -> TrainingStep:
    """Return the training step in the parameters' precision; see `create_supervised_trainer` for the arguments."""
    return training_step(
        model,
        optimizer,
        loss_fn,
        partial(prepare_batch, device=device, non_blocking=non_blocking),
        model_fn,
        model_transform,
        output_transform,
        mechanisms.plain(optimizer),
        gradient_accumulation_steps,
        **extras,
    )


def supervised_training_step_amp(  # noqa: PLR0917  # the reference's order
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., torch.Tensor] | nn.Module,
    device: Device = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the reference's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] = loss_item,
    scaler: torch.amp.GradScaler | None = None,
    gradient_accumulation_steps: int = 1,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
    *,
    amp_dtype: AmpDtype = None,
    **extras: Unpack[StepExtras],
) -> TrainingStep:
    """Return the training step under torch's autocast; see `create_supervised_trainer` for the arguments.

    The scaler, when there is one, scales each backward pass and unscales before the optimizer's step, which it skips
    when a gradient is not finite.
    """
    return training_step(
        model,
        optimizer,
        loss_fn,
        partial(prepare_batch, device=device, non_blocking=non_blocking),
        model_fn,
        model_transform,
        output_transform,
        mechanisms.amp(optimizer, scaler, autocast(_compute_device(device, model), checked_dtype(amp_dtype))),
        gradient_accumulation_steps,
        **extras,
    )


def supervised_training_step_apex(  # noqa: PLR0917  # the reference's order
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., torch.Tensor] | nn.Module,
    device: Device = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the reference's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] = loss_item,
    gradient_accumulation_steps: int = 1,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
    **extras: Unpack[StepExtras],
) -> TrainingStep:
    """Return the training step of apex; see `create_supervised_trainer` for the arguments.

    Model and optimizer must have gone through `amp.initialize`, which `distrain.prepare(…, amp_mode="apex")` calls.

    Raises:
        ModuleNotFoundError: apex is not installed, or is a release without `amp`.
    """
    return training_step(
        model,
        optimizer,
        loss_fn,
        partial(prepare_batch, device=device, non_blocking=non_blocking),
        model_fn,
        model_transform,
        output_transform,
        mechanisms.apex(
            optimizer,
            import_apex_amp(),
            is_reduced=checked_num_micro(gradient_accumulation_steps) > 1 and ddp_of(model) is not None,
        ),
        gradient_accumulation_steps,
        **extras,
    )


def supervised_training_step_tpu(  # noqa: PLR0917  # the reference's order
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., torch.Tensor] | nn.Module,
    device: Device = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the reference's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] = loss_item,
    gradient_accumulation_steps: int = 1,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
    *,
    amp_dtype: AmpDtype = None,
    **extras: Unpack[StepExtras],
) -> TrainingStep:
    """Return the training step on XLA devices; see `create_supervised_trainer` for the arguments.

    With an `amp_dtype` it computes in torch's autocast, else in the parameters' precision. A model wrapped in DDP has
    its gradients reduced by DDP alone.

    Raises:
        ModuleNotFoundError: torch_xla is not installed.
    """
    if not xla.is_installed():
        raise ModuleNotFoundError(
            "torch_xla cannot be imported, please install PyTorch XLA. `pip install distrain[xla]` brings it."
        )
    dtype = checked_dtype(amp_dtype)
    region = None if dtype is None else autocast(torch.device("xla"), dtype)
    return training_step(
        model,
        optimizer,
        loss_fn,
        over_all_devices(partial(prepare_batch, device=device, non_blocking=non_blocking)),
        model_fn,
        model_transform,
        output_transform,
        mechanisms.xla(optimizer, region, is_reduced=ddp_of(model) is not None),
        gradient_accumulation_steps,
        **extras,
    )


def supervised_evaluation_step(  # noqa: PLR0917  # the reference's order
    model: nn.Module,
    device: Device = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the reference's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any], Any] = prediction_and_target,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
) -> Step:
    """Return the evaluation step in the parameters' precision; see `create_supervised_evaluator` for the arguments."""
    on_xla = _compute_device(device, model).type == "xla"
    forward = forward_of(model, model_fn, model_transform)
    if on_xla:
        prepare_batch = over_all_devices(prepare_batch)

    def step(engine: Engine, batch: Any) -> Any:  # noqa: ARG001  # the engine's interface
        model.eval()
        with torch.no_grad():
            x, y = prepare_batch(batch, device=device, non_blocking=non_blocking)
            y_pred = forward(x)
            if on_xla:
                # Metrics that add up on the device would make one graph of the whole evaluation.
                xla.sync()
            return output_transform(x, y, y_pred)

    return step


def supervised_evaluation_step_amp(  # noqa: PLR0917  # the reference's order
    model: nn.Module,
    device: Device = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the reference's order
    prepare_batch: Callable[..., Any] = _prepare_batch,
    model_transform: Callable[[Any], Any] = same,
    output_transform: Callable[[Any, Any, Any], Any] = prediction_and_target,
    model_fn: Callable[[nn.Module, Any], Any] = call_model,
    *,
    amp_dtype: AmpDtype = None,
) -> Step:
    """Return the evaluation step under torch's autocast; see `create_supervised_evaluator` for the arguments."""
    region = autocast(_compute_device(device, model), checked_dtype(amp_dtype))
    return supervised_evaluation_step(
        model,
        device,
        non_blocking,
        prepare_batch,
        same,
        output_transform,
        region(lambda model, x: model_transform(model_fn(model, x))),
    )


def _compute_device(device: Device, model: nn.Module) -> torch.device:
    return device_of(model) if device is None else torch.device(device)
