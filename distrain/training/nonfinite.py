"""Losses that are not finite: what to do about them, decided by all ranks together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import nn

from distrain.errors import NonFiniteLossError
from distrain.runtime import rank_and_size, xla
from distrain.training.checks import one_of
from distrain.training.wrapping import ddp_of, device_of

if TYPE_CHECKING:
    from distrain.engine import Engine

__all__ = ["NonFiniteGuard", "NonFinitePolicy"]

NonFinitePolicy: TypeAlias = Literal["ignore", "skip", "raise"]

POLICIES = ("ignore", "skip", "raise")


class NonFiniteGuard:
    """Looks at the losses of a window and tells all ranks at its end whether to step.

    The losses are looked at on the device. At the window's end one small all-reduce makes the ranks agree, and the host
    waits for its result: that is the price of a decision.

    Args:
        policy: `skip` leaves the step out, `raise` raises, each on all ranks alike.
        model: Its ranks decide: those of its DDP group, else all of the default process group.
    """

    def __init__(self, policy: NonFinitePolicy, model: nn.Module) -> None:
        self._policy = policy
        self._model = model
        self._first: torch.Tensor | None = None
        self._held = 0

    def note(self, loss: torch.Tensor, held: int) -> None:
        """Remember the micro-batch if its loss is not finite and it is the first such of its window; nothing waits.

        Args:
            loss: The loss of this rank's micro-batch.
            held: The micro-batches of the window so far, with this one: the same numbers in each window, and thus
                nothing that XLA would compile anew.
        """
        bad = torch.isfinite(loss.detach()).all().logical_not().long() * held
        # With 1 a window begins: the one before, if still there, was dropped.
        self._first = bad if self._first is None or held == 1 else torch.where(self._first > 0, self._first, bad)
        self._held = held

    @property
    def place(self) -> int:
        """The first micro-batch of the window whose loss was not finite on this rank, from 1; 0 for none. It waits."""
        return 0 if self._first is None else int(self._first)

    def restore(self, place: int, held: int) -> None:
        """Go on with a window of which micro-batches were seen before.

        Args:
            place: What `place` was.
            held: How many micro-batches the window holds.
        """
        self._first = torch.tensor(place, device=device_of(self._model)) if held else None
        self._held = held

    def allows_step(self, engine: Engine) -> bool:
        """Whether every loss of the window was finite, on every rank. Every rank must ask.

        Args:
            engine: The engine that runs the step; a step that is left out is logged there, on rank 0.

        Raises:
            NonFiniteLossError: One was not, and the policy is to raise. No rank has stepped.
        """
        first, held = self._first, self._held
        self._first, self._held = None, 0
        if first is None:  # under DDP, the end of the epoch found micro-batches on other ranks alone
            first = torch.zeros((), dtype=torch.long, device=device_of(self._model))
        places, rank = self._over_ranks(first)
        before = engine.state.iteration - held
        bad = {each: before + place for each, place in enumerate(places) if place}
        if not bad:
            return True
        others = "; the other ranks' are" if len(bad) < len(places) else ""
        where = ", ".join(f"rank {each} (iteration {iteration})" for each, iteration in bad.items())
        what = (
            f"The loss of iteration {bad[0]} is not finite."
            if len(places) == 1
            else f"The loss is not finite on {where}{others}."
        )
        if self._policy == "raise":
            raise NonFiniteLossError(
                f"{what} No rank has stepped: the weights are those before it. Look at that batch, lower the learning "
                "rate or clip with max_grad_norm; nonfinite_loss='skip' would leave such steps out."
            )
        if rank == 0:
            engine.logger.warning("%s The optimizer's step of iteration %d is left out.", what, engine.state.iteration)
        return False

    def _over_ranks(self, first: torch.Tensor) -> tuple[list[int], int]:
        """Return each rank's first bad micro-batch, counted from 1, 0 for none, and this rank's number."""
        ddp, on_xla = ddp_of(self._model), first.device.type == "xla"
        if ddp is not None:
            group = ddp.process_group
            rank, size = dist.get_rank(group), dist.get_world_size(group)
        else:
            group = None
            rank, size = xla.rank_and_size() if on_xla else rank_and_size()
        places = torch.zeros(size, dtype=torch.long, device=first.device)
        places[rank] = first
        if size > 1:
            if ddp is None and on_xla:
                places = xla.sum_over_ranks(places)
            else:
                dist.all_reduce(places, group=group)
        if on_xla:
            # Reading alone would run the forward pass, and the optimizer's step would run it again for the gradients.
            xla.sync()
        return places.tolist(), rank


def guard(policy: NonFinitePolicy, model: nn.Module) -> NonFiniteGuard | None:
    """Return the guard of a policy, None for `ignore`.

    Args:
        policy: One of `POLICIES`.
        model: As for `NonFiniteGuard`.

    Raises:
        ValueError: The policy is unknown.
    """
    one_of("nonfinite_loss", policy, POLICIES)
    return None if policy == "ignore" else NonFiniteGuard(policy, model)
