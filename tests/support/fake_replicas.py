"""A stand-in for the reduction of torch_xla, where only a TPU has several replicas: gloo, between real processes.

A process on a CPU has one XLA device, and torch_xla takes itself for a world of one whatever its launcher says. After
`install` it has the rank and the size of the process group, and `xm.all_reduce` goes over that. All else is the real
torch_xla's, `xm.optimizer_step` and `xm.reduce_gradients` included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["install"]

reductions: list[int] = []
"""How many tensors each reduction so far had."""


def install() -> None:
    """Put the stand-ins in their places; the default process group must be there, with gloo."""
    import torch_xla.core.xla_model as xm
    import torch_xla.runtime as xr

    xr.world_size = dist.get_world_size
    xr.global_ordinal = dist.get_rank
    xm.all_reduce = all_reduce


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
