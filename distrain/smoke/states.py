"""What holds state in this process: modules, optimizers, schedulers. The garbage collector knows them all."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distrain.smoke.prints import print_of, print_of_parameter
from distrain.training import unwrap

__all__ = ["idle_optimizers", "other_states", "outermost_modules", "parameters_of"]

T = TypeVar("T")


def outermost_modules() -> list[nn.Module]:
    """Return the modules that are in no other one."""
    modules = _living(nn.Module)
    inner = {id(child) for module in modules for child in module.children()}
    return [module for module in modules if id(module) not in inner]


def other_states(is_trained: Callable[[torch.Tensor], bool]) -> dict[str, list[str]]:
    """Return what a checkpoint may forget without a trace in the weights: what it is, and what those of its kind hold.

    Schedulers, the options of optimizers, such as the learning rate, and of modules the buffers and those parameters
    that are not trained, as an averaged model has them. Of a module it is what its `state_dict()` would hold.

    Args:
        is_trained: Whether a parameter is one of the weights, which are compared by themselves.
    """
    gc.collect()  # what nothing refers to is no state
    found = defaultdict(list)
    for scheduler in _living(LRScheduler):
        found[type(scheduler).__name__].append(print_of(scheduler.state_dict()))
    for optimizer in _living(Optimizer):
        options = [{name: each for name, each in group.items() if name != "params"} for group in optimizer.param_groups]
        found[f"the options of {type(optimizer).__name__}"].append(print_of(options))
    for module in outermost_modules():
        parameters = dict(module.named_parameters())
        others = {name: each for name, each in parameters.items() if not is_trained(each)}
        tensors = others | dict(_persistent_buffers(module))
        name = type(unwrap(module)).__name__
        kind = name if len(others) == len(parameters) else f"the buffers of {name}"
        if tensors:
            found[kind].append(print_of({name: print_of_parameter(each) for name, each in tensors.items()}))
    # Their order in memory differs from start to start.
    return {kind: sorted(prints) for kind, prints in found.items()}


def idle_optimizers(stepped: Collection[Optimizer]) -> list[str]:
    """Return the optimizers that took no step, as people read them. One that wraps another has the same parameters.

    Args:
        stepped: Those that took one.
    """
    trained = {id(each) for optimizer in stepped for each in parameters_of(optimizer)}
    idle = []
    for optimizer in _living(Optimizer):
        own = list(parameters_of(optimizer))
        if not any(id(each) in trained for each in own):
            idle.append(f"{type(optimizer).__name__} of {len(own)} parameters")
    return idle


def parameters_of(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    """Yield what an optimizer is to train.

    Args:
        optimizer: The optimizer.
    """
    for group in optimizer.param_groups:
        yield from group["params"]


def _living(kind: type[T]) -> list[T]:
    # The type is asked and not the object: some have a __class__ that does things.
    return [each for each in gc.get_objects() if issubclass(type(each), kind)]


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, inner in module.named_modules():
        for name, buffer in inner.named_buffers(recurse=False):
            if name not in inner._non_persistent_buffers_set:  # noqa: SLF001  # torch has no other way to ask
                yield f"{prefix}.{name}", buffer
