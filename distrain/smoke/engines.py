"""Our engines in a smoke test: each runs for a few iterations, and the first trainer with a `Checkpointer` twice.

    first start     iterations 1 2 ┆ 3 │ 4      a checkpoint after 3; at the end of the run all ranks are started again
    second start                       │ 4      goes on from it; the launcher compares what came of both

Two epochs (┆), one where the script asks for one: what is done at the end of an epoch, such as a step of a scheduler,
has been done when the checkpoint is taken. Losses, batches and weights are compared, and every other state that the
process has at the end.

`Checkpointer.save` and `attach` do the work, as they would after a preemption. Where the script keeps checkpoints in
a folder of its own they are neither read nor written.
"""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from distrain.engine import Engine, Events
from distrain.errors import StoppedBySignal
from distrain.smoke.findings import Checkpoint, Findings
from distrain.smoke.loaders import Loaders
from distrain.smoke.prints import print_of
from distrain.smoke.states import other_states
from distrain.smoke.training import ITERATIONS, Steps
from distrain.training import Checkpointer
from distrain.training.progress import place_of

__all__ = ["AGAIN", "follow"]

EPOCHS = 2

AGAIN = 1
"""The exit code that has torch's agent start the ranks again; the launcher knows from the findings that it is meant."""


class _StartedAgain(StoppedBySignal):
    """The end of the first start. `distrain.init()` takes it for a good one: all ranks end after the same step."""

    def __init__(self, step: int, path: Path) -> None:
        super().__init__(signal.SIGTERM, step, path)
        self.code = AGAIN


def follow(findings: Findings, loaders: Loaders, steps: Steps) -> None:
    """Shorten the runs of our engines and take checkpoints to and fro.

    Args:
        findings: Where it is noted.
        loaders: Knows the data of the training.
        steps: Knows its optimizers.
    """
    seen = _Engines(findings, loaders, steps)
    run, attach, init = Engine.run, Checkpointer.attach, Checkpointer.__init__

    @functools.wraps(run)
    def short_run(
        self: Engine,
        data: Iterable[Any] | None = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
    ) -> Any:
        return seen.run(self, run, _Run(data, max_epochs, max_iters, epoch_length))

    @functools.wraps(attach)
    def seen_attach(self: Checkpointer, trainer: Engine, /, **objects: Any) -> None:
        seen.attach(self, attach, trainer, objects)

    @functools.wraps(init)
    def init_elsewhere(self: Checkpointer, *args: Any, directory: Any = None, **options: Any) -> None:
        init(self, *args, directory=None if directory is None else seen.new_folder(), **options)

    Engine.run = short_run  # type: ignore[method-assign]
    Checkpointer.attach = seen_attach  # type: ignore[method-assign]
    Checkpointer.__init__ = init_elsewhere  # type: ignore[method-assign]


class _Run(NamedTuple):
    """The arguments of `Engine.run`."""

    data: Iterable[Any] | None
    max_epochs: int | None
    max_iters: int | None
    epoch_length: int | None


class _Engines:
    """The engines of this process."""

    def __init__(self, findings: Findings, loaders: Loaders, steps: Steps) -> None:
        self._findings = findings
        self._loaders = loaders
        self._steps = steps
        self._running: list[Engine] = []
        self._trip: _RoundTrip | None = None
        self._num_folders = 0
        steps.iteration = self._iteration

    def new_folder(self) -> Path:
        """Return a folder in place of one of the user's."""
        self._num_folders += 1
        return self._findings.folder / f"checkpoints-{self._num_folders}"

    def attach(self, checkpointer: Checkpointer, attach: Callable[..., None], trainer: Engine, objects: Any) -> None:
        """Attach a Checkpointer; the first one makes the round trip."""
        if self._trip is None and isinstance(trainer, Engine):
            self._trip = _RoundTrip(self._findings, checkpointer, trainer, objects)
            self._trip.attach(attach)
        else:
            attach(checkpointer, trainer, **objects)

    def run(self, engine: Engine, run: Callable[..., Any], asked: _Run) -> Any:
        """Run an engine for a few iterations; they make whole epochs, so that all its events are fired."""
        num = _num_iterations(engine)
        goal = _shortened(engine, num, asked)
        trip = self._trip if self._trip is not None and self._trip.is_of(engine) else None
        before = self._findings.steps
        batches: dict[int, str] = {}
        handles = [
            engine.add_event_handler(
                Events.ITERATION_STARTED, lambda: batches.update({engine.state.iteration: print_of(engine.state.batch)})
            )
        ]
        if goal is None:
            last = engine.state.iteration + num

            def end() -> None:
                if engine.state.iteration >= last:
                    engine.terminate()

            handles.append(engine.add_event_handler(Events.ITERATION_COMPLETED, end))
        if asked.epoch_length is None:

            def end_pass() -> None:
                # An epoch that was not shortened would have taken the last batch, and the next one begins a new pass.
                if engine.state.dataloader is not None:
                    engine._dataloader_iter = iter(())  # noqa: SLF001  # one package

            handles.append(engine.add_event_handler(Events.EPOCH_COMPLETED, end_pass))
        if trip is not None:
            handles += trip.handlers(max(1, 3 * _length(goal, num) // 4))
        self._running.append(engine)
        try:
            state = run(engine, *(goal or asked))
        finally:
            self._running.pop()
            for handle in handles:
                handle.remove()
        if not self._running and self._findings.steps > before:
            self._findings.batches = self._findings.batches or batches
            self._steps.end_of_training()
        if trip is not None:
            trip.end(self._steps, _is_attached(self._loaders, asked.data, trip.objects))
            self._findings.write()
            if trip.is_to_go_on:
                self._steps.conclude("again")
                self._findings.meet()
                raise _StartedAgain(engine.state.iteration, self._findings.checkpoint_folder)
            self._trip = trip.over()
        return state

    def _iteration(self) -> int | None:
        return self._running[-1].state.iteration if self._running else None


class _RoundTrip:
    """One Checkpointer's way through both starts."""

    def __init__(
        self, findings: Findings, checkpointer: Checkpointer, trainer: Engine, objects: dict[str, Any]
    ) -> None:
        self._findings = findings
        self._checkpointer = checkpointer
        self._trainer = trainer
        self.objects = objects
        self._is_over = False
        self._found = Checkpoint(objects={name: type(each).__name__ for name, each in objects.items()})
        findings.checkpoint = self._found
        saves_inside = checkpointer.every is not None or checkpointer._stop is not None  # noqa: SLF001  # one package
        if not saves_inside:
            self._found.why_not = "it saves at the ends of epochs only, and a smoke test has no whole one"

    def is_of(self, engine: Engine) -> bool:
        """Whether the round trip is about this engine, and not over."""
        return engine is self._trainer and not self._is_over

    def over(self) -> _RoundTrip:
        """Note that it is made; a script may run its trainer once more."""
        self._is_over = True
        return self

    @property
    def is_to_go_on(self) -> bool:
        """Whether a second start is to follow."""
        return self._findings.start == 0 and self._found.saved_at is not None

    def attach(self, attach: Callable[..., None]) -> None:
        """Attach as the script does; the second start finds the first one's checkpoint."""
        if self._findings.start == 0:
            attach(self._checkpointer, self._trainer, **self.objects)
        else:
            self._in_our_folder(lambda: attach(self._checkpointer, self._trainer, **self.objects))

    def handlers(self, save_after: int) -> list[Any]:
        """Attach what is done in the trainer's run: save in the first start, look where it begins in the second."""
        trainer, found = self._trainer, self._found
        if self._findings.start > 0:

            def note_begin() -> None:
                if found.resumed_at is None:
                    found.resumed_at = trainer.state.iteration - 1

            return [trainer.add_event_handler(Events.ITERATION_STARTED, note_begin)]
        if found.why_not:
            return []

        def save_inside_epoch() -> None:
            if trainer.state.iteration == save_after and place_of(trainer)[1] != 0:
                self._save()

        def save_at_epoch() -> None:
            if trainer.state.iteration == save_after:
                self._save()

        return [
            trainer.add_event_handler(Events.ITERATION_COMPLETED, save_inside_epoch),
            trainer.add_event_handler(Events.EPOCH_COMPLETED, save_at_epoch),
        ]

    def end(self, steps: Steps, is_loader_attached: bool) -> None:  # noqa: FBT001  # as the finding
        """Note what is known at the end of the trainer's run."""
        found = self._found
        attached = {id(each) for each in self.objects.values()}
        found.optimizers = [type(each).__name__ for each in steps.optimizers if id(each) not in attached]
        found.others = other_states(steps.is_trained)
        found.is_loader_attached = is_loader_attached
        if found.saved_at is None and self._findings.start == 0 and not found.why_not:
            found.why_not = f"the trainer ended after {self._trainer.state.iteration} iterations"

    def _save(self) -> None:
        self._in_our_folder(lambda: self._checkpointer.save(self._trainer))
        self._found.saved_at = self._trainer.state.iteration

    def _in_our_folder(self, act: Callable[[], None]) -> None:
        checkpointer = self._checkpointer
        theirs = checkpointer._directory  # noqa: SLF001  # one package
        checkpointer._directory = self._findings.checkpoint_folder  # noqa: SLF001  # likewise
        try:
            act()
        finally:
            checkpointer._directory = theirs  # noqa: SLF001  # likewise


def _num_iterations(engine: Engine) -> int:
    window = getattr(engine.state, "accumulation", None)
    return ITERATIONS if window is None else max(ITERATIONS, 2 * window.num_micro)


def _shortened(engine: Engine, num: int, asked: _Run) -> _Run | None:
    """Return the arguments for a run of `num` iterations that starts anew; None for one that goes on."""
    state = engine.state
    is_new = (state.max_epochs is None and state.max_iters is None) or engine._is_done(state)  # noqa: SLF001  # ours
    if not is_new:
        return None
    length = asked.epoch_length
    if length is None:
        data = asked.data
        length = state.epoch_length if data is None else engine._get_data_length(data)  # noqa: SLF001  # ours
    if length is not None and length < 1:
        return None  # its own error is the better one
    longest = num // (EPOCHS if asked.max_iters is not None else min(asked.max_epochs or 1, EPOCHS))
    length = longest if length is None else min(length, longest)
    if asked.max_iters is not None:
        return _Run(asked.data, None, min(asked.max_iters, num), length)
    return _Run(asked.data, min(asked.max_epochs or 1, math.ceil(num / length)), None, length)


def _length(goal: _Run | None, num: int) -> int:
    """Return how many iterations a run has that was shortened to `goal`, or that ends after `num`."""
    if goal is None:
        return num
    return goal.max_iters or (goal.max_epochs or 1) * (goal.epoch_length or 1)


def _is_attached(loaders: Loaders, data: Any, objects: dict[str, Any]) -> bool:
    """Whether the data of a run is saved with it."""
    attached = list(objects.values())
    samplers = [getattr(each, "batch_sampler", None) for each in attached]
    return any(each is data for each in attached) or (
        loaders.training_sampler is not None and any(each is loaders.training_sampler for each in samplers)
    )
