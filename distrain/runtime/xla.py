"""The one module that knows torch_xla, and only when it is called: torch's own TPU backend is expected to replace it.

Each function needs torch_xla; `check_installed` says so in words. The names are those of torch_xla since 2.7.

What is computed on an XLA device is recorded first and runs when a value is read or at `sync`; each new record is
compiled. Two rules follow for whoever computes there. Reading one value runs what that value needs and nothing else:
what others share with it is computed again for them, unless `sync` ran it all before. And a Python number is sent
along with its record, except 0, 1 and -1, which are compiled in: one that passes through them compiles anew.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from distrain.errors import RuntimeStateError

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

__all__ = [
    "check_installed",
    "device",
    "is_in_use",
    "is_installed",
    "random_state",
    "rank_and_size",
    "reduce_gradients",
    "set_random_state",
    "step",
    "sum_over_ranks",
    "sync",
    "wait",
]


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
