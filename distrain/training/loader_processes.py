"""The processes of torch's DataLoader while a run may be stopped by a signal.

A scheduler signals every process of a job, and launchers the whole process group of a rank. A DataLoader's process that
dies of it takes the rank along before it has saved its state, so while the trainer runs these processes leave such
signals to their rank. Those that live on behind the run (`persistent_workers`, an iterator that was left half read) end
at one again: `multiprocessing` ends them so when the rank exits, and waits for it without limit.

Whether the trainer runs stands in a byte that the rank shares with them.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from types import FrameType
from typing import Any

from torch.utils.data._utils import signal_handling, worker

from distrain.errors import EXIT_CODES

__all__ = ["left_alone"]

_torchs_loop = worker._worker_loop  # noqa: SLF001  # torch has no public place between the fork and its own handlers


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Have the processes that DataLoaders start meanwhile bear the signals that stop a trainer, until it is over."""
    before, loop = worker._worker_loop, _loop_of(os.getpid())  # noqa: SLF001
    worker._worker_loop = loop  # noqa: SLF001
    loop.running += 1
    try:
        yield
    finally:
        loop.running -= 1
        worker._worker_loop = before  # noqa: SLF001


class _Loop:
    """What a DataLoader's process runs. It is forked with it, or gets it pickled, while it is started.

    Args:
        file: The descriptor of the shared byte.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._shared = mmap.mmap(file, 1)

    @property
    def running(self) -> int:
        """How many runs of the rank go on, one inside the other."""
        return self._shared[0]

    @running.setter
    def running(self, number: int) -> None:
        self._shared[0] = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        torchs = vars(signal_handling)["_set_worker_signal_handlers"]

        def set_handlers() -> None:
            torchs()
            for number in EXIT_CODES:
                signal.signal(number, self._come)  # a function, which the programs that it starts do not inherit

        vars(signal_handling)["_set_worker_signal_handlers"] = set_handlers
        return _torchs_loop(*args, **kwargs)

    def _come(self, _number: int, _frame: FrameType | None) -> None:
        if not self.running:
            os._exit(0)  # as torch's own handler does: another code would be an error in the rank

    def __reduce__(self) -> tuple[Callable[[Any], _Loop], tuple[Any]]:
        return _received, (reduction.DupFd(self._file),)


def _received(file: Any) -> _Loop:
    return _Loop(file.detach())


@functools.lru_cache(maxsize=1)
def _loop_of(_pid: int) -> _Loop:
    """Return this process's own: it has none of a process that it was forked from."""
    with tempfile.TemporaryFile() as file:
        file.truncate(1)
        return _Loop(os.dup(file.fileno()))
