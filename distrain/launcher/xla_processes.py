"""What makes a process of torch_xla's pool behave as one that a launcher has started: its main thread, its end."""

from __future__ import annotations

import atexit
import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any

from distrain.errors import StoppedBySignal
from distrain.launcher import bootstrap
from distrain.launcher.protocol import WorkerJob

__all__ = ["Children", "end", "in_the_main_thread", "run_to_its_end"]

_LOOK_S = 0.02


def in_the_main_thread() -> None:
    """Have torch_xla call the program in this process's main thread, not in a thread for each device.

    Signal handlers can be set in the main thread alone, Ctrl-C arrives there, and it is the one whose stack is shown. A
    process with several devices, which needs the threads, cannot be one rank: that is found out when it is called.
    """
    from torch_xla._internal import pjrt

    assert pjrt.concurrent.futures.ThreadPoolExecutor is concurrent.futures.ThreadPoolExecutor, "torch_xla has changed"
    futures = types.SimpleNamespace(**{**vars(concurrent.futures), "ThreadPoolExecutor": _ThisThread})
    futures.ProcessPoolExecutor = concurrent.futures.ProcessPoolExecutor  # which the module loads when it is asked for
    pjrt.concurrent = types.SimpleNamespace(futures=futures)


class _ThisThread:
    """Takes the place of a pool of threads, and does the work of the first at once."""

    def __init__(self, max_workers: int) -> None:
        del max_workers

    def __enter__(self) -> _ThisThread:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[[Any], Any], of: Iterable[Any]) -> list[Any]:
        return [function(next(iter(of)))]


class Children:
    """Tells how the processes of a pool end, which are this process's children.

    Args:
        tell: Called with the pid and the exit code of each, -S when signal S ended it.
    """

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell
        self._living: dict[int, multiprocessing.process.BaseProcess] = {}
        self._looking = threading.Lock()
        self._has_stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """Tell the last ends; all children have ended."""
        self._has_stopped.set()
        self._look()

    def _watch(self) -> None:
        while not self._has_stopped.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        with self._looking:
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    self._living.setdefault(child.pid, child)
            ended = {pid: child.exitcode for pid, child in self._living.items() if child.exitcode is not None}
            # When one has died the pool ends the others by SIGTERM, so those come last.
            for pid, code in sorted(ended.items(), key=lambda end: end[1] == -signal.SIGTERM):
                del self._living[pid]
                self._tell(pid, code)


def run_to_its_end(worker: WorkerJob, problem: str) -> tuple[int, bool]:
    """Run the program where its end must not be the process's.

    Args:
        worker: The rank.
        problem: As for `bootstrap.run`.

    Returns:
        The exit code that the process would have had, -S for the end by signal S; and whether it has ended in order,
        so that no other rank waits for it.
    """
    try:
        bootstrap.run(worker, problem)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0, not error.code or isinstance(error, StoppedBySignal)
        print(error.code, file=sys.stderr)
        return 1, False
    except BaseException as error:  # noqa: BLE001 - as the interpreter itself does
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1, False
    return 0, True


def end(code: int) -> None:
    """End this process as an interpreter ends, without going back to what has called the program.

    Args:
        code: The exit code, -S for the end by signal S.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 - nothing else in Python runs them here
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        signal.raise_signal(-code)
    os._exit(code & 0xFF)
