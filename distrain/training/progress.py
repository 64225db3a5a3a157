"""Where in its run a trainer is. Ours says it; of ignite's engine only the number of iterations is known."""

from __future__ import annotations

from typing import Any

from distrain.engine import Engine

__all__ = ["is_last_iteration", "place_of"]


def is_last_iteration(trainer: Any) -> bool:
    """Whether the current iteration is the last one of its epoch or of the run, as far as is known during it.

    Args:
        trainer: An engine of ours or of ignite's, in an iteration.
    """
    if isinstance(trainer, Engine):
        return trainer.is_last_iteration
    state = trainer.state
    return state.iteration == state.max_iters or place_of(trainer)[1] == 0


def place_of(trainer: Any) -> tuple[int, int]:
    """Return the epochs that are over, and the iterations that the next one has had.

    Args:
        trainer: An engine of ours or of ignite's.
    """
    if isinstance(trainer, Engine):
        return trainer.place
    state = trainer.state
    return divmod(state.iteration, state.epoch_length) if state.epoch_length else (state.epoch - 1, state.iteration)
