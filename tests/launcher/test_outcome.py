"""From exits and records to a failure and the launcher's exit code."""

from __future__ import annotations

import json

import pytest

from distrain.launcher.outcome import Outcome, exit_code_of
from distrain.rundir import RunDir


@pytest.fixture
def outcome(tmp_path):
    return Outcome(RunDir(root=tmp_path))


def start(outcome, attempt, ranks=2):
    for rank in range(ranks):
        outcome.worker_started({"attempt": attempt, "rank": rank})


def exited(outcome, rank, code, ns):
    outcome.worker_exited({"rank": rank, "pid": 10 + rank, "exit_code": code, "monotonic_ns": ns})


def test_no_bad_exit_is_no_failure(outcome):
    start(outcome, 0)
    exited(outcome, 0, 0, 1)
    assert outcome.failure() is None


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (77, 77), (-9, 137), (-15, 143)])
def test_exit_codes(outcome, code, expected):
    start(outcome, 0)
    exited(outcome, 1, code, 1)
    assert exit_code_of(outcome.failure()) == expected


def raised(tmp_path, attempt, rank, **record):
    folder = RunDir(root=tmp_path).rank_dir(attempt, rank)
    folder.mkdir(parents=True)
    record = {"message": "", "traceback": f"Traceback of {record['type']}", "exit_code": 1} | record
    (folder / "exception.json").write_text(json.dumps(record))


def test_a_rank_that_left_by_sys_exit_is_the_cause_though_a_peer_raised_before_it_was_gone(outcome, tmp_path):
    start(outcome, 0)
    raised(tmp_path, 0, 1, type="SystemExit", exit_code=7, monotonic_ns=3)
    raised(tmp_path, 0, 0, type="RuntimeError", monotonic_ns=4)
    exited(outcome, 1, 7, 5)
    exited(outcome, 0, -15, 6)
    failure = outcome.failure()
    assert (failure.rank, failure.kind, failure.exit_code, failure.traceback) == (1, "exit code 7", 7, "")


@pytest.mark.parametrize(
    ("kind", "code", "expected"), [("ValueError", 1, "ValueError"), ("SystemExit", 7, "exit code 7")]
)
def test_the_cause_keeps_its_exit_code_when_it_was_still_ending_as_we_ended_all(
    outcome, tmp_path, kind, code, expected
):
    start(outcome, 0)
    raised(tmp_path, 0, 0, type=kind, exit_code=code, monotonic_ns=3)
    exited(outcome, 1, 1, 5)
    exited(outcome, 0, -15, 6)
    failure = outcome.failure()
    assert (failure.rank, failure.kind, failure.exit_code) == (0, expected, code)


def test_the_recorded_exception_and_the_log_are_in_the_failure(outcome, tmp_path):
    start(outcome, 3)
    folder = RunDir(root=tmp_path).rank_dir(3, 1)
    folder.mkdir(parents=True)
    record = {"type": "ValueError", "message": "bad", "traceback": "Traceback…", "monotonic_ns": 4}
    (folder / "exception.json").write_text(json.dumps(record))
    (folder / "stderr.log").write_text("a\nb\n")
    exited(outcome, 0, -6, 5)
    exited(outcome, 1, 1, 9)
    failure = outcome.failure()
    assert (failure.rank, failure.kind, failure.traceback, failure.attempt) == (1, "ValueError", "Traceback…", 3)
    assert failure.log_tail == ["a", "b"]
    assert failure.others == {0: -6}


def test_ranks_that_we_ended_are_not_counted_as_failed_too(outcome):
    start(outcome, 0, 4)
    for rank, code in enumerate([1, -15, -9, 1]):
        exited(outcome, rank, code, rank)
    assert outcome.failure().others == {3: 1}


def test_a_new_attempt_forgets_the_one_before(outcome):
    start(outcome, 0)
    exited(outcome, 0, 1, 1)
    start(outcome, 1)
    assert outcome.failure() is None
