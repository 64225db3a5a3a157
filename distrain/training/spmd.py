"""Batches over all XLA devices at once: SPMD, where one process computes on them as if they were one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distrain.runtime import xla
from distrain.training.batches import tensors_in

__all__ = ["over_all_devices"]


def over_all_devices(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """Return what prepares a batch and divides its samples over the devices; `prepare` itself where there is no SPMD.

    Args:
        prepare: Returns input and target, on the XLA device.
    """
    if not xla.is_spmd():
        return prepare

    def divided(*args: Any, **kwargs: Any) -> Any:
        prepared = prepare(*args, **kwargs)
        for tensor in tensors_in(prepared):
            xla.shard_batch(tensor)
        return prepared

    return divided
