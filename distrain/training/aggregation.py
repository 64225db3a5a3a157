"""The loss of the whole world: its mean over samples and ranks, without a wait in the steps between reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from distrain.engine import Engine, Events
from distrain.runtime import rank_and_size, sum_on_main
from distrain.training.batches import num_samples
from distrain.training.checks import positive_int

__all__ = ["LossAggregator", "aggregators", "means_of"]

_AGGREGATORS = "aggregators"
"""Where a trainer's state keeps those that follow it."""


class LossAggregator:
    """Puts the mean loss of all ranks into rank 0's `trainer.state.metrics`.

    `metrics["loss"]` is the mean over the last `every` iterations, each loss weighted by its batch's samples;
    `metrics["epoch_loss"]`, set when an epoch completes, is the mean over the epoch. Losses add up on the device in
    double precision; only a reporting iteration reduces them, and only rank 0 then waits for the value. A handler that
    is attached later sees the new value at the same event. A `Checkpointer` of the trainer saves what has added up, so
    a resumed run reports the very means of the uninterrupted one.

    Args:
        every: Iterations between two reports.
        name: The name in `state.metrics`; the epoch's is `epoch_<name>`.
        output_transform: Takes `state.output`, gives the mean loss of this rank's batch: a number or a 0-dim tensor.
        count: Takes `state.batch`, gives its samples; by default the first dimension of its first tensor.
    """

    def __init__(
        self,
        every: int = 10,
        *,
        name: str = "loss",
        output_transform: Callable[[Any], Any] | None = None,
        count: Callable[[Any], int] = num_samples,
    ) -> None:
        self.every = positive_int("every", every)
        self.name = name
        self._output_transform = output_transform
        self._count = count
        self._pending: torch.Tensor | None
        self._start()

    def attach(self, engine: Engine) -> None:
        """Follow a trainer. Every rank must attach, since reports are reduced over all of them.

        Args:
            engine: The trainer.

        Raises:
            TypeError: It is no engine.
        """
        if not hasattr(engine, "add_event_handler"):
            raise TypeError(f"LossAggregator.attach() got {type(engine).__name__}; give it the trainer.")
        vars(engine.state).setdefault(_AGGREGATORS, {})[self.name] = self
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self._report)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report_epoch)

    def state_dict(self) -> dict[str, float]:
        """Return what has added up on this rank since the last reports."""
        return {
            "on_device": self._begun if self._pending is None else self._pending.item(),
            "sum": self._pending_sum,
            "count": self._pending_count,
            "window_sum": self._window.total,
            "window_count": self._window.count,
            "epoch_sum": self._epoch.total,
            "epoch_count": self._epoch.count,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on with what had added up.

        Args:
            state: What `state_dict` returned.
        """
        self._pending, self._begun = None, state["on_device"]
        self._pending_sum, self._pending_count = state["sum"], int(state["count"])
        self._window = _Mean(state["window_sum"], state["window_count"])
        self._epoch = _Mean(state["epoch_sum"], state["epoch_count"])

    def _start(self) -> None:
        self._pending = None
        self._begun = 0.0  # what the tensor begins with
        self._pending_sum = 0.0
        self._pending_count = 0
        self._window = _Mean()
        self._epoch = _Mean()

    def _start_epoch(self) -> None:
        self._epoch = _Mean()

    def _add(self, engine: Engine) -> None:
        output = engine.state.output
        loss = output if self._output_transform is None else self._output_transform(output)
        samples = self._count(engine.state.batch)
        self._pending_count += samples
        if isinstance(loss, torch.Tensor):
            if loss.numel() != 1:
                raise self._no_loss(f"a tensor of shape {tuple(loss.shape)}")
            if self._pending is None:
                exact = torch.float32 if loss.device.type == "mps" else torch.float64
                self._pending = torch.full((), self._begun, dtype=exact, device=loss.device)
                self._begun = 0.0
            self._pending.add_(loss.detach().reshape(()), alpha=samples)
        elif isinstance(loss, (int, float)):
            self._pending_sum += loss * samples
        else:
            raise self._no_loss(type(loss).__name__)

    def _no_loss(self, got: str) -> TypeError:
        return TypeError(
            f"LossAggregator got {got} as the loss of a batch; it needs a number or a tensor with one element. Give it "
            "an output_transform that picks the loss out of state.output."
        )

    def _collect(self) -> None:
        """Bring what has added up since the last time to rank 0, into the window and the epoch."""
        known = torch.tensor([self._pending_sum + self._begun, float(self._pending_count)], dtype=torch.float64)
        if self._pending is not None:
            # The counts go to the device without a wait; the sum there is never asked for on the way.
            known = known.to(self._pending.device, self._pending.dtype, non_blocking=True)
            known[0] += self._pending
        total = sum_on_main(known)
        if rank_and_size()[0] == 0:
            loss_sum, count = total.tolist()
            self._window.add(loss_sum, count)
            self._epoch.add(loss_sum, count)
        self._pending, self._begun, self._pending_sum, self._pending_count = None, 0.0, 0.0, 0

    def _report(self, engine: Engine) -> None:
        self._collect()
        if rank_and_size()[0] == 0:
            engine.state.metrics[self.name] = self._window.value
            self._window = _Mean()

    def _report_epoch(self, engine: Engine) -> None:
        self._collect()
        if rank_and_size()[0] == 0:
            engine.state.metrics[f"epoch_{self.name}"] = self._epoch.value


def aggregators(trainer: Engine) -> dict[str, LossAggregator]:
    """Return those that follow a trainer, by their names.

    Args:
        trainer: The trainer.
    """
    found: dict[str, LossAggregator] = getattr(trainer.state, _AGGREGATORS, {})
    return found


def means_of(
    rank: int, world_size: int, saved: Sequence[Mapping[str, Mapping[str, float]]]
) -> Mapping[str, Mapping[str, float]]:
    """Return what a rank's aggregators go on with, by their names.

    Args:
        rank: This rank.
        world_size: How many there are now.
        saved: Of each rank of the checkpoint, the state dicts of its aggregators. Among another number of ranks
            rank 0 goes on with what all of them had.
    """
    if len(saved) == world_size:
        return saved[rank]
    if rank != 0 or not saved:
        return {}
    return {name: {key: sum(each[name][key] for each in saved) for key in saved[0][name]} for name in saved[0]}


class _Mean:
    def __init__(self, total: float = 0.0, count: float = 0.0) -> None:
        self.total = total
        self.count = count

    def add(self, total: float, count: float) -> None:
        self.total += total
        self.count += count

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else math.nan
