"""Saving and loading the state, beyond what the differential tests compare."""

from __future__ import annotations

import pytest

from distrain.engine import Engine, Events


def engine_at(iteration: int) -> Engine:
    engine = Engine(lambda engine, batch: batch)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), engine.terminate)
    engine.run(range(5), max_epochs=4)
    assert engine.state.iteration == iteration
    return engine


def test_a_resumed_run_has_the_iterations_that_were_left() -> None:
    state_dict = engine_at(7).state_dict()
    resumed = Engine(lambda engine, batch: batch)
    resumed.load_state_dict(state_dict)
    epochs = []
    resumed.add_event_handler(Events.EPOCH_COMPLETED, lambda e: epochs.append((e.state.epoch, e.state.iteration)))
    resumed.run(range(5))
    assert epochs == [(2, 10), (3, 15), (4, 20)]


@pytest.mark.parametrize(
    "state_dict",
    [
        {"iteration": 3, "epoch_length": 5, "max_epochs": 0},
        {"iteration": 30, "epoch_length": 5, "max_epochs": 2},
        {"iteration": 3, "epoch_length": 5},
    ],
    ids=str,
)
def test_a_state_dict_that_is_refused_changes_nothing(state_dict: dict[str, int]) -> None:
    """ignite has set the counters by the time it refuses the goal."""
    engine = engine_at(7)
    before = dict(engine.state_dict())
    with pytest.raises(ValueError, match=r"max_epochs|exactly one"):
        engine.load_state_dict(state_dict)
    assert dict(engine.state_dict()) == before


@pytest.mark.parametrize("state_dict", [None, 3, "text", []], ids=str)
def test_what_is_no_mapping_is_refused(state_dict: object) -> None:
    with pytest.raises(TypeError, match="should be a dictionary"):
        Engine(lambda engine, batch: batch).load_state_dict(state_dict)  # type: ignore[arg-type]


def test_loading_into_a_terminated_engine_keeps_the_place_in_the_epoch() -> None:
    """ignite starts the epoch over in its count, because it was terminated before."""
    engine = engine_at(7)
    engine.load_state_dict({"iteration": 12, "epoch_length": 5, "max_epochs": 4})
    ends = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: ends.append(e.state.iteration))
    engine.run(range(5))
    assert ends == [15, 20]


def test_loading_gives_up_an_interrupted_run() -> None:
    """ignite goes on with the old data from the new count."""
    engine = Engine(lambda engine, batch: batch)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    engine.run(range(5), max_epochs=2)
    engine.load_state_dict({"iteration": 5, "epoch_length": 5, "max_epochs": 2})
    batches = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: batches.append(e.state.batch))
    engine.run(range(10, 15))
    assert batches == [10, 11, 12, 13, 14]


def test_a_handler_of_started_may_load() -> None:
    engine = Engine(lambda engine, batch: batch)
    loaded = {"iteration": 12, "epoch_length": 5, "max_epochs": 4}
    engine.add_event_handler(Events.STARTED, lambda: engine.load_state_dict(loaded))
    epochs = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: epochs.append((e.state.epoch, e.state.iteration)))
    engine.run(range(5), max_epochs=1)
    assert epochs == [(3, 15), (4, 20)]


def test_what_is_wrong_with_a_length_is_said_without_the_whole_state() -> None:
    with pytest.raises(ValueError, match="iteration=3 and epoch_length=None") as caught:
        Engine(lambda engine, batch: batch).load_state_dict(
            {"iteration": 3, "epoch_length": None, "max_epochs": 2, "states": "x" * 10_000}
        )
    assert "'states'" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_place_tells_the_epochs_that_are_over_and_what_the_next_has_had() -> None:
    engine, places = Engine(lambda engine, batch: batch), {}
    for event in (Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
        engine.add_event_handler(event, lambda e, name: places.update({(name, e.state.iteration): e.place}), event.name)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.terminate_epoch, skip_epoch_completed=False)
    engine.run(range(3), max_epochs=2)
    assert places == {
        ("EPOCH_STARTED", 0): (0, 0),
        ("ITERATION_COMPLETED", 1): (0, 1),
        ("ITERATION_COMPLETED", 2): (0, 2),
        ("EPOCH_COMPLETED", 2): (1, 0),
        ("EPOCH_STARTED", 2): (1, 0),
        ("ITERATION_COMPLETED", 3): (1, 1),
        ("ITERATION_COMPLETED", 4): (1, 2),
        ("ITERATION_COMPLETED", 5): (2, 0),
        ("EPOCH_COMPLETED", 5): (2, 0),
    }


def test_a_place_that_was_set_is_where_the_run_goes_on() -> None:
    engine = Engine(lambda engine, batch: batch)
    engine.load_state_dict({"iteration": 3, "epoch_length": 3, "max_epochs": 2})
    engine.place = 1, 1
    places = []
    engine.add_event_handler(Events.EPOCH_STARTED, lambda e: places.append((e.state.epoch, e.place)))
    engine.run(range(3))
    assert places == [(2, (1, 1))]
    assert (engine.state.epoch, engine.state.iteration) == (2, 5)


def test_a_place_that_was_loaded_does_not_count_once_the_iteration_was_moved() -> None:
    engine = Engine(lambda engine, batch: batch)
    engine.load_state_dict({"iteration": 1, "epoch_length": 3, "max_epochs": 2})
    engine.state.iteration = 2
    ends = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: ends.append(e.state.iteration))
    engine.run(range(3))
    assert ends == [3, 6]
