"""From exits and records to a failure and the launcher's exit code."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from distrain.launcher.inquiry import Found
from distrain.launcher.outcome import Outcome
from distrain.launcher.vigil import Vigil
from distrain.rundir import RunDir
from distrain.supervision.beat import Beat
from distrain.supervision.failure import exit_code_of
from distrain.supervision.hangs import Hang, Silence
from tests.supervision.texts import CLOSED, LATE


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
    record = {"pid": 10 + rank, "message": "", "traceback": f"Traceback of {record['type']}", "exit_code": 1} | record
    (folder / "exception.json").write_text(json.dumps(record))


def test_a_rank_that_left_by_sys_exit_is_the_cause_though_a_peer_raised_before_it_was_gone(outcome, tmp_path):
    start(outcome, 0)
    raised(tmp_path, 0, 1, type="SystemExit", exit_code=7, monotonic_ns=3)
    raised(tmp_path, 0, 0, type="RuntimeError", monotonic_ns=4)
    exited(outcome, 1, 7, 5)
    exited(outcome, 0, -15, 6)
    failure = outcome.failure().root_cause
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
    failure = outcome.failure().root_cause
    assert (failure.rank, failure.kind, failure.exit_code) == (0, expected, code)


def test_the_recorded_exception_and_the_log_are_in_the_failure(outcome, tmp_path):
    start(outcome, 3)
    folder = RunDir(root=tmp_path).rank_dir(3, 1)
    folder.mkdir(parents=True)
    record = {"pid": 11, "type": "ValueError", "message": "bad", "traceback": "Traceback…", "monotonic_ns": 4}
    (folder / "exception.json").write_text(json.dumps(record))
    (folder / "stderr.log").write_text("a\nb\n")
    exited(outcome, 0, -6, 5)
    exited(outcome, 1, 1, 9)
    report = outcome.failure()
    failure = report.root_cause
    assert (failure.rank, failure.kind, failure.traceback, failure.attempt) == (1, "ValueError", "Traceback…", 3)
    assert failure.log_tail == ["a", "b"]
    assert [(each.rank, each.kind) for each in report.consequences] == [(0, "SIGABRT")]


def test_ranks_that_we_ended_are_not_counted_as_failed_too(outcome):
    start(outcome, 0, 4)
    for rank, code in enumerate([1, -15, -9, 1]):
        exited(outcome, rank, code, rank)
    assert [each.rank for each in outcome.failure().consequences] == [3]


@pytest.mark.parametrize(("beats", "steps", "expected"), [(0, 0, 0), (50, 0, None), (7, 6, 6)])
def test_a_rank_that_showed_life_without_a_step_may_be_anywhere(outcome, beats, steps, expected):
    start(outcome, 0)
    beat = Beat(rank=1, pid=11, beats=beats, steps=steps, last_ns=3, slowest_ns=1, state="going")
    outcome.worker_exited({"rank": 1, "pid": 11, "exit_code": 1, "monotonic_ns": 5}, beat)
    assert outcome.failure().root_cause.step == expected


def test_nobody_counts_the_steps_of_a_foreign_program(tmp_path):
    rundir = RunDir(root=tmp_path)
    outcome = Outcome(rundir, Vigil(2, rundir, None, foreign="a program of --no-python"))
    start(outcome, 0)
    beat = Beat(rank=1, pid=11, beats=0, steps=0, last_ns=0, slowest_ns=0, state="not begun")
    outcome.worker_exited({"rank": 1, "pid": 11, "exit_code": 1, "monotonic_ns": 5}, beat)
    assert outcome.failure().root_cause.step is None


def test_what_a_rank_left_on_the_board_is_taken_before_the_disk(outcome):
    start(outcome, 0)
    record = {"pid": 11, "type": "OSError", "message": "[Errno 28] full", "traceback": "T", "exit_code": 1}
    record["monotonic_ns"] = 4
    beat = Beat(rank=1, pid=11, beats=7, steps=6, last_ns=3, slowest_ns=1, state="going")
    message = {"rank": 1, "pid": 11, "exit_code": 1, "monotonic_ns": 5}
    outcome.worker_exited(message, beat, json.dumps(record).encode())
    failure = outcome.failure().root_cause
    assert (failure.kind, failure.step) == ("OSError", 6)


def test_the_record_of_a_process_that_is_not_the_rank_is_none_of_the_ranks(outcome, tmp_path):
    start(outcome, 0)
    raised(tmp_path, 0, 0, type="RuntimeError", monotonic_ns=3, pid=4711)
    exited(outcome, 1, 7, 5)
    exited(outcome, 0, -15, 6)
    report = outcome.failure()
    assert (report.root_cause.rank, report.root_cause.kind, report.consequences) == (1, "exit code 7", ())


def test_a_peer_that_lost_its_connection_first_is_no_cause(outcome, tmp_path):
    start(outcome, 0)
    raised(tmp_path, 0, 0, type="RuntimeError", message=CLOSED, monotonic_ns=3)
    exited(outcome, 0, 1, 4)
    outcome.worker_exited({"rank": 1, "pid": 11, "exit_code": -9, "monotonic_ns": 9, "was_asked": False})
    report = outcome.failure()
    assert (report.root_cause.rank, report.root_cause.kind) == (1, "SIGKILL")
    assert report.consequences[0].reason == "lost the connection to a peer"


def test_the_exception_of_a_program_without_a_record_is_read_from_its_log(outcome, tmp_path):
    start(outcome, 0)
    path = RunDir(root=tmp_path).stderr(0, 1)
    path.parent.mkdir(parents=True)
    path.write_text('Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nKeyError: 5\n')
    exited(outcome, 1, 1, 4)
    failure = outcome.failure().root_cause
    assert (failure.kind, failure.message) == ("KeyError", "5")


def test_a_new_attempt_forgets_the_one_before(outcome):
    start(outcome, 0)
    exited(outcome, 0, 1, 1)
    start(outcome, 1)
    assert outcome.failure() is None


def hang_of(*beats):
    silent = tuple(Silence(beat=beat, silent_s=6) for beat in beats)
    return Hang(since_ns=1, timeout_s=5, silent=silent, suspects=tuple(beat.rank for beat in beats))


def hung(outcome, doing, odd=()):
    """A hang of two ranks after six steps; they did one more until they were ended."""
    start(outcome, 0)
    beats = [
        Beat(rank=rank, pid=10 + rank, beats=7, steps=6, last_ns=3, slowest_ns=1, state="going") for rank in range(2)
    ]
    outcome.hung(Found(hang=hang_of(*beats), odd=odd, doing=doing))
    for rank, beat in enumerate(beats):
        message = {"rank": rank, "pid": 10 + rank, "exit_code": -9, "monotonic_ns": 9, "was_asked": True}
        outcome.worker_exited(message, replace(beat, steps=7))
    return outcome.failure()


def test_the_step_of_a_hang_is_that_at_which_it_hung(outcome):
    cause = hung(outcome, {0: "in load (line 7 of a.py)"}, odd=(0,)).root_cause
    assert (cause.rank, cause.kind, cause.step) == (0, "Hang", 6)
    assert cause.message == "no step for 6 s; it stood in load (line 7 of a.py)"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("in _shutdown (threading.py), past collective 8", "its threads kept it from ending"),
        ("outside of Python", "it did not end, it stood outside of Python"),
    ],
)
def test_an_exception_after_which_a_rank_did_not_end_is_the_cause_of_the_hang(outcome, tmp_path, where, words):
    raised(tmp_path, 0, 1, type="ValueError", message="bad", exit_code=1, monotonic_ns=3)
    report = hung(outcome, {0: "waiting in barrier (distributed_c10d.py)", 1: where}, odd=(1,))
    cause = report.root_cause
    assert (cause.rank, cause.kind, cause.message) == (1, "ValueError", f"bad; {words}")
    assert (exit_code_of(report), cause.traceback) == (1, "Traceback of ValueError")


def test_an_exception_for_a_lost_peer_is_not_the_cause_of_the_hang(outcome, tmp_path):
    raised(tmp_path, 0, 1, type="RuntimeError", message=CLOSED, monotonic_ns=3)
    assert hung(outcome, {}, odd=(0,)).root_cause.rank == 0


def test_a_hang_for_which_another_nodes_rank_is_to_blame_is_told_by_what_is_known_of_it(outcome):
    start(outcome, 0)
    beats = [
        Beat(rank=rank, pid=10 + rank, beats=7, steps=6, last_ns=3, slowest_ns=1, state="going") for rank in range(4)
    ]
    doing = {0: "in a", 1: "in a", 2: "in a", 3: "in b"}
    outcome.hung(Found(hang=hang_of(*beats), odd=(3,), doing=doing, elsewhere={2: "h1", 3: "h1"}))
    for rank in (0, 1):
        outcome.worker_exited({"rank": rank, "pid": 10 + rank, "exit_code": -9, "monotonic_ns": 9, "was_asked": True})
    report = outcome.failure()
    cause = report.root_cause
    assert (cause.rank, cause.host, cause.kind, cause.message) == (3, "h1", "Hang", "no step for 6 s; it stood in b")
    assert (cause.pid, cause.step, exit_code_of(report)) == (13, 6, 124)
    assert report.consequences == ()
    assert report.others == ("ranks 0-2  in a",)


def timed_out(outcome, tmp_path, message=LATE):
    start(outcome, 0, ranks=1)
    raised(tmp_path, 0, 0, type="RuntimeError", message=message, monotonic_ns=3)
    exited(outcome, 0, 1, 4)


def test_a_rank_of_another_node_that_did_not_come_is_named(outcome, tmp_path):
    timed_out(outcome, tmp_path)
    outcome.seen_elsewhere("h1", {"left": [], "absent": {"3": "in load (line 7 of a.py)"}})
    report = outcome.failure()
    cause = report.root_cause
    assert (cause.rank, cause.host, cause.kind, cause.exit_code) == (3, "h1", "Timeout", 1)
    assert cause.message == "did not take part in what rank 0 waited for; it was in load (line 7 of a.py)"
    assert [each.rank for each in report.consequences] == [0]


def test_a_rank_of_another_node_that_had_left_is_named(outcome, tmp_path):
    timed_out(outcome, tmp_path, CLOSED)
    outcome.seen_elsewhere("h1", {"left": [], "absent": {"3": "busy, and not to blame for a lost connection"}})
    assert outcome.failure().root_cause.rank == 0
    outcome.left_elsewhere({2: "h1"})
    cause = outcome.failure().root_cause
    assert (cause.rank, cause.host, cause.kind, cause.pid) == (2, "h1", "exit code 0", 0)
    outcome.worker_started({"attempt": 1, "rank": 0, "pid": 1})
    exited(outcome, 0, -9, 4)
    assert outcome.failure().root_cause.rank == 0


BUSY = 'File "train.py", line 7 in load'


@pytest.fixture
def watched(tmp_path):
    """An outcome that knows where the ranks stand; this process is not asked for its stacks."""
    rundir = RunDir(root=tmp_path)
    vigil = Vigil(5, rundir, None)
    outcome = Outcome(rundir, vigil)
    for rank in range(2):
        message = {"attempt": 0, "rank": rank, "local_rank": rank, "pid": os.getpid()}
        outcome.worker_started(message)
        vigil.worker_started(message)
        rundir.rank_dir(0, rank).mkdir(parents=True)
    return outcome


def test_a_rank_that_did_not_come_is_named_with_where_it_was(watched, tmp_path):
    rundir = RunDir(root=tmp_path)
    rundir.stacks(0, 1).write_text(f"Current thread 0x1 (most recent call first):\n  {BUSY}\n")
    record = {"pid": 10, "type": "RuntimeError", "message": LATE, "traceback": "T", "exit_code": 1, "monotonic_ns": 3}
    rundir.exception(0, 0).write_text(json.dumps(record))
    exited(watched, 0, 1, 4)
    exited(watched, 1, -15, 5)
    cause = watched.failure().root_cause
    assert cause.rank == 1
    assert cause.message == "did not take part in what rank 0 waited for; it was in load (line 7 of train.py)"


CRASH = """\
Fatal Python error: Segmentation fault

Current thread 0x00007fa0860286c0 (most recent call first):
{current}
Thread 0x00007fa0a8e86b80 (most recent call first):
  File "train.py", line 9 in <module>
  File "/x/distrain/launcher/bootstrap.py", line 306 in run_script
  File "<string>", line 6 in <module>

Extension modules: numpy, torch._C (total: 2)
"""


@pytest.mark.parametrize(
    ("current", "place", "thread"),
    [
        ('  File "a.py", line 5 in crash\n', ("a.py", 5, "crash"), "0x00007fa0860286c0"),
        ("  <no Python frame>\n", ("train.py", 9, "<module>"), ""),
    ],
)
def test_a_crash_is_placed_in_the_thread_that_crashed(watched, tmp_path, current, place, thread):
    RunDir(root=tmp_path).stacks(0, 1).write_text(CRASH.format(current=current))
    exited(watched, 1, -11, 4)
    cause = watched.failure().root_cause
    assert [(frame.file, frame.line, frame.function) for frame in cause.frames] == [place]
    assert cause.thread == thread


def test_a_crash_that_the_program_has_explained_on_standard_error_is_read_from_there(watched, tmp_path):
    told = CRASH.format(current='  File "a.py", line 5 in crash\n')
    RunDir(root=tmp_path).stderr(0, 1).write_text(f"loading\n 50%|##  |{told}terminated\n")
    exited(watched, 1, -11, 4)
    cause = watched.failure().root_cause
    assert [(frame.file, frame.line) for frame in cause.frames] == [("a.py", 5)]
    assert cause.log_tail == ["loading", " 50%|##  |", "terminated"]


def test_the_crash_of_a_child_is_not_where_a_rank_was_when_it_was_killed(watched, tmp_path):
    told = CRASH.format(current='  File "a.py", line 5 in crash\n')
    RunDir(root=tmp_path).stderr(0, 1).write_text(told)
    exited(watched, 1, -9, 4)
    cause = watched.failure().root_cause
    assert cause.frames == ()
    assert cause.log_tail == told.splitlines()


def test_a_progress_bar_does_not_push_out_what_was_written_before_it(watched, tmp_path):
    bar = "".join(f"\r{n}/400" for n in range(400))
    RunDir(root=tmp_path).stderr(0, 1).write_text(f"important\n{bar}", newline="")
    exited(watched, 1, 3, 4)
    assert watched.failure().root_cause.log_tail == ["important", "399/400"]


def test_the_clues_for_other_nodes_are_who_left_and_who_waits_for_nobody(tmp_path):
    rundir = RunDir(root=tmp_path)
    vigil = Vigil(5, rundir, None)
    outcome = Outcome(rundir, vigil)
    waiting = 'File "x/site-packages/torch/distributed/distributed_c10d.py", line 9 in barrier'
    for rank, frame in enumerate((BUSY, BUSY, BUSY, waiting)):
        path = rundir.stacks(0, rank)
        path.parent.mkdir(parents=True)
        path.write_text(f"Current thread 0x1 (most recent call first):\n  {frame}\n")
    for rank in range(5):  # this process does not answer the signal for stacks, so it is not sent it
        message = {"attempt": 0, "rank": rank, "local_rank": rank, "pid": os.getpid()}
        outcome.worker_started(message)
        vigil.worker_started(message)
    for rank, code in ((0, 0), (1, 1)):
        vigil.worker_exited(rank)
        exited(outcome, rank, code, 4)
    assert outcome.clues() == {"left": [0], "absent": {2: "in load (line 7 of train.py)"}}
