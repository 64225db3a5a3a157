"""Making models ready for several ranks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from distrain.errors import RuntimeStateError
from distrain.runtime import copy_from_main, rank_and_size
from distrain.runtime.devices import SUPPORTED
from distrain.training.apex_amp import initialize
from distrain.training.checks import one_of
from distrain.training.precision import AMP_MODES
from distrain.training.steady_ddp import SteadyDDP

__all__ = ["bare", "ddp_of", "device_of", "is_spread", "prepare", "unwrap"]

WRAPPERS: tuple[type[nn.Module], ...] = (DistributedDataParallel, DataParallel)

COMPILED = "_orig_mod"
"""Where the module that `torch.compile` returns keeps the module it was given."""


def prepare(
    *objects: Any,
    ddp_options: Mapping[str, Any] | None = None,
    amp_mode: str | None = None,
    opt_level: str | None = None,
    amp_options: Mapping[str, Any] | None = None,
) -> Any:
    """Make models and optimizers ready for all ranks. Every rank must call it, with the same objects in order.

    Each module with a parameter that requires grad is wrapped in DistributedDataParallel, which gives every rank the
    weights of rank 0; its buckets are arranged once, so that a resumed run is the same to the last bit. On XLA devices
    a module gets those weights too and stays bare: the trainer's step reduces. In a world of one nothing is wrapped:
    there is nobody to reduce with, and a wrapper would only cost time and change the names in the state dict. Modules
    without such parameters, optimizers and learning-rate schedulers are returned as they are, once checked. What is to
    train later must not be frozen yet: DDP would not reduce its gradients.

    With `amp_mode="apex"` all models and optimizers first go through `amp.initialize`, which must see them before any
    wrapper: it casts and replaces what DDP would have taken hold of.

    Args:
        *objects: Modules (on their device already), optimizers and schedulers.
        ddp_options: More arguments for DistributedDataParallel, such as `find_unused_parameters`.
        amp_mode: The trainer's; only `apex` needs something to be done here.
        opt_level: With `apex`: `O0`, `O1`, `O2` or `O3`; `O1` by default. Otherwise ignored with a warning.
        amp_options: With `apex`: more arguments for `amp.initialize`, such as `loss_scale` or `enabled`. Likewise.

    Returns:
        The objects in the same order: a tuple, or the one object when there is only one.

    Raises:
        TypeError: An object is none of these.
        ValueError: A model is wrapped already or spread over devices or ranks, an optimizer holds parameters of no
            given model or on another device, or mode or level are unknown or do not go with the device.
        ModuleNotFoundError: `apex` was asked for, and is missing or a release without `apex.amp`.
        RuntimeStateError: The device is one that cannot be reduced on.
    """
    if not objects:
        raise TypeError("prepare() got nothing to prepare; give it the model and the optimizer.")
    for each in objects:
        _check_kind(each)
    models = [each for each in objects if isinstance(each, nn.Module)]
    for model in models:
        _check_model(model)
    for optimizer in objects:
        if isinstance(optimizer, Optimizer) and models:
            _check_optimizer(optimizer, models)
    one_of("amp_mode", amp_mode, (None, *AMP_MODES))
    if amp_mode == "apex":
        objects = _through_apex(objects, opt_level or "O1", amp_options or {})
    else:
        for name, value in (("opt_level", opt_level), ("amp_options", amp_options)):
            if value is not None:
                warnings.warn(f"{name} is ignored: it is apex's, and amp_mode is {amp_mode!r}.", stacklevel=2)
    _warn_of_frozen(models, [each for each in objects if isinstance(each, Optimizer)])
    prepared = tuple(_wrap(each, ddp_options or {}) if isinstance(each, nn.Module) else each for each in objects)
    return prepared[0] if len(prepared) == 1 else prepared


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers, or the module itself when there is none.

    Args:
        model: A module, perhaps from `prepare`, perhaps from `torch.compile`.
    """
    inner = model.module if isinstance(model, WRAPPERS) else getattr(model, COMPILED, model)
    assert isinstance(inner, nn.Module)
    return inner if inner is model else unwrap(inner)


def bare(model: nn.Module) -> Any:
    """Return what saves and loads a module without the wrappers around it and inside it; the module itself mostly.

    An average of a wrapped model's weights has the wrapper inside.

    Args:
        model: A module.
    """
    model = unwrap(model)
    return _Bare(model) if any(isinstance(each, WRAPPERS) for each in model.modules()) else model


class _Bare:
    """A module with wrappers inside, whose state dict has the names that it has without them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # From the outermost to the innermost.
        self._wrappers = [f"{name}." for name, each in model.named_modules() if isinstance(each, WRAPPERS)]

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._model.state_dict()
        for name in reversed(self._wrappers):
            inside = f"{name}module."
            state = {
                f"{name}{key.removeprefix(inside)}" if key.startswith(inside) else key: value
                for key, value in state.items()
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self._wrappers:
            state = {
                f"{name}module.{key.removeprefix(name)}" if key.startswith(name) else key: value
                for key, value in state.items()
            }
        self._model.load_state_dict(state)


def ddp_of(model: Any) -> DistributedDataParallel | None:
    """Return the DistributedDataParallel that reduces the model's gradients, if there is one.

    Args:
        model: Any object; a compiled model is looked into.
    """
    inner = getattr(model, COMPILED, model)
    return inner if isinstance(inner, DistributedDataParallel) else None


def is_spread(value: Any) -> bool:
    """Return whether a module's or an optimizer's weights are parts of what lies on several ranks (`fully_shard`).

    Args:
        value: Any object.
    """
    module = sys.modules.get("torch.distributed.tensor")  # without it there are none, and it takes long to import
    if module is None:
        return False
    weights: list[Any] = list(value.parameters()) if isinstance(value, nn.Module) else []
    if isinstance(value, Optimizer):
        weights = [weight for group in value.param_groups for weight in group["params"]]
    return any(
        isinstance(each, module.DTensor)
        and each.device_mesh.size() > 1
        and not all(placement.is_replicate() for placement in each.placements)
        for each in weights
    )


def _check_kind(value: Any) -> None:
    if isinstance(value, (nn.Module, Optimizer, LRScheduler)):
        return
    if isinstance(value, DataLoader):
        raise TypeError(
            "prepare() does not shard a DataLoader after the fact; make it with distrain.dataloader(dataset, …)."
        )
    raise TypeError(f"prepare() takes modules, optimizers and learning-rate schedulers, not {type(value).__name__}.")


def _check_model(model: nn.Module) -> None:
    inner = getattr(model, COMPILED, model)
    wrapper = next((each for each in WRAPPERS if isinstance(inner, each)), None)
    if wrapper is not None:
        raise ValueError(
            f"The model is wrapped in {wrapper.__name__} already. Give prepare() the bare model: what must come "
            "before the wrapping, such as apex's amp.initialize, could not be done any more."
        )
    if is_spread(model):
        raise ValueError(
            "The model's weights are spread over the ranks (DTensor, as after fully_shard), and what spread them also "
            "reduces its gradients: leave prepare() out, and give the model and the optimizer to the trainer."
        )
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"The model is spread over {names}; move all of it to one device before prepare().")
    kinds = {device.type for device in devices}
    if kinds and not kinds <= {*SUPPORTED, "meta"}:
        raise RuntimeStateError(
            f"prepare() cannot wrap a model on device {kinds.pop()!r} yet; supported are {', '.join(SUPPORTED)}."
        )
    if "meta" in kinds:
        raise ValueError("The model is on the meta device, it has no values yet; materialize it before prepare().")


def _check_optimizer(optimizer: Optimizer, models: list[nn.Module]) -> None:
    known = {id(parameter) for model in models for parameter in model.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = sum(id(parameter) not in known for parameter in held)
    if strangers:
        raise ValueError(
            f"{strangers} of the {len(held)} parameters that {type(optimizer).__name__} updates belong to none of the "
            "given models. Make the optimizer from the very model that prepare() gets, after moving it to its device."
        )


def _warn_of_frozen(models: list[nn.Module], optimizers: list[Optimizer]) -> None:
    if rank_and_size()[1] == 1:
        return
    held = {id(weight) for each in optimizers for group in each.param_groups for weight in group["params"]}
    for model in models:
        weights = list(model.parameters())
        if device_of(model).type == "xla":  # the trainer's step reduces what the optimizer has
            continue
        if any(id(each) in held for each in weights) and not any(each.requires_grad for each in weights):
            warnings.warn(
                f"All parameters of the {type(unwrap(model)).__name__} are frozen, so it is not wrapped, and an "
                "optimizer has them. Should they train later, each rank would train them by its own data. Prepare "
                "the model before it is frozen, with ddp_options={'find_unused_parameters': True}.",
                RuntimeWarning,
                stacklevel=3,
            )


def _through_apex(objects: tuple[Any, ...], opt_level: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
    models = [each for each in objects if isinstance(each, nn.Module)]
    optimizers = [each for each in objects if isinstance(each, Optimizer)]
    changed = initialize(models, optimizers, opt_level, options)
    by_id = {
        id(before): after for before, after in zip([*models, *optimizers], [*changed[0], *changed[1]], strict=True)
    }
    return tuple(by_id.get(id(each), each) for each in objects)


def _wrap(model: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if rank_and_size()[1] == 1 or not trainable:
        return model
    device = trainable[0].device
    if device.type == "mps":
        raise RuntimeStateError("A model on mps trains in one process only: torch.distributed has no backend for it.")
    if device.type == "xla":
        copy_from_main([*model.parameters(), *model.buffers()])
        return model
    return SteadyDDP(model, **{"device_ids": [device.index] if device.type == "cuda" else None, **options})


def device_of(model: Any) -> torch.device:
    """Return the device of the model's first parameter, the CPU when it has none.

    Args:
        model: A module, or any other callable.
    """
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
