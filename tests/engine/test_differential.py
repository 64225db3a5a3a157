"""The same scripts on our engine and on ignite's: every event, state and value must be the same.

Where we differ on purpose, the scenario is left out here and told in `test_engine.py` or `test_handlers.py`.
"""

from __future__ import annotations

import functools
import itertools
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.script import DATA, Stage, Unsized, compare, label

LENGTHS = [None, 1, 3, 8]
GOALS: list[dict[str, int]] = [{}, {"max_epochs": 1}, {"max_epochs": 3}, {"max_iters": 4}, {"max_iters": 11}]
FINITE_GOALS = GOALS[1:]


@pytest.mark.parametrize("silent", [False, True], ids=["observed", "silent"])
@pytest.mark.parametrize("epoch_length", LENGTHS)
@pytest.mark.parametrize("goal", GOALS, ids=label)
@pytest.mark.parametrize("data", sorted(DATA))
def test_a_run(ignite: ModuleType, data: str, goal: dict[str, int], epoch_length: int | None, silent: bool) -> None:
    if data == "endless" and epoch_length is None and "max_iters" not in goal:
        pytest.skip("would never end")
    if data == "empty iterator" and epoch_length is None and "max_iters" in goal:
        pytest.skip("ignite divides by zero; see test_engine.py")
    if data in ("empty", "empty iterator", "iterator") and epoch_length is not None and "max_iters" in goal:
        pytest.skip("ignite runs empty epochs for ever once the data have ended; see test_engine.py")
    compare(ignite, lambda stage: stage.run(data, epoch_length=epoch_length, **goal), silent=silent)


SECOND_RUNS: list[dict[str, Any]] = [
    {},
    {"max_epochs": 1},
    {"max_epochs": 2},
    {"max_epochs": 5},
    {"max_epochs": 0},
    {"max_iters": 3},
    {"max_iters": 17},
    {"max_epochs": 5, "epoch_length": 4},
    {"max_epochs": 5, "max_iters": 5},
    {"data": "nothing", "max_epochs": 4},
    {"data": "iterator", "max_epochs": 4},
    {"data": "empty", "max_epochs": 4},
]


@pytest.mark.parametrize("reset", [(), ("max_epochs",), ("max_iters",)], ids=["kept", "no epochs", "no iters"])
@pytest.mark.parametrize("second", SECOND_RUNS, ids=label)
@pytest.mark.parametrize("goal", FINITE_GOALS, ids=label)
def test_a_second_run(ignite: ModuleType, goal: dict[str, int], second: dict[str, Any], reset: tuple[str, ...]) -> None:
    if second.get("max_epochs") == 0 and ("max_iters" in goal or reset == ("max_epochs",)):
        pytest.skip("ignite does not look at a goal of 0 here; see test_engine.py")

    def script(stage: Stage) -> None:
        stage.run("list", **goal)
        for name in reset:
            setattr(stage.engine.state, name, None)
        stage.run(**second)
        stage.run(**second)

    compare(ignite, script)


ACTIONS = {
    "terminate": lambda engine: engine.terminate(),
    "terminate, skip": lambda engine: engine.terminate(skip_completed=True),
    "terminate_epoch": lambda engine: engine.terminate_epoch(),
    "terminate_epoch, skip": lambda engine: engine.terminate_epoch(skip_epoch_completed=True),
    "interrupt": lambda engine: engine.interrupt(),
    "terminate flag": lambda engine: setattr(engine, "should_terminate", True),
    "terminate and interrupt": lambda engine: (engine.interrupt(), engine.terminate()),
    "terminate_epoch and interrupt": lambda engine: (engine.interrupt(), engine.terminate_epoch()),
}
MOMENTS: list[tuple[str, dict[str, Any]]] = [
    ("STARTED", {}),
    ("EPOCH_STARTED", {"once": 1}),
    ("EPOCH_STARTED", {"once": 2}),
    ("GET_BATCH_STARTED", {"once": 6}),
    ("GET_BATCH_COMPLETED", {"once": 6}),
    ("ITERATION_STARTED", {"once": 7}),
    ("ITERATION_COMPLETED", {"once": 5}),
    ("ITERATION_COMPLETED", {"once": 7}),
    ("ITERATION_COMPLETED", {"every": 4}),
    ("EPOCH_COMPLETED", {"once": 2}),
    ("EPOCH_COMPLETED", {"once": 3}),
    ("DATALOADER_STOP_ITERATION", {}),
    ("TERMINATE", {}),
    ("COMPLETED", {}),
]


@pytest.mark.parametrize("data", ["list", "nothing", "unsized"])
@pytest.mark.parametrize("action", sorted(ACTIONS))
@pytest.mark.parametrize("moment", MOMENTS, ids=label)
def test_a_run_cut_short(ignite: ModuleType, moment: tuple[str, dict[str, Any]], action: str, data: str) -> None:
    event, filters = moment
    if event == "DATALOADER_STOP_ITERATION" and action == "interrupt":
        pytest.skip("ignite fires GET_BATCH_STARTED twice afterwards; see test_engine.py")

    def script(stage: Stage) -> None:
        calls = itertools.count()

        @stage.engine.on(stage.event(event, **filters))
        def cut(engine: Any) -> None:
            if next(calls) < 3:
                ACTIONS[action](engine)

        length = {"epoch_length": 5} if data == "nothing" else {}
        for _ in range(4):
            if not stage.run(data, max_epochs=3, **length):
                break

    compare(ignite, script)


@pytest.mark.parametrize("goal", [{"max_epochs": 3}, {"max_iters": 12}], ids=label)
@pytest.mark.parametrize("where", ["step", "data"])
@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_signals_from_the_step_and_from_the_data(ignite: ModuleType, action: str, where: str, goal: Any) -> None:
    def script(stage: Stage) -> None:
        class Data:
            def __len__(self) -> int:
                return 5

            def __iter__(self) -> Any:
                for i in range(5):
                    if where == "data" and i == 2 and stage.engine.state.epoch == 2:
                        ACTIONS[action](stage.engine)
                    yield i

        def step(engine: Any, batch: Any) -> Any:
            if where == "step" and engine.state.iteration == 7:
                ACTIONS[action](engine)
            return batch

        stage.engine._process_function = step
        stage.run(Data(), **goal)
        stage.run(Data(), **goal)

    compare(ignite, script)


FILTERS: list[dict[str, Any]] = [
    *({"every": n} for n in (1, 2, 3, 100)),
    *({"once": once} for once in (1, 4, [1, 5], (2, 3), [100])),
    *({"before": n} for n in (0, 1, 4, 100)),
    *({"after": n} for n in (0, 1, 4, 100)),
    {"before": 9, "after": 2},
    {"before": 2, "after": 9},
    {"every": 2, "after": 3},
    {"every": 1, "after": 3},
    {"every": 3, "before": 8},
    {"every": 4, "before": 14, "after": 1},
    {"event_filter": lambda engine, event: event in (1, 2, 7)},
    {"event_filter": lambda engine, event: engine.state.epoch == 2 and event},
]
COUNTED = ["STARTED", "EPOCH_STARTED", "GET_BATCH_STARTED", "GET_BATCH_COMPLETED", "ITERATION_STARTED"]
COUNTED += ["ITERATION_COMPLETED", "EPOCH_COMPLETED", "COMPLETED"]


@pytest.mark.parametrize("event", COUNTED)
@pytest.mark.parametrize("filters", FILTERS, ids=label)
def test_a_filter(ignite: ModuleType, event: str, filters: dict[str, Any]) -> None:
    def script(stage: Stage) -> None:
        stage.engine.add_event_handler(stage.event(event, **filters), *stage.recorder(event))
        stage.engine.add_event_handler(stage.event(event, **filters), lambda: stage.trace.append("without engine"))
        stage.run("list", max_epochs=3)

    compare(ignite, script, silent=True)


BAD_FILTERS: list[dict[str, Any]] = [
    {"every": None},
    {"every": 2, "once": 2},
    {"once": 2, "before": 3},
    {"event_filter": lambda engine, event: True, "every": 2},
    {"event_filter": lambda engine, event: True, "after": 2},
    {"event_filter": "text"},
    {"event_filter": lambda event: True},
    *({"every": n} for n in (0, -1, 1.5, "2")),
    *({"once": n} for n in (0, -1, [], [1, 0], [1, 2.0], "ab", 1.0)),
    *({"before": n} for n in (-1, 0.5)),
    *({"after": n} for n in (-1, "1")),
]


@pytest.mark.parametrize("filters", BAD_FILTERS, ids=label)
def test_a_filter_that_is_refused(ignite: ModuleType, filters: dict[str, Any]) -> None:
    trace = compare(ignite, lambda stage: stage.attempt("filter", stage.api.Events.ITERATION_STARTED, **filters))
    assert trace[0][1] == "raised"


@pytest.mark.parametrize("event", ["TERMINATE", "INTERRUPT", "DATALOADER_STOP_ITERATION"])
def test_a_filter_on_an_event_without_a_counter(ignite: ModuleType, event: str) -> None:
    def script(stage: Stage) -> None:
        stage.engine.add_event_handler(stage.event(event, every=2), lambda: stage.trace.append("called"))
        stage.engine.add_event_handler(stage.event("ITERATION_COMPLETED", once=3), stage.engine.terminate)
        stage.engine.add_event_handler(stage.event("ITERATION_COMPLETED", once=2), stage.engine.interrupt)
        if stage.run("list", epoch_length=8):
            stage.run("list", epoch_length=8)

    compare(ignite, script)


def test_lists_of_events(ignite: ModuleType) -> None:
    def script(stage: Stage) -> None:
        events = stage.event("STARTED") | stage.event("ITERATION_COMPLETED", every=3)
        events |= stage.event("EPOCH_COMPLETED")
        events |= stage.event("ITERATION_COMPLETED", once=2)
        stage.trace.append(([event.name for event in events], len(events), events[1].name))
        handle = stage.engine.add_event_handler(events, lambda e: stage.trace.append(("listed", e.state.iteration)))
        stage.run("list", max_epochs=2)
        handle.remove()
        stage.run("list", max_epochs=3)
        stage.attempt("or", lambda: stage.event("STARTED") | "text")

    compare(ignite, script)


def _shapes(stage: Stage) -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Handlers of every shape, with the arguments they are attached with."""
    say = stage.trace.append

    class Holder:
        def with_engine(self, engine: Any) -> None:
            say(("method", engine.state.iteration))

        def without(self) -> None:
            say("method without")

        def __call__(self, engine: Any, extra: int = 3) -> None:
            say(("object", extra))

        @staticmethod
        def static(engine: Any) -> None:
            say("static")

        @classmethod
        def of_class(cls, engine: Any) -> None:
            say(("class", cls.__name__))

    def wrapped(engine: Any) -> None:
        say("wrapped")

    @functools.wraps(wrapped)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        say(("wrapper", len(args)))
        wrapped(*args, **kwargs)

    holder = Holder()
    stage.keep = holder  # type: ignore[attr-defined]
    return {
        "nothing": (lambda: say("nothing"), (), {}),
        "engine": (lambda engine: say(("engine", engine is stage.engine)), (), {}),
        "argument in the engine's place": (lambda value: say(("value", value)), (5,), {}),
        "engine and argument": (lambda engine, value: say(("both", value)), (5,), {}),
        "optional": (lambda engine, value=1: say(("optional", value)), (), {}),
        "keyword": (lambda engine, *, key: say(("key", key)), (), {"key": "k"}),
        "keyword only": (lambda key: say(("key", key)), (), {"key": "k"}),
        "anything": (lambda *args, **kwargs: say(("anything", len(args), kwargs)), (1, 2), {"a": 3}),
        "missing argument": (lambda engine, a, b: say("never"), (1,), {}),
        "too many arguments": (lambda engine: say("never"), (1, 2), {}),
        "unknown keyword": (lambda engine: say("never"), (), {"a": 1}),
        "method": (holder.with_engine, (), {}),
        "method without engine": (holder.without, (), {}),
        "static method": (Holder.static, (), {}),
        "class method": (Holder.of_class, (), {}),
        "object": (holder, (), {}),
        "object with keyword": (holder, (), {"extra": 9}),
        "partial": (functools.partial(lambda a, engine: say(("partial", a)), 4), (), {}),
        "partial without engine": (functools.partial(lambda a: say(("partial", a)), 4), (), {}),
        "wrapped": (wrapper, (), {}),
        "bound built-in": (stage.trace.append, ("text",), {}),
    }


SHAPES = sorted(_shapes(Stage.__new__(type("Bare", (Stage,), {"trace": []}))))


@pytest.mark.parametrize("filters", [{}, {"every": 2}], ids=label)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_handler(ignite: ModuleType, shape: str, filters: dict[str, Any]) -> None:
    def script(stage: Stage) -> None:
        handler, args, kwargs = _shapes(stage)[shape]
        event = stage.event("ITERATION_COMPLETED", **filters)
        handle = stage.attempt("add", stage.engine.add_event_handler, event, handler, *args, **kwargs)
        stage.trace.append(stage.engine.has_event_handler(handler))
        stage.trace.append(stage.engine.has_event_handler(handler, stage.event("ITERATION_COMPLETED")))
        stage.trace.append(stage.engine.has_event_handler(handler, stage.event("STARTED")))
        stage.run("list")
        if handle is not None:
            handle.remove()
        stage.trace.append(stage.engine.has_event_handler(handler))
        stage.attempt("remove", stage.engine.remove_event_handler, handler, event)
        stage.run("list")

    compare(ignite, script, silent=True)


@pytest.mark.parametrize("filters", [{}, {"every": 2}], ids=label)
@pytest.mark.parametrize("change", ["add", "remove the next", "remove itself", "insert", "replace"])
def test_handlers_that_change_while_their_event_is_fired(
    ignite: ModuleType, change: str, filters: dict[str, Any]
) -> None:
    def script(stage: Stage) -> None:
        engine = stage.engine
        event = stage.event("ITERATION_COMPLETED", **filters)

        def first(engine: Any) -> None:
            stage.trace.append("first")
            entries = engine._event_handlers[stage.event("ITERATION_COMPLETED")]
            if len(stage.trace) > 12:
                return
            if change == "add":
                engine.add_event_handler(event, lambda: stage.trace.append("added"))
            elif change == "insert":
                entries.insert(0, (lambda: stage.trace.append("inserted"), (), {}))
            elif change == "replace":
                entries[-1] = (lambda e: stage.trace.append("replaced"), (engine,), {})
            elif engine.has_event_handler(second if change == "remove the next" else first):
                engine.remove_event_handler(second if change == "remove the next" else first, event)

        def second() -> None:
            stage.trace.append("second")

        def third() -> None:
            stage.trace.append("third")

        for handler in (first, second, third):
            engine.add_event_handler(event, handler)
        stage.run(range(6))

    compare(ignite, script, silent=True)


@pytest.mark.parametrize("swallow", [True, False, "reraise nothing"], ids=label)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt], ids=lambda e: e.__name__)
@pytest.mark.parametrize(
    "event", ["step", "data", *(e for e, _ in MOMENTS if e not in ("TERMINATE", "DATALOADER_STOP_ITERATION"))]
)
def test_an_exception(  # noqa: C901  # one script that raises at each of these places
    ignite: ModuleType, event: str, error: type[BaseException], swallow: Any
) -> None:
    def script(stage: Stage) -> None:
        raised = []

        def fail() -> None:
            if not raised and (event == "STARTED" or stage.engine.state.epoch == 2):
                raised.append(True)
                raise error("on purpose")

        def step(engine: Any, batch: Any) -> Any:
            if event == "step":
                fail()
            return batch

        class Data(Unsized):
            def __iter__(self) -> Any:
                for batch in range(self.size):
                    if event == "data" and batch == 1:
                        fail()
                    yield batch

        stage.engine._process_function = step
        if event not in ("step", "data"):
            stage.engine.add_event_handler(stage.event(event), fail)
        if swallow is True:
            stage.engine.add_event_handler(
                stage.event("EXCEPTION_RAISED"), lambda engine, e: stage.trace.append(("swallowed", str(e)))
            )
        elif swallow:
            stage.engine.add_event_handler(stage.event("EXCEPTION_RAISED"), lambda e: stage.trace.append(type(e)))
        stage.run(Data(4), max_epochs=3)
        if swallow:
            stage.run(Data(4), max_epochs=3)

    compare(ignite, script)


def test_custom_events(ignite: ModuleType) -> None:
    def script(stage: Stage) -> None:
        class Custom(stage.api.EventEnum):  # type: ignore[name-defined, misc]
            BACKWARD = "backward"
            MISSING = "missing"

        engine = stage.engine
        stage.attempt("before", engine.add_event_handler, Custom.BACKWARD, lambda: None)
        stage.attempt("before", engine.fire_event, Custom.BACKWARD)
        engine.register_events(Custom.BACKWARD, "text event", event_to_attr={Custom.BACKWARD: "num_backward"})
        stage.trace.append([engine.has_registered_events(e) for e in (*Custom, "text event", "other")])
        stage.trace.append(engine.state.num_backward)

        def step(engine: Any, batch: Any) -> None:
            engine.state.num_backward += 1
            engine.fire_event(Custom.BACKWARD)
            engine.fire_event("text event")

        engine._process_function = step
        engine.add_event_handler(Custom.BACKWARD(every=2), lambda e: stage.trace.append(e.state.num_backward))
        engine.add_event_handler(Custom.BACKWARD | stage.event("COMPLETED"), lambda: stage.trace.append("listed"))
        engine.add_event_handler("text event", lambda e: stage.trace.append(str(e.last_event_name)))
        stage.attempt("missing", engine.add_event_handler, Custom.MISSING, lambda: None)
        stage.attempt("counter", engine.state.get_event_attrib_value, Custom.BACKWARD)
        stage.attempt("no counter", engine.state.get_event_attrib_value, Custom.MISSING)
        stage.run("list", max_epochs=2)

    compare(ignite, script, silent=True)


@pytest.mark.parametrize(
    ("names", "mapping"),
    [((None,), None), (("ok", 1), None), ((object(),), None), (("ok",), "text"), (("ok",), 3), (("ok",), {"ok": "x"})],
    ids=label,
)
def test_registering(ignite: ModuleType, names: tuple[Any, ...], mapping: Any) -> None:
    compare(ignite, lambda s: s.attempt("register", s.engine.register_events, *names, event_to_attr=mapping))


STATE_DICTS: list[Any] = [
    {"iteration": 7, "max_epochs": 4, "epoch_length": 5},
    {"iteration": 10, "max_epochs": 4, "epoch_length": 5},
    {"epoch": 2, "max_epochs": 4, "epoch_length": 5},
    {"iteration": 0, "max_epochs": 2, "epoch_length": 5},
    {"epoch": 0, "max_epochs": 2, "epoch_length": None},
    {"iteration": 20, "max_epochs": 4, "epoch_length": 5},
    {"iteration": 7, "max_iters": 13, "epoch_length": 5},
    {"epoch": 1, "max_iters": 13, "epoch_length": 5},
    {"iteration": 7, "max_iters": 7, "epoch_length": 5},
    {"iteration": 7, "max_epochs": None, "epoch_length": 5},
    {"iteration": 7, "max_iters": None, "epoch_length": 5},
    {"iteration": 7, "max_epochs": 4, "epoch_length": 5, "other": 1},
    {"iteration": 7, "epoch": 1, "max_epochs": 4, "epoch_length": 5},
    {"iteration": 7, "max_epochs": 4, "max_iters": 9, "epoch_length": 5},
    {"iteration": 7, "epoch_length": 5},
    {"iteration": 7, "max_epochs": 4, "epoch_length": None},
    {"iteration": 7, "max_epochs": 4, "epoch_length": 0},
    {"iteration": 30, "max_epochs": 4, "epoch_length": 5},
    {"iteration": 30, "max_iters": 4, "epoch_length": 5},
    {"iteration": 7, "max_epochs": 0, "epoch_length": 5},
    {"epoch_length": 5},
    {"epoch_length": 5, "max_epochs": 3},
    {},
    [],
    "text",
    None,
]


@pytest.mark.parametrize("then", [{}, {"max_epochs": 6}, {"max_iters": 21}, {"epoch_length": 4}], ids=label)
@pytest.mark.parametrize("state_dict", STATE_DICTS, ids=label)
def test_loading_a_state(ignite: ModuleType, state_dict: Any, then: dict[str, int]) -> None:
    trace: list[Any] = []

    def script(stage: Stage) -> None:
        stage.attempt("load", stage.engine.load_state_dict, state_dict)
        loaded = stage.trace[-1][1] == "returned"
        if loaded:
            stage.run("list", **then)
            stage.trace.append(dict(stage.engine.state_dict()))
        trace.append(loaded)

    if state_dict is None:
        pytest.skip("ignite asks None for its keys; we say what is expected, see test_state_dict.py")
    compare(ignite, script)


@pytest.mark.parametrize("present", [True, False])
def test_user_keys(ignite: ModuleType, present: bool) -> None:
    def script(stage: Stage) -> None:
        stage.engine.state_dict_user_keys.append("alpha")
        stage.attempt("absent", stage.engine.state_dict)
        stage.engine.state.alpha = 1
        state_dict = stage.engine.state_dict()
        stage.trace.append(dict(state_dict))
        state_dict.update({"alpha": 5} if present else {})
        if not present:
            del state_dict["alpha"]
        stage.attempt("load", stage.engine.load_state_dict, state_dict)
        stage.trace.append(stage.engine.state.alpha)
        stage.run("list")
        stage.trace.append(list(stage.engine.state_dict()))

    compare(ignite, script)


@pytest.mark.parametrize("event", ["GET_BATCH_COMPLETED", "ITERATION_STARTED", "ITERATION_COMPLETED", "EPOCH_STARTED"])
def test_set_data(ignite: ModuleType, event: str) -> None:
    def script(stage: Stage) -> None:
        @stage.engine.on(stage.event(event, once=2))
        def switch(engine: Any) -> None:
            engine.set_data([-1, -2, -3])

        stage.run("list", max_epochs=3)

    compare(ignite, script)


@pytest.mark.parametrize("goal", [{"max_epochs": 4}, {"max_iters": 13}], ids=label)
@pytest.mark.parametrize("first", ["iterator", "unsized"])
def test_new_data_when_the_old_ran_out(ignite: ModuleType, first: str, goal: dict[str, int]) -> None:
    def script(stage: Stage) -> None:
        @stage.engine.on(stage.event("DATALOADER_STOP_ITERATION"))
        def restart(engine: Any) -> None:
            engine.state.dataloader = iter(range(engine.state.iteration, engine.state.iteration + 6))

        stage.run(first, **goal)

    compare(ignite, script)


def test_changing_the_batch_and_the_goal_on_the_way(ignite: ModuleType) -> None:
    def script(stage: Stage) -> None:
        @stage.engine.on(stage.event("ITERATION_STARTED"))
        def change(engine: Any) -> None:
            engine.state.batch = ("changed", engine.state.batch)

        @stage.engine.on(stage.event("EPOCH_COMPLETED", once=2))
        def longer(engine: Any) -> None:
            engine.state.max_epochs = 4

        stage.run("list", max_epochs=2)

    compare(ignite, script)


def test_an_engine_inside_an_engine(ignite: ModuleType) -> None:
    def script(stage: Stage) -> None:
        evaluator = stage.api.Engine(lambda engine, batch: stage.trace.append(("evaluate", batch)))

        @stage.engine.on(stage.event("EPOCH_COMPLETED"))
        def evaluate(engine: Any) -> None:
            state = evaluator.run([1, 2])
            stage.trace.append((state.epoch, state.iteration, state.max_epochs))

        stage.run("list", max_epochs=2)

    compare(ignite, script)


PROGRAM_EVENTS = ["STARTED", "EPOCH_STARTED", "GET_BATCH_STARTED", "GET_BATCH_COMPLETED", "ITERATION_STARTED"]
PROGRAM_EVENTS += ["ITERATION_COMPLETED", "EPOCH_COMPLETED", "COMPLETED"]
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(PROGRAM_EVENTS), st.integers(1, 14), st.sampled_from(sorted(ACTIONS))), max_size=4
)
RUNS = st.lists(
    st.fixed_dictionaries(
        {"data": st.one_of(st.integers(1, 6), st.none())},
        optional={"max_epochs": st.integers(1, 5), "max_iters": st.integers(1, 14), "epoch_length": st.integers(1, 7)},
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(program=PROGRAMS, runs=RUNS)
def test_any_program(ignite: ModuleType, program: list[tuple[str, int, str]], runs: list[dict[str, Any]]) -> None:
    """Random actions at random moments of random runs, one after the other on the same engine."""

    def script(stage: Stage) -> None:
        for event, once, action in program:
            stage.engine.add_event_handler(stage.event(event, once=once), ACTIONS[action])
        for run in runs:
            size = run["data"]
            data = None if size is None else list(range(size))
            if not stage.run(data, **{name: value for name, value in run.items() if name != "data"}):
                break

    compare(ignite, script)
