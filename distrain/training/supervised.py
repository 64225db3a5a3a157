"""The factories: a trainer and an evaluator for a supervised model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distrain.engine import Engine, Events
from distrain.runtime import xla
from distrain.training.apex_amp import ApexLossScales
from distrain.training.batches import prepare_batch as _prepare_batch
from distrain.training.forward import call_model, same
from distrain.training.nonfinite import NonFinitePolicy
from distrain.training.precision import check_amp_mode, checked_dtype, choose_scaler
from distrain.training.steps import (
    loss_item,
    prediction_and_target,
    supervised_evaluation_step,
    supervised_evaluation_step_amp,
    supervised_training_step,
    supervised_training_step_amp,
    supervised_training_step_apex,
    supervised_training_step_tpu,
)
from distrain.training.training_step import TrainingStep
from distrain.training.window import Tail
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
    amp_dtype: torch.dtype | str | None = None,
    max_grad_norm: float | None = None,
    accumulation_tail: Tail = "carry",
    nonfinite_loss: NonFinitePolicy = "ignore",
    set_to_none: bool = True,
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
            default, which waits for the device in each iteration; `distrain.detached_loss` does not.
        deterministic: Use a `DeterministicEngine`.
        amp_mode: None, `amp` (torch's autocast) or `apex` (model and optimizer come from
            `distrain.prepare(…, amp_mode="apex")`, or from `amp.initialize`).
        scaler: With `amp`: True for a new GradScaler, or one of your own. It is `state.scaler`. Ignored with `apex`.
        gradient_accumulation_steps: Micro-batches in a window; the optimizer steps at its end with the mean of their
            gradients. Under DDP only the last one communicates. With more than one, `state.accumulation` is the
            window, which `Checkpointer` saves: a run resumed inside a window goes on with its gradients.
        model_transform: A function of the model's output that returns `y_pred`.
        model_fn: A function of model and `x` that returns the model's output.
        amp_dtype: With `amp`: `torch.float16` or `torch.bfloat16`, or its name; by default what torch's autocast takes
            on the device, float16 on CUDA and bfloat16 on the CPU. XLA has bfloat16 only, and wants it named.
        max_grad_norm: Clip the gradients before each step to this norm, over all parameters of the optimizer, in the
            2-norm. `state.grad_norm` is the norm before clipping, a 0-dim tensor, None before the first step; infinity
            only measures. Nothing waits for the device.
        accumulation_tail: What becomes of a window that the end of an epoch cuts: `carry` goes on with it in the next
            epoch, and the rest at the end of the run is not used; `flush` steps with the mean of what it holds, also
            where `max_iters` ends the run; `drop` discards it.
        nonfinite_loss: When a loss in a window is nan or infinite on any rank: `ignore` does not look, `skip` leaves
            that window's step out and logs it, `raise` raises `NonFiniteLossError`. All ranks do the same. The latter
            two wait for the device once in each window.
        set_to_none: Gradients are None, not zeros, when a window begins.

    Raises:
        ValueError: A mode, a type or a policy is unknown or does not go with the device or with another argument, or a
            number is not positive.
        TypeError: The number of micro-batches is not a whole one, or the optimizer, the loss function or the scaler is
            none.
        RuntimeError: The device is XLA and torch_xla is missing.
        ModuleNotFoundError: `apex` was asked for and is missing.

    Source: `ignite.engine.create_supervised_trainer`, whose arguments the first eleven are.
    """
    _check_parts(model, optimizer, loss_fn)
    where = _device(model, device)
    if where.type == "xla":
        xla.check_installed()
    dtype = checked_dtype(amp_dtype)
    check_amp_mode(amp_mode, where, dtype)
    used_scaler = choose_scaler(scaler, amp_mode, where)
    common: dict[str, Any] = {
        "device": device,
        "non_blocking": non_blocking,
        "prepare_batch": prepare_batch,
        "model_transform": model_transform,
        "output_transform": output_transform,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "model_fn": model_fn,
        "max_grad_norm": max_grad_norm,
        "accumulation_tail": accumulation_tail,
        "nonfinite_loss": nonfinite_loss,
        "set_to_none": set_to_none,
    }
    step: TrainingStep
    if where.type == "xla":
        step = supervised_training_step_tpu(model, optimizer, loss_fn, amp_dtype=dtype, **common)
    elif amp_mode == "amp":
        step = supervised_training_step_amp(model, optimizer, loss_fn, scaler=used_scaler, amp_dtype=dtype, **common)
    elif amp_mode == "apex":
        step = supervised_training_step_apex(model, optimizer, loss_fn, **common)
    else:
        step = supervised_training_step(model, optimizer, loss_fn, **common)
    trainer = _engine_class(deterministic=deterministic)(step.function)
    if used_scaler is not None:
        trainer.state.scaler = used_scaler
    if amp_mode == "apex":
        trainer.state.apex = ApexLossScales()
    if max_grad_norm is not None:
        trainer.state.grad_norm = None
    if deterministic and where.type == "xla":
        trainer.add_event_handler(Events.ITERATION_STARTED, _seed_xla)
    if step.window.num_micro > 1:
        trainer.state.accumulation = step.window
        if accumulation_tail != "carry":
            # The first is for an epoch that a handler ends without EPOCH_COMPLETED.
            trainer.add_event_handler(Events.TERMINATE_SINGLE_EPOCH, step.end_epoch)
            trainer.add_event_handler(Events.EPOCH_COMPLETED, step.end_epoch)
    return trainer


def _check_parts(model: Any, optimizer: Any, loss_fn: Any) -> None:
    order = "The order is model, optimizer, loss_fn."
    if not hasattr(optimizer, "step"):
        raise TypeError(f"optimizer is {_kind(optimizer)}; it must have a step(), as those of torch.optim do. {order}")
    for name, each in (("model", model), ("loss_fn", loss_fn)):
        if not callable(each):
            raise TypeError(f"{name} is {_kind(each)}; it must be callable, as torch's modules are. {order}")


def _check_metrics(metrics: Any) -> None:
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics is {_kind(metrics)}; it must be a dict of metrics by their names.")
    for name, metric in metrics.items():
        if not hasattr(metric, "attach"):
            raise TypeError(
                f"metrics[{name!r}] is {_kind(metric)}; it must have an attach(engine, name), as ignite's have."
            )


def _kind(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, str) else f"of type {type(value).__name__}"


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    try:
        return device_of(model) if device is None else torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"torch knows no device {device!r}; give one such as cpu, cuda or xla.") from error


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
    *,
    amp_dtype: torch.dtype | str | None = None,
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
        amp_mode: None or `amp`; `apex` is None here, since apex changed the model itself.
        model_fn: As there.
        amp_dtype: As there.

    Raises:
        ValueError: A mode or a type is unknown or does not go with the device or with another argument.
        RuntimeError: The device is XLA and torch_xla is missing.
        TypeError: The metrics are none, or stand in no mapping.
    """
    _check_metrics(metrics)
    where = _device(model, device)
    if where.type == "xla":
        xla.check_installed()
    dtype = checked_dtype(amp_dtype)
    check_amp_mode(amp_mode, where, dtype)
    common = (model, device, non_blocking, prepare_batch, model_transform, output_transform, model_fn)
    if amp_mode == "amp":
        evaluator = Engine(supervised_evaluation_step_amp(*common, amp_dtype=dtype))
    else:
        evaluator = Engine(supervised_evaluation_step(*common))
    for name, metric in (metrics or {}).items():
        metric.attach(evaluator, name)
    return evaluator


def _seed_xla(engine: Engine) -> None:
    """Make what the device draws depend on the seed and the iteration alone, so that a resumed run draws the same."""
    assert engine.state.seed is not None
    xla.set_random_state(engine.state.seed + engine.state.iteration)


def _engine_class(*, deterministic: bool) -> type[Engine]:
    if not deterministic:
        return Engine
    from distrain.engine import DeterministicEngine

    return DeterministicEngine
