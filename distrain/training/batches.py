"""Moving a batch to the device, and counting its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["num_samples", "prepare_batch", "to_device"]

_PLAIN = (str, bytes, int, float, bool, type(None))


def prepare_batch(
    batch: Sequence[Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,  # noqa: FBT001, FBT002  # the specification's order
) -> tuple[Any, Any]:
    """Split a batch into input and target and move both to the device.

    Args:
        batch: A pair `(x, y)`; each a tensor, or a nest of tensors.
        device: Where to; None leaves them where they are.
        non_blocking: Let copies from pinned memory to the GPU overlap with the host's work.
    """
    x, y = batch
    if device is None:
        return x, y
    return to_device(x, device, non_blocking=non_blocking), to_device(y, device, non_blocking=non_blocking)


def to_device(value: Any, device: str | torch.device | None, *, non_blocking: bool = False) -> Any:
    """Move every tensor of a nest to the device; what is there already is not copied.

    Mappings, sequences (named tuples too) and dataclasses are walked here, whatever holds them. What has a `to` method
    goes to accelerate's `send_to_device`; it is imported only then, because that takes about 0.1 s in every worker.

    Args:
        value: The nest; anything that is not a tensor stays as it is.
        device: Where to; None leaves everything where it is.
        non_blocking: As for `Tensor.to`.
    """
    if device is None:
        return value
    if isinstance(value, torch.Tensor):
        # `to` takes four times as long to find that there is nothing to do.
        return value if value.device == device else value.to(device, non_blocking=non_blocking)
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is tuple or kind is list:
        return kind(to_device(item, device, non_blocking=non_blocking) for item in value)
    if kind is dict:
        return {key: to_device(item, device, non_blocking=non_blocking) for key, item in value.items()}
    if hasattr(value, "to"):
        from accelerate.utils import send_to_device

        return send_to_device(value, device, non_blocking=non_blocking)
    return _other_nest(value, device, non_blocking=non_blocking)


def _other_nest(value: Any, device: str | torch.device, *, non_blocking: bool) -> Any:
    kind: Any = type(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in dataclasses.fields(value) if each.init]
        return dataclasses.replace(
            value, **{name: to_device(getattr(value, name), device, non_blocking=non_blocking) for name in names}
        )
    if isinstance(value, Mapping):
        return kind({key: to_device(item, device, non_blocking=non_blocking) for key, item in value.items()})
    if isinstance(value, Sequence):
        items = list(value)  # an array makes them anew at each look
        moved = [to_device(item, device, non_blocking=non_blocking) for item in items]
        if all(there is item for there, item in zip(moved, items, strict=True)):
            return value  # a range, say, cannot be made of its items
        return kind(*moved) if hasattr(value, "_fields") else kind(moved)
    return value


def num_samples(batch: Any) -> int:
    """Return the samples in a batch: the first dimension of the first tensor found in it.

    Args:
        batch: A tensor, or a nest of sequences, mappings and dataclasses that holds one.

    Raises:
        TypeError: There is no tensor with a first dimension in it.
    """
    found = _first_dimension(batch)
    if found is None:
        raise TypeError(
            f"Cannot tell how many samples a batch of type {type(batch).__name__} holds: there is no tensor in it. "
            "Give a function that counts them."
        )
    return found


def _first_dimension(value: Any) -> int | None:
    if isinstance(value, torch.Tensor):
        return value.shape[0] if value.dim() else None
    if isinstance(value, Mapping):
        items: Any = value.values()
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        items = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, each.name) for each in dataclasses.fields(value)]
    else:
        return None
    for item in items:
        found = _first_dimension(item)
        if found is not None:
            return found
    return None
