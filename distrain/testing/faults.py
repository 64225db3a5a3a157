"""Faults on demand inside a distributed test: which rank, at which step, and how.

A step is one step of an optimizer of the rank's, counted from 1, or one call of `Faults.step` in a loop without one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distrain.errors import did_you_mean

__all__ = ["KINDS", "Faults", "InjectedFault"]

KINDS = ("kill", "raise", "hang", "delay", "nan")


class InjectedFault(RuntimeError):  # noqa: N818 - a fault is what it is
    """The error of a fault of the kind `raise`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fault:
    kind: str
    step: int
    seconds: float


class Faults:
    """The faults of this rank; the fixture `faults`.

    Args:
        rank: This rank.
        num_ranks: Of how many.
        tell: Called with the kind, just before this rank is lost to a fault.
    """

    def __init__(self, rank: int, num_ranks: int, tell: Callable[[str], None]) -> None:
        self._rank = rank
        self._num_ranks = num_ranks
        self._tell = tell
        self._faults: list[_Fault] = []
        self._num_steps = 0
        self._depth = 0

    def inject(self, kind: str, *, rank: int, step: int, seconds: float = 1.0) -> None:
        """Have a fault happen; call it on every rank alike, before the first step.

        Args:
            kind: What happens before the step takes effect: `kill` (SIGKILL), `raise` (an `InjectedFault`), `hang`
                (for ever), `delay` (for `seconds`); or `nan`: until that step, what the model returns in training is
                nan, so that loss and gradients are.
            rank: The rank that it hits. If it is lost (killed, hung, or by an error that leaves the test), it need not
                pass.
            step: The step, from 1.
            seconds: Of `delay`.

        Raises:
            ValueError: There is no such kind, rank or step.
        """
        if kind not in KINDS:
            raise ValueError(f"There is no fault {kind!r}; there are {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
        if not 0 <= rank < self._num_ranks:
            raise ValueError(f"There is no rank {rank}; this test has ranks 0 to {self._num_ranks - 1}.")
        if step < 1:
            raise ValueError(f"A fault cannot happen at step {step}; the first step is 1.")
        if seconds < 0:
            raise ValueError(f"A delay cannot last {seconds} seconds; it must be 0 or more.")
        if rank != self._rank:
            return
        if not self._faults:
            from torch.optim.optimizer import register_optimizer_step_pre_hook

            register_optimizer_step_pre_hook(lambda *_: self.step())
        if kind == "nan":
            self._watch_models()
        self._faults.append(_Fault(kind=kind, step=step, seconds=seconds))

    def step(self) -> None:
        """Count a step of a loop that has no optimizer; the fault that is due happens."""
        self._num_steps += 1
        for fault in self._faults:
            if fault.step == self._num_steps:
                self._happen(fault)

    def _happen(self, fault: _Fault) -> None:
        if fault.kind == "raise":
            raise InjectedFault(f"fault injected at rank {self._rank}, step {fault.step}")
        if fault.kind == "delay":
            time.sleep(fault.seconds)
        elif fault.kind == "kill":
            self._tell("kill")
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "hang":
            self._tell("hang")
            threading.Event().wait()

    def _watch_models(self) -> None:
        """Spoil what the outermost module returns, when it is due; the hooks are torch's for all modules."""
        from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

        register_module_forward_pre_hook(lambda *_: self._enter())
        register_module_forward_hook(lambda module, _, output: self._leave(module, output), always_call=True)

    def _enter(self) -> None:
        self._depth += 1

    def _leave(self, module: Any, output: Any) -> Any:
        self._depth -= 1
        due = any(fault.kind == "nan" and fault.step == self._num_steps + 1 for fault in self._faults)
        if self._depth > 0 or not due or not module.training:
            return output
        import torch
        from torch.utils._pytree import tree_map

        def spoil(value: Any) -> Any:
            return value * torch.nan if isinstance(value, torch.Tensor) and value.is_floating_point() else value

        return tree_map(spoil, output)
