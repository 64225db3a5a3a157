import signal

import pytest

from distrain.launcher import scheduler_signals
from distrain.launcher.scheduler_signals import SchedulerSignals
from distrain.plan import Program, resolve


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now_s = 100.0

        def monotonic(self):
            return self.now_s

    found = Clock()
    monkeypatch.setattr(scheduler_signals, "time", found)
    return found


def signals(**environ):
    return SchedulerSignals(resolve(Program(kind="script", target="train.py"), {}, environ=environ))


JOB = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n1"}


def test_in_a_job_a_signal_is_repeated_within_seconds_and_meant_later(clock):
    found = signals(**JOB)
    found.came(signal.SIGUSR2)
    clock.now_s += 100
    assert found.came(signal.SIGTERM)  # the limit, after the warning ahead of it
    clock.now_s += 1
    assert found.came(signal.SIGTERM)
    clock.now_s += 5
    assert not found.came(signal.SIGTERM)


def test_ctrl_c_and_what_comes_outside_of_a_job_are_meant():
    for found, number in ((signals(**JOB), signal.SIGINT), (signals(), signal.SIGTERM)):
        assert not found.came(number)
        assert not found.came(number)


def test_only_a_job_that_has_not_begun_is_ended_at_its_start(clock):
    found = signals(**JOB)
    assert found.ended_at_start(signal.SIGTERM, has_begun=False)
    assert found.ended_at_start(signal.SIGUSR2, has_begun=False)
    assert not found.ended_at_start(signal.SIGTERM, has_begun=True)
    assert not found.ended_at_start(signal.SIGINT, has_begun=False)
    assert not found.ended_at_start(None, has_begun=False)
    assert not signals().ended_at_start(signal.SIGTERM, has_begun=False)
    clock.now_s += 601
    assert not found.ended_at_start(signal.SIGTERM, has_begun=False)
