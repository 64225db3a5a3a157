import contextlib
import math

import pytest
import torch

from distrain import Checkpointer, Engine, Events, LossAggregator
from distrain.training.aggregation import means_of

SIZES = [4, 4, 2, 3, 1]
LOSSES = [1.0, 2.0, 5.0, 3.0, 8.0]
MEAN = sum(n * v for n, v in zip(SIZES, LOSSES, strict=True)) / sum(SIZES)


def run(make, every=2, **options):
    batches = [torch.zeros(n, 1) for n in SIZES]
    engine = Engine(lambda engine, batch: make(LOSSES[engine.state.iteration - 1]))
    LossAggregator(every=every, **options).attach(engine)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.metrics.get("loss")))
    engine.run(batches)
    return engine.state.metrics, seen


@pytest.mark.parametrize("make", [float, torch.tensor, lambda v: torch.tensor([v], requires_grad=True)])
def test_means_are_weighted_by_samples(make):
    metrics, seen = run(make)
    assert seen == pytest.approx([None, 1.5, 1.5, 19 / 5, 19 / 5])
    assert metrics["epoch_loss"] == pytest.approx(MEAN)


def test_the_loss_is_picked_out_and_named():
    metrics, _ = run(lambda v: {"l": v}, output_transform=lambda out: out["l"], name="x", count=lambda _: 1)
    assert metrics["epoch_x"] == pytest.approx(sum(LOSSES) / 5)


def test_between_reports_nothing_is_read_back(monkeypatch):
    calls = []
    for name in ("item", "tolist", "cpu", "__float__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, n=name, f=real: (calls.append(n), f(self, *a))[1])
    run(torch.tensor, every=5)
    assert calls == ["tolist", "tolist"]  # iteration 5, and the end of the epoch


def test_it_says_what_it_cannot_read():
    with pytest.raises(TypeError, match=r"got tuple as the loss.*output_transform"):
        run(lambda v: (v, v))
    with pytest.raises(TypeError, match=r"a tensor of shape \(2,\)"):
        run(lambda v: torch.tensor([v, v]))
    with pytest.raises(ValueError, match="every is 0"):
        LossAggregator(every=0)


def test_it_follows_an_engine_only():
    with pytest.raises(TypeError, match="got Linear; give it the trainer"):
        LossAggregator().attach(torch.nn.Linear(1, 1))


def test_an_infinite_loss_shows():
    assert math.isinf(run(lambda _: math.inf)[0]["epoch_loss"])


def reported(folder, make, stop_at=None):
    """Train where the loss is reported at each third iteration, until it is done or stops; return what was reported."""
    torch.manual_seed(0)
    losses = torch.rand(15, dtype=torch.float64).tolist()

    def step(engine, batch):
        if engine.state.iteration == stop_at:
            raise KeyboardInterrupt
        return make(losses[engine.state.iteration - 1])

    engine = Engine(step)
    Checkpointer(every=1, directory=folder, stop_on_signals=False).attach(engine)
    LossAggregator(every=3, count=lambda _: SIZES[engine.state.iteration % 5]).attach(engine)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=3), lambda: seen.append(engine.state.metrics["loss"]))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(engine.state.metrics["epoch_loss"]))
    with pytest.raises(KeyboardInterrupt) if stop_at else contextlib.nullcontext():
        engine.run(range(5), max_epochs=3)
    return seen


@pytest.mark.parametrize("make", [float, torch.tensor])
@pytest.mark.parametrize("stop_at", [2, 3, 5, 6, 9, 11])
def test_a_resumed_run_reports_the_very_means_of_the_uninterrupted_one(tmp_path, make, stop_at):
    whole = reported(tmp_path / "whole", make)
    before = reported(tmp_path / "cut", make, stop_at)
    assert before + reported(tmp_path / "cut", make) == whole


def test_among_another_number_of_ranks_the_first_goes_on_with_what_all_had():
    first, second = ({"loss": {"sum": n, "count": 2 * n}} for n in (1.0, 3.0))
    assert means_of(1, 2, [first, second]) == second
    assert means_of(0, 3, [first, second]) == {"loss": {"sum": 4.0, "count": 8.0}}
    assert means_of(1, 3, [first, second]) == {}
    assert means_of(0, 3, []) == {}
