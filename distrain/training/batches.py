"""Moving a batch to the device, and counting its samples."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence, Set
from types import SimpleNamespace
from typing import Any

import torch

__all__ = ["num_samples", "prepare_batch", "tensors_in", "to_device"]

_PAIRS = (tuple, list)
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

    Raises:
        TypeError: The batch is a mapping, of which it is not known which entries are input and target.
    """
    # Asking an abstract class takes longer than all else here, and most batches are one of these two.
    if type(batch) not in _PAIRS and isinstance(batch, Mapping):
        raise TypeError(
            f"The batch is a {type(batch).__name__} with the keys {list(batch)}, and prepare_batch takes a pair "
            "(x, y). Give the trainer a prepare_batch of your own, which takes batch, device and non_blocking and "
            "picks x and y; distrain.training.to_device moves them."
        )
    x, y = batch
    if device is None:
        return x, y
    return to_device(x, device, non_blocking=non_blocking), to_device(y, device, non_blocking=non_blocking)


def to_device(value: Any, device: str | torch.device | None, *, non_blocking: bool = False) -> Any:
    """Move every tensor of a nest to the device; what is there already is not copied.

    Mappings, sequences (named tuples too), sets, dataclasses and `SimpleNamespace` are walked here, whatever holds
    them. No other object is looked into, since making it anew could do anything; give it a `to` method. What has one
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
    if type(value) in _PLAIN:
        return value
    if hasattr(value, "to"):
        from accelerate.utils import send_to_device

        return send_to_device(value, device, non_blocking=non_blocking)
    return _move_parts(value, device, non_blocking=non_blocking)


def _move_parts(value: Any, device: str | torch.device, *, non_blocking: bool) -> Any:
    """Move the parts of a nest; return it itself when nothing moved.

    A nest that can be changed is copied and its moved parts are put into the copy, so that what else it carries (a
    default factory, a maximal length, attributes) stays and no `__init__` runs. One that cannot is made of its parts.
    """
    parts = _parts(value)
    moved = {key: to_device(part, device, non_blocking=non_blocking) for key, part in parts.items()}
    changed = {key: part for key, part in moved.items() if part is not parts[key]}
    if not changed:
        return value
    kind: Any = type(value)
    if isinstance(value, tuple):
        return kind._make(moved.values()) if hasattr(kind, "_make") else kind(moved.values())
    if isinstance(value, (MutableMapping, MutableSequence)):
        copied: Any = copy.copy(value)
        for key, part in changed.items():
            copied[key] = part
        return copied
    if isinstance(value, Mapping):
        return kind(moved)
    if isinstance(value, (Sequence, Set)):
        return kind(moved.values())
    copied = copy.copy(value)
    for name, part in changed.items():
        object.__setattr__(copied, name, part)  # also of a frozen dataclass
    return copied


def _parts(value: Any) -> dict[Any, Any]:
    """Return what a nest holds, by key, index or name; nothing for what is no nest."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (Sequence, Set)):
        return {} if isinstance(value, (str, bytes)) else dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return dict(vars(value)) if isinstance(value, SimpleNamespace) else {}


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor of a nest.

    Args:
        value: The nest, of the kinds that `to_device` walks.
    """
    if isinstance(value, torch.Tensor):
        yield value
        return
    for part in _parts(value).values():
        yield from tensors_in(part)


def num_samples(batch: Any) -> int:
    """Return the samples in a batch: the first dimension of the first tensor found in it.

    Args:
        batch: A tensor, or a nest that holds one, of the kinds that `to_device` walks.

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
    for item in _parts(value).values():
        found = _first_dimension(item)
        if found is not None:
            return found
    return None
