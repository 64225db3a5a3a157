"""Runs: the drawn order of events, and each place where we do better than ignite, on purpose."""

from __future__ import annotations

import gc
import itertools
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from distrain.engine import Engine, EventEnum, Events, State

EPOCH = ["EPOCH_STARTED", *["GET_BATCH_STARTED", "GET_BATCH_COMPLETED", "ITERATION_STARTED", "ITERATION_COMPLETED"] * 2]


def record_events(engine: Engine, *, but: tuple[str, ...] = ("EXCEPTION_RAISED",)) -> list[str]:
    """Return the list to which the names of all fired events are added from now on."""
    fired: list[str] = []

    def attach(event: Events) -> None:
        engine.add_event_handler(event, lambda *_: fired.append(event.name))

    for event in Events:
        if event.name not in but:
            attach(event)
    return fired


def test_the_events_come_in_the_drawn_order() -> None:
    engine = Engine(lambda engine, batch: batch)
    fired = record_events(engine)
    engine.run([1, 2], max_epochs=2)
    second = [*EPOCH[:2], "DATALOADER_STOP_ITERATION", *EPOCH[2:], "EPOCH_COMPLETED"]
    assert fired == ["STARTED", *EPOCH, "EPOCH_COMPLETED", *second, "COMPLETED"]


@pytest.mark.parametrize("name", ["max_epochs", "max_iters"])
def test_a_goal_of_nothing_is_refused_on_the_first_run_too(name: str) -> None:
    engine = Engine(lambda engine, batch: batch)
    with pytest.raises(ValueError, match=f"Argument {name} is invalid"):
        engine.run([1], **{name: 0})
    assert engine.state.iteration == 0


def test_a_run_goes_on_after_an_exception() -> None:
    """ignite's next run returns None and does nothing."""
    engine = Engine(lambda engine, batch: 1 // (engine.state.iteration - 2))
    with pytest.raises(ZeroDivisionError):
        engine.run([1, 2, 3], max_epochs=2)
    engine._process_function = lambda engine, batch: batch
    state = engine.run([1, 2, 3], max_epochs=2)
    assert isinstance(state, State)
    assert (state.epoch, state.iteration) == (2, 3)


def test_an_exception_that_its_handler_raises_again_is_fired_once() -> None:
    """ignite fires EXCEPTION_RAISED a second time for it."""
    engine = Engine(lambda engine, batch: 1 // 0)
    seen = []

    @engine.on(Events.EXCEPTION_RAISED)
    def look(error: Exception) -> None:
        seen.append(error)
        raise error

    with pytest.raises(ZeroDivisionError):
        engine.run([1])
    assert len(seen) == 1


def test_an_exception_is_raised_again_once_its_handler_is_removed() -> None:
    """ignite swallows it, because the event has had a handler before."""
    engine = Engine(lambda engine, batch: 1 // 0)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None).remove()
    assert engine._event_handlers[Events.EXCEPTION_RAISED] == []
    with pytest.raises(ZeroDivisionError):
        engine.run([1])


def test_interrupting_at_the_end_of_the_data_does_not_announce_the_batch_twice() -> None:
    engine = Engine(lambda engine, batch: batch)
    expected = record_events(engine)
    engine.run([1, 2], max_epochs=2)
    engine = Engine(lambda engine, batch: batch)
    fired = record_events(engine)
    engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, engine.interrupt)
    for _ in range(2):
        engine.run([1, 2], max_epochs=2)
    assert [name for name in fired if name != "INTERRUPT"] == expected
    assert fired.count("INTERRUPT") == 1


def test_a_custom_event_at_the_end_of_the_data_does_not_announce_the_batch_twice() -> None:
    engine = Engine(lambda engine, batch: batch)
    engine.register_events("refilled")
    fired = record_events(engine)
    engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, lambda: engine.fire_event("refilled"))
    engine.run([1, 2], max_epochs=2)
    assert fired.count("GET_BATCH_STARTED") == fired.count("GET_BATCH_COMPLETED") == 4


def test_empty_data_of_unknown_length_are_refused_where_iterations_are_counted() -> None:
    with pytest.raises(ValueError, match="zero size"):
        Engine(lambda engine, batch: batch).run(iter(()), max_iters=3)


def test_a_length_with_a_fraction_is_refused() -> None:
    """ignite's epoch never ends."""
    engine = Engine(lambda engine, batch: batch)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=20), engine.terminate)
    with pytest.raises(ValueError, match=r"epoch_length is 1\.5; with a fraction, the epoch would never end"):
        engine.run([1, 2, 3], epoch_length=3 / 2)  # type: ignore[arg-type]
    assert engine.run([1, 2, 3], epoch_length=4 / 2).iteration == 2  # type: ignore[arg-type]


def test_a_run_that_counts_iterations_ends_with_its_data() -> None:
    """ignite runs empty epochs for ever."""
    engine = Engine(lambda engine, batch: batch)
    fired = record_events(engine)
    with pytest.warns(UserWarning, match="can not provide data anymore"):
        state = engine.run(iter(range(4)), max_iters=10, epoch_length=3)
    assert state.iteration == 4
    assert fired[-2:] == ["TERMINATE", "COMPLETED"]


def test_iterations_can_be_raised_after_the_length_was_found() -> None:
    """ignite takes the max_epochs that it derived for one the user had set, and refuses."""

    class Data:
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    engine = Engine(lambda engine, batch: batch)
    engine.run(Data(), max_iters=6)
    assert (engine.state.epoch_length, engine.state.max_epochs) == (4, 2)
    state = engine.run(Data(), max_iters=10)
    assert (state.iteration, state.max_iters, state.max_epochs) == (10, 10, 3)


def test_time_put_aside_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count()
    clock = {"offset": 0.0}
    monkeypatch.setattr("time.perf_counter", lambda: clock["offset"] + next(now) * 1e-6)
    engine = Engine(lambda engine, batch: batch)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    engine.run([1, 2, 3])
    clock["offset"] = 1000.0
    state = engine.run([1, 2, 3])
    assert all(seconds is not None and 0 < seconds < 1 for seconds in state.times.values())


def test_times_hold_the_handlers_seconds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr("time.perf_counter", lambda: clock["now"])

    def takes(seconds: float) -> Callable[[], None]:
        return lambda: clock.update(now=clock["now"] + seconds)

    engine = Engine(lambda engine, batch: takes(1)())
    seen = []
    engine.add_event_handler(Events.EPOCH_STARTED, takes(10))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(dict(engine.state.times)))
    engine.add_event_handler(Events.EPOCH_COMPLETED, takes(100))
    engine.add_event_handler(Events.COMPLETED, takes(1000))
    engine.run([1, 2], max_epochs=2)
    assert seen[0] == {"EPOCH_COMPLETED": 12.0, "COMPLETED": 0.0}
    assert engine.state.times == {"EPOCH_COMPLETED": 112.0, "COMPLETED": 1224.0}


def test_debug_logs_every_event(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(lambda engine, batch: batch)
    with caplog.at_level(logging.DEBUG, logger=engine.logger.name):
        engine.run([1, 2])
    fired = [record.getMessage() for record in caplog.records if "Firing" in record.getMessage()]
    assert len(fired) == 2 + 2 * 4 + 2
    assert "1 | 2, Firing handlers for event Events.ITERATION_COMPLETED" in fired


def test_an_engine_that_watches_its_events_sees_all_of_them() -> None:
    class Watching(Engine):
        def __init__(self) -> None:
            super().__init__(lambda engine, batch: batch)
            self.names: list[str] = []

        def _fire_event(self, event_name: Any, *event_args: Any, **event_kwargs: Any) -> None:
            self.names.append(event_name.name)
            super()._fire_event(event_name, *event_args, **event_kwargs)

    engine = Watching()
    engine.run([1, 2])
    assert engine.names == ["STARTED", *EPOCH, "EPOCH_COMPLETED", "COMPLETED"]


def test_a_batch_is_released_before_the_next_is_fetched() -> None:
    class Batch:
        pass

    alive: list[weakref.ref[Batch]] = []
    counts = []

    def batches() -> Iterator[Batch]:
        for _ in range(4):
            counts.append(sum(ref() is not None for ref in alive))
            batch = Batch()
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    Engine(lambda engine, batch: batch).run(batches())
    # The output, here the batch itself, stays until the next batch is there.
    assert counts == [0, 1, 1, 1]
    counts.clear()
    alive.clear()
    Engine(lambda engine, batch: None).run(batches())
    assert counts == [0, 0, 0, 0]


@pytest.mark.parametrize("how", ["plain", "filtered"])
def test_an_engine_that_is_let_go_is_freed_at_once(how: str) -> None:
    engine = Engine(lambda engine, batch: batch)
    if how == "filtered":
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda engine: None)
    engine.run([1, 2, 3], max_epochs=2)
    ref = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert ref() is None
    finally:
        gc.enable()


def test_giving_up_an_interrupted_run_is_no_exception() -> None:
    """ignite hands its EXCEPTION_RAISED handlers a GeneratorExit."""
    engine = Engine(lambda engine, batch: batch)
    fired = record_events(engine, but=())
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    engine.run([1, 2, 3])
    engine.state.max_epochs = None
    engine.run([1, 2], epoch_length=1)
    assert "EXCEPTION_RAISED" not in fired


def test_importing_the_engine_does_not_import_torch() -> None:
    code = "import sys, distrain.engine, distrain; distrain.Engine; assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_event_is_answered_with_the_nearest() -> None:
    engine = Engine(lambda engine, batch: batch)
    with pytest.raises(ValueError, match=r"not a valid event for this Engine\. Did you mean ITERATION_COMPLETED"):
        engine.add_event_handler("ITERATION_COMPLETE", lambda: None)


def test_a_list_with_an_unknown_event_attaches_nothing() -> None:
    class Other(EventEnum):
        ELSEWHERE = "elsewhere"

    class Custom(Engine):
        pass

    engine = Custom(lambda engine, batch: batch)
    with pytest.raises(ValueError, match="not a valid event for this Custom"):
        engine.add_event_handler(Events.STARTED | Other.ELSEWHERE, print)
    assert not engine.has_event_handler(print)


def test_an_exception_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """ignite says it twice, once for the epoch and once for the run."""
    engine = Engine(lambda engine, batch: 1 // 0)
    with caplog.at_level(logging.ERROR, logger=engine.logger.name), pytest.raises(ZeroDivisionError):
        engine.run([1])
    assert len(caplog.records) == 1


def test_a_list_of_handlers_that_another_library_puts_in_place_is_heard_at_once():
    def step(engine, batch):
        if engine.state.iteration == 2:
            engine._event_handlers[Events.ITERATION_COMPLETED] = [(lambda: heard.append(engine.state.batch), (), {})]

    heard, engine = [], Engine(step)
    engine.run([1, 2, 3])
    assert heard == [2, 3]
