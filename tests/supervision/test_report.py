"""The report's text. Its golden texts are what a user reads on the worst day: read them when they change."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap

import pytest

from distrain.supervision.failure import Failure, Report, Standing, describe
from distrain.supervision.frames import Frame
from distrain.supervision.hints import hints_for
from distrain.supervision.report import fold_traceback, rank_names, render, summary
from tests.supervision.texts import CLOSED, MISMATCH, UNUSED

SITE = "/venv/lib/python3.11/site-packages"
STDLIB = os.path.dirname(os.__file__)

IN_FORWARD = f"""Traceback (most recent call last):
  File "/home/ann/train.py", line 88, in <module>
    main()
  File "/home/ann/train.py", line 61, in main
    loss = loss_fn(model(batch), labels)
                   ^^^^^^^^^^^^
  File "{SITE}/torch/nn/modules/module.py", line 1775, in _wrapped_call_impl
    return self._call_impl(*args, **kwargs)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "{SITE}/torch/nn/modules/module.py", line 1786, in _call_impl
    return forward_call(*args, **kwargs)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "{SITE}/torch/nn/parallel/distributed.py", line 1661, in forward
    else self._run_ddp_forward(*inputs, **kwargs)
  File "/home/ann/model.py", line 12, in forward
    return self.head(x.view(len(x), -1))
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "{SITE}/torch/nn/modules/linear.py", line 134, in forward
    return F.linear(input, self.weight, self.bias)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
RuntimeError: mat1 and mat2 shapes cannot be multiplied (64x784 and 768x10)
"""

CHAINED = f"""Traceback (most recent call last):
  File "{STDLIB}/json/decoder.py", line 355, in raw_decode
    obj, end = self.scan_once(s, idx)
StopIteration: 0

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/home/ann/data.py", line 7, in load
    return json.loads(text)
  File "{STDLIB}/json/__init__.py", line 346, in loads
    return _default_decoder.decode(s)
  File "{STDLIB}/json/decoder.py", line 337, in decode
    obj, end = self.raw_decode(s, idx=_w(s, 0).end())
json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/home/ann/train.py", line 9, in <module>
    main()
ValueError: labels.json is no JSON
"""

CARRIED = f"""Traceback (most recent call last):
  File "/home/ann/train.py", line 40, in <module>
    for batch in loader:
  File "{SITE}/torch/utils/data/dataloader.py", line 725, in __next__
    data = self._next_data()
           ^^^^^^^^^^^^^^^^^
  File "{SITE}/torch/_utils.py", line 750, in reraise
    raise exception
ValueError: Caught ValueError in DataLoader worker process 1.
Original Traceback (most recent call last):
  File "{SITE}/torch/utils/data/_utils/worker.py", line 374, in _worker_loop
    data = fetcher.fetch(index)
           ^^^^^^^^^^^^^^^^^^^^
  File "{SITE}/torch/utils/data/_utils/fetch.py", line 54, in fetch
    data = [self.dataset[idx] for idx in possibly_batched_index]
  File "/home/ann/data.py", line 15, in __getitem__
    raise ValueError("broken sample 5")
ValueError: broken sample 5

"""


def failure(rank: int = 3, **changes) -> Failure:
    values = {
        "rank": rank,
        "host": "node7",
        "kind": "RuntimeError",
        "message": "mat1 and mat2 shapes cannot be multiplied (64x784 and 768x10)",
        "exit_code": 1,
        "pid": 4711 + rank,
        "attempt": 0,
        "step": 120,
        "traceback": IN_FORWARD,
        "frames": (Frame(file="/home/ann/model.py", line=12, function="forward", code="…"),),
        "log_tail": IN_FORWARD.splitlines(),
        "log_path": f"runs/20260101-train/attempt-0/rank-{rank}/stderr.log",
    }
    return Failure(**{**values, **changes})


def lost(rank: int) -> Failure:
    return failure(
        rank, standing=Standing.CUT_OFF, reason="lost the connection to a peer", message=CLOSED, frames=(), traceback=""
    )


def report(cause: Failure, **values) -> Report:
    return Report(root_cause=cause, hints=hints_for(cause), **values)


def crashed(signal: int, tail: list[str] = [], **changes) -> Failure:  # noqa: B006 - is only read
    kind, message = describe(-signal, None, stderr_tail=tail)
    values = {"kind": kind, "message": message, "exit_code": -signal, "traceback": "", "frames": (), "log_tail": tail}
    return failure(**{**values, **changes})


def test_an_exception_on_one_rank(golden):
    others = ("rank 1: at step 120, in all_reduce, called from train.py:61", "ranks 4-7: at step 119, in backward")
    text = render(report(failure(), consequences=[lost(0), lost(2)], others=others))
    golden("failure-exception.txt", text + "\n")


def test_the_same_exception_on_all_ranks(golden):
    unused = {
        "message": describe(1, {"type": "RuntimeError", "message": UNUSED})[1],
        "traceback": f"{IN_FORWARD.partition('RuntimeError')[0]}RuntimeError: {UNUSED}\n",
        "log_tail": (),
        "step": 1,
    }
    golden(
        "failure-alike.txt",
        render(report(failure(0, **unused), consequences=[failure(rank, **unused) for rank in range(1, 8)])) + "\n",
    )


def test_a_death_by_signal(golden):
    frames = (
        Frame(file="/home/ann/train.py", line=61, function="main", code="loss = loss_fn(model(batch), labels)"),
        Frame(file=f"{SITE}/torch/nn/modules/module.py", line=1775, function="_wrapped_call_impl"),
        Frame(file="/home/ann/kernels.py", line=8, function="fused", code="return _C.fused(x)"),
    )
    cause = crashed(11, ["loading kernels", "using 8 threads"], frames=frames)
    text = render(report(cause, consequences=[lost(rank) for rank in (0, 1, 2, 4, 5, 6, 7)]))
    golden("failure-signal.txt", text + "\n")


def test_a_crash_in_another_thread_than_the_main_one_says_so():
    cause = crashed(11, frames=(Frame(file="/home/ann/a.py", line=5, function="crash"),), thread="0x7fa0")
    lines = render(report(cause)).splitlines()
    place = lines.index("  where it was, in thread 0x7fa0, most recent call last:")
    assert lines[place + 1] == '    File "/home/ann/a.py", line 5, in crash'


def test_out_of_memory(golden):
    memory = (
        "killed by the kernel, out of memory: the control group's limit is 512 MiB and its oom_kill counter rose; "
        "rank 1 had 430 MiB, 12 MiB 10 seconds before (the others at most 30 MiB)"
    )
    kind, message = describe(-9, None, memory=memory)
    cause = crashed(9, rank=1, kind=kind, message=message)
    golden("failure-memory.txt", render(report(cause, consequences=[lost(0)], memory=memory)) + "\n")


def test_an_abort_with_native_words(golden):
    tail = ["[rank3]:[W1125 02:04:19 socket.cpp:1] something", *MISMATCH]
    cause = crashed(6, [*tail, *(f"frame #{i}: c10::f() + 0x1 (0x7f in libc10.so)" for i in range(9))])
    golden("failure-abort.txt", render(report(cause)) + "\n")


def test_a_victim_when_nothing_better_is_known(golden):
    message = describe(1, {"type": "RuntimeError", "message": CLOSED})[1]
    cause = failure(0, message=message, standing=Standing.CUT_OFF, reason="lost the connection to a peer")
    own = failure(2, kind="KeyError", message="'labels'", traceback="", frames=())
    golden("failure-victim.txt", render(report(cause, consequences=[own])) + "\n")


def test_an_exit_code(golden):
    kind, message = describe(7, {"type": "SystemExit", "message": "7"})
    cause = failure(kind=kind, message=message, exit_code=7, traceback="", log_tail=(), step=0)
    golden("failure-exit-code.txt", render(report(cause)) + "\n")


def test_chained_exceptions_keep_their_joints():
    assert "\n".join(fold_traceback(CHAINED)) == textwrap.dedent(
        """\
        Traceback (most recent call last):
          … 1 frame in json
        StopIteration: 0

        The above exception was the direct cause of the following exception:

        Traceback (most recent call last):
          File "/home/ann/data.py", line 7, in load
            return json.loads(text)
          … 2 frames in json
        json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)

        During handling of the above exception, another exception occurred:

        Traceback (most recent call last):
          File "/home/ann/train.py", line 9, in <module>
            main()
        ValueError: labels.json is no JSON"""
    )


def test_the_users_frames_in_another_process_are_shown():
    lines = fold_traceback(CARRIED)
    assert '  File "/home/ann/data.py", line 15, in __getitem__' in lines
    assert lines.count("  … 2 frames in torch") == 2


def test_repeated_frames_count():
    text = (
        f'  File "{SITE}/torch/a.py", line 3, in f\n    f()\n  [Previous line repeated 970 more times]\nRecursionError'
    )
    assert fold_traceback(text) == ["  … 971 frames in torch", "RecursionError"]


def test_members_of_a_group_are_folded_within_their_margin():
    text = (
        f'  | Traceback (most recent call last):\n  |   File "{SITE}/torch/a.py", line 3, in f\n  |     f()\n  | E: x'
    )
    assert fold_traceback(text) == ["  | Traceback (most recent call last):", "  |   … 1 frame in torch", "  | E: x"]


def test_the_place_of_a_syntax_error_stays():
    text = '  File "/home/ann/train.py", line 2\n    for\n       ^\nSyntaxError: invalid syntax'
    assert "\n".join(fold_traceback(text)) == text


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), (range(8), "ranks 0-7"), ([7, 0, 2, 3, 4], "ranks 0, 2-4, 7"), ([0, 1], "ranks 0-1")],
)
def test_names_of_ranks(ranks, text):
    assert rank_names(ranks) == text


def test_what_was_written_beside_the_traceback_is_shown_and_the_traceback_only_once():
    text = render(report(failure(log_tail=["epoch 3 begins", "", *IN_FORWARD.splitlines(), "", "cleaning up"])))
    assert text.count("mat1 and mat2") == 2  # the first line, and the traceback
    assert "    epoch 3 begins\n" in text
    assert "    cleaning up" in text


def test_the_first_line_is_the_summary_and_no_line_ends_in_blanks():
    for cause in (failure(), crashed(9), crashed(6, MISMATCH)):
        made = report(cause, consequences=[lost(0)])
        text = render(made)
        assert text.splitlines()[0] == summary(made)
        assert not re.search(r"[ \t]$", text, re.MULTILINE)


def test_without_a_traceback_the_log_keeps_its_empty_lines():
    text = render(report(crashed(9, ["one", "", "  ^^^", "two"])))
    assert "    one\n\n      ^^^\n    two\n" in text


def test_a_program_gives_the_terminal_no_orders_but_colours():
    said = "a\x1b]0;title\x07b\x1b[2J\rc\n\x1b[1;31msecond\x1b[0m\x1b[2J\x9b2J\x1b[31"
    traceback = f"Traceback (most recent call last):\nValueError: {said}\n"
    log = ["\x1b]0;x\x07\x1b[32mepoch\t3", "Traceback (most recent call last):", "c", said.split("\n")[1]]
    cause = failure(kind="ValueError", message="a", traceback=traceback, log_tail=log)
    lines = render(Report(root_cause=cause)).split("\n")
    assert r"  ValueError: a\x1b]0;title\x07b\x1b[2J\rc" in lines
    assert "  \x1b[1;31msecond\x1b[0m\\x1b[2J\\x9b2J\\x1b[31\x1b[0m" in lines
    assert lines[-1] == "    \\x1b]0;x\\x07\x1b[32mepoch\t3\x1b[0m"


def test_a_message_of_one_huge_line_is_cut_and_shown_once():
    huge = "".join(map(str, range(20_000)))
    traceback = f"Traceback (most recent call last):\nValueError: {huge[:10_000]} … left out … {huge[-19_000:]}\n"
    text = render(Report(root_cause=failure(kind="ValueError", traceback=traceback, log_tail=[huge[-60_000:]])))
    assert len(text) < 2_000
    assert re.search(r"^  ValueError: 0123456789\d+… \(line cut\)$", text, re.MULTILINE)
    assert "standard error" not in text
    assert "the whole traceback: runs/" in text


def test_a_huge_line_that_the_traceback_does_not_hold_is_shown_cut():
    text = render(Report(root_cause=failure(log_tail=["y" * 60_000])))
    assert f"    {'y' * 500}… (line cut)" in text


HINTS = [
    (
        "exit code 2",
        "error: the following arguments are required: --data, --local_rank",
        "--local_rank='${local_rank}'",
    ),
    ("ModuleNotFoundError", "No module named 'timm.data'", "timm.data"),
    ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB", "batch smaller"),
    ("OutOfMemory", "killed by the kernel", "more memory"),
    ("SIGKILL", "killed from outside", "dmesg"),
    ("SIGSEGV", "segmentation fault", "--no-fork-server"),
    ("SIGBUS", "bus error", "/dev/shm"),
    ("OSError", "[Errno 28] No space left on device", "df -h"),
    (
        "RuntimeError",
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
        "shm-size",
    ),
    ("torch.distributed.DistNetworkError", "code: -98, name: EADDRINUSE", "ss -ltnp"),
    ("RuntimeError", "Timed out waiting 2000ms for recv operation to complete", "did not come to the collective"),
    ("Timeout", "did not take part in the collective", "did not come to the collective"),
    ("RuntimeError", UNUSED, "{'find_unused_parameters': True}"),
    ("RuntimeError", "DataLoader worker (pid 1) is killed by signal: Killed. ", "killed, mostly for memory"),
    ("RuntimeError", "DataLoader worker (pid 1) is killed by signal: Bus error. It is possible", "/dev/shm"),
    ("PermissionError", "[Errno 13] Permission denied: '/data'", "ls -ld"),
    ("torch.AcceleratorError", "CUDA error: device-side assert triggered", "CUDA_LAUNCH_BLOCKING"),
    ("FileNotFoundError", "[Errno 2] No such file or directory: 'data/x.csv'", "data/x.csv is looked for"),
    (
        "ValueError",
        "Expected more than 1 value per channel when training, got input size torch.Size([1, 4])",
        "drop_last=True",
    ),
]


@pytest.mark.parametrize(("kind", "message", "words"), HINTS)
def test_hints(kind, message, words):
    hints = hints_for(failure(kind=kind, message=message, traceback="", log_tail=()))
    assert 1 <= len(hints) <= 2
    assert words in hints[0]


def test_a_plain_mistake_needs_no_hint():
    assert hints_for(failure(kind="ValueError", message="bad", traceback="", log_tail=())) == ()
    assert "what to try" not in render(Report(root_cause=dataclasses.replace(failure(), kind="ValueError")))
