"""Causes and victims, told by what torch says."""

from __future__ import annotations

import signal

import pytest

from distrain.supervision.classify import classify, did_not_take_part, root_cause
from distrain.supervision.failure import Failure, Standing
from tests.supervision.texts import (
    ASSERT,
    CLOSED,
    CUDA_OOM,
    EXITED,
    IN_USE,
    LATE,
    MISMATCH,
    MONITORED,
    NCCL_CUDA,
    NCCL_INTERNAL,
    NCCL_REMOTE,
    NO_BYTES,
    RESET,
    SHAPES,
    UNUSED,
    WATCHDOG,
)

_STORE = "torch.distributed.DistStoreError"
_NETWORK = "torch.distributed.DistNetworkError"
_BACKEND = "torch.distributed.DistBackendError"
CAUSE, CUT, LATER, DOUBTFUL = Standing.CAUSE, Standing.CUT_OFF, Standing.TIMED_OUT, Standing.DOUBTFUL


def raised(type: str, message: str, *chain: dict) -> dict:
    return {"type": type, "message": message, "chain": list(chain)}


@pytest.mark.parametrize(
    ("type", "message", "standing"),
    [
        ("RuntimeError", CLOSED, CUT),
        ("RuntimeError", RESET, CUT),
        ("RuntimeError", LATE, LATER),
        ("RuntimeError", LATE.replace("recv", "send"), LATER),
        ("RuntimeError", "Application timeout caused pair closure", LATER),
        ("RuntimeError", MONITORED, LATER),
        (_STORE, "wait timeout after 2000ms, keys: /default_pg/0//cpu//0/1", LATER),
        (_STORE, "Timed out after 3 seconds waiting for clients. 1/2 clients joined.", LATER),
        (
            _NETWORK,
            "The client socket has timed out after 2000ms while trying to connect to (127.0.0.1, 35441).",
            LATER,
        ),
        (_NETWORK, NO_BYTES, CUT),
        (_NETWORK, "Broken pipe", CUT),
        (_NETWORK, "Connection reset by peer", CUT),
        (_NETWORK, IN_USE, CAUSE),
        ("RuntimeError", "Connection to 127.0.0.1:29500 was closed", CUT),
        (_BACKEND, NCCL_REMOTE, CUT),
        (_BACKEND, NCCL_INTERNAL, CUT),
        (_BACKEND, NCCL_CUDA, CAUSE),
        ("RuntimeError", UNUSED, CAUSE),
        ("RuntimeError", SHAPES, CAUSE),
        ("RuntimeError", EXITED, CAUSE),
        ("RuntimeError", "DataLoader worker (pid(s) 123, 124) exited unexpectedly", CAUSE),
        ("RuntimeError", "DataLoader worker (pid 10847) is killed by signal: Killed. ", CAUSE),
        ("RuntimeError", "DataLoader timed out after 3 seconds", CAUSE),
        ("torch.OutOfMemoryError", CUDA_OOM, CAUSE),
        ("torch.AcceleratorError", ASSERT, CAUSE),
        ("ValueError", "bad shape", CAUSE),
        ("ConnectionResetError", "[Errno 104] Connection reset by peer", DOUBTFUL),
        ("BrokenPipeError", "[Errno 32] Broken pipe", DOUBTFUL),
        ("requests.exceptions.ConnectionError", "HTTPSConnectionPool(host='hub', port=443)", CAUSE),
    ],
)
def test_exceptions(type, message, standing):
    assert classify(1, raised(type, message)).standing == standing


@pytest.mark.parametrize(
    ("tail", "standing"),
    [
        ([], CAUSE),
        (MISMATCH, CAUSE),
        (WATCHDOG, LATER),
        (["terminate called without an active exception"], Standing.TORN_DOWN),
        (["FATAL: exception not rethrown"], Standing.TORN_DOWN),
        (["terminate called after throwing an instance of 'gloo::IoException'", f"  what():  {CLOSED}"], CUT),
        ([f"RuntimeError: {RESET}", "double free or corruption (out)"], CUT),
        ([f"RuntimeError: {RESET}", "terminate called after throwing an instance of 'Bug'", "  what():  mine"], CAUSE),
    ],
)
def test_aborts_are_judged_by_their_last_words(tail, standing):
    assert classify(-signal.SIGABRT, None, tail).standing == standing


def test_an_abort_on_the_way_out_of_an_exception_stands_where_the_exception_stands():
    tail = ["ValueError: bad", "terminate called without an active exception"]
    assert classify(-signal.SIGABRT, raised("ValueError", "bad"), tail).standing == CAUSE
    assert classify(-signal.SIGABRT, raised("RuntimeError", CLOSED), tail).standing == CUT


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGTERM])
def test_deaths_by_signal_are_causes_unless_we_sent_it(number):
    assert classify(-number).standing == CAUSE
    assert classify(-number, was_asked=True).standing == Standing.ENDED


def test_a_rank_that_raised_while_we_ended_it_is_judged_by_what_it_raised():
    assert classify(1, raised("ValueError", "bad"), was_asked=True).standing == CAUSE


def test_what_is_raised_from_a_lost_connection_follows_from_it():
    lost = {"how": "cause", "type": "RuntimeError", "message": CLOSED}
    assert classify(1, raised("TrainingError", "step 7 failed", lost)).standing == CUT


LOST, TIRED, BAD = raised("RuntimeError", CLOSED), raised("RuntimeError", LATE), raised("ValueError", "bad shape")
FOLLOWS = raised("TrainingError", "step 7 failed", {"how": "cause", **LOST})


def of(*members: dict) -> dict:
    return raised("ExceptionGroup", "unhandled errors in a TaskGroup") | {"members": list(members)}


@pytest.mark.parametrize(
    ("group", "standing"),
    [
        (of(LOST), CUT),
        (of(LOST, TIRED), LATER),
        (of(FOLLOWS, of(LOST)), CUT),
        (of(LOST, BAD), CAUSE),
        (of(LOST, of(LOST, BAD)), CAUSE),
        (raised("TrainingError", "step 7 failed", {"how": "context", **of(LOST)}), CUT),
    ],
)
def test_a_group_is_a_victim_if_all_its_members_are(group, standing):
    assert classify(1, group).standing == standing
    assert classify(-signal.SIGABRT, group).standing == standing


def test_a_loader_worker_that_is_found_dead_by_a_lost_connection_is_a_cause():
    lost = {"how": "context", "type": "ConnectionResetError", "message": "[Errno 104] Connection reset by peer"}
    assert classify(1, raised("RuntimeError", EXITED, lost)).standing == CAUSE


@pytest.mark.parametrize("type", ["ConnectionResetError", "EOFError", "FileNotFoundError"])
def test_a_loader_worker_that_takes_a_batch_along_is_a_cause_and_a_connection_elsewhere_is_as_ever(type):
    """Recorded of a run whose loader was killed: the rank was fetching the memory of a tensor from it."""
    paths = ("train.py", "torch/utils/data/dataloader.py", "torch/multiprocessing/reductions.py")
    paths = (*paths, "multiprocessing/resource_sharer.py", "multiprocessing/connection.py")
    record = {"type": type, "message": "[Errno 104] Connection reset by peer"}
    record["frames"] = [{"file": f"/usr/lib/python3.11/{path}"} for path in paths]
    found = classify(1, record)
    assert (found.standing, found.reason) == (CAUSE, "lost a DataLoader worker")
    record["frames"] = [{"file": "/usr/lib/python3.11/multiprocessing/connection.py"}]
    assert classify(1, record).reason == ("lost a connection" if type == "ConnectionResetError" else "")


def test_exit_codes_without_a_record_are_causes():
    verdict = classify(3)
    assert (verdict.standing.word, verdict.reason) == ("cause", "")


def failed(rank: int, ns: int, standing: Standing, message: str = "") -> Failure:
    return Failure(
        rank=rank,
        host="h",
        kind="RuntimeError",
        message=message,
        exit_code=1,
        pid=1,
        attempt=0,
        monotonic_ns=ns,
        standing=standing,
    )


def test_the_first_of_the_strongest_class_is_the_root_cause():
    failures = [failed(0, 1, CUT), failed(1, 9, CAUSE), failed(2, 8, CAUSE), failed(3, 0, Standing.ENDED)]
    assert root_cause(failures).rank == 2
    assert root_cause(failures[:1] + failures[3:]).rank == 0
    assert root_cause([]) is None


def test_a_connection_of_the_programs_own_counts_where_there_is_no_clear_cause():
    assert root_cause([failed(0, 1, DOUBTFUL), failed(1, 2, CAUSE)]).rank == 1
    assert root_cause([failed(0, 2, DOUBTFUL), failed(1, 1, CUT)]).rank == 0


def test_equal_times_go_to_the_lowest_rank():
    assert root_cause([failed(2, 5, CAUSE), failed(1, 5, CAUSE)]).rank == 1


@pytest.mark.parametrize(
    ("failures", "absent"),
    [
        ([failed(0, 1, LATER, LATE), failed(1, 2, CUT)], [1]),
        ([failed(0, 1, LATER, LATE), failed(2, 1, LATER, LATE)], [1]),
        ([failed(0, 1, LATER, MONITORED)], [1]),
        ([failed(0, 1, LATER, MONITORED.replace("Rank 1 ", "Ranks 1, 2 "))], [1, 2]),
        ([failed(rank, 1, LATER, LATE) for rank in range(3)], []),
        ([failed(0, 1, LATER, LATE), failed(1, 2, CAUSE)], []),
        ([failed(0, 1, CUT)], []),
        ([], []),
    ],
)
def test_the_ranks_that_were_waited_for(failures, absent):
    world = range(2) if len(failures) == 2 and failures[1].rank == 1 else range(3)
    assert did_not_take_part(failures, world) == absent
