"""ignite's handlers, schedulers and metrics on our trainer: they do what they do on ignite's."""

import warnings

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.optim import lr_scheduler

import distrain
from tests.engine.conftest import import_peer
from tests.training.twins import MODELS, Twin, batches, compare, require_same


@pytest.fixture(scope="session")
def handlers(ignite):
    return import_peer("ignite.handlers")


@pytest.fixture(scope="session")
def metrics(ignite):
    return import_peer("ignite.metrics")


TORCH_SCHEDULERS = {
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=20),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=5),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)], [3]
    ),
}


@pytest.mark.parametrize("num_micro", [1, 3])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("scheduler", sorted(TORCH_SCHEDULERS))
def test_schedulers_of_torch(ignite, scheduler, optimizer, num_micro):
    def script(twin):
        made = TORCH_SCHEDULERS[scheduler](twin.optimizer)
        twin.on("ITERATION_COMPLETED", every=num_micro)(lambda _: made.step())
        twin.run(max_epochs=2)
        twin.trace.append(made.get_last_lr())

    trace = compare(ignite, script, optimizer=optimizer, gradient_accumulation_steps=num_micro)
    assert trace[-1] != [0.05]


def test_a_scheduler_that_looks_at_the_output(ignite):
    def script(twin):
        plateau = lr_scheduler.ReduceLROnPlateau(twin.optimizer, patience=0, threshold=10.0)
        twin.on("EPOCH_COMPLETED")(lambda trainer: plateau.step(trainer.state.output))
        twin.run(max_epochs=4)

    compare(ignite, script)


def concatenated(handlers, optimizer):
    parts = [
        handlers.LinearCyclicalScheduler(optimizer, "lr", 0.1, 0.0, 8),
        handlers.CosineAnnealingScheduler(optimizer, "lr", 0.0, 0.1, 6),
    ]
    return handlers.ConcatScheduler(schedulers=parts, durations=[4])


IGNITES_SCHEDULERS = {
    "linear": lambda h, optimizer: h.LinearCyclicalScheduler(optimizer, "lr", 0.01, 0.2, 6),
    "cosine": lambda h, optimizer: h.CosineAnnealingScheduler(optimizer, "lr", 0.2, 0.01, 8, cycle_mult=1.5),
    "piecewise": lambda h, optimizer: h.PiecewiseLinear(optimizer, "lr", [(2, 0.1), (6, 0.01), (9, 0.2)]),
    "concatenated": concatenated,
    "of torch": lambda h, optimizer: h.LRScheduler(lr_scheduler.ExponentialLR(optimizer, 0.8)),
    "warm-up": lambda h, optimizer: h.create_lr_scheduler_with_warmup(
        lr_scheduler.ExponentialLR(optimizer, 0.8), warmup_start_value=0.0, warmup_duration=4
    ),
    "momentum": lambda h, optimizer: h.LinearCyclicalScheduler(optimizer, "momentum", 0.5, 0.9, 6),
}


@pytest.mark.parametrize("num_micro", [1, 2])
@pytest.mark.parametrize("scheduler", sorted(IGNITES_SCHEDULERS))
def test_schedulers_of_ignite(ignite, handlers, scheduler, num_micro):
    """Attached with ignite's own events, also to our trainer."""

    def script(twin):
        with warnings.catch_warnings():
            # LRScheduler of ignite makes torch's compare the steps it counted before the first one.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            made = IGNITES_SCHEDULERS[scheduler](handlers, twin.optimizer)
            twin.trainer.add_event_handler(ignite.Events.ITERATION_STARTED, made)
            twin.run(max_epochs=2)

    compare(ignite, script, gradient_accumulation_steps=num_micro)


@pytest.mark.parametrize("usage", ["epoch_wise", "batch_wise", "running_epoch_wise"])
def test_metrics_of_the_training(ignite, metrics, usage):
    def script(twin):
        metrics.MeanSquaredError(output_transform=lambda output: output[:2]).attach(twin.trainer, "mse", usage=usage)
        metrics.RunningAverage(output_transform=lambda output: output[2]).attach(twin.trainer, "average")
        twin.on("ITERATION_COMPLETED")(lambda trainer: twin.trace.append(dict(trainer.state.metrics)))
        twin.run(max_epochs=2)
        twin.trace.append(dict(twin.trainer.state.metrics))

    trace = compare(
        ignite, script, output_transform=lambda x, y, y_pred, loss: (y_pred.detach(), y, loss.item()), model="dropout"
    )
    assert set(trace[-1]) == {"mse", "average"}


EVALUATIONS = {
    "nothing": {},
    "device": {"device": "cpu", "non_blocking": True},
    "prepare_batch": {"prepare_batch": lambda batch, device, non_blocking: (batch[0] * 2, batch[1])},
    "model_transform": {"model_transform": torch.tanh},
    "model_fn": {"model_fn": lambda model, x: model(x) * 3},
    "output_transform": {"output_transform": lambda x, y, y_pred: (y_pred + x.sum(), y)},
}


@pytest.mark.parametrize("options", sorted(EVALUATIONS))
def test_an_evaluator_with_metrics_between_the_epochs(ignite, metrics, options):
    def script(twin):
        given = {"mse": metrics.MeanSquaredError(), "loss": metrics.Loss(mse_loss)}
        evaluator = twin.api.create_supervised_evaluator(twin.model, given, **EVALUATIONS[options])

        @twin.on("EPOCH_COMPLETED")
        def evaluate():
            state = evaluator.run(batches(3, seed=9))
            twin.trace.append((dict(state.metrics), state.output, twin.model.training, torch.is_grad_enabled()))

        twin.run(max_epochs=3)

    trace = compare(ignite, script, model="batch norm")
    found = [entry for entry in trace if isinstance(entry[0], dict)]
    assert len(found) == 3
    assert found[0][2:] == (False, True)


def test_early_stopping(ignite, handlers):
    def script(twin):
        evaluator = twin.api.create_supervised_evaluator(twin.model)
        losses = iter([3.0, 2.0, 2.5, 2.4, 1.0, 1.0, 1.0])
        stopper = handlers.EarlyStopping(2, lambda _: -next(losses), twin.trainer)
        evaluator.add_event_handler(ignite.Events.COMPLETED, stopper)
        twin.on("EPOCH_COMPLETED")(lambda _: evaluator.run(batches(1)))
        twin.run(max_epochs=20)
        twin.trace.append(twin.trainer.state.epoch)

    assert compare(ignite, script)[-1] == 4


def test_terminate_on_nan(ignite, handlers):
    def script(twin):
        twin.trainer.add_event_handler(ignite.Events.ITERATION_COMPLETED, handlers.TerminateOnNan())
        data = batches(6)
        data[3][1].fill_(float("nan"))
        twin.run(lambda: data, max_epochs=2)
        twin.trace.append(twin.trainer.state.iteration)

    assert compare(ignite, script)[-1] == 4


@pytest.mark.parametrize("num_micro", [1, 2])
def test_checkpoints_are_written_and_a_training_resumed_from_them(ignite, handlers, tmp_path, num_micro):
    def script(twin):
        folder = tmp_path / ("ours" if twin.is_ours else "theirs")
        parts = {"trainer": twin.trainer, "model": twin.model, "optimizer": twin.optimizer}
        saver = handlers.Checkpoint(parts, handlers.DiskSaver(str(folder), create_dir=True), n_saved=2)
        twin.trainer.add_event_handler(ignite.Events.EPOCH_COMPLETED | ignite.Events.ITERATION_COMPLETED(once=8), saver)
        best = handlers.ModelCheckpoint(
            str(folder / "best"),
            score_function=lambda trainer: -trainer.state.output,
            score_name="loss",
            global_step_transform=handlers.global_step_from_engine(twin.trainer),
        )
        twin.trainer.add_event_handler(ignite.Events.EPOCH_COMPLETED, best, {"model": twin.model})
        twin.run(max_epochs=3)
        written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pt"))
        twin.trace.append(written)
        for name in written:
            twin.trace.append(torch.load(folder / name))
        resumed = Twin(twin.api, **twin.options)
        parts = {"trainer": resumed.trainer, "model": resumed.model, "optimizer": resumed.optimizer}
        handlers.Checkpoint.load_objects(parts, torch.load(folder / written[-1]))
        resumed.run(max_epochs=4)
        twin.trace.append(resumed.trace)

    trace = compare(ignite, script, gradient_accumulation_steps=num_micro)
    assert [entry[0] for entry in trace[-1]].count("ITERATION_COMPLETED") == 6


def test_timer_profiler_and_stores(ignite, handlers):
    def script(twin):
        timer = handlers.Timer(average=True)
        timer.attach(twin.trainer, resume=ignite.Events.ITERATION_STARTED, step=ignite.Events.ITERATION_COMPLETED)
        profiler = handlers.BasicTimeProfiler()
        profiler.attach(twin.trainer)
        handlers.EpochOutputStore().attach(twin.trainer, "outputs")
        ema = handlers.EMAHandler(twin.model, momentum=0.1)
        ema.attach(twin.trainer, event=ignite.Events.ITERATION_COMPLETED)
        twin.run(max_epochs=2)
        twin.trace.append((timer.step_count, sorted(profiler.get_results()), twin.trainer.state.outputs))
        twin.trace.append(dict(ema.ema_model.state_dict()))

    count, results, outputs = compare(ignite, script)[-2]
    assert count == 12
    assert "processing_stats" in results
    assert len(outputs) == 6


def test_a_state_parameter_and_a_time_limit(ignite, handlers):
    def script(twin):
        scheduler = handlers.LambdaStateScheduler(lambda event: 10 * event, "temperature", create_new=True)
        scheduler.attach(twin.trainer, ignite.Events.ITERATION_COMPLETED)
        twin.trainer.add_event_handler(ignite.Events.ITERATION_COMPLETED, handlers.TimeLimit(3600))
        twin.on("ITERATION_COMPLETED")(lambda trainer: twin.trace.append(trainer.state.temperature))
        twin.run(max_epochs=2)

    assert 120 in compare(ignite, script)


def test_the_progress_bar(ignite, handlers, capfd, monkeypatch):
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # tqdm's watching thread outlives the bar
    shown = []

    def script(twin):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm.autonotebook looks for a notebook
            bar = handlers.ProgressBar(
                bar_format="{desc}{n_fmt}/{total_fmt}{postfix} ", persist=True, miniters=1, mininterval=0
            )
            bar.attach(twin.trainer, output_transform=lambda loss: {"loss": round(loss, 3)})
            twin.run(max_epochs=2)
        shown.append(capfd.readouterr().err)

    compare(ignite, script)
    assert shown[0] == shown[1]
    assert "loss=" in shown[0]


def test_the_learning_rate_finder(ignite, handlers):
    def script(twin):
        finder = handlers.FastaiLRFinder()
        objects = {"model": twin.model, "optimizer": twin.optimizer}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Run completed without loss diverging", UserWarning)
            with finder.attach(twin.trainer, objects, num_iter=5, end_lr=0.1) as attached:
                attached.run(batches(8))
        twin.trace.append(finder.get_results())
        twin.run()

    trace = compare(ignite, script)
    assert len(next(entry for entry in trace if isinstance(entry, dict))["lr"]) >= 5


def test_a_step_of_each_library_on_the_engine_of_the_other(ignite):
    """Engine and step know each other by `engine.state.iteration` only."""
    results = []
    for step_of in (distrain, ignite):
        for engine_of in (distrain, ignite):
            torch.manual_seed(0)
            model = MODELS["mlp"]()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            step = step_of.supervised_training_step(model, optimizer, mse_loss, gradient_accumulation_steps=2)
            engine_of.Engine(step).run(batches(7), max_epochs=2)
            results.append(dict(model.state_dict()))
    for result in results[1:]:
        require_same(results[0], result)
