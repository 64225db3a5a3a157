"""A stand-in for the reduction of torch_xla, where only a TPU has several replicas: gloo, between real processes.

A process on a CPU has one XLA device, and torch_xla takes itself for a world of one whatever its launcher says. After
`install` it has the rank and the size that the launcher says, and `xm.all_reduce` goes over the default process group.
All else is the real torch_xla's, `xm.optimizer_step` and `xm.reduce_gradients` included.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["install", "launch"]

NUM_PROCESSES = 2

reductions: list[int] = []
"""How many tensors each reduction so far had."""


def install() -> None:
    """Put the stand-ins in their places; reductions need the default process group, with gloo."""
    import torch_xla.core.xla_model as xm
    import torch_xla.runtime as xr

    xr.world_size = lambda: int(os.environ["WORLD_SIZE"])
    xr.global_ordinal = lambda: int(os.environ["RANK"])
    xm.all_reduce = all_reduce


def launch(fn: Callable[..., None], args: tuple[Any, ...], debug_single_process: bool) -> None:
    """As `torch_xla.launch` on a TPU host with as many chips: a process for each, which calls `fn(rank, *args)`."""
    assert not debug_single_process
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(NUM_PROCESSES, mp_context=context) as executor:
        for done in [executor.submit(_be_replica, rank, fn, args) for rank in range(NUM_PROCESSES)]:
            done.result()


def _be_replica(rank: int, fn: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(NUM_PROCESSES))
    os.environ.update(PJRT_LOCAL_PROCESS_RANK=str(rank), PJRT_LOCAL_PROCESS_COUNT=str(NUM_PROCESSES))
    install()
    import torch_xla.runtime as xr

    xr.local_ordinal = xr.global_ordinal
    fn(rank, *args)


def all_reduce(  # noqa: PLR0917  # the order of the real one
    reduce_type: str,
    inputs: torch.Tensor | Sequence[torch.Tensor],
    scale: float = 1.0,
    groups: Any = None,
    cctx: Any = None,
    pin_layout: bool = True,
) -> torch.Tensor | None:
    """As `xm.all_reduce`: a tensor's sum is returned, those of a list are written into its tensors."""
    assert (reduce_type, groups, cctx) == ("sum", None, None)
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    reductions.append(len(tensors))
    totals = []
    for tensor in tensors:
        total = tensor.detach().cpu()
        dist.all_reduce(total)
        totals.append((total * scale).to(tensor.device, tensor.dtype))
    if isinstance(inputs, torch.Tensor):
        return totals[0]
    for tensor, total in zip(tensors, totals, strict=True):
        tensor.copy_(total)
    return None
