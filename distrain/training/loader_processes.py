"""The processes of torch's DataLoader while a run may be stopped by a signal.

A scheduler signals every process of a job, and launchers the whole process group of a rank. A DataLoader's process that
dies of it takes the rank along before it has saved its state, so these processes leave such signals to their rank. They
end with it, as always: they look after it every few seconds.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch.utils.data._utils import signal_handling, worker

from distrain.errors import EXIT_CODES

__all__ = ["left_alone"]

_torchs_loop = worker._worker_loop  # noqa: SLF001  # torch has no public place between the fork and its own handlers


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Have the processes that DataLoaders start meanwhile bear the signals that stop a trainer."""
    before = worker._worker_loop  # noqa: SLF001
    worker._worker_loop = _loop  # noqa: SLF001
    try:
        yield
    finally:
        worker._worker_loop = before  # noqa: SLF001


def _loop(*args: Any, **kwargs: Any) -> Any:
    """Be a DataLoader's process. It is found by its name in a process that was not forked."""
    torchs = vars(signal_handling)["_set_worker_signal_handlers"]

    def set_handlers() -> None:
        torchs()
        for number in EXIT_CODES:
            signal.signal(number, _leave_to_the_rank)  # a function, which the programs that it starts do not inherit

    vars(signal_handling)["_set_worker_signal_handlers"] = set_handlers
    return _torchs_loop(*args, **kwargs)


def _leave_to_the_rank(_number: int, _frame: FrameType | None) -> None:
    pass
