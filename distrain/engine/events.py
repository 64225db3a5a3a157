"""Events an engine fires, their filters, and lists of events.

    Events.ITERATION_COMPLETED                      every time
    Events.ITERATION_COMPLETED(every=10)            when the counter is a multiple of 10
    Events.EPOCH_STARTED(once=[1, 5])               when the counter is one of these
    Events.ITERATION_STARTED(after=8, before=25)    while 8 < counter < 25
    Events.EPOCH_STARTED(every=5, after=8)          at 9, 14, 19, …
    Events.ITERATION_STARTED(event_filter=f)        when f(engine, counter) is true
    Events.STARTED | Events.EPOCH_COMPLETED         a list of events

The counter is the attribute of `engine.state` that belongs to the event: see `State.event_to_attr`. An event is equal
to, and hashed as, its name: a filter makes no difference, and ignite's enum of the same names is equal too.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from numbers import Integral
from types import DynamicClassAttribute
from typing import Any, TypeAlias

from distrain.engine.interop import ignite_counterpart

__all__ = ["CallableEventWithFilter", "EventEnum", "Events", "EventsList", "check_signature", "is_event"]

EventFilter: TypeAlias = Callable[[Any, int], Any]
"""A function of the engine and the event's counter that says whether the handler runs."""


class CallableEventWithFilter:
    """One event, perhaps with a filter; calling it gives the same event with a (further) filter.

    Args:
        value: The value of the enum's member.
        event_filter: A function of the engine and the event's counter, or None for every time.
        name: The name of the enum's member, which is what events are compared by.
    """

    _name_: str
    _value_: Any

    def __init__(self, value: Any, event_filter: EventFilter | None = None, name: str | None = None) -> None:
        self.filter = event_filter
        if not isinstance(self, Enum):
            self._value_ = value
            self._name_ = str(value) if name is None else name

    @DynamicClassAttribute
    def name(self) -> str:
        """The name of the enum's member."""
        return self._name_

    @DynamicClassAttribute
    def value(self) -> Any:
        """The value of the enum's member."""
        return self._value_

    def __call__(
        self,
        event_filter: EventFilter | None = None,
        every: int | None = None,
        once: int | Sequence[int] | None = None,
        before: int | None = None,
        after: int | None = None,
    ) -> CallableEventWithFilter:
        """Return this event with a filter.

        One of three: `event_filter`; `once`; or any of `every`, `before` and `after` together. With `after`, `every`
        counts from the first occurrence that `after` lets through. Filters of an event that has one already add up;
        ignite drops the earlier one.

        Args:
            event_filter: A function of the engine and the event's counter.
            every: Run when the counter is a multiple of this positive number.
            once: Run when the counter equals this positive number, or one of these.
            before: Run while the counter is less than this.
            after: Run once the counter is greater than this.

        Raises:
            ValueError: None or more than one of the three was given, a number is out of range, or `event_filter`
                does not take two arguments.
            TypeError: `event_filter` cannot be called.
        """
        by_interval = every is not None or before is not None or after is not None
        if sum((event_filter is not None, once is not None, by_interval)) != 1:
            raise ValueError("Only one of the input arguments should be specified, except before, after and every")
        chosen = event_filter
        if event_filter is not None:
            if not callable(event_filter):
                raise TypeError(f"Argument event_filter should be a callable, got {event_filter!r}")
            check_signature(event_filter, "event_filter", "engine", "event")
        elif once is not None:
            chosen = _once(once)
        else:
            chosen = _interval(every, before, after)
        return CallableEventWithFilter(self._value_, _both(self.filter, chosen), self._name_)

    @staticmethod
    def default_event_filter(engine: Any, event: int) -> bool:  # noqa: ARG004  # a filter's signature
        """Let every occurrence through. Deprecated: an event without a filter does the same."""
        warnings.warn("Events.default_event_filter is deprecated and will be removed. Use None instead", stacklevel=2)
        return True

    @property  # type: ignore[misc]  # isinstance against ignite's classes asks for this attribute
    def __class__(self) -> type:
        return ignite_counterpart(type(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._value_, self.filter, self._name_)

    def __repr__(self) -> str:
        return f"Events.{self._name_}" + ("" if self.filter is None else f"(filter={self.filter})")

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self._name_}" if isinstance(self, Enum) else repr(self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return self._name_ == other
        if is_event(other):
            return self._name_ == other._name_  # type: ignore[attr-defined, no-any-return]
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._name_)

    def __or__(self, other: Any) -> EventsList:
        alone = EventsList()
        alone._append(self)
        return alone.__or__(other)


class EventEnum(CallableEventWithFilter, Enum):
    """Base class of the built-in and of custom events.

    Define them as an enum, register them, fire them where they happen:

        class BackwardEvents(EventEnum):
            BACKWARD_STARTED = "backward_started"
            BACKWARD_COMPLETED = "backward_completed"

        trainer.register_events(*BackwardEvents)
        trainer.fire_event(BackwardEvents.BACKWARD_STARTED)      # inside the process function

    Args:
        value: The value of the member; events are compared by the member's name.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self), (self._value_,)


class Events(EventEnum):
    """The events of a run; `distrain.engine.engine` draws their order."""

    STARTED = "started"
    """The run starts (or goes on from a loaded state)."""
    EPOCH_STARTED = "epoch_started"
    """An epoch starts; `state.epoch` is its number, the first is 1."""
    GET_BATCH_STARTED = "get_batch_started"
    """The next batch is about to be fetched; not fired when the run has no data."""
    GET_BATCH_COMPLETED = "get_batch_completed"
    """The batch is in `state.batch`; not fired when the run has no data."""
    ITERATION_STARTED = "iteration_started"
    """An iteration starts; `state.iteration` is its number, the first is 1."""
    ITERATION_COMPLETED = "iteration_completed"
    """The process function has returned; its result is in `state.output`."""
    EPOCH_COMPLETED = "epoch_completed"
    """An epoch has ended, also after `terminate_epoch()`, unless that was told to skip this event."""
    COMPLETED = "completed"
    """The run has ended, also after `terminate()`, unless that was told to skip this event."""

    DATALOADER_STOP_ITERATION = "dataloader_stop_iteration"
    """The data ran out before the epoch did; a handler may put a new iterable in `state.dataloader`."""
    EXCEPTION_RAISED = "exception_raised"
    """An exception was raised; handlers get it and decide: returning swallows it, raising goes on."""
    TERMINATE_SINGLE_EPOCH = "terminate_single_epoch"
    """The epoch ends early after `terminate_epoch()`; handlers may take `iter_counter`, the batches it had."""
    TERMINATE = "terminate"
    """The run ends early, after `terminate()` or at `max_iters` inside an epoch."""
    INTERRUPT = "interrupt"
    """The run is put aside after `interrupt()`; the next `run()` goes on from here."""


class EventsList:
    """Events joined by `|`: a handler attached to the list is attached to each of them."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def _append(self, event: Any) -> None:
        if not is_event(event):
            raise TypeError(f"Argument event should be Events or CallableEventWithFilter, got: {type(event)}")
        self._events.append(event)

    def __getitem__(self, item: int) -> Any:
        return self._events[item]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def __or__(self, other: Any) -> EventsList:
        joined = EventsList()
        for event in (*self, *(other if is_events_list(other) else (other,))):
            joined._append(event)
        return joined

    def __repr__(self) -> str:
        return " | ".join(map(repr, self._events))

    @property  # type: ignore[misc]  # see CallableEventWithFilter
    def __class__(self) -> type:
        return ignite_counterpart(type(self))


def is_event(value: object) -> bool:
    """Say whether `value` is an event of ours or of ignite's (a plain string is not)."""
    return isinstance(value, CallableEventWithFilter) or (hasattr(value, "_name_") and hasattr(value, "filter"))


def is_events_list(value: object) -> bool:
    """Say whether `value` is a list of events of ours or of ignite's."""
    return isinstance(value, EventsList) or (type(value).__name__ == "EventsList" and hasattr(value, "_events"))


def check_signature(function: Callable[..., Any], description: str, *args: Any, **kwargs: Any) -> None:
    """Make sure that `function` can be called with these arguments.

    Args:
        function: The callable to look at; it is not called.
        description: What the callable is, for the message.
        *args: The positional arguments it will get.
        **kwargs: The keyword arguments it will get.

    Raises:
        ValueError: It cannot be called so, or Python does not know its signature.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"Error adding {function} '{description}': takes parameters {list(signature.parameters)} "
            f"but will be called with {[*args, *kwargs]} ({error})."
        ) from None


def _is_integral(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and int(value) >= least


def _once(once: int | Sequence[int]) -> EventFilter:
    numbers: Sequence[int] = once if isinstance(once, Sequence) else [once]
    if not numbers or not all(_is_integral(number, 1) for number in numbers):
        raise ValueError(
            f"Argument once should either be a positive integer or a list of positive integers, got {once}"
        )
    wanted = frozenset(numbers)
    return lambda _, event: event in wanted


def _interval(every: int | None, before: int | None, after: int | None) -> EventFilter | None:
    if every is not None and not _is_integral(every, 1):
        raise ValueError(f"Argument every should be integer and greater than zero, got {every}")
    for name, bound in (("before", before), ("after", after)):
        if bound is not None and not _is_integral(bound, 0):
            raise ValueError(f"Argument {name} should be integer and greater or equal to zero, got {bound}")
    step = 1 if every is None else every
    if before is None and after is None:
        return None if step == 1 else lambda _, event: event % step == 0
    low = 0 if after is None else after
    high = math.inf if before is None else before
    if step == 1:
        return lambda _, event: low < event < high
    return lambda _, event: low < event < high and (event - low - 1) % step == 0


def _both(first: EventFilter | None, second: EventFilter | None) -> EventFilter | None:
    if first is None or second is None:
        return second if first is None else first
    return lambda engine, event: first(engine, event) and second(engine, event)


def __getattr__(name: str) -> Any:
    if name in ("RemovableEventHandle", "State"):  # built on this module, and in ignite's of this name
        from distrain import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
