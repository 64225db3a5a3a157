"""The one module that knows torch_xla, and only when it is called: torch's own TPU backend is expected to replace it.

Each function needs torch_xla; `check_installed` says so in words. The names are those of torch_xla since 2.7.

What is computed on an XLA device is recorded first and runs when a value is read or at `sync`; each new record is
compiled. Two rules follow for whoever computes there. Reading one value runs what that value needs and nothing else:
what others share with it is computed again for them, unless `sync` ran it all before. And a Python number is sent
along with its record, except 0, 1 and -1, which are compiled in: one that passes through them compiles anew.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from distrain.errors import RuntimeStateError

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

__all__ = [
    "check_installed",
    "device",
    "is_in_use",
    "is_installed",
    "is_spmd",
    "random_state",
    "rank_and_size",
    "reduce_gradients",
    "set_random_state",
    "shard_batch",
    "step",
    "sum_over_ranks",
    "sync",
    "use_spmd",
    "wait",
]

BATCH_AXIS = "data"
"""How the mesh calls the dimension over which batches are divided."""


def is_installed() -> bool:
    """Whether torch_xla can be imported; beside a torch that it was not built for it cannot."""
    try:
        import torch_xla  # noqa: F401  # finding it would not be enough
    except ImportError:
        return False
    return True


def check_installed() -> None:
    """Make sure that torch_xla can be imported.

    Raises:
        RuntimeStateError: It is not installed, or was not built for this torch.
    """
    if not is_installed():
        raise RuntimeStateError(
            "In order to run on TPU, please install PyTorch XLA: `pip install distrain[xla]` brings the torch_xla and "
            "the torch that fit each other."
        )


def is_in_use() -> bool:
    """Whether this process has imported torch_xla, without which no tensor is on an XLA device."""
    return "torch_xla" in sys.modules


def device() -> torch.device:
    """Return this process's XLA device.

    It must be called, or used by its name, before the process's first backward pass: torch's autograd makes room for
    the kinds of devices that it knows by then, and fails an assertion at the first pass on another.
    """
    import torch_xla

    found: torch.device = torch_xla.device()
    return found


def use_spmd() -> None:
    """Have this process compute on all XLA devices as if they were one; it must come before the first tensor.

    Every record is compiled once, for all devices, and says for each tensor how it is divided over them. What nothing
    is said about is whole on each device, as weights are; XLA adds the reductions. There is one rank.
    """
    import torch_xla.runtime as xr

    if not xr.is_spmd():
        xr.use_spmd()


def is_spmd() -> bool:
    """Whether all devices are used as one."""
    if not is_in_use():
        return False
    import torch_xla.runtime as xr

    found: bool = xr.is_spmd()
    return found


def shard_batch(tensor: torch.Tensor) -> None:
    """Divide a tensor's first dimension over all devices, where they are used as one.

    Any number of samples will do: where they do not come out even, XLA fills up and leaves what it filled out of the
    result.

    Args:
        tensor: A part of a batch. One without a dimension, or on another device, stays whole.
    """
    if tensor.device.type != "xla" or tensor.dim() == 0:
        return
    import torch_xla.distributed.spmd as xs

    xs.mark_sharding(tensor, _mesh(), (BATCH_AXIS, *[None] * (tensor.dim() - 1)))


@functools.lru_cache(maxsize=1)
def _mesh() -> Any:
    """Return the line of all devices, in the order of their numbers."""
    import numpy as np
    import torch_xla.distributed.spmd as xs
    import torch_xla.runtime as xr

    num = xr.global_runtime_device_count()
    return xs.Mesh(np.arange(num), (num,), (BATCH_AXIS,))


def rank_and_size() -> tuple[int, int]:
    """Return this process's number among those that torch_xla reduces over, and how many there are."""
    import torch_xla.runtime as xr

    return xr.global_ordinal(), xr.world_size()


def random_state() -> int:
    """Return the state of the XLA device's generator."""
    import torch_xla.core.xla_model as xm

    state: int = xm.get_rng_state()
    return state


def set_random_state(state: int) -> None:
    """Set the state of the XLA device's generator, which `torch.manual_seed` leaves alone.

    Args:
        state: What `random_state` returned, or a seed.
    """
    import torch_xla.core.xla_model as xm

    xm.set_rng_state(state)


def step(optimizer: Optimizer) -> None:
    """Take the mean of the gradients over all processes, in one all-reduce, and let the optimizer step.

    Args:
        optimizer: An optimizer of parameters that nothing else reduces; for those of a DDP model this would be twice.
    """
    import torch_xla.core.xla_model as xm

    xm.optimizer_step(optimizer)


def reduce_gradients(optimizer: Optimizer) -> None:
    """Take the mean of the gradients over all processes: the first half of `step`.

    Args:
        optimizer: As for `step`.
    """
    import torch_xla.core.xla_model as xm

    xm.reduce_gradients(optimizer)


def sync() -> None:
    """Compile and start what was recorded since the last call, as one graph."""
    import torch_xla

    torch_xla.sync()


def wait() -> None:
    """Wait until the device has done what was recorded for it."""
    import torch_xla

    torch_xla.sync(wait=True)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of the processes' tensors, on all of them.

    Args:
        values: A tensor of the same shape everywhere, on the XLA device.
    """
    import torch_xla.core.xla_model as xm

    total: torch.Tensor = xm.all_reduce(xm.REDUCE_SUM, values)
    return total
