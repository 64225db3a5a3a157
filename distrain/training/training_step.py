"""The training step. With a window of N micro-batches it does, in this order:

    zero_grad            when a window begins, so gradients stay for handlers until then
    model.train()        done where a module is not in training mode
    prepare_batch, model_fn, model_transform, loss_fn
    (loss / N).backward()     under DDP without communication, except in the last micro-batch of a window
    when the window ends:
        leave it at that, or raise, if a loss was not finite and that was asked for
        the gradients of a window of fewer than N become their mean
        unscale and clip, if asked for
        optimizer.step()
    output_transform     with the loss itself, not divided

What differs between plain, amp, apex and XLA is the mechanism: the region, the backward pass, the optimizer's step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from distrain.training.checks import positive_number
from distrain.training.forward import forward_of
from distrain.training.modes import into_training
from distrain.training.nonfinite import NonFiniteGuard, NonFinitePolicy, guard
from distrain.training.window import AccumulationWindow, Tail
from distrain.training.wrapping import ddp_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch.nn.parallel import DistributedDataParallel
    from torch.optim import Optimizer

    from distrain.engine import Engine
    from distrain.training.mechanisms import Mechanism, Region

__all__ = ["StepExtras", "TrainingStep", "training_step"]


class StepExtras(TypedDict, total=False):
    """What every training step takes by keyword; see `create_supervised_trainer` for the meaning."""

    max_grad_norm: float | None
    accumulation_tail: Tail
    nonfinite_loss: NonFinitePolicy
    set_to_none: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """A training step to give to an engine, with what outlives one batch.

    Args:
        function: Takes the engine and a batch; calling the step itself is the same.
        window: The accumulation window.
        end_epoch: Takes the engine when an epoch has ended, and does with a window that its end has cut what
            `accumulation_tail` says. The step itself does it where the last iteration is known during it; an epoch
            whose length is not known, that a handler ends, or that ends apart on the ranks of DDP, needs this as a
            handler of `EPOCH_COMPLETED` and `TERMINATE_SINGLE_EPOCH`. `create_supervised_trainer` attaches it.
    """

    function: Callable[[Engine, Any], Any]
    window: AccumulationWindow
    end_epoch: Callable[[Engine], None]

    def __call__(self, engine: Engine, batch: Any) -> Any:
        return self.function(engine, batch)


def training_step(  # noqa: PLR0917  # for `steps` only, where each is named
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., torch.Tensor],
    prepare: Callable[[Any], tuple[Any, Any]],
    model_fn: Callable[[nn.Module, Any], Any],
    model_transform: Callable[[Any], Any],
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any],
    mechanism: Mechanism,
    num_micro: int,
    *,
    max_grad_norm: float | None = None,
    accumulation_tail: Tail = "carry",
    nonfinite_loss: NonFinitePolicy = "ignore",
    set_to_none: bool = True,
) -> TrainingStep:
    """Return the step that the module's docstring draws. What it calls is bound here, once: a step is short.

    Args:
        model: The model.
        optimizer: Its optimizer.
        loss_fn: Takes prediction and target.
        prepare: Takes a batch, returns input and target on their device.
        model_fn: Takes the model and the input, returns the model's output.
        model_transform: Takes that output, returns the prediction.
        output_transform: Takes input, target, prediction and loss; its result is the step's.
        mechanism: How gradients are made and used.
        num_micro: Micro-batches in a window.
        max_grad_norm: As for `create_supervised_trainer`, and so are the others.
        accumulation_tail: As there.
        nonfinite_loss: As there.
        set_to_none: As there.
    """
    finite = guard(nonfinite_loss, model)
    # Where the gradients stay scaled, the model has them; apex's own copies get them at the window's end.
    content = None if mechanism.accumulate is None else model.parameters()
    window = AccumulationWindow(optimizer, num_micro, accumulation_tail, finite=finite, content=content)
    update = _update(window, finite, mechanism, max_grad_norm)
    ddp = ddp_of(model)
    no_sync = None if ddp is None or num_micro == 1 else _no_sync(ddp)
    backward, finish, train_mode = mechanism.backward, mechanism.finish, into_training(model)
    accumulate, forward = mechanism.accumulate or backward, forward_of(model, model_fn, model_transform)
    compute = _computation(forward, loss_fn, mechanism.region)
    zero_grad = _zero_grad(optimizer, set_to_none=set_to_none)

    def step(engine: Engine, batch: Any) -> Any:
        """Take a step where each micro-batch is a window: nothing needs to be counted."""
        zero_grad()
        train_mode()
        x, y = prepare(batch)
        y_pred, loss = compute(x, y)
        backward(loss)
        if finite is not None:
            finite.note(loss, 1)
        update(engine)
        if finish is not None:
            finish()
        return output_transform(x, y, y_pred, loss)

    def learn(x: Any, y: Any, backward: Callable[[torch.Tensor], None]) -> tuple[Any, torch.Tensor]:
        y_pred, loss = compute(x, y)
        backward(loss / num_micro)
        return y_pred, loss

    def step_in_window(engine: Engine, batch: Any) -> Any:
        if window.opens(engine.state):
            zero_grad()
        train_mode()
        x, y = prepare(batch)
        closes = window.closes(engine)
        if closes or no_sync is None:
            y_pred, loss = learn(x, y, backward)
        else:
            with no_sync():
                y_pred, loss = learn(x, y, accumulate)
        window.add(engine.state)
        if finite is not None:
            finite.note(loss, window.held)
        if closes:
            update(engine)
        if finish is not None:
            finish()
        return output_transform(x, y, y_pred, loss)

    function: Callable[[Engine, Any], Any] = step if num_micro == 1 else step_in_window
    if mechanism.is_plain and num_micro == 1 and set_to_none and finite is None and max_grad_norm is None:
        function = _plain_step(optimizer, loss_fn, prepare, train_mode, forward, output_transform)
    return TrainingStep(
        function=function,
        window=window,
        end_epoch=_end_epoch(window, update, ddp, mechanism),
    )


def _plain_step(  # noqa: PLR0917  # the parts in the order of their use
    optimizer: Optimizer,
    loss_fn: Callable[..., torch.Tensor],
    prepare: Callable[[Any], tuple[Any, Any]],
    train_mode: Callable[[], None],
    forward: Callable[[Any], Any],
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any],
) -> Callable[[Engine, Any], Any]:
    """Return the step where nothing surrounds its calls and nothing is to decide: those calls and none between them."""

    def step(engine: Engine, batch: Any) -> Any:  # noqa: ARG001  # the engine's interface
        optimizer.zero_grad()
        train_mode()
        x, y = prepare(batch)
        y_pred = forward(x)
        loss = loss_fn(y_pred, y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return output_transform(x, y, y_pred, loss)

    return step


def _zero_grad(optimizer: Optimizer, *, set_to_none: bool) -> Callable[[], None]:
    def zero_grad() -> None:
        # Optimizers of other libraries have a zero_grad without this argument.
        optimizer.zero_grad() if set_to_none else optimizer.zero_grad(set_to_none=False)

    return zero_grad


def _computation(
    forward: Callable[[Any], Any], loss_fn: Callable[..., torch.Tensor], region: Region | None
) -> Callable[[Any, Any], tuple[Any, torch.Tensor]]:
    """Return the function from input and target to prediction and loss."""

    def compute(x: Any, y: Any) -> tuple[Any, torch.Tensor]:
        y_pred = forward(x)
        return y_pred, loss_fn(y_pred, y)

    return compute if region is None else region(compute)


def _update(
    window: AccumulationWindow, finite: NonFiniteGuard | None, mechanism: Mechanism, max_grad_norm: float | None
) -> Callable[[Engine], None]:
    """Return what is done when a window ends."""
    max_norm = None if max_grad_norm is None else positive_number("max_grad_norm", max_grad_norm)
    is_counted = window.num_micro > 1

    def update(engine: Engine) -> None:
        if finite is None or finite.allows_step(engine):
            if is_counted:
                window.to_mean()
            mechanism.step(None if max_norm is None else lambda: clip(engine, max_norm))
        else:
            mechanism.leave_out()
        if is_counted:
            window.clear()

    def clip(engine: Engine, max_norm: float) -> None:
        engine.state.grad_norm = nn.utils.clip_grad_norm_(window.parameters(), max_norm)

    return update


def _end_epoch(
    window: AccumulationWindow,
    update: Callable[[Engine], None],
    ddp: DistributedDataParallel | None,
    mechanism: Mechanism,
) -> Callable[[Engine], None]:
    """Return what is done with a window whose end, the epoch's, was not known during its last micro-batch."""

    def end_epoch(engine: Engine) -> None:
        if window.tail == "drop":
            window.clear()
        elif window.tail == "flush" and (window.held if ddp is None else window.reduce(ddp)):
            mechanism.settle()
            update(engine)
            if mechanism.finish is not None:
                mechanism.finish()

    return end_epoch


def _no_sync(ddp: DistributedDataParallel) -> Callable[[], AbstractContextManager[None]]:
    """Return what keeps DDP from communicating in a micro-batch.

    With `static_graph=True` DDP learns the graph in its first backward pass, and fails with an internal assertion if
    that one does not communicate (pytorch#143580): so there the first does. The mean over the ranks that it leaves is
    a part of the window's like any other.
    """
    is_first = ddp.static_graph

    def context() -> AbstractContextManager[None]:
        nonlocal is_first
        communicates, is_first = is_first, False
        return contextlib.nullcontext() if communicates else ddp.no_sync()

    return context if is_first else ddp.no_sync
