"""Handlers and filters where we do better than ignite, on purpose."""

from __future__ import annotations

import pickle
from typing import Any
from unittest.mock import MagicMock

import pytest

from distrain.engine import Engine, EventEnum, Events, EventsList


@pytest.fixture
def engine() -> Engine:
    return Engine(lambda engine, batch: batch)


@pytest.mark.parametrize(
    ("handler", "args"),
    [
        (lambda engine, iter_counter: ["engine", iter_counter], ()),
        (lambda iter_counter: [iter_counter], ()),
        (lambda engine: ["engine"], ()),
        (lambda: [*()], ()),
        (lambda engine, extra: ["engine", extra], ("extra",)),
        (lambda extra, iter_counter: [extra, iter_counter], ("extra",)),
    ],
    ids=["engine and counter", "counter", "engine", "nothing", "engine and argument", "argument and counter"],
)
def test_the_end_of_a_cut_epoch_takes_any_handler(engine: Engine, handler: Any, args: tuple[Any, ...]) -> None:
    """ignite takes all of these and then fails in the run, unless there is a parameter `iter_counter`."""
    calls = []
    wrapped = MagicMock(side_effect=lambda *a, **k: calls.append(handler(*a, **k)))
    wrapped.__signature__ = __import__("inspect").signature(handler)
    engine.add_event_handler(Events.TERMINATE_SINGLE_EPOCH, wrapped, *args)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.terminate_epoch)
    engine.run([1, 2, 3])
    names = handler.__code__.co_varnames[: handler.__code__.co_argcount]
    assert calls == [[{"engine": "engine", "iter_counter": 2, "extra": "extra"}[name] for name in names]]
    assert engine.has_event_handler(wrapped, Events.TERMINATE_SINGLE_EPOCH)
    engine.remove_event_handler(wrapped, Events.TERMINATE_SINGLE_EPOCH)
    assert not engine.has_event_handler(wrapped)


def test_filters_of_a_filtered_event_add_up(engine: Engine) -> None:
    """ignite drops the first filter."""
    seen = []
    event = Events.ITERATION_COMPLETED(every=2)(after=3)(before=9)
    engine.add_event_handler(event, lambda e: seen.append(e.state.iteration))
    engine.run(range(12))
    assert seen == [4, 6, 8]


def test_joining_makes_a_new_list() -> None:
    """ignite appends to the list on the left, which somebody else may hold."""
    first = Events.STARTED | Events.COMPLETED
    second = first | Events.EPOCH_STARTED
    assert [event.name for event in first] == ["STARTED", "COMPLETED"]
    assert [event.name for event in second] == ["STARTED", "COMPLETED", "EPOCH_STARTED"]
    assert len(first | second) == 5
    assert isinstance(first, EventsList)


def test_a_mock_is_found_and_removed(engine: Engine) -> None:
    """ignite takes any attribute of a mock for the mark of a filtered handler."""
    handler = MagicMock()
    engine.add_event_handler(Events.STARTED, handler)
    assert engine.has_event_handler(handler)
    engine.run([1])
    handler.assert_called_once_with(engine)
    engine.remove_event_handler(handler, Events.STARTED)
    assert not engine.has_event_handler(handler)


def test_a_counter_that_is_registered_after_the_handler_is_used(engine: Engine) -> None:
    class Custom(EventEnum):
        TICK = "tick"

    seen = []
    engine.register_events(Custom.TICK)
    engine.add_event_handler(Custom.TICK(every=2), lambda: seen.append(engine.state.num_ticks))
    with pytest.raises(RuntimeError, match="Unknown event name"):
        engine.fire_event(Custom.TICK)
    engine.register_events(Custom.TICK, event_to_attr={Custom.TICK: "num_ticks"})
    for _ in range(4):
        engine.state.num_ticks += 1
        engine.fire_event(Custom.TICK)
    assert seen == [2, 4]


def test_events_are_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(Events.STARTED)) is Events.STARTED
    unfiltered = pickle.loads(pickle.dumps(Events.STARTED(every=1)))
    assert unfiltered == Events.STARTED
    assert unfiltered.filter is None


def test_a_handle_keeps_nothing_alive(engine: Engine) -> None:
    class Handler:
        def __call__(self) -> None: ...

    handler = Handler()
    handle = engine.add_event_handler(Events.STARTED(every=2), handler)
    engine.remove_event_handler(handler, Events.STARTED)
    assert handle.handler() is None
    handle.remove()
    assert not engine.has_event_handler(handler)
