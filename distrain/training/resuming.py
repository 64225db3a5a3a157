"""What of a checkpoint is put back when a resumed run starts: its progress, then what its handlers would spoil."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from distrain.engine import DeterministicEngine, Engine, Events
from distrain.errors import CheckpointError
from distrain.runtime import rank_and_size
from distrain.training.data import ShardedDataLoader
from distrain.training.progress import place_of

__all__ = ["at_the_start", "set_progress", "without_random_states"]


def at_the_start(trainer: Engine, progress: Callable[[Engine], None], rest: Callable[[Engine], None]) -> None:
    """Call two functions once, when the next run starts.

    What handlers of STARTED draw or begin anew is so in every start, and of EPOCH_STARTED so at the beginning of an
    epoch. In the run that is gone on with this was long over.

    Args:
        trainer: The trainer.
        progress: Called at STARTED, in the order of its handlers; it sets the progress.
        rest: Called behind all handlers of STARTED and, where the run goes on inside an epoch, again behind those of
            EPOCH_STARTED.
    """

    def first(engine: Engine) -> None:
        progress(engine)
        # An engine calls handlers that are added while their event is being fired, unless one was removed meanwhile:
        # so these two are removed by the last of them.
        handles.append(engine.add_event_handler(Events.STARTED, last))

    def last(engine: Engine) -> None:
        for handle in handles:
            handle.remove()
        rest(engine)
        if place_of(engine)[1] != 0:
            handles[:] = [engine.add_event_handler(Events.EPOCH_STARTED, again)]

    def again(engine: Engine) -> None:
        handles[0].remove()
        rest(engine)

    handles = [trainer.add_event_handler(Events.STARTED, first)]


def set_progress(
    trainer: Engine, saved: dict[str, Any], meta: dict[str, Any], *, path: Path, attached: Collection[Any]
) -> None:
    """Set a trainer's progress, towards the goal of the run that has just started.

    Args:
        trainer: The trainer.
        saved: Its state dict of the checkpoint.
        meta: What the checkpoint says of itself.
        path: The checkpoint.
        attached: What was saved with the trainer.

    Raises:
        CheckpointError: The goal is behind the checkpoint, or the data do not fit what was done of an epoch.
    """
    state = trainer.state
    progress = dict(saved)
    for goal in ("max_epochs", "max_iters"):
        progress.pop(goal, None)
    goal = "max_epochs" if state.max_iters is None else "max_iters"
    progress[goal] = getattr(state, goal)
    done, inside = meta["place"]
    then, now = meta["epoch_length"], state.epoch_length
    divided = _had_of_divided(state.dataloader, now) if inside else None
    if divided is not None and (divided, now) != (inside, then):
        done, inside = (done + 1, 0) if divided == now else (done, divided)
        progress = without_random_states({**progress, "iteration": done * now + inside, "epoch_length": now})
    elif divided is None and now is not None and then is not None and now != then:
        if inside:
            raise CheckpointError(
                f"The checkpoint was taken inside an epoch, after {inside} of its {then} iterations, and an epoch "
                f"has {now} now (world size {meta['world_size']} then, {rank_and_size()[1]} now). Attach the "
                "loader, one of distrain.dataloader: it divides what is left. Or go on with the former sizes, or "
                "from a checkpoint taken at the end of an epoch."
            )
        progress["iteration"] = done * now
        progress["epoch_length"] = now
        progress = without_random_states(progress)
    elif inside and rank_and_size()[0] == 0 and _begins_anew(trainer, attached):
        warnings.warn(
            f"The run goes on inside an epoch, after iteration {inside} of it, and its data begin anew: some "
            "samples come a second time, others not at all. Attach the loader to the Checkpointer, one of "
            "distrain.dataloader.",
            RuntimeWarning,
            stacklevel=2,
        )
    had, what = (done, "epochs") if goal == "max_epochs" else (progress["iteration"], "iterations")
    if progress[goal] is not None and progress[goal] < had:
        raise CheckpointError(
            f"The run is to go on from {path}, which has done {had} {what}, and run() was asked for "
            f"{goal}={progress[goal]}. Ask for {had} or more, in all; to begin anew, use another run directory."
        )
    trainer.load_state_dict(progress)
    if isinstance(trainer, Engine):
        trainer.place = done, inside


def _begins_anew(trainer: Engine, attached: Collection[Any]) -> bool:
    """Whether the data have no way to go on where they were; what other types do is their own."""
    data = trainer.state.dataloader
    if isinstance(trainer, DeterministicEngine) or any(each is data for each in attached):
        return False
    return isinstance(data, (DataLoader, list, tuple))


def _had_of_divided(data: Any, epoch_length: int | None) -> int | None:
    """Return how many iterations an epoch counts as had that a loader has divided anew; None where it has not."""
    is_ours = isinstance(data, ShardedDataLoader) and data.is_divided_anew and len(data) == epoch_length
    return data.position if is_ours else None


def without_random_states(progress: dict[str, Any]) -> dict[str, Any]:
    """Return a trainer's progress for another division of the data: of a deterministic one only the seed is kept.

    Args:
        progress: The trainer's state dict.
    """
    saved = progress.get("rng_states")
    return {**progress, "rng_states": {"seed": saved["seed"]}} if isinstance(saved, Mapping) else progress
