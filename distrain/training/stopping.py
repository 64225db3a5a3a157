"""Stopping at a signal: every rank after the same iteration, with nothing lost.

    a signal      sets a flag; the handler does no more, and the signal's former handler is back for the next one (but
                  see below)
    flagged       at the end of each of its iterations a rank counts itself in for that iteration, in the store of the
                  process group, and waits a moment for the others
    all are in    whoever sees it first writes the verdict "stop" for that iteration
    time is up    whoever has waited long enough writes the verdict "go on", and all try again an iteration later,
                  with twice the patience
    unflagged     looks at the store once a second whether anybody is flagged, and is flagged then

The first verdict of an iteration holds, for all: so no rank can stop where another one goes on, however far apart the
ranks are (DDP's accumulation, devices that lag behind their host). No wait is without an end, so a rank that a peer
needs inside a collective operation gets there. Without a signal a rank asks the store once a second, in a world of one
never.

Under `distrain launch` a signal that comes again is no second one. A scheduler sends it to every process of a job, so a
rank has it from there and from the launcher as well; the launcher alone knows which one is meant, and ends everything.

The trainer is stopped by `terminate`, behind all handlers of the iteration's or the epoch's end, and saved on
TERMINATE. The `run()` that was stopped ends with `StoppedBySignal`.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]  # not in its __all__

from distrain.engine import Engine, Events
from distrain.errors import EXIT_CODES, StoppedBySignal
from distrain.runtime import rank_and_size
from distrain.runtime.environment import is_launched, num_restarts
from distrain.runtime.process_group import default_store
from distrain.training import loader_processes
from distrain.training.progress import place_of

__all__ = ["StopOnSignals"]

LOOK_EVERY_S = 1.0

PATIENCE_S = 0.1
MOST_PATIENCE_S = 10.0
OF_AN_ITERATION = 0.5
"""The first wait is this part of a mean iteration, or `PATIENCE_S`: ranks that take longer steps are further apart."""

POLL_S = 0.002
POLL_OF_A_RANK_S = 0.00005
"""How much longer each rank of a large world waits between two looks, so that the store has time for all of them."""

NEVER = math.inf
GO_ON, STOP = b"go on", b"stop"

_thread = threading.local()  # has `is_stoppable` while such a run goes on in this thread
_num_runs = 0
_left_over: set[signal.Signals] = set()


class StopOnSignals:
    """Stops a trainer at one of the signals of `EXIT_CODES`, after an iteration that all ranks agree on.

    A run inside a handler of another such run is left alone: the outer one stops. A signal that comes too late for a
    run stops the next one of this process.

    Args:
        save: Takes the trainer, saves it and returns where.
    """

    def __init__(self, save: Callable[[Engine], Path]) -> None:
        self.is_due = False
        """Whether the trainer stops behind the handlers of the current event."""
        self._save = save
        self._reset()

    def attach(self, trainer: Engine) -> None:
        """Stop this trainer. Handlers of the epoch's end that are attached afterwards find `is_due` set.

        Args:
            trainer: The trainer.
        """
        trainer.add_run_context(self._during)
        trainer.add_event_handler(Events.STARTED, self._begin)  # once more, behind a resumption
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._look_at_epoch)
        trainer.add_event_handler(Events.TERMINATE, self._on_terminate)

    def _reset(self) -> None:
        self.is_due = False
        self._store: Store | None = None
        self._came: set[signal.Signals] = set()
        self._former: dict[signal.Signals, Any] = {}
        self.due_s = NEVER  # as the engine's timer
        self._is_flagged = False
        self._told: set[signal.Signals] = set()
        self._num_tries = 0
        self._tried_at = -1
        self._end: StoppedBySignal | None = None

    # The run.

    @contextlib.contextmanager
    def _during(self, trainer: Engine) -> Iterator[None]:
        global _num_runs
        if getattr(_thread, "is_stoppable", False):
            yield
            return
        self._reset()
        _thread.is_stoppable = True
        _num_runs += 1
        self._begin(trainer)
        self._came.update(_left_over)
        _left_over.clear()
        try:
            if rank_and_size()[1] > 1:
                self._store = PrefixStore(f"distrain/stop/{num_restarts()}/{_num_runs}", default_store())
                self.due_s = self._began_s + LOOK_EVERY_S
            self._take_signals()
            if self._came:
                self.due_s = 0.0
            trainer.timer = self
            with loader_processes.left_alone():
                yield
            if self._end is None:
                _left_over.update(self._came)
        finally:
            trainer.timer = None
            if self._end is None or not is_launched():  # else the launcher's word may come yet, and end the process
                self._give_signals_back()
            _thread.is_stoppable, self.due_s = False, NEVER
        if self._end is not None:
            if rank_and_size()[0] == 0:
                self._tell(self._end)
            raise self._end

    def _begin(self, trainer: Engine) -> None:
        self._began_s, self._first = time.monotonic(), trainer.state.iteration

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in EXIT_CODES:
            former = signal.getsignal(number)
            if former in (signal.SIG_DFL, signal.default_int_handler):
                self._former[number] = former
                signal.signal(number, self._on_signal)

    def _give_signals_back(self) -> None:
        for number, former in self._former.items():
            if signal.getsignal(number) == self._on_signal:  # else somebody has put another there since
                signal.signal(number, former)

    def _on_signal(self, number: int, _frame: object) -> None:
        came = signal.Signals(number)
        if not is_launched():
            signal.signal(came, self._former[came])
        self._came.add(came)
        self.due_s = 0.0

    # The trainer's events.

    def ring(self, engine: Engine) -> None:
        """See at the end of an iteration whether the run is to stop; the epoch's last one counts with the epoch's end.

        Args:
            engine: The trainer.
        """
        if not _is_end_of_epoch(engine):
            self._attend(engine)

    def _look_at_epoch(self, trainer: Engine) -> None:
        if trainer.timer is self and time.monotonic() >= self.due_s and _is_end_of_epoch(trainer):
            self._attend(trainer)

    def _attend(self, trainer: Engine) -> None:
        if trainer.should_terminate or _is_over(trainer):
            return  # the run ends here by itself
        try:
            self.is_due = self._is_to_stop(trainer.state.iteration)
        except (RuntimeError, DistError):
            # The store's host is gone, and what becomes of the run shows in the next collective operation. Whoever has
            # asked for a stop can ask once more, and ends this process.
            self.due_s = NEVER
        if self.is_due:
            trainer.terminate(skip_completed=True)

    def _on_terminate(self, trainer: Engine) -> None:
        if self.is_due and trainer.should_terminate == "skip_completed":
            number = self._agreed()
            path = self._save(trainer)
            self._end = StoppedBySignal(number, trainer.state.iteration, path)

    # The agreement.

    def _is_to_stop(self, iteration: int) -> bool:
        store = self._store
        if store is None:
            return bool(self._came)
        if not self._is_flagged:
            if self._came:
                store.add("flagged", 1)
            elif not store.add("flagged", 0):
                self.due_s = time.monotonic() + LOOK_EVERY_S
                if self._came:  # a signal between the two lines above
                    self.due_s = 0.0
                return False
            self._is_flagged, self.due_s = True, 0.0
        if iteration <= self._tried_at:
            return False
        self._tried_at = iteration
        return self._meet(store, iteration)

    def _meet(self, store: Store, iteration: int) -> bool:
        """Count this rank in for an iteration, wait a moment for the others, and return what holds for all."""
        began_s = time.monotonic()
        mean_s = (began_s - self._began_s) / max(iteration - self._first, 1)
        patience_s = min(max(PATIENCE_S, OF_AN_ITERATION * mean_s) * 2**self._num_tries, MOST_PATIENCE_S)
        self._num_tries += 1
        world_size = rank_and_size()[1]
        poll_s = max(POLL_S, POLL_OF_A_RANK_S * world_size)
        for came in self._came - self._told:
            store.add(came.name, 1)
            self._told.add(came)
        num_here = store.add(f"here/{iteration}", 1)
        while num_here < world_size and time.monotonic() - began_s < patience_s:
            time.sleep(poll_s)
            num_here = store.add(f"here/{iteration}", 0)
        mine = STOP if num_here >= world_size else GO_ON
        verdict: bytes = store.compare_set(f"verdict/{iteration}", "", mine.decode())
        return verdict == STOP

    def _agreed(self) -> signal.Signals:
        """Return the strongest signal that any rank got, the same on all: each has told before it was counted in."""
        if self._store is None:
            return next(each for each in EXIT_CODES if each in self._came)
        return next(each for each in EXIT_CODES if self._store.add(each.name, 0))

    @staticmethod
    def _tell(end: StoppedBySignal) -> None:
        sys.stderr.write(
            f"distrain: {end.number.name}: stopped after step {end.step}, saved in {end.path}; start again with the "
            "same run directory to go on from there\n"
        )
        sys.stderr.flush()


def _is_end_of_epoch(trainer: Engine) -> bool:
    """Whether the iteration that was done last is the last one of its epoch."""
    return place_of(trainer)[1] == 0


def _is_over(trainer: Engine) -> bool:
    """Whether the run has reached its goal, at the end of an iteration inside an epoch or at the end of an epoch."""
    state = trainer.state
    if state.max_iters is not None:
        return bool(state.iteration >= state.max_iters)
    return _is_end_of_epoch(trainer) and state.max_epochs is not None and state.epoch >= state.max_epochs
