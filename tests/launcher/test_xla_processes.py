"""The end of a process in a pool, and who hears of it; torch_xla is not needed for that."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest

from distrain.launcher.xla_processes import Children, _ThisThread
from tests.support.processes import run, wait_until

END = """
import atexit
from distrain.launcher.xla_processes import end
atexit.register(print, "exit function")
print("program", end=" ")
end({code})
"""


def test_the_ends_of_a_pools_processes_are_told_as_they_were():
    told = []
    spawn = multiprocessing.get_context("spawn")
    children = Children(lambda pid, code: told.append((pid, code)))
    processes = [spawn.Process(target=time.sleep, args=(60,)) for _ in range(2)]
    for process in processes:
        process.start()
    wait_until(lambda: len(children._living) == 2, 20, what="both are seen")
    for process, number in zip(processes, (signal.SIGTERM, signal.SIGKILL), strict=True):
        os.kill(process.pid, number)
        process.join(20)
    children.stop()
    assert sorted(told) == sorted([(processes[0].pid, -signal.SIGTERM), (processes[1].pid, -signal.SIGKILL)])
    wait_until(lambda: threading.active_count() == 1, 5, what="the end of the thread that looks")


@pytest.mark.parametrize("code", [7, -signal.SIGINT])
def test_a_process_ends_at_once_with_its_exit_functions_and_its_code(code):
    done = run([sys.executable, "-c", END.format(code=code)])
    assert (done.stdout, done.returncode) == ("program exit function\n", code)


def test_the_place_of_a_pool_of_threads_works_in_the_thread_that_asks():
    with _ThisThread(max_workers=1) as pool:
        assert pool.map(lambda item: (item, threading.current_thread()), ["a", "b"]) == [("a", threading.main_thread())]
