"""Signals for a process that is the first of its container, pid 1, which the kernel protects.

A signal whose action is the default one does nothing to it: `docker stop` would wait its ten seconds and kill. From the
start, and for commands that take no signal over, this does what the default action would have done.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

__all__ = ["end_at_signals", "is_first_process"]

ENDING = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)
"""What asks a program to end; Python takes SIGINT over itself."""


def is_first_process() -> bool:
    """Whether this process is the first of its pid namespace, as a container's entry point is."""
    return os.getpid() == 1


def end_at_signals() -> None:
    """End at the signals that would have ended another process; those that are ignored (nohup) stay ignored."""
    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
