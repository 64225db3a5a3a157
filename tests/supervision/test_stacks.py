"""The stacks of several ranks: compared, shown."""

from __future__ import annotations

import threading

import pytest

from distrain.supervision.dumps import Dump, Thread, parse
from distrain.supervision.frames import Frame
from distrain.supervision.process_state import ProcessState
from distrain.supervision.stacks import group, odd_ones_out, render

TORCH = "/venv/lib/python3.11/site-packages/torch/"

CRASH = """\
Fatal Python error: Segmentation fault

Current thread 0x7 [loader] (most recent call first):
  <no Python frame>

Current thread 0x00007f5721aaeb80 [python] (most recent call first):
  File "/home/me/train.py", line 15 in <module>
"""


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
    (dump,) = parse(CRASH)
    text = render(group({0: dump}), {})
    assert "  Fatal Python error: Segmentation fault\n" in text
    assert "  thread loader, which crashed:" in text
