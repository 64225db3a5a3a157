import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import distrain
from distrain.errors import StoppedBySignal
from distrain.training import stopping
from tests.support.processes import REPOSITORY, run
from tests.training.test_checkpoint import names, setting

Events = distrain.Events


def raising(number, at, trainer, event=Events.ITERATION_COMPLETED):
    """Send this process a signal at an event of this iteration."""

    @trainer.on(event)
    def send():
        if trainer.state.iteration == at:
            os.kill(os.getpid(), number)


def stopped(folder, number=signal.SIGTERM, at=7, *, epochs=3, event=Events.ITERATION_STARTED, **options):
    model, loader, trainer, _ = setting(folder, **{"every": 100, **options})
    losses = {}
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: losses.update({trainer.state.iteration: trainer.state.output})
    )
    raising(number, at, trainer, event)
    with pytest.raises(StoppedBySignal) as caught:
        trainer.run(loader, max_epochs=epochs)
    return caught.value, losses, model


def whole(folder, epochs=3, **options):
    model, loader, trainer, checkpointer = setting(folder, **{"every": 100, **options})
    losses = {}
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: losses.update({trainer.state.iteration: trainer.state.output})
    )
    trainer.run(loader, max_epochs=epochs)
    return losses, model, checkpointer


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)])
def test_it_stops_after_the_iteration_and_says_how_to_go_on(tmp_path, capsys, number, code):
    end, losses, _ = stopped(tmp_path, number, 7)
    assert (end.code, end.number, end.step, end.path) == (code, number, 7, tmp_path / "step-00000007")
    assert isinstance(end, SystemExit)
    assert list(losses) == list(range(1, 8))
    assert names(tmp_path) == ["step-00000007"]
    assert capsys.readouterr().err == (
        f"distrain: {number.name}: stopped after step 7, saved in {end.path}; start again with the same run directory "
        "to go on from there\n"
    )


@pytest.mark.parametrize("at", [1, 4, 5, 7, 10, 14])  # an epoch has five iterations
def test_the_resumed_run_is_the_run_that_was_not_stopped(tmp_path, at):
    expected, model, _ = whole(tmp_path / "whole")
    _, before, _ = stopped(tmp_path / "cut", at=at)
    after, again, checkpointer = whole(tmp_path / "cut", seed=9)
    assert checkpointer.resumed_from.name == f"step-{at:08d}"
    assert list(after) == list(range(at + 1, 16))
    assert {**before, **after} == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("at", [4, 5])
def test_handlers_attached_after_the_checkpointer_have_run_before_it_is_saved(tmp_path, at):
    model, loader, trainer, _ = setting(tmp_path, every=1)
    ended = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: ended.append(trainer.state.epoch))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: model[0].weight.data.fill_(trainer.state.iteration))
    raising(signal.SIGTERM, at, trainer, Events.ITERATION_STARTED)
    with pytest.raises(StoppedBySignal):
        trainer.run(loader, max_epochs=2)
    assert ended == [1] * (at == 5)
    saved = torch.load(tmp_path / f"step-{at:08d}" / "state.pt", weights_only=True)["objects"]["model"]
    assert saved["0.weight"].eq(at).all()


def test_a_step_that_has_just_been_saved_is_not_saved_twice(tmp_path):
    _, loader, trainer, checkpointer = setting(tmp_path, every=100)
    saves = []
    raising(signal.SIGTERM, 3, trainer, Events.ITERATION_STARTED)

    @trainer.on(Events.ITERATION_COMPLETED(once=3))
    def save():
        checkpointer.save(trainer)
        saves.append(checkpointer._number)

    with pytest.raises(StoppedBySignal):
        trainer.run(loader, max_epochs=2)
    assert saves == [checkpointer._number]


@pytest.mark.parametrize("event", [Events.ITERATION_STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED])
def test_a_run_that_ends_anyway_ends_and_a_later_run_stops(tmp_path, event):
    _, loader, trainer, _ = setting(tmp_path)
    raising(signal.SIGTERM, 5, trainer, event)
    assert trainer.run(loader, max_epochs=1).iteration == 5
    with pytest.raises(StoppedBySignal) as caught:
        trainer.run(loader, max_epochs=2)
    assert caught.value.step == 6


def test_former_handlers_are_back_however_the_run_ends(tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def check():
        assert {number: signal.getsignal(number) for number in before} == before

    _, loader, trainer, _ = setting(tmp_path)
    during = []
    trainer.add_event_handler(Events.STARTED, lambda: during.append(signal.getsignal(signal.SIGTERM)))
    trainer.run(loader, max_epochs=1)
    assert during[0] != before[signal.SIGTERM]
    check()
    handle = trainer.add_event_handler(Events.ITERATION_STARTED, trainer.interrupt)
    trainer.run(loader, max_epochs=2)
    check()
    handle.remove()
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run(loader, max_epochs=2)
    check()
    stopped(tmp_path / "other")
    check()


def test_the_second_signal_of_a_kind_has_its_former_effect_at_once(tmp_path):
    _, loader, trainer, _ = setting(tmp_path)
    raising(signal.SIGINT, 3, trainer, Events.ITERATION_STARTED)
    raising(signal.SIGINT, 3, trainer, Events.ITERATION_STARTED)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(loader, max_epochs=2)
    assert trainer.state.iteration == 3
    _, loader, again, _ = setting(tmp_path / "again")  # and what had its effect is forgotten
    assert again.run(loader, max_epochs=1).iteration == 5


def test_below_a_launch_a_signal_that_comes_again_is_the_same_one(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTRAIN_LAUNCH_ID", "one")
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
    try:
        _, loader, trainer, _ = setting(tmp_path)
        for number in (signal.SIGUSR2, signal.SIGINT, signal.SIGUSR2, signal.SIGTERM):
            raising(number, 3, trainer, Events.ITERATION_STARTED)
        with pytest.raises(StoppedBySignal) as caught:
            trainer.run(loader, max_epochs=2)
        assert (caught.value.number, caught.value.code, caught.value.step) == (signal.SIGTERM, 75, 3)
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher's word, after the end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_handlers_of_the_users_and_ignored_signals_are_left_alone(tmp_path):
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append("TERM")), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, loader, trainer, _ = setting(tmp_path)
        raising(signal.SIGTERM, 3, trainer)
        raising(signal.SIGINT, 3, trainer)
        assert trainer.run(loader, max_epochs=1).iteration == 5
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert came == ["TERM"]


def test_it_can_be_switched_off_and_is_off_in_other_threads(tmp_path):
    _, loader, trainer, _ = setting(tmp_path)
    seen = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=trainer.run, args=(loader,))
    thread.start()
    thread.join()
    off = distrain.Engine(lambda engine, batch: None)
    distrain.Checkpointer(directory=tmp_path / "off", stop_on_signals=False).attach(off)
    off.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    off.run([0])
    assert seen == [signal.SIG_DFL] * 6


def test_a_run_inside_a_handler_is_not_stopped(tmp_path):
    _, loader, trainer, _ = setting(tmp_path / "outer")
    inner = distrain.Engine(lambda engine, batch: None)
    distrain.Checkpointer(directory=tmp_path / "inner").attach(inner)
    raising(signal.SIGTERM, 2, inner)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: inner.run(range(10)))
    with pytest.raises(StoppedBySignal) as caught:
        trainer.run(loader, max_epochs=2)
    assert inner.state.iteration == 10
    assert caught.value.step == 3


def test_a_run_that_ends_itself_at_that_iteration_ends_as_it_wants(tmp_path):
    _, loader, trainer, _ = setting(tmp_path)
    raising(signal.SIGTERM, 3, trainer, Events.ITERATION_STARTED)

    @trainer.on(Events.ITERATION_COMPLETED(once=3))
    def enough():
        trainer.terminate()

    try:
        assert trainer.run(loader, max_epochs=2).iteration == 3
    finally:
        stopping._left_over.clear()
    assert "step-00000003" in names(tmp_path)


SCRIPT = """
    import atexit, os, signal, sys
    import torch, distrain
    atexit.register(print, "exit function", flush=True)
    with distrain.init() as world:
        engine = distrain.Engine(lambda engine, batch: None)
        distrain.Checkpointer().attach(engine)
        engine.add_event_handler(distrain.Events.ITERATION_COMPLETED, lambda: print(engine.state.iteration, flush=True))
        engine.run(max_epochs=10**6, epoch_length=10)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_process_ends_in_order_and_shows_no_traceback(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "DISTRAIN_RUN_DIR": str(tmp_path / "run")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "1\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code, err
    assert out.splitlines()[-1] == "exit function"
    assert err.startswith(f"distrain: {number.name}: stopped after step ")
    assert len(err.splitlines()) == 1


def test_a_signal_that_does_not_come_costs_less_than_a_third_of_a_microsecond():
    text = """
        import time
        class Timer: due_s = float("inf")
        def ahead(timer, clock=time.monotonic):
            for _ in range(100_000):
                if timer is not None and clock() >= timer.due_s: raise
        def best(timer):
            times = []
            for _ in range(20):
                began = time.perf_counter(); ahead(timer); times.append(time.perf_counter() - began)
            return min(times) / 100_000
        print(best(Timer()) - best(None))
    """
    done = run([sys.executable, "-c", textwrap.dedent(text)]).check()
    assert float(done.stdout) < 0.3e-6
