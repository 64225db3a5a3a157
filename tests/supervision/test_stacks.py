"""Dumps of faulthandler: read, compared between ranks, shown."""

from __future__ import annotations

import threading

import pytest

from distrain.supervision.frames import Frame
from distrain.supervision.stacks import (
    Dump,
    ProcessState,
    Thread,
    group,
    last_dump,
    odd_ones_out,
    parse,
    render,
)

TORCH = "/venv/lib/python3.11/site-packages/torch/"

TWO_THREADS = """\
Thread 0x00007f56ffb296c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/home/me/load\\xe9.py", line 9 in f\\xf6\\u4f60
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f5721aaeb80 (most recent call first):
  Garbage-collecting
  File "/home/me/train.py", line 12 in step
  File "/home/me/train.py", line 13 in <module>
"""
ONE_THREAD = """\
Current thread 0x00007f5721aaeb80 (most recent call first):
  File "/home/me/train.py", line 14 in <module>
"""
CRASH = """\
Fatal Python error: Segmentation fault

Thread 0x00007f56ffb296c0 [loader] (most recent call first):
  <no Python frame>

Current thread 0x00007f5721aaeb80 [python] (most recent call first):
  File ???, line ??? in ???
  File "/home/me/train.py", line 15 in <module>

Current thread's C stack trace (most recent call first):
  Binary file "/lib/libc.so.6", at +0x3c050 [0x7f]
  <truncated rest of calls>

Extension modules: numpy, torch._C (total: 2)
"""


def test_several_dumps_in_one_file_and_a_crash_at_its_end():
    first, second, crash = parse(TWO_THREADS + ONE_THREAD + CRASH)
    assert [thread.is_main for thread in first.threads] == [False, True]
    assert [thread.is_current for thread in first.threads] == [False, True]
    assert first.frames == (
        Frame(file="/home/me/train.py", line=13, function="<module>"),
        Frame(file="/home/me/train.py", line=12, function="step"),
    )
    assert first.threads[0].frames[1] == Frame(file="/home/me/loadé.py", line=9, function="fö你")
    assert len(second.threads) == 1
    assert not second.fatal
    assert crash.fatal == "Fatal Python error: Segmentation fault"
    assert [thread.name for thread in crash.threads] == ["loader", "python"]
    assert crash.frames[-1] == Frame(file="???", line=0, function="???")
    assert crash.native == ('Binary file "/lib/libc.so.6", at +0x3c050 [0x7f]', "<truncated rest of calls>")


def test_every_cut_of_a_file_can_be_read():
    whole = TWO_THREADS + CRASH + ONE_THREAD
    for start in range(0, len(whole), 37):
        for end in range(start, len(whole), 53):
            for dump in parse(whole[start:end]):
                assert dump.threads or dump.fatal


def test_other_output_between_dumps_is_passed_over():
    (dump,) = parse("terminate called\n  File x\n" + ONE_THREAD + "bye\n")
    assert dump == parse(ONE_THREAD)[0]
    assert parse("") == parse("no dump\n") == []


def test_the_signal_may_be_taken_by_another_thread_than_the_main_one():
    text = TWO_THREADS.replace("Current thread", "Thread").replace("Thread", "Current thread", 1)
    (dump,) = parse(text)
    assert dump.threads[0].is_current
    assert dump.main is dump.threads[1]


def test_a_list_of_threads_that_was_cut_has_no_main_thread_unless_it_is_the_current_one():
    other, main = TWO_THREADS.split("\n\n")
    (dump,) = parse(f"{other}\n\n{other}\n\n...\n")
    assert dump.main is None
    assert dump.frames == ()
    (dump,) = parse(f"{main}\n{other}\n\n...\n")
    assert dump.main is dump.threads[0]


def test_only_what_was_appended_is_read(tmp_path):
    path = tmp_path / "stacks.log"
    assert last_dump(path) is None
    path.write_text(TWO_THREADS)
    nbytes = path.stat().st_size
    assert last_dump(path, nbytes) is None
    with path.open("a") as file:
        file.write(ONE_THREAD)
    assert last_dump(path, nbytes) == last_dump(path) == parse(ONE_THREAD)[0]


def dump_of(*frames: tuple[str, int, str], others: tuple[Thread, ...] = ()) -> Dump:
    stack = tuple(Frame(file=file, line=line, function=function) for file, line, function in frames)
    main = Thread(ident="0x1", name="", is_current=True, is_main=True, frames=stack)
    return Dump(fatal="", threads=(*others, main))


REDUCE = dump_of(
    ("train.py", 31, "step"),
    (TORCH + "distributed/c10d_logger.py", 83, "wrapper"),
    (TORCH + "distributed/distributed_c10d.py", 2935, "all_reduce"),
)
BARRIER = dump_of(("train.py", 40, "step"), (TORCH + "distributed/distributed_c10d.py", 4800, "barrier"))
BACKWARD = dump_of(
    ("train.py", 20, "step"),
    (TORCH + "_tensor.py", 630, "backward"),
    (TORCH + "autograd/graph.py", 829, "_engine_run_backward"),
)
FORWARD = dump_of(
    ("train.py", 19, "step"),
    (TORCH + "nn/modules/module.py", 1800, "_call_impl"),
    (TORCH + "nn/parallel/distributed.py", 1600, "_pre_forward"),
)
WRAPPED = dump_of(
    ("train.py", 19, "step"),
    (TORCH + "nn/parallel/distributed.py", 1700, "forward"),
    (TORCH + "nn/modules/linear.py", 125, "forward"),
)
LOAD = dump_of(("train.py", 27, "load"))
LOADER = dump_of(
    ("train.py", 18, "epoch"),
    (TORCH + "utils/data/dataloader.py", 700, "__next__"),
    (threading.__file__, 320, "wait"),
)


@pytest.mark.parametrize(
    ("by_rank", "odd"),
    [
        ({0: REDUCE, 1: REDUCE, 2: REDUCE, 3: LOAD}, (3,)),
        ({0: REDUCE, 1: LOAD}, (1,)),
        ({0: LOAD, 1: BACKWARD}, (0,)),
        ({0: LOADER, 1: BACKWARD}, (0,)),
        ({0: FORWARD, 1: LOAD}, (1,)),
        ({0: FORWARD, 1: WRAPPED}, (1,)),
        ({0: LOAD, 1: LOAD, 2: LOAD, 3: BARRIER}, (0, 1, 2)),
        ({0: BARRIER, 1: BARRIER, 2: REDUCE}, (2,)),
        ({0: REDUCE, 1: REDUCE, 2: None}, (2,)),
        ({0: LOAD, 1: None}, (1,)),
        ({0: LOAD, 1: None, 2: REDUCE}, (0, 1)),
        ({0: BARRIER, 1: REDUCE}, ()),
        ({0: LOAD, 1: LOADER}, ()),
        ({0: REDUCE, 1: REDUCE}, ()),
        ({0: None, 1: None}, ()),
        ({}, ()),
    ],
)
def test_the_odd_ranks_are_those_that_the_others_wait_for(by_rank, odd):
    assert odd_ones_out(group(by_rank)) == odd


def test_groups_are_of_the_same_frames_the_largest_first():
    elsewhere = dump_of(("train.py", 28, "load"))
    groups = group({5: LOAD, 0: elsewhere, 3: REDUCE, 1: REDUCE, 2: None, 4: REDUCE})
    assert [each.ranks for each in groups] == [(1, 3, 4), (0,), (2,), (5,)]


def test_the_stacks_of_a_hang(golden, tmp_path):
    source = tmp_path / "train.py"
    source.write_text("\n" * 26 + "    lock.acquire()\n")
    users = Thread(
        ident="0x2", name="", is_current=False, is_main=False, frames=(Frame(file="feed.py", line=3, function="feed"),)
    )
    library = Thread(
        ident="0x3",
        name="",
        is_current=False,
        is_main=False,
        frames=(Frame(file=TORCH + "x.py", line=3, function="pin"),),
    )
    locked = dump_of((str(source), 27, "load"), others=(users, library))
    groups = group({0: REDUCE, 1: REDUCE, 2: REDUCE, 3: locked, 4: None, 6: REDUCE, 7: LOADER})
    states = {
        0: ProcessState(pid=1, state="S", wchan="futex_wait_queue"),
        3: ProcessState(pid=2, state="S", wchan="futex_wait_queue"),
        4: ProcessState(pid=3, state="T", wchan="do_signal_stop", stop_signal="SIGSTOP"),
    }
    golden("stacks-hang.txt", render(groups, states).replace(str(tmp_path), "/home/me") + "\n")


def test_the_stacks_of_a_crash_show_the_thread_that_crashed():
    (dump,) = parse(CRASH.replace("Thread 0x00007f56ffb296c0 [loader]", "Current thread 0x7 [loader]"))
    text = render(group({0: dump}), {})
    assert "  Fatal Python error: Segmentation fault\n" in text
    assert "  thread loader, which crashed:" in text


def test_words_for_states():
    def words(state: str, wchan: str = "", stop_signal: str = "") -> str:
        return ProcessState(pid=1, state=state, wchan=wchan, stop_signal=stop_signal).words

    assert words("T", "do_signal_stop", "SIGTSTP") == "process stopped by a signal, SIGTSTP"
    assert words("T") == "process stopped by a signal, such as SIGSTOP"
    assert words("D", "nfs_wait") == "process stuck in the kernel, in nfs_wait"
    assert words("R", "0") == "process busy on a core"
    assert words("?") == "process in state ?"
