"""DDP whose buckets are arranged once, so that a resumed run adds up gradients in the same order.

DDP arranges its buckets anew after the first backward pass, in the order in which gradients came. Among three ranks or
more the order in which an all-reduce adds numbers up depends on their place in the bucket: a resumed run, whose first
step has the first arrangement again, would end some last bits apart from the run that was not stopped.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

__all__ = ["SteadyDDP"]


class SteadyDDP(DistributedDataParallel):
    """DistributedDataParallel with the arrangement of its buckets that it keeps: from the last parameter to the first.

    That is about the order in which gradients come, and the one that DDP itself begins with. Where `_build_params…` and
    `_push_all…` are not there, in another release of torch, it is plain DDP. It warns where DDP says nothing: of
    parameters that were frozen when it was made, and train since.

    Args:
        module: As for DistributedDataParallel, and so are the others.
        **options: As there.
    """

    def __init__(self, module: torch.nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        push = getattr(self.reducer, "_push_all_rebuilt_params", None)
        if push is not None:
            # DDP's own way to arrange them without a backward pass, for ranks that have no batch left. It takes the
            # parameters in their order here, and then never again.
            push()
            self.reducer._rebuild_buckets()  # noqa: SLF001  # as DDP does ahead of each forward pass
        ignored = self.parameters_to_ignore
        named = module.named_parameters()
        self._frozen = [each for name, each in named if not each.requires_grad and name not in ignored]
        if self._frozen:
            self.register_forward_pre_hook(_look_at_frozen)

    def _build_params_for_reducer(self) -> tuple[list[torch.nn.Parameter], list[bool]]:
        parameters, expect_sparse = super()._build_params_for_reducer()  # type: ignore[no-untyped-call]
        return parameters[::-1], expect_sparse[::-1]


def _look_at_frozen(ddp: Any, _args: object) -> None:
    if not torch.is_grad_enabled():
        return
    for parameter in ddp._frozen:  # noqa: SLF001  # of this module
        if parameter.requires_grad:
            num = sum(each.requires_grad for each in ddp._frozen)  # noqa: SLF001  # as above
            ddp._frozen = []  # noqa: SLF001  # as above
            warnings.warn(
                f"{num} parameters were frozen when the model was prepared, and train now. DDP does not reduce their "
                "gradients: each rank trains them by its own data, and the ranks' weights drift apart. Prepare the "
                "model before anything is frozen, with ddp_options={'find_unused_parameters': True}.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
