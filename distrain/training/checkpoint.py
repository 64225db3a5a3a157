"""Saving a run and going on with it.

    <run directory>/checkpoints/step-00000100/state.pt     everything, by torch.save; tensors and plain values only
                                              meta.json    number, step, epoch, world size: for people and for the order

Rank 0 writes. A checkpoint is drafted in a hidden directory beside the others, forced to disk and renamed, so its name
stands for a whole one at any moment. Which one is the newest is said by `number`, which counts checkpoints: when a run
goes on with another world size an epoch has fewer or more steps, and steps alone would not be in order. The launch that
began to train last is the only one that may write (`incarnations`), and what it writes is newer than all before.
"""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from distrain.engine import Engine, Events, RemovableEventHandle
from distrain.errors import CheckpointError
from distrain.rundir import RunDir, checkpoint_order
from distrain.runtime import current_world, from_main, gather_on_main, rank_and_size
from distrain.supervision import heartbeat
from distrain.training import checkpoint_files, incarnations, resuming
from distrain.training.aggregation import aggregators, means_of
from distrain.training.checks import positive_int
from distrain.training.data import ShardedDataLoader
from distrain.training.progress import place_of
from distrain.training.random_state import random_state, set_random_state
from distrain.training.stopping import StopOnSignals
from distrain.training.wrapping import bare, is_spread

__all__ = ["Checkpointer"]

DAMAGED = "damaged-"
OF_THE_TRAINER = ("scaler", "apex")
"""What a trainer keeps in its state and every rank has alike."""

RESERVED = ("trainer", "accumulation", *OF_THE_TRAINER)

_written_here: set[Path] = set()
"""The directories that trainers of this process have saved in."""


class Checkpointer:
    """Saves a trainer and what belongs to it, keeps the newest, and goes on from there when started again.

    A checkpoint is taken after every `every` iterations and at the end of the run, behind the handlers of that moment,
    whose work belongs to it: a step of a scheduler, an average of the weights. One that falls on the end of an epoch is
    taken behind the epoch's handlers. Handlers that are attached while the trainer runs come behind the checkpoint.

    Args:
        every: Iterations between two checkpoints; None for one at the end of each epoch.
        keep: How many to keep, the newest.
        directory: Where; `checkpoints` in the run directory of `distrain.init()` by default. Where a script has several
            trainers, each needs a directory of its own.
        stop_on_signals: While the trainer runs, SIGTERM or SIGINT (Ctrl-C) makes all ranks finish their iteration, stop
            after the same one, save it, and end with `StoppedBySignal`, a SystemExit: exit code 75 after SIGTERM, 130
            after SIGINT. A signal to a single rank stops all. A second one of the same kind has its usual effect at
            once. Your own handlers stay, and so do ignored signals. On ignite's engine it has no effect.

    Raises:
        ValueError: A number is not positive.
    """

    def __init__(
        self,
        every: int | None = None,
        *,
        keep: int = 3,
        directory: str | os.PathLike[str] | None = None,
        stop_on_signals: bool = True,
    ) -> None:
        self.every = None if every is None else positive_int("every", every)
        self.keep = positive_int("keep", keep)
        self.resumed_from: Path | None = None
        """The checkpoint that `attach` loaded, or None."""
        self._directory = None if directory is None else Path(os.path.abspath(directory))
        self._is_default = directory is None
        self._objects: dict[str, Any] = {}
        self._number = 0
        self._incarnation = 0
        self._saved_at: tuple[int, tuple[int, int]] | None = None
        self._handles: list[RemovableEventHandle] = []
        self._stop = StopOnSignals(self._save_at_stop) if stop_on_signals else None

    @property
    def directory(self) -> Path:
        """Where the checkpoints are.

        Raises:
            RuntimeStateError: Neither a directory was given nor `distrain.init()` called.
        """
        if self._directory is None:
            world = current_world()
            if world is None:
                raise CheckpointError(
                    "Checkpointer does not know where to write: call distrain.init() first, or give it a directory."
                )
            self._directory = RunDir(root=world.run_dir).checkpoints
        return self._directory

    def attach(self, trainer: Engine, /, **objects: Any) -> None:
        """Save these objects with the trainer; if there is a checkpoint, load it now. Every rank must call it.

        The trainer's own progress is set when its run starts, so `run(loader, max_epochs=5)` goes on to epoch 5, also
        when the checkpoint was a finished run of 3. A checkpoint that cannot be read is set aside with a warning, and
        the one before it is taken. Where the world size is the same, each rank gets back what it had in the trainer's
        state dict and, behind what the handlers of the run's start draw, its own random states; else all get rank 0's
        state dict, and start with random states of their own. The means of a `LossAggregator` go on in any case.
        Iterations are then counted anew: what is done of an epoch is as much of it as before, of its new length.

        Args:
            trainer: The trainer; its progress, `state.scaler` and `state.apex` are saved by themselves. So is
                `state.accumulation`, the gradients of an accumulation window that the checkpoint falls into: each
                rank has its own, so where they are large, let `every` be a multiple of the accumulation steps.
            **objects: Anything with `state_dict` and `load_state_dict`, by the name to save it under. What the former
                returns is tensors, numpy arrays and plain values. A wrapped model is saved without its wrapper, and
                so is an average of its weights, so they load at any world size.

        Raises:
            CheckpointError: There are checkpoints and none can be read, the newest does not fit the objects, or an
                object is spread over the ranks: rank 0, which saves, has a part of it only.
            TypeError: An object has no state dict.
            ValueError: A name is taken by the trainer's own state.
        """
        for name, each in objects.items():
            if name in RESERVED:
                raise ValueError(f"The name {name!r} is taken: the {name} is saved by itself. Use another name.")
            if isinstance(each, type):
                raise TypeError(f"{name} is the class {each.__name__}; attach an object of it.")
            if not (hasattr(each, "state_dict") and hasattr(each, "load_state_dict")):
                raise TypeError(f"{name} is a {type(each).__name__}, which has no state_dict and load_state_dict.")
            if is_spread(each):
                raise CheckpointError(
                    f"The weights of {name} are spread over the ranks (DTensor, as after fully_shard), and of those "
                    "rank 0, which saves, has a part. Save it with torch.distributed.checkpoint, and attach the rest."
                )
        self._objects = {name: bare(each) if isinstance(each, nn.Module) else each for name, each in objects.items()}
        for name in OF_THE_TRAINER:
            if getattr(trainer.state, name, None) is not None:
                self._objects[name] = getattr(trainer.state, name)
        found = self._find()
        if found is not None:
            self._resume(trainer, found)
        if self._stop is not None and isinstance(trainer, Engine):
            self._stop.attach(trainer)
        trainer.add_event_handler(Events.STARTED, self._take_over)
        self._line_up(trainer)  # for a trainer that runs already
        trainer.add_event_handler(Events.STARTED, self._line_up)

    def save(self, trainer: Engine) -> None:
        """Take a checkpoint now. Every rank must call it.

        Args:
            trainer: The trainer.

        Raises:
            CheckpointError: It could not be written, on rank 0. Those before it are untouched.
            SupersededError: Another launch trains in the same directory since, on rank 0.
        """
        state = trainer.state
        window = getattr(state, "accumulation", None)
        gathered = gather_on_main(
            {
                "trainer": dict(trainer.state_dict()),
                "random": random_state(),
                "window": None if window is None else window.state_dict(),
                "means": {name: each.state_dict() for name, each in aggregators(trainer).items()},
            }
        )
        windows = [each["window"] for each in gathered if each["window"] is not None]
        self._saved_at = state.iteration, place_of(trainer)
        if rank_and_size()[0] != 0:
            return
        if self._incarnation == 0:  # saved by hand, outside of a run
            self._take_over()
        incarnations.check(self.directory, self._incarnation)
        self._number += 1
        meta = {
            "format": checkpoint_files.FORMAT,
            "incarnation": self._incarnation,
            "number": self._number,
            "step": state.iteration,
            "epoch": state.epoch,
            "epoch_length": state.epoch_length,
            "place": place_of(trainer),
            "world_size": rank_and_size()[1],
        }
        content = {
            "meta": meta,
            "objects": {name: _state_of(each, trainer) for name, each in self._objects.items()},
            **{name: [each[name] for each in gathered] for name in ("trainer", "random", "means")},
            # Between windows there is nothing to go on with.
            "windows": windows if any(each["held"] for each in windows) else [],
        }
        with heartbeat.paused():
            checkpoint_files.write(self._path(state.iteration), content, meta)
            _written_here.add(self.directory)
            self._prune()

    def _take_over(self) -> None:
        """Have this launch be the one that may write here, from the beginning of a run on."""
        if rank_and_size()[0] == 0:
            self._incarnation = incarnations.claim(self.directory)
            checkpoint_files.remove_drafts(self.directory, self._incarnation)

    def _line_up(self, trainer: Engine) -> None:
        """Save behind all handlers that are attached by now, at the beginning of a run."""
        for handle in self._handles:
            handle.remove()
        saves: list[tuple[Any, Callable[[Engine], None]]] = [
            (Events.EPOCH_COMPLETED, self._save_at_epoch),
            (Events.COMPLETED, self._save_at_end),
        ]
        if self.every is not None:
            saves.append((Events.ITERATION_COMPLETED(every=self.every), self._save_inside_epoch))
        self._handles = [trainer.add_event_handler(event, save) for event, save in saves]

    def _save_inside_epoch(self, trainer: Engine) -> None:
        if not self._is_stopping() and place_of(trainer)[1] != 0:  # else the epoch's end saves
            self.save(trainer)

    def _save_at_epoch(self, trainer: Engine) -> None:
        if not self._is_stopping() and (self.every is None or trainer.state.iteration % self.every == 0):
            self.save(trainer)

    def _save_at_end(self, trainer: Engine) -> None:
        if self._saved_at != (trainer.state.iteration, place_of(trainer)):
            self.save(trainer)

    def _is_stopping(self) -> bool:
        """Whether the trainer is saved anyway, once all handlers of the present event have run."""
        return self._stop is not None and self._stop.is_due

    def _save_at_stop(self, trainer: Engine) -> Path:
        self._save_at_end(trainer)
        return self._path(trainer.state.iteration)

    def _path(self, step: int) -> Path:
        return self.directory / RunDir(root=self.directory).checkpoint(step).name

    def _find(self) -> Path | None:
        """Return the newest checkpoint that can be read, the same on every rank; rank 0 looks."""
        found: Path | None = None
        problem: str | None = None
        if rank_and_size()[0] == 0:
            try:
                found = self._newest_whole()
            except CheckpointError as error:
                problem = str(error)
        found, problem = from_main((found, problem))
        if problem is not None:
            raise CheckpointError(problem)
        return found

    def _newest_whole(self) -> Path | None:
        if not self.directory.is_dir():
            return None
        candidates = checkpoint_files.in_order(self.directory)
        for path in reversed(candidates):
            problem = checkpoint_files.problem_of(path)
            if problem is None:
                self._number = (checkpoint_order(path) or (0, 0))[1]
                return path
            aside = path.with_name(f"{DAMAGED}{path.name}-{secrets.token_hex(3)}")
            try:
                os.rename(path, aside)
            except FileNotFoundError:  # a run that lives has removed it, and has newer ones
                return self._newest_whole()
            warnings.warn(
                f"The checkpoint {path} is damaged ({problem}). It was set aside as {aside.name}; the one before it is "
                "taken.",
                RuntimeWarning,
                stacklevel=2,
            )
        if candidates:
            raise CheckpointError(
                f"None of the {len(candidates)} checkpoints in {self.directory} can be read. They were set aside there "
                f"as {DAMAGED}*; start again to train from the beginning."
            )
        return None

    def _read(self, path: Path) -> tuple[Path, dict[str, Any]]:
        """Return a checkpoint and what it holds: a newer one where a run that lives has removed it meanwhile."""
        while True:
            try:
                return path, checkpoint_files.read(path)
            except CheckpointError:  # noqa: PERF203 - each turn reads a checkpoint
                # Several ranks would have to agree on the newer one, and each reads by itself.
                newer = None if path.exists() or rank_and_size()[1] > 1 else self._find()
                if newer is None:
                    raise
                path = newer

    def _resume(self, trainer: Engine, path: Path) -> None:
        path, content = self._read(path)
        meta, saved = content["meta"], content["objects"]
        missing = sorted(set(self._objects) - set(saved))
        if missing:
            raise CheckpointError(
                f"The checkpoint {path} has no state for {', '.join(missing)}; it holds {', '.join(sorted(saved))}. "
                "Attach the same objects under the same names, or use another run directory."
            )
        for name, each in self._objects.items():
            _load(each, saved[name], f"The state of {name} in {path}")
        rank, world_size = rank_and_size()
        if meta["world_size"] == world_size:
            progress, random = content["trainer"][rank], content["random"][rank]
        else:
            progress, random = resuming.without_random_states(content["trainer"][0]), {}
        means = means_of(rank, world_size, content.get("means", []))
        self._resume_window(trainer, content["windows"], path)
        self.resumed_from = path
        if self._is_default and self.directory in _written_here:
            warnings.warn(
                f"Another trainer of this script has saved in {self.directory}, and this one goes on from {path.name} "
                "there. If its training is another one, give each trainer a Checkpointer with a directory of its own.",
                RuntimeWarning,
                stacklevel=3,
            )

        loaders = [(each, saved[name]) for name, each in self._objects.items() if isinstance(each, ShardedDataLoader)]

        def set_progress(engine: Engine) -> None:
            for loader, place in loaders:
                loader.load_state_dict(place)  # once more: a script may have looked at a batch since
            resuming.set_progress(engine, progress, meta, path=path, attached=self._objects.values())
            self._saved_at = engine.state.iteration, place_of(engine)

        def set_rest(engine: Engine) -> None:
            set_random_state(random)
            for name, each in aggregators(engine).items():
                if name in means:
                    each.load_state_dict(means[name])

        resuming.at_the_start(trainer, set_progress, set_rest)

    @staticmethod
    def _resume_window(trainer: Engine, windows: list[dict[str, Any]], path: Path) -> None:
        """Give this rank its gradients back, when the checkpoint was taken inside an accumulation window."""
        if not windows:
            return
        rank, world_size = rank_and_size()
        window = getattr(trainer.state, "accumulation", None)
        if window is not None and len(windows) == world_size:
            _load(window, windows[rank], f"The accumulation window in {path}")
        elif rank == 0:
            why = "this trainer accumulates none" if window is None else f"there are {world_size} ranks now"
            warnings.warn(
                f"The checkpoint {path} was taken inside an accumulation window: it holds the gradients of "
                f"{windows[0]['held']} micro-batches on {len(windows)} ranks, and {why}. They are not used; the window "
                "steps with the mean of the micro-batches that follow.",
                RuntimeWarning,
                stacklevel=4,
            )

    def _prune(self) -> None:
        for path in checkpoint_files.in_order(self.directory)[: -self.keep]:
            checkpoint_files.remove(path, self._incarnation)


def _state_of(each: Any, trainer: Engine) -> Any:
    """Return the state of an object to save; of a loader the place of the trainer's own pass."""
    if isinstance(each, ShardedDataLoader):
        return each.state_dict_of(trainer._dataloader_iter)  # noqa: SLF001  # one package; ignite's has the same name
    return each.state_dict()


def _load(target: Any, state: Any, what: str) -> None:
    options = _options(target)
    try:
        target.load_state_dict(state)
    except CheckpointError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{what} does not fit the one given: {error}") from error
    # torch takes the options of another class of optimizer, and its next step fails for want of its own.
    if missing := sorted(options - _options(target)):
        raise CheckpointError(
            f"{what} is that of another optimizer than {type(target).__name__}: it has no {', '.join(missing)}. Make "
            "the optimizer as in the saved run, or use another run directory."
        )


def _options(target: Any) -> set[str]:
    """Return the names of an optimizer's options that all of its groups have; of anything else none."""
    groups = target.param_groups if isinstance(target, Optimizer) else []
    return set.intersection(*map(set, groups)) if groups else set()
