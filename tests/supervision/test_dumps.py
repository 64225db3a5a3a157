"""Dumps of faulthandler, read."""

from __future__ import annotations

from distrain.supervision.dumps import last_dump, parse
from distrain.supervision.frames import Frame

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
