"""What the other rooms ask the process group; each works without one too, as a world of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

__all__ = ["copy_from_main", "from_main", "gather_on_main", "rank_and_size", "sum_on_main"]

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """Return this worker's rank and the world size, `(0, 1)` without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def from_main(value: T) -> T:
    """Return rank 0's value on every rank. Every rank must call it.

    Args:
        value: Any object that can be pickled; the other ranks' values are ignored.
    """
    if rank_and_size()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_on_main(values: torch.Tensor) -> torch.Tensor:
    """Add up the ranks' tensors; rank 0 gets the sum, the others' result means nothing. Every rank must call it.

    Args:
        values: A tensor of the same shape on every rank, on this rank's device. It is overwritten, unless that is an
            XLA device, of which the sum is on the CPU.
    """
    if rank_and_size()[1] > 1:
        values = _for_the_group(values)
        dist.reduce(values, dst=0)
    return values


def copy_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors the values that they have on rank 0. Every rank must call it.

    Args:
        tensors: Tensors of the same shapes in the same order on every rank, on this rank's device.
    """
    for tensor in tensors:
        value = _for_the_group(tensor.detach())
        dist.broadcast(value, src=0)
        if value.device != tensor.device:
            with torch.no_grad():
                tensor.copy_(value)


def _for_the_group(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor where its process group takes it: gloo, which connects XLA's processes, has the CPU only."""
    return tensor.cpu() if tensor.device.type == "xla" else tensor


def gather_on_main(value: T) -> list[T]:
    """Return the values of all ranks in order on rank 0, an empty list elsewhere. Every rank must call it.

    Args:
        value: Any object that can be pickled.
    """
    rank, world_size = rank_and_size()
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    dist.gather_object(value, values if rank == 0 else None, dst=0)
    return values if rank == 0 else []
