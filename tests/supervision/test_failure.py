"""What a failure is called, what is read from standard error, and the report as JSON."""

from __future__ import annotations

import json

import pytest

from distrain.supervision.failure import Failure, Report, Standing, describe, from_json, recorded_in, to_json
from distrain.supervision.frames import Frame
from tests.supervision.texts import CLOSED, MISMATCH

CARRIED = """Caught ValueError in DataLoader worker process 1.
Original Traceback (most recent call last):
  File "torch/utils/data/_utils/worker.py", line 374, in _worker_loop
    data = fetcher.fetch(index)
  File "train.py", line 115, in __getitem__
    raise ValueError("broken sample 5")
ValueError: broken sample 5
"""


def raised(type: str, message: str) -> dict:
    return {"type": type, "message": message}


@pytest.mark.parametrize(
    ("code", "exception", "kind", "message"),
    [
        (-9, None, "SIGKILL", "killed from outside"),
        (-36, None, "signal 36", "ended by this signal"),
        (3, None, "exit code 3", "the process ended itself with this code"),
        (137, None, "exit code 137", "what a shell returns when SIGKILL ended a command"),
        (1, raised("ValueError", "bad\nmore"), "ValueError", "bad"),
        (1, raised("ValueError", "\n  bad"), "ValueError", "bad"),
        (1, raised("ValueError", ""), "ValueError", "no message"),
        (1, raised("ValueError", "a\x1b[2J\x07b\x9bc é"), "ValueError", r"a\x1b[2J\x07b\x9bc é"),
        (1, raised("SystemExit", "\x1b[31mred"), "exit code 1", r"sys.exit: \x1b[31mred"),
        (1, raised("ValueError", "x" * 10_000), "ValueError", "x" * 239 + "…"),
        (1, raised("ValueError", CARRIED), "ValueError", "broken sample 5 (in DataLoader worker process 1)"),
        (
            1,
            raised("RuntimeError", CLOSED),
            "RuntimeError",
            "gloo: Connection closed by peer [127.0.0.1]:6810. This is typically caused by a remote worker crashing.",
        ),
        (-6, raised("ValueError", "bad"), "SIGABRT", "aborted by native code"),
        (7, raised("SystemExit", "7"), "exit code 7", "the program called sys.exit(7)"),
        (1, raised("SystemExit", "no data"), "exit code 1", "sys.exit: no data"),
    ],
)
def test_kinds_and_messages(code, exception, kind, message):
    assert describe(code, exception) == (kind, message)


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (MISMATCH, "gloo: op.preamble.length <= op.nbytes. 4004 vs 4."),
        (["x: /src/x.c:12: f: Assertion `n > 0' failed."], "x: /src/x.c:12: f: Assertion `n > 0' failed."),
        (["free(): invalid pointer"], "free(): invalid pointer"),
        (["Fatal Python error: deallocating None"], "Fatal Python error: deallocating None"),
        (["terminate called without an active exception"], "terminate called without an active exception"),
    ],
)
def test_an_abort_is_called_by_its_last_words(tail, words):
    kind, message = describe(-6, None, stderr_tail=["before", *tail, "after"])
    assert kind == "SIGABRT"
    assert message.startswith(f"aborted by native code: {words}")


def test_out_of_memory_is_a_kind_of_its_own():
    assert describe(-9, None, memory="killed by the kernel") == ("OutOfMemory", "killed by the kernel")
    assert describe(-11, None, memory="killed by the kernel")[0] == "SIGSEGV"


PRINTED = """warning: slow
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    first()
KeyError: 'first'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 4, in <module>
    second()
pkg.errors.SecondError: it failed
  at the second"""


def test_the_exception_that_python_printed():
    record = recorded_in(PRINTED.splitlines())
    assert (record["type"], record["message"]) == ("pkg.errors.SecondError", "it failed\n  at the second")
    assert record["traceback"] == PRINTED.partition("\n")[2] + "\n"


@pytest.mark.parametrize(
    "tail",
    [
        [],
        ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>'],
        ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "went on"],
    ],
)
def test_a_traceback_that_is_not_the_end_of_the_program_is_none(tail):
    assert recorded_in(tail) is None


def failure(**changes) -> Failure:
    values = {
        "rank": 3,
        "host": "node7",
        "kind": "ValueError",
        "message": "bad shape",
        "exit_code": 1,
        "pid": 4711,
        "attempt": 2,
        "monotonic_ns": 17,
        "step": 120,
        "traceback": "Traceback …",
        "frames": (Frame(file="train.py", line=3, function="f", code="g()"),),
        "thread": "loader",
        "log_tail": ("one", "two"),
        "log_path": "run/attempt-2/rank-3/stderr.log",
    }
    return Failure(**{**values, **changes})


def test_json_has_the_root_cause_and_what_followed():
    lost = failure(rank=0, standing=Standing.CUT_OFF, reason="lost the connection to a peer")
    report = Report(
        root_cause=failure(), consequences=(lost,), others=("rank 1: step 119",), hints=("Try.",), memory="m"
    )
    content = json.loads(json.dumps(to_json(report)))
    assert list(content) == ["root_cause", "consequences", "others", "hints", "memory"]
    cause = content["root_cause"]
    keys = ("rank", "host", "kind", "message", "exit_code", "class", "step", "traceback")
    assert [cause[key] for key in keys] == [3, "node7", "ValueError", "bad shape", 1, "cause", 120, "Traceback …"]
    assert cause["frames"] == [{"file": "train.py", "line": 3, "function": "f", "code": "g()"}]
    assert content["consequences"][0]["class"] == "victim"
    assert from_json(content) == report


def test_json_of_a_later_version_is_read():
    content = to_json(Report(root_cause=failure()))
    content["root_cause"]["colour"] = "red"
    assert from_json(content) == Report(root_cause=failure())
