"""What a run says at its end, and the exit code, from what is known by then."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from distrain.launcher.conclusion import Ending, conclude
from distrain.launcher.outcome import Outcome
from distrain.rundir import RunDir
from distrain.supervision.failure import Report, Standing, to_json


@pytest.fixture
def failure(tmp_path):
    outcome = Outcome(RunDir(root=tmp_path))
    outcome.worker_started({"attempt": 0, "rank": 0})
    outcome.worker_exited({"rank": 0, "pid": 10, "exit_code": 7, "monotonic_ns": 1})
    return outcome.failure()


@pytest.fixture
def ending(tmp_path):
    return Ending(
        agent={},
        broken=[],
        failure=None,
        not_retried=None,
        stopped_by=None,
        is_preempted=False,
        is_preempted_at_start=False,
        launcher_log=tmp_path / "launcher.log",
    )


def concluded(ending):
    end = conclude(ending, took="3.0 s", where="run directory run")
    return end.status, end.exit_code, [each for each in end.told if not isinstance(each, Report)]


SUCCEEDED = {"outcome": "succeeded"}
PASSED = {"outcome": "ended", "code": 143, "error": "node 1 was stopped by SIGTERM", "signal": 15}


@pytest.mark.parametrize(
    ("known", "status", "code", "said"),
    [
        ({"agent": SUCCEEDED}, "succeeded", 0, "finished in 3.0 s · run directory run"),
        (
            {"agent": SUCCEEDED, "is_preempted": True, "stopped_by": signal.SIGTERM},
            *("preempted", 75),
            "preempted after 3.0 s, the state is saved; the same --run-dir goes on from there · exit code 75 · "
            "run directory run",
        ),
        (
            {"is_preempted_at_start": True, "stopped_by": signal.SIGUSR2},
            *("preempted", 75),
            "preempted after 3.0 s, before the first step: nothing to save · exit code 75 · run directory run",
        ),
        (
            {"is_preempted_at_start": True, "agent": PASSED},
            *("preempted", 75),
            "node 1 was stopped by SIGTERM; preempted after 3.0 s, before the first step: nothing to save · "
            "exit code 75 · run directory run",
        ),
        (
            {"stopped_by": signal.SIGINT, "agent": SUCCEEDED},
            *("interrupted", 130),
            "ended by SIGINT after 3.0 s · run directory run",
        ),
    ],
)
def test_a_run_that_did_not_fail_says_it_in_one_line(ending, known, status, code, said):
    assert concluded(replace(ending, **known)) == (status, code, [said])


@pytest.mark.parametrize(
    ("change", "is_told"),
    [
        ({"traceback": "Traceback …\nOSError: No space left"}, True),
        ({}, False),
        ({"traceback": "Traceback …", "exit_code": 143}, False),
        ({"traceback": "Traceback …", "exit_code": 75}, False),
        ({"traceback": "Traceback …", "standing": Standing.CUT_OFF}, False),
    ],
)
def test_what_fails_while_the_run_is_being_ended_is_told(ending, failure, change, is_told):
    """A rank that only ends, with a code of its own, has done as it was asked; a peer's loss follows from that."""
    failure = replace(failure, root_cause=replace(failure.root_cause, **change))
    end = conclude(replace(ending, stopped_by=signal.SIGTERM, failure=failure), took="3.0 s", where="there")
    assert (end.status, end.exit_code) == ("interrupted", 143)
    assert end.told == ((failure,) if is_told else ()) + ("ended by SIGTERM after 3.0 s · there",)


def test_a_failure_gives_the_exit_code_and_why_it_is_not_tried_again(ending, failure):
    last = "failed after 3.0 s · exit code 7 · run directory run"
    assert concluded(replace(ending, failure=failure)) == ("failed", 7, [last])
    known = replace(ending, failure=failure, not_retried="it would only repeat itself")
    why = "not started again: it would only repeat itself (--retry always does)"
    assert concluded(known) == ("failed", 7, [why, last])
    assert conclude(known, took="", where="").told[0] is failure


def test_a_launcher_that_broke_shows_the_end_of_its_own_log(ending, failure):
    ending.launcher_log.write_text("".join(f"line {number}\n" for number in range(20)))
    status, code, said = concluded(replace(ending, broken=["the agent failed: why"], failure=failure))
    assert (status, code) == ("broken", 1)
    assert said[0] == "the agent failed: why"
    assert said[1:-1] == [f"  line {number}" for number in range(5, 20)]
    assert said[-1] == "failed after 3.0 s · run directory run"


def test_what_another_node_tells_is_the_end_here_too(ending, failure):
    lost = {"outcome": "ended", "code": 1, "error": "node 1 (host h1) is lost"}
    last = "failed after 3.0 s · exit code 1 · run directory run"
    assert concluded(replace(ending, agent=lost)) == ("failed", 1, ["node 1 (host h1) is lost", last])
    stopped = "ended after 3.0 s · exit code 143 · run directory run"
    assert concluded(replace(ending, agent=PASSED)) == ("interrupted", 143, [PASSED["error"], stopped])
    theirs = conclude(replace(ending, agent={**lost, "report": to_json(failure)}), took="", where="")
    assert to_json(theirs.told[0]) == to_json(failure)
