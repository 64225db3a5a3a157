"""The ways to compute gradients and to step with them: plain, torch's amp, apex, XLA.

Each is the same four things, so that accumulation, clipping and everything else is written once, in `steps`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from distrain.runtime import xla as torch_xla

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["Mechanism", "amp", "apex", "plain", "xla"]

Clip: TypeAlias = Callable[[], object]
Region: TypeAlias = "torch.amp.autocast"


_backward = operator.methodcaller("backward")


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """One way to train.

    Args:
        backward: Takes a loss and adds its gradients.
        step: Updates the weights. It takes a function, or None, to call once the gradients are what the optimizer will
            use: not scaled, and the mean over all ranks.
        accumulate: As `backward`, for a micro-batch that does not communicate while a later one of its window will;
            None where it is the same.
        leave_out: Called in place of `step` when a window's step is left out.
        settle: Called before `step` in a window that ended without such a later one.
        region: Surrounds the forward pass and the loss; None where nothing does.
        finish: Called at the end of each micro-batch, and after a step that the end of an epoch brought; None where
            nothing is to do.
        is_plain: Whether `backward` is `loss.backward()`, `step` is `optimizer.step()`, and there is nothing else.
    """

    backward: Callable[[torch.Tensor], None]
    step: Callable[[Clip | None], None]
    accumulate: Callable[[torch.Tensor], None] | None = None
    leave_out: Callable[[], None] = _nothing
    settle: Callable[[], None] = _nothing
    region: Region | None = None
    finish: Callable[[], None] | None = None
    is_plain: bool = False


def plain(optimizer: Optimizer) -> Mechanism:
    """Return the mechanism of torch in the parameters' own precision.

    Args:
        optimizer: The optimizer.
    """
    return Mechanism(backward=_backward, step=_plain_step(optimizer), is_plain=True)


def amp(optimizer: Optimizer, scaler: torch.amp.GradScaler | None, region: Region) -> Mechanism:
    """Return the mechanism of torch's automatic mixed precision.

    The scaler, when there is one, scales each backward pass and skips the step when a gradient is not finite; to know
    that it waits for the device, unless the optimizer is a fused one.

    Args:
        optimizer: The optimizer.
        scaler: The gradient scaler, or None.
        region: The autocast region.
    """
    if scaler is None:
        return Mechanism(region=region, backward=_backward, step=_plain_step(optimizer))

    def backward(loss: torch.Tensor) -> None:
        _backward(scaler.scale(loss))

    def step(clip: Clip | None) -> None:
        if clip is not None:
            scaler.unscale_(optimizer)
            clip()
        scaler.step(optimizer)
        scaler.update()

    return Mechanism(region=region, backward=backward, step=step)


def apex(optimizer: Optimizer, apex_amp: Any, *, is_reduced: bool = False) -> Mechanism:
    """Return the mechanism of apex, for a model and an optimizer that went through `amp.initialize`.

    apex scales inside `scale_loss` and unscales on leaving it; the optimizer's `step`, which it has replaced, skips
    a step whose gradients overflowed.

    A backward pass that unscales puts the gradients of earlier ones aside and adds them afterwards, so DDP would never
    reduce them. Where gradients are accumulated for DDP, apex unscales in the last micro-batch only (`delay_unscale`).

    Args:
        optimizer: The optimizer that `amp.initialize` returned.
        apex_amp: The module `apex.amp`.
        is_reduced: Whether DDP reduces accumulated gradients.
    """

    def backward(loss: torch.Tensor) -> None:
        with apex_amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()

    def leave_out() -> None:
        stash = getattr(optimizer, "_amp_stash", None)
        if stash is not None and stash.already_patched:
            # After an overflow this call does nothing but put the true step back; else the next one would be lost.
            optimizer.step()

    if not is_reduced:
        return Mechanism(backward=backward, step=_plain_step(optimizer), leave_out=leave_out)
    nothing = torch.zeros(())

    def say_scaled() -> None:
        # Apex does not know it of gradients that a checkpoint or an all-reduce brought.
        with apex_amp.scale_loss(nothing, optimizer, delay_unscale=True):
            pass

    def backward_last(loss: torch.Tensor) -> None:
        say_scaled()
        backward(loss)

    def accumulate(loss: torch.Tensor) -> None:
        with apex_amp.scale_loss(loss, optimizer, delay_unscale=True) as scaled:
            scaled.backward()

    def settle() -> None:
        say_scaled()
        with apex_amp.scale_loss(nothing, optimizer):
            pass

    return Mechanism(
        backward=backward_last,
        accumulate=accumulate,
        settle=settle,
        step=_plain_step(optimizer),
        leave_out=leave_out,
    )


def xla(optimizer: Optimizer, region: Region | None, *, is_reduced: bool) -> Mechanism:
    """Return the mechanism of torch_xla: one all-reduce at the window's end, one graph for each micro-batch.

    Without a graph of its own for each micro-batch, reading its loss would compute the forward pass a second time.

    Args:
        optimizer: The optimizer.
        region: The autocast region, or None.
        is_reduced: Whether something else, such as DDP, reduces the gradients already.
    """

    def step(clip: Clip | None) -> None:
        if clip is None:
            torch_xla.step(optimizer)
        else:
            torch_xla.reduce_gradients(optimizer)
            clip()
            optimizer.step()

    return Mechanism(
        region=region,
        backward=_backward,
        step=_plain_step(optimizer) if is_reduced else step,
        finish=torch_xla.sync,
    )


def _plain_step(optimizer: Optimizer) -> Callable[[Clip | None], None]:
    def step(clip: Clip | None) -> None:
        if clip is not None:
            clip()
        # Looked up at each call: learning-rate schedulers and apex put a method of theirs in its place.
        optimizer.step()

    return step
