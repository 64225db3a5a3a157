"""The root cause among exits, and the report's text."""

from __future__ import annotations

import json

import pytest

from distrain.supervision.failure import Exit, Failure, describe, find_root_cause, render, to_json


def ended(rank: int, code: int, ns: int) -> Exit:
    return Exit(rank=rank, attempt=0, pid=100 + rank, exit_code=code, monotonic_ns=ns)


def test_the_first_bad_exit_is_the_root_cause():
    exits = [ended(0, 0, 1), ended(1, 1, 5), ended(2, -9, 3), ended(3, -15, 9)]
    assert find_root_cause(exits, {}).rank == 2


def test_a_rank_that_raised_before_its_peers_died_is_the_cause_though_it_ended_after_them():
    exits = [ended(0, 1, 20), ended(1, -6, 10)]
    assert find_root_cause(exits, {0: 5}).rank == 0
    assert find_root_cause(exits, {}).rank == 1


def test_no_bad_exit_has_no_root_cause():
    assert find_root_cause([ended(0, 0, 1)], {0: 1}) is None


@pytest.mark.parametrize(
    ("code", "exception", "kind"),
    [
        (-9, None, "SIGKILL"),
        (-36, None, "signal 36"),
        (3, None, "exit code 3"),
        (1, {"type": "ValueError", "message": "bad\nmore"}, "ValueError"),
        (-6, {"type": "ValueError", "message": "bad"}, "SIGABRT"),
        (7, {"type": "SystemExit", "message": "7"}, "exit code 7"),
    ],
)
def test_kinds(code, exception, kind):
    got, message = describe(code, exception)
    assert got == kind
    assert message
    assert "\n" not in message


def failure(**changes) -> Failure:
    values = {
        "rank": 3,
        "host": "node7",
        "kind": "ValueError",
        "message": "bad shape",
        "exit_code": 1,
        "pid": 4711,
        "attempt": 2,
        "traceback": 'Traceback (most recent call last):\n  File "train.py", line 3, in f\nValueError: bad shape\n',
        "log_tail": ["one", "two"],
        "log_path": "run/attempt-2/rank-3/stderr.log",
        "others": {0: 1, 1: -6},
    }
    return Failure(**{**values, **changes})


def test_report(golden):
    golden("failure-exception.txt", render(failure()) + "\n")
    killed = failure(kind="SIGKILL", message=describe(-9, None)[1], exit_code=-9, traceback="", others={})
    golden("failure-signal.txt", render(killed) + "\n")


def test_json_has_the_root_cause():
    cause = json.loads(json.dumps(to_json(failure())))["root_cause"]
    assert {key: cause[key] for key in ("rank", "host", "kind", "exit_code")} == {
        "rank": 3,
        "host": "node7",
        "kind": "ValueError",
        "exit_code": 1,
    }
