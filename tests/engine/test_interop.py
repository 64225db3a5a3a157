"""ignite's handlers and metrics on our engine, with ignite's events; our events on ignite's engine."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from distrain.engine import CallableEventWithFilter, DeterministicEngine, Engine, EventEnum, Events, EventsList
from tests.engine.conftest import import_peer


@pytest.fixture(scope="session")
def handlers(ignite: ModuleType) -> ModuleType:
    # The first optimizer of a process imports torch's compiler, which sets an environment variable for good.
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    return import_peer("ignite.handlers")


@pytest.fixture(scope="session")
def metrics(ignite: ModuleType) -> ModuleType:
    return import_peer("ignite.metrics")


def test_our_objects_pass_for_ignites_once_it_is_loaded(ignite: ModuleType) -> None:
    engine = Engine(lambda engine, batch: batch)
    deterministic = DeterministicEngine(lambda engine, batch: batch)
    filtered = Events.STARTED(every=2)
    assert isinstance(engine, ignite.Engine)
    assert isinstance(deterministic, ignite.DeterministicEngine)
    assert isinstance(Events.STARTED, ignite.Events)
    assert isinstance(filtered, ignite.CallableEventWithFilter)
    assert isinstance(Events.STARTED | filtered, ignite.EventsList)
    assert isinstance(engine, Engine)
    assert isinstance(Events.STARTED, Events)
    assert isinstance(filtered, CallableEventWithFilter)
    assert isinstance(Events.STARTED | filtered, EventsList)
    assert not isinstance(engine, ignite.Events)


def test_without_ignite_they_are_only_ours() -> None:
    code = (
        "import sys; from distrain.engine import Engine, Events; e = Engine(lambda a, b: b); "
        "assert e.__class__ is Engine and Events.STARTED.__class__ is Events; e.run([1]); "
        "assert not any(name.startswith('ignite') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [event.name for event in Events])
def test_events_of_one_name_are_equal_both_ways(ignite: ModuleType, name: str) -> None:
    ours, theirs = Events[name], ignite.Events[name]
    assert ours == theirs
    assert theirs == ours
    assert hash(ours) == hash(theirs)
    assert {ours: 1}[theirs] == {theirs: 1}[ours] == 1
    assert ours != ignite.Events["STARTED" if name != "STARTED" else "COMPLETED"]
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("engine_of", ["ours", "theirs"])
@pytest.mark.parametrize("events_of", ["ours", "theirs", "mixed"])
def test_events_of_either_drive_either_engine(ignite: ModuleType, engine_of: str, events_of: str) -> None:
    make = Engine if engine_of == "ours" else ignite.Engine
    first = Events if events_of != "theirs" else ignite.Events
    second = Events if events_of == "ours" else ignite.Events
    engine = make(lambda engine, batch: batch)
    seen: list[Any] = []

    @engine.on(first.ITERATION_COMPLETED(every=2) | second.EPOCH_COMPLETED(once=2) | first.COMPLETED)
    def record(engine: Any) -> None:
        seen.append((engine.state.epoch, engine.state.iteration, engine.last_event_name == first.COMPLETED))

    assert engine.has_event_handler(record, second.ITERATION_COMPLETED)
    engine.run(range(3), max_epochs=2)
    assert seen == [(1, 2, False), (2, 4, False), (2, 6, False), (2, 6, False), (2, 6, True)]
    engine.remove_event_handler(record, second.ITERATION_COMPLETED)
    engine.remove_event_handler(record, second.COMPLETED)
    assert engine.has_event_handler(record, first.EPOCH_COMPLETED)


@pytest.mark.parametrize("engine_of", ["ours", "theirs"])
def test_custom_events_of_ours_on_either_engine(ignite: ModuleType, engine_of: str) -> None:
    class Custom(EventEnum):
        TICK = "tick"

    def step(engine: Any, batch: Any) -> None:
        engine.state.num_ticks += 1
        engine.fire_event(Custom.TICK)

    engine = (Engine if engine_of == "ours" else ignite.Engine)(step)
    engine.register_events(*Custom, event_to_attr={Custom.TICK: "num_ticks"})
    seen = []
    engine.add_event_handler(Custom.TICK(every=2), lambda: seen.append(engine.state.num_ticks))
    engine.run(range(5))
    assert seen == [2, 4]
    assert ignite.State.event_to_attr[Custom.TICK] == "num_ticks"


def logits(engine: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.eye(3)[[batch % 3, (batch * 2) % 3]], torch.tensor([batch % 3, (batch + 1) % 3])


@pytest.mark.parametrize("usage", ["epoch_wise", "batch_wise", "running_epoch_wise"])
def test_metrics_have_the_values_they_have_on_ignites_engine(
    ignite: ModuleType, metrics: ModuleType, usage: str
) -> None:
    values = []
    for make in (Engine, ignite.Engine):
        engine = make(logits)
        accuracy = metrics.Accuracy()
        accuracy.attach(engine, "accuracy", usage=usage)
        metrics.ConfusionMatrix(num_classes=3).attach(engine, "matrix")
        (accuracy * 2).attach(engine, "doubled")
        metrics.RunningAverage(output_transform=lambda output: output[0].sum()).attach(engine, "average")
        assert accuracy.is_attached(engine, usage=usage)
        state = engine.run(range(7), max_epochs=2)
        values.append({name: torch.as_tensor(value).tolist() for name, value in state.metrics.items()})
        accuracy.detach(engine, usage=usage)
        assert not accuracy.is_attached(engine, usage=usage)
    assert values[0] == values[1]
    assert set(values[0]) == {"accuracy", "matrix", "doubled", "average"}


@pytest.mark.parametrize("engine_of", ["ours", "theirs"])
def test_early_stopping_and_terminating_on_nan(ignite: ModuleType, handlers: ModuleType, engine_of: str) -> None:
    make = Engine if engine_of == "ours" else ignite.Engine
    trainer, evaluator = make(lambda engine, batch: batch), make(lambda engine, batch: batch)
    stopper = handlers.EarlyStopping(patience=2, score_function=lambda engine: 0.0, trainer=trainer)
    evaluator.add_event_handler(ignite.Events.COMPLETED, stopper)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([1]))
    assert trainer.run([1, 2], max_epochs=9).epoch == 3

    failing = make(lambda engine, batch: float("nan") if batch == 3 else batch)
    failing.add_event_handler(ignite.Events.ITERATION_COMPLETED, handlers.TerminateOnNan())
    assert failing.run(range(6)).iteration == 4


def test_checkpoint_saves_and_loads_the_engine(ignite: ModuleType, handlers: ModuleType, tmp_path: Path) -> None:
    engine, model = Engine(lambda engine, batch: batch), torch.nn.Linear(1, 1)
    saver = handlers.Checkpoint(
        {"trainer": engine, "model": model},
        handlers.DiskSaver(str(tmp_path), require_empty=False),
        n_saved=2,
        global_step_transform=handlers.global_step_from_engine(engine),
    )
    engine.add_event_handler(ignite.Events.EPOCH_COMPLETED(every=2), saver)
    engine.add_event_handler(ignite.Events.ITERATION_COMPLETED(once=9), engine.terminate)
    engine.run(range(2), max_epochs=8)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint_2.pt", "checkpoint_4.pt"]

    resumed = Engine(lambda engine, batch: batch)
    checkpoint = torch.load(tmp_path / "checkpoint_4.pt")
    handlers.Checkpoint.load_objects({"trainer": resumed, "model": model}, checkpoint)
    assert (resumed.state.epoch, resumed.state.iteration, resumed.state.max_epochs) == (4, 8, 8)
    assert resumed.run(range(2)).iteration == 16


def test_schedulers_and_stores(ignite: ModuleType, handlers: ModuleType) -> None:
    traces = []
    for make in (Engine, ignite.Engine):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        engine = make(lambda engine, batch: batch)
        warm = handlers.LinearCyclicalScheduler(optimizer, "lr", 0.1, 1.0, cycle_size=6)
        engine.add_event_handler(ignite.Events.ITERATION_STARTED, warm)
        store = handlers.EpochOutputStore()
        store.attach(engine, "outputs")
        rates: list[float] = []

        def record(optimizer: torch.optim.Optimizer, rates: list[float]) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

        engine.add_event_handler(Events.ITERATION_COMPLETED, record, optimizer, rates)
        state = engine.run(range(4), max_epochs=2)
        traces.append((rates, state.outputs))
    assert traces[0] == traces[1]


@pytest.mark.parametrize("name", ["BasicTimeProfiler", "HandlersTimeProfiler"])
def test_profilers_see_every_handler(ignite: ModuleType, handlers: ModuleType, name: str) -> None:
    seen = []
    for make in (Engine, ignite.Engine):
        engine = make(lambda engine, batch: batch)
        profiler = getattr(handlers, name)()
        profiler.attach(engine)
        calls: list[str] = []

        def record(engine: Any, calls: list[str] = calls) -> None:
            calls.append(engine.last_event_name.name)

        engine.add_event_handler(Events.ITERATION_COMPLETED, record)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), record)
        engine.add_event_handler(Events.EPOCH_STARTED | Events.COMPLETED, record)
        engine.run(range(5), max_epochs=2)
        results = profiler.get_results()
        if name == "HandlersTimeProfiler":
            seen.append((calls, sorted((row[0], row[1]) for row in results[:-1])))
        else:
            seen.append((calls, sorted(results)))
    assert seen[0] == seen[1]
    assert "ITERATION_COMPLETED" in seen[0][0]


def test_timer_and_progress_bar(
    ignite: ModuleType, handlers: ModuleType, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # tqdm's watching thread outlives the bar
    engine = Engine(lambda engine, batch: {"loss": float(batch)})
    timer = handlers.Timer(average=True)
    timer.attach(
        engine,
        start=ignite.Events.EPOCH_STARTED,
        resume=ignite.Events.ITERATION_STARTED,
        pause=ignite.Events.ITERATION_COMPLETED,
        step=ignite.Events.ITERATION_COMPLETED,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bar = handlers.ProgressBar(persist=True)
        bar.attach(engine, output_transform=lambda output: output)
        engine.run(range(3), max_epochs=1)
    assert timer.step_count == 3
    assert "loss=2" in capfd.readouterr().err


def test_the_learning_rate_finder_restores_everything(ignite: ModuleType, handlers: ModuleType) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(engine: Any, batch: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    engine = Engine(step)
    before = model.weight.detach().clone()
    finder = handlers.FastaiLRFinder()
    with (
        pytest.warns(UserWarning, match="without loss diverging"),
        finder.attach(engine, {"model": model, "optimizer": optimizer}, num_iter=8, end_lr=0.01) as attached,
    ):
        attached.run([torch.ones(4, 1)] * 10)
    assert len(finder.get_results()["lr"]) >= 8
    assert torch.equal(model.weight, before)
    assert all(entries == [] for entries in engine._event_handlers.values())


@pytest.mark.parametrize("ours", ["distrain", "distrain.engine"])
@pytest.mark.parametrize("module", ["", ".events", ".deterministic"])
def test_every_public_name_of_ignites_engine_is_found_under_the_same_path(
    ignite: ModuleType, ours: str, module: str
) -> None:
    theirs = import_peer(f"ignite.engine{module}")
    found = importlib.import_module(ours + module)
    assert len(theirs.__all__) >= 4
    for name in theirs.__all__:
        value = getattr(found, name)
        assert value.__name__ == name
        assert value.__module__.startswith("distrain.")


@pytest.mark.parametrize("ours", ["distrain", "distrain.engine"])
def test_the_private_name_that_many_scripts_import_is_found_too(ours: str) -> None:
    found = importlib.import_module(ours)
    assert found._prepare_batch is importlib.import_module("distrain").prepare_batch
    assert "_prepare_batch" not in found.__all__


def test_the_private_functions_of_the_random_states_stand_beside_the_deterministic_engine() -> None:
    found = importlib.import_module("distrain.deterministic")
    states = found._get_rng_states()
    drawn = torch.rand(2)
    assert found._repr_rng_state(found._get_rng_states()) != found._repr_rng_state(states)
    found._set_rng_states(states)
    assert torch.equal(torch.rand(2), drawn)


def test_what_is_no_name_of_ours_is_none_of_the_engines() -> None:
    for module in ("distrain.engine", "distrain.engine.events"):
        with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
            getattr(importlib.import_module(module), "nothing")  # noqa: B009  # a name that mypy would refuse
