"""The engine: it runs a function over batches and fires events. This is the order of a run.

    fire STARTED
    until max_epochs or max_iters is reached:
        epoch += 1
        fire EPOCH_STARTED
        until epoch_length iterations, or the data ends where epoch_length is not known:
            fire GET_BATCH_STARTED                          GET_BATCH_* and DATALOADER_STOP_ITERATION
            batch = next(data)                              only where the run has data
                at the end of the data: fire DATALOADER_STOP_ITERATION, start over with iter(dataloader)
            fire GET_BATCH_COMPLETED
            iteration += 1
            fire ITERATION_STARTED
            output = process_function(engine, batch)
            fire ITERATION_COMPLETED
        fire EPOCH_COMPLETED
    fire COMPLETED

After each event the engine looks at what was asked meanwhile; the first that applies counts:

    terminate()           fire TERMINATE, go on at COMPLETED
    terminate_epoch()     fire TERMINATE_SINGLE_EPOCH, start the data over, go on at EPOCH_COMPLETED
    interrupt()           fire INTERRUPT, return from run(); the next run() goes on behind the event

An exception fires EXCEPTION_RAISED, if that has handlers. When they return, an exception from fetching, from the
process function or from a handler inside the epoch ends the epoch, and any other ends the run without COMPLETED.

The module is long because a class's methods stand together, and because the loop over iterations is written out: a
call of a helper for each event would cost more than all the engine does now.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import math
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

from distrain.engine.events import Events, check_signature
from distrain.engine.handlers import EventSource
from distrain.engine.state import State
from distrain.supervision.heartbeat import engine_stamp

__all__ = ["Engine"]

# A member of an enum costs a function call at each access in Python before 3.12; these are read in every iteration.
_GET_BATCH_STARTED = Events.GET_BATCH_STARTED
_GET_BATCH_COMPLETED = Events.GET_BATCH_COMPLETED
_ITERATION_STARTED = Events.ITERATION_STARTED
_ITERATION_COMPLETED = Events.ITERATION_COMPLETED
_EVENTS_OF_ITERATIONS = (_GET_BATCH_STARTED, _GET_BATCH_COMPLETED, _ITERATION_STARTED, _ITERATION_COMPLETED)


class _TerminateRun(Exception):  # noqa: N818  # a turn in the loop, not an error
    pass


class _TerminateEpoch(Exception):  # noqa: N818  # likewise
    pass


class _Signal:
    """A flag of the engine; raising it also raises `engine._signalled`, the one flag that iterations look at."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._slot = f"_{name}"

    def __get__(self, engine: Engine, owner: type | None = None) -> bool | str:
        value: bool | str = getattr(engine, self._slot)
        return value

    def __set__(self, engine: Engine, value: bool | str) -> None:  # noqa: FBT001  # a descriptor's signature
        setattr(engine, self._slot, value)
        if value:
            engine._signalled = True  # noqa: SLF001  # it is a part of the engine


class Timer(Protocol):
    """What an engine rings, behind the process function and ahead of ITERATION_COMPLETED, when its time has come."""

    due_s: float
    """When, on the clock of `time.monotonic`; ahead of the next iteration's end anybody may set it, also a signal."""

    def ring(self, engine: Engine) -> None:
        """Do what is to be done, and set `due_s` anew.

        Args:
            engine: The engine.
        """


class Engine(EventSource):
    """Runs `process_function(engine, batch)` over data and fires events as it goes.

        trainer = Engine(train_step)

        @trainer.on(Events.ITERATION_COMPLETED(every=100))
        def log(engine):
            print(engine.state.iteration, engine.state.output)

        trainer.run(loader, max_epochs=5)

    Args:
        process_function: Takes the engine and a batch; what it returns is put in `state.output`.

    Raises:
        ValueError: `process_function` is None or cannot be called with an engine and a batch.
    """

    interrupt_resume_enabled: ClassVar[bool] = True
    """False makes `interrupt()` an error."""

    _state_dict_all_req_keys: tuple[str, ...] = ("epoch_length", "iteration")
    _state_dict_one_of_opt_keys: tuple[tuple[str, ...], ...] = (("max_epochs", "max_iters"),)

    should_terminate = _Signal()
    """False, True or "skip_completed": what `terminate()` asked for. It stays after the run, until the next."""
    should_terminate_single_epoch = _Signal()
    """False, True or "skip_epoch_completed": what `terminate_epoch()` asked for."""
    should_interrupt = _Signal()
    """Whether `interrupt()` was called and the run has not been put aside yet."""

    def __init__(self, process_function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        if process_function is None:
            raise ValueError("Engine must be given a processing function in order to run.")
        check_signature(process_function, "process_function", self, None)
        self._process_function = process_function
        self._state_dict_user_keys: list[str] = []
        self._dataloader_iter: Iterator[Any] | None = None
        self._init_iter: int | None = None
        self._internal_run_generator: Generator[State, None, State] | None = None
        self._before_epoch = 0
        self._is_in_epoch = False
        self._placed: tuple[int, int] | None = None
        self._suspended_s = 0.0
        self._is_reporting = False
        self._signalled = False
        self.timer: Timer | None = None
        """At most one; an epoch begins with the one that is set then."""
        self._run_contexts: list[Callable[[Engine], AbstractContextManager[object]]] = []
        self._clear_signals()

    def run(
        self,
        data: Iterable[Any] | None = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
    ) -> State:
        """Run over the data; start anew, go on from where the state is, or take up an interrupted run.

        A run starts anew on the first call, when the former one has reached its goal, or after
        `engine.state.max_epochs = None`. Otherwise it goes on, towards a further goal if one is given.

        Args:
            data: Batches; iterated again when they run out. Without data `epoch_length` is needed and batches are None.
            max_epochs: Epochs to reach, 1 unless given.
            max_iters: Iterations to reach, in place of `max_epochs`.
            epoch_length: Iterations in an epoch; `len(data)` unless given. Without either, an epoch lasts until the
                data ends for the first time, and that is its length from then on.

        Returns:
            The state.

        Raises:
            TypeError: `data` cannot be iterated.
            ValueError: The arguments contradict each other or the state, a length has a fraction, or the data is empty.
        """
        if data is not None and not isinstance(data, Iterable):
            raise TypeError(f"Argument data should be iterable, got {type(data)}")
        if epoch_length is not None and math.isfinite(epoch_length) and epoch_length % 1:
            raise ValueError(f"epoch_length is {epoch_length}; with a fraction, the epoch would never end.")
        self._check_goal(max_epochs, max_iters)

        state = self.state
        no_goal = state.max_epochs is None and state.max_iters is None
        if no_goal or (self._is_done(state) and self._internal_run_generator is None):
            self._start_anew(data, max_epochs, max_iters, epoch_length)
        else:
            self._go_on(data, epoch_length)
        if self._dataloader_iter is None:
            state.dataloader = data

        if self._internal_run_generator is None:
            self._internal_run_generator = self._internal_run()
        with contextlib.ExitStack() as around:
            for make in self._run_contexts:
                around.enter_context(make(self))
            try:
                reached = next(self._internal_run_generator)
            except StopIteration as end:
                self._internal_run_generator = None
                reached = end.value
            except BaseException:
                self._internal_run_generator = None
                raise
        return reached

    def add_run_context(self, make: Callable[[Engine], AbstractContextManager[object]]) -> None:
        """Hold a context open during each `run()`: entered before its first event, left in whatever way it ends.

        It is left also where the run is put aside, and entered anew when it goes on. What it raises on leaving a run
        that has ended well comes out of `run()`.

        Args:
            make: Takes the engine, returns the context manager.
        """
        self._run_contexts.append(make)

    def _check_goal(self, max_epochs: int | None, max_iters: int | None) -> None:
        state = self.state
        if max_epochs is not None and max_iters is not None:
            raise ValueError(
                "Arguments max_iters and max_epochs are mutually exclusive. "
                "Please provide only max_epochs or max_iters."
            )
        for name, value in (("max_epochs", max_epochs), ("max_iters", max_iters)):
            if value is not None and value < 1:
                raise _not_positive(name, value)
        # Where the epoch's length was found on the way, max_epochs is derived from max_iters and both are set.
        counts_iters = state.max_iters is not None
        if max_iters is not None and state.max_epochs is not None and not counts_iters:
            raise ValueError(
                "To switch from max_epochs to max_iters mode during resume, "
                "you must first reset by setting 'engine.state.max_epochs = None' before calling run()."
            )
        if max_epochs is not None and counts_iters:
            raise ValueError(
                "To switch from max_iters to max_epochs mode during resume, "
                "you must first reset by setting 'engine.state.max_iters = None' before calling run()."
            )
        if state.max_epochs is not None and not counts_iters:
            self._check_and_set_max_epochs(max_epochs)
        if max_iters is not None and counts_iters:
            self._check_and_set_max_iters(max_iters)
            if state.max_epochs is not None and state.epoch_length:
                state.max_epochs = math.ceil(max_iters / state.epoch_length)

    def _start_anew(
        self, data: Iterable[Any] | None, max_epochs: int | None, max_iters: int | None, epoch_length: int | None
    ) -> None:
        state = self.state
        if epoch_length is None and data is not None:
            epoch_length = self._get_data_length(data)
        if epoch_length is None:
            epoch_length = state.epoch_length
        if epoch_length is None and data is None:
            raise ValueError("epoch_length should be provided if data is None")
        if epoch_length is not None and epoch_length < 1:
            raise ValueError("Input data has zero size. Please provide non-empty data")
        self._drop_suspended_run()
        state.iteration = state.epoch = 0
        self._is_in_epoch, self._placed = False, None
        state.epoch_length = epoch_length
        state.max_iters = max_iters
        state.max_epochs = 1 if max_epochs is None and max_iters is None else max_epochs
        self.logger.info("Engine run starting with %s.", self._goal())

    def _go_on(self, data: Iterable[Any] | None, epoch_length: int | None) -> None:
        state = self.state
        if state.epoch_length is None:
            if epoch_length is None and data is not None:
                epoch_length = self._get_data_length(data)
            if epoch_length is not None and epoch_length < 1:
                raise ValueError("Input data has zero size. Please provide non-empty data")
            state.epoch_length = epoch_length
        elif epoch_length is not None and epoch_length != state.epoch_length:
            raise ValueError(
                "Argument epoch_length should be same as in the state, "
                f"but given {epoch_length} vs {state.epoch_length}"
            )
        if state.epoch_length is None and data is None:
            raise ValueError("epoch_length should be provided if data is None")
        if self.should_terminate:
            self._init_iter = 0
        self.logger.info(
            "Engine run resuming from iteration %d, epoch %d with %s.", state.iteration, state.epoch, self._goal()
        )

    def _goal(self) -> str:
        state = self.state
        return f"max_epochs={state.max_epochs}" if state.max_iters is None else f"max_iters={state.max_iters}"

    def set_data(self, data: Iterable[Any]) -> None:
        """Take the following batches from other data; the length of the epoch stays.

        Args:
            data: Batches, as in `run`.
        """
        self.state.dataloader = data
        self._dataloader_iter = iter(data)

    def interrupt(self) -> None:
        """Put the run aside after the current event; the next `run()` goes on exactly from there.

        Raises:
            RuntimeError: `interrupt_resume_enabled` is False.
        """
        if not self.interrupt_resume_enabled:
            raise RuntimeError(
                "Engine 'interrupt/resume' feature is disabled. "
                "Please, set Engine.interrupt_resume_enabled=True to enable it"
            )
        self.logger.info("Interrupt signaled: the run is put aside after the current event.")
        self.should_interrupt = True

    def terminate(self, skip_completed: bool = False) -> None:  # noqa: FBT001, FBT002  # as ignite's callers write it
        """End the run after the current event: TERMINATE is fired, then COMPLETED.

        Args:
            skip_completed: Do not fire COMPLETED.
        """
        self.logger.info("Terminate signaled: the run ends after the current event.")
        self.should_terminate = "skip_completed" if skip_completed else True

    def terminate_epoch(self, skip_epoch_completed: bool = False) -> None:  # noqa: FBT001, FBT002  # likewise
        """End the epoch after the current event: TERMINATE_SINGLE_EPOCH is fired, then EPOCH_COMPLETED.

        The next epoch starts with the data's first batch. Not on STARTED or EPOCH_STARTED, where the run would fail.

        Args:
            skip_epoch_completed: Do not fire EPOCH_COMPLETED.
        """
        self.logger.info("Terminate current epoch signaled: the epoch ends after the current event.")
        self.should_terminate_single_epoch = "skip_epoch_completed" if skip_epoch_completed else True

    @property
    def is_last_iteration(self) -> bool:
        """Whether the current iteration is the last one of its epoch or of the run, as far as is known during it.

        An epoch whose length is not known, or that a handler ends, has its last iteration without notice.
        """
        state = self.state
        return state.iteration in {state.max_iters, self._before_epoch + (state.epoch_length or math.inf)}

    @property
    def place(self) -> tuple[int, int]:
        """The epochs that are over, and the iterations that the next one has had.

        `iteration` and `epoch_length` say the same, unless a handler has ended an epoch early. `state_dict()` does not
        hold it, as ignite's does not; who saves it beside sets it after `load_state_dict()`, and the next run goes on
        from there.
        """
        state = self.state
        if not self._is_in_epoch:
            return state.epoch, self._had_as_placed() or 0
        had = state.iteration - self._before_epoch
        return (state.epoch, 0) if had == state.epoch_length else (state.epoch - 1, had)

    @place.setter
    def place(self, place: tuple[int, int]) -> None:
        self.state.epoch, had = place
        self._is_in_epoch, self._placed = False, (self.state.iteration, had)

    def _had_as_placed(self) -> int | None:
        """Return what `place` was set to; None where it was not, or the count was moved since."""
        return self._placed[1] if self._placed is not None and self._placed[0] == self.state.iteration else None

    @property
    def state_dict_user_keys(self) -> list[str]:
        """Names of further attributes of the state that `state_dict` saves; append to it."""
        return self._state_dict_user_keys

    def state_dict(self) -> OrderedDict[str, Any]:
        """Return `epoch_length`, `iteration`, `max_epochs` or `max_iters`, and the user's keys."""
        goal = "max_epochs" if self.state.max_iters is None else "max_iters"
        keys = (*self._state_dict_all_req_keys, goal, *self._state_dict_user_keys)
        return OrderedDict((key, getattr(self.state, key)) for key in keys)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set the state; the next `run()` goes on from it. An interrupted run is given up.

        A handler of STARTED may call it too, and this run goes on from there.

        Args:
            state_dict: `epoch_length`; `iteration` or `epoch`, counted as done; `max_epochs` or `max_iters`; and each
                of `state_dict_user_keys`. Other attributes of the state stay as they are.

        Raises:
            TypeError: It is not a mapping.
            ValueError: A key is missing, two exclude each other, or the goal is behind the progress. Nothing was set.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Argument state_dict should be a dictionary, but given {type(state_dict)}")
        iteration, epoch = _progress_of(state_dict)
        goals = [key for key in self._state_dict_one_of_opt_keys[0] if key in state_dict]
        if len(goals) != 1:
            raise ValueError(
                f"state_dict should contain exactly one of '{self._state_dict_one_of_opt_keys[0]}' keys, got {goals}"
            )
        for key in self._state_dict_user_keys:
            if key not in state_dict:
                raise ValueError(
                    f"Required user state attribute '{key}' is absent in provided state_dict '{state_dict.keys()}'"
                )
        goal = state_dict[goals[0]]
        if goal is not None:
            _check_goal_value(goals[0], goal, epoch if goals[0] == "max_epochs" else iteration)

        if not self._is_running:
            self._drop_suspended_run()
            self._clear_signals()
        self._init_iter = None
        state = self.state
        for key in self._state_dict_user_keys:
            setattr(state, key, state_dict[key])
        state.epoch_length = state_dict["epoch_length"]
        state.iteration = iteration
        self.place = epoch, iteration - epoch * (state.epoch_length or 0)
        state.max_epochs = goal if goals[0] == "max_epochs" else None
        state.max_iters = goal if goals[0] == "max_iters" else None

    @staticmethod
    def _is_done(state: State) -> bool:
        if state.max_iters is not None and state.iteration >= state.max_iters:
            return True
        if state.max_epochs is None:
            return False
        counted = state.epoch_length is not None and state.iteration >= state.epoch_length * state.max_epochs
        return counted or state.epoch >= state.max_epochs

    def _check_and_set_max_epochs(self, max_epochs: int | None = None) -> None:
        if max_epochs is not None:
            _check_goal_value("max_epochs", max_epochs, self.state.epoch)
            self.state.max_epochs = max_epochs

    def _check_and_set_max_iters(self, max_iters: int | None = None) -> None:
        if max_iters is not None:
            _check_goal_value("max_iters", max_iters, self.state.iteration)
            self.state.max_iters = max_iters

    @staticmethod
    def _get_data_length(data: Iterable[Any]) -> int | None:
        try:
            return len(data)  # type: ignore[arg-type]
        except TypeError:
            # Data without a length; a DataLoader over an iterable dataset has __len__ and raises the same.
            return None

    def _setup_dataloader_iter(self) -> None:
        data = self.state.dataloader
        self._dataloader_iter = itertools.repeat(None) if data is None else iter(data)

    def _setup_engine(self) -> None:
        self._setup_dataloader_iter()
        if self._init_iter is None:
            self._init_iter = self._iterations_had()

    def _iterations_had(self) -> int:
        """Return the iterations that the epoch has had before the data starts."""
        if (placed := self._had_as_placed()) is not None:
            return placed
        done, length = self.state.iteration, self.state.epoch_length
        return done if length is None else done % length

    def _drop_suspended_run(self) -> None:
        if self._internal_run_generator is not None:
            self._internal_run_generator.close()
            self._internal_run_generator = None
        self._dataloader_iter = None

    @property
    def _is_running(self) -> bool:
        generator = self._internal_run_generator
        return generator is not None and inspect.getgeneratorstate(generator) == inspect.GEN_RUNNING

    def _clear_signals(self) -> None:
        self._signalled = False
        self.should_terminate = self.should_terminate_single_epoch = self.should_interrupt = False

    def _obey_signals(self) -> Generator[State, None, None]:
        if self.should_terminate:
            raise _TerminateRun
        if self.should_terminate_single_epoch:
            raise _TerminateEpoch
        self._signalled = False
        if self.should_interrupt:
            self._fire_event(Events.INTERRUPT)
            self.should_interrupt = False
            left = time.perf_counter()
            yield self.state
            self._suspended_s += time.perf_counter() - left

    def _clock(self) -> float:
        """Seconds that pass while the run is not put aside."""
        return time.perf_counter() - self._suspended_s

    def _handle_exception(self, error: BaseException) -> None:
        self.logger.error("Engine run is terminating due to exception: %s", error)
        if not self._event_handlers[Events.EXCEPTION_RAISED]:
            raise error
        self._is_reporting = True
        self._fire_event(Events.EXCEPTION_RAISED, error)
        self._is_reporting = False

    def _fire_and_time(self, event: Events, before_s: float) -> None:
        """Fire an event whose handlers find the seconds until now in `state.times`, and add their own after it."""
        started = self._clock()
        self.state.times[event.name] = before_s
        self._fire_event(event)
        self.state.times[event.name] = before_s + self._clock() - started

    def _internal_run(self) -> Generator[State, None, State]:
        self._clear_signals()
        self._is_reporting = self._is_in_epoch = False
        self._suspended_s = 0.0
        state = self.state
        state.times[Events.EPOCH_COMPLETED.name] = state.times[Events.COMPLETED.name] = 0.0
        started = self._clock()
        try:
            try:
                self._fire_event(Events.STARTED)
                yield from self._obey_signals()
                while not self._is_done(self.state):
                    yield from self._run_epoch()
            except _TerminateRun:
                self._fire_event(Events.TERMINATE)
            except _TerminateEpoch:
                raise RuntimeError(
                    "terminate_epoch() was called on STARTED or EPOCH_STARTED, where no epoch runs yet. "
                    "Call it on a later event, or terminate() here."
                ) from None
            total_s = self._clock() - started
            self.state.times[Events.COMPLETED.name] = total_s
            if self.should_terminate != "skip_completed":
                self._fire_and_time(Events.COMPLETED, total_s)
            self.logger.info("Engine run finished. Time taken: %s", _as_hours(total_s))
        except GeneratorExit:
            raise
        except BaseException as error:
            self._dataloader_iter = None
            if self._is_reporting:
                raise
            self._handle_exception(error)
        self._dataloader_iter = None
        return self.state

    def _run_epoch(self) -> Generator[State, None, None]:
        had = self.place[1]
        self.state.epoch += 1
        self._is_in_epoch, self._before_epoch = True, self.state.iteration - had
        started = self._clock()
        self._fire_event(Events.EPOCH_STARTED)
        yield from self._obey_signals()
        if self._dataloader_iter is None:
            self._setup_engine()
        yield from self._run_iterations()
        self._is_in_epoch, self._placed = False, None
        epoch_s = self._clock() - started
        self.state.times[Events.EPOCH_COMPLETED.name] = epoch_s
        if self.should_terminate_single_epoch != "skip_epoch_completed":
            self._fire_and_time(Events.EPOCH_COMPLETED, epoch_s)
        self.should_terminate_single_epoch = False
        yield from self._obey_signals()
        self.logger.info("Epoch[%d] Complete. Time taken: %s", self.state.epoch, _as_hours(epoch_s))

    def _run_iterations(self) -> Generator[State, None, None]:  # noqa: C901, PLR0912, PLR0915  # unrolled, for speed
        """Run the iterations of one epoch. Every microsecond here is paid in every iteration."""
        table, process = self._event_handlers, self._process_function
        is_overridden = type(self)._fire_event is not EventSource._fire_event  # noqa: SLF001  # our own base class
        is_watched = is_overridden or self.logger.isEnabledFor(logging.DEBUG)
        fire: Callable[[Events], None] = self._fire_event if is_watched else self._fire_plainly
        # While one of these is empty it is the table's own, see HandlerTable; asking it is cheaper than looking it up.
        on_get, on_got, on_start, on_done = (is_watched or table[event] for event in _EVENTS_OF_ITERATIONS)
        stamp, timer, clock = engine_stamp(), self.timer, time.monotonic
        is_stamped = stamp is not None or timer is not None
        count, self._init_iter = self._init_iter or 0, None
        done_before = count
        self._before_epoch = self.state.iteration - count
        is_restarted = False
        try:
            while True:
                state = self.state
                state.batch = None
                has_data = state.dataloader is not None
                if has_data and not is_restarted:
                    # An event that nobody hears is named all the same where other code of the user's can look next.
                    if on_get or self._signalled:
                        fire(_GET_BATCH_STARTED)
                        if self._signalled:
                            yield from self._obey_signals()
                    else:
                        self.last_event_name = _GET_BATCH_STARTED
                try:
                    state.batch = next(self._dataloader_iter)  # type: ignore[arg-type]
                except StopIteration:
                    if state.epoch_length is None:
                        self._learn_epoch_length(count)
                        return
                    if is_restarted:
                        self._warn_of_missing_data()
                        if count == done_before and state.max_epochs is None:
                            # Only iterations are counted and there will be no more: every epoch would be like this.
                            self.should_terminate = True
                            raise _TerminateRun from None
                        return
                    if has_data:
                        self._fire_event(Events.DATALOADER_STOP_ITERATION)
                        yield from self._obey_signals()
                    self._setup_dataloader_iter()
                    is_restarted = True
                    continue
                state.output = None
                if (on_got or self._signalled) and has_data:
                    fire(_GET_BATCH_COMPLETED)
                    if self._signalled:
                        yield from self._obey_signals()
                count += 1
                is_restarted = False

                state.iteration += 1
                if on_start or self._signalled:
                    fire(_ITERATION_STARTED)
                    if self._signalled:
                        yield from self._obey_signals()
                else:
                    self.last_event_name = _ITERATION_STARTED
                state.output = process(self, state.batch)
                if is_stamped:
                    if stamp is not None:
                        stamp(state.iteration)
                    if timer is not None and clock() >= timer.due_s:
                        timer.ring(self)
                if on_done or self._signalled:
                    fire(_ITERATION_COMPLETED)
                    if self._signalled:
                        yield from self._obey_signals()

                if count == state.epoch_length:
                    return
                if state.max_iters is not None and state.iteration >= state.max_iters:
                    self.should_terminate = True
                    raise _TerminateRun
        except _TerminateEpoch:
            self._fire_event(Events.TERMINATE_SINGLE_EPOCH, iter_counter=count)
            self._setup_dataloader_iter()
        except _TerminateRun:
            raise
        except Exception as error:
            if not table["EXCEPTION_RAISED"]:
                raise  # `_internal_run` reports it
            self._handle_exception(error)

    def _learn_epoch_length(self, count: int) -> None:
        state = self.state
        if state.max_iters is not None:
            if count == 0:
                raise ValueError("Input data has zero size. Please provide non-empty data")
            state.max_epochs = math.ceil(state.max_iters / count)
        state.epoch_length = count

    def _warn_of_missing_data(self) -> None:
        state = self.state
        if not self._is_done(state):
            goal = state.max_iters if state.max_epochs is None else (state.epoch_length or 0) * state.max_epochs
            warnings.warn(
                "Data iterator can not provide data anymore but required total number of iterations to run is not "
                f"reached. Current iteration: {state.iteration} vs Total iterations to run : {goal}",
                stacklevel=2,
            )


def _not_positive(name: str, value: int) -> ValueError:
    return ValueError(f"Argument {name} is invalid. Please, set a correct {name} positive value, not {value}")


def _check_goal_value(name: str, value: int, progress: int) -> None:
    if value < 1:
        raise _not_positive(name, value)
    if value < progress:
        counter = "epoch" if name == "max_epochs" else "iteration"
        raise ValueError(
            f"Argument {name} should be greater than or equal to the start {counter} "
            f"defined in the state: {value} vs {progress}. Please, set engine.state.{name} = None "
            "before calling engine.run() in order to restart the training from the beginning."
        )


def _progress_of(state_dict: Mapping[str, Any]) -> tuple[int, int]:
    """Return the iterations and the epochs that a state dict counts as done."""
    if "iteration" in state_dict and "epoch" in state_dict:
        raise ValueError(
            "State dictionary should contain only one of 'iteration' or 'epoch' keys. "
            f"Found both: iteration={state_dict['iteration']}, epoch={state_dict['epoch']}."
        )
    present = "epoch" if "epoch" in state_dict else "iteration"
    for key in ("epoch_length", present):
        if key not in state_dict:
            raise ValueError(f"Required state attribute '{key}' is absent in provided state_dict '{state_dict.keys()}'")
    done, epoch_length = state_dict[present], state_dict["epoch_length"]
    if done == 0:
        return 0, 0
    if epoch_length is None or epoch_length <= 0:
        raise ValueError(
            "epoch_length must be a positive integer to calculate missing 'iteration' or 'epoch' key, but "
            f"{present}={done!r} and epoch_length={epoch_length!r}. Input state_dict: {list(state_dict)}"
        )
    return (done * epoch_length, done) if present == "epoch" else (done, done // epoch_length)


def _as_hours(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{int(hours):02d}:{int(minutes):02d}:{rest:06.3f}"
