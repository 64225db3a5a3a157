"""Every exception distrain raises on purpose.

    DistrainError                  anything below; catch this one to catch all
    ├── UsageError                 wrong use, said in one line (exit code 2)
    │   └── RunDirError            the run directory cannot be used: unwritable, owned by a live run
    ├── LaunchError                the launcher itself could not start or keep its workers
    ├── RuntimeStateError          the process group, the rank or the device is not what the call needs
    ├── CheckpointError            a checkpoint is unreadable, incomplete or belongs to something else
    └── NonFiniteLossError         a loss is nan or infinite, and the trainer was told to raise

A message says what was got, what is valid and what to do next. Plain mistakes in a call's arguments stay
`ValueError` and `TypeError`, as everywhere in Python.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DistrainError",
    "LaunchError",
    "NonFiniteLossError",
    "RunDirError",
    "RuntimeStateError",
    "UsageError",
    "did_you_mean",
]


class DistrainError(Exception):
    """The root of the tree drawn above."""


class UsageError(DistrainError):
    """The command line, the environment or a file says something that cannot be done."""


class RunDirError(UsageError):
    """The run directory cannot be created, written or taken over."""


class LaunchError(DistrainError):
    """The launcher could not start its workers, or lost the means to watch them."""


class RuntimeStateError(DistrainError, RuntimeError):
    """A call came at a time, on a rank or on a device where it cannot work."""


class CheckpointError(DistrainError):
    """A checkpoint cannot be written, read or applied."""


class NonFiniteLossError(DistrainError, ArithmeticError):
    """A loss is nan or infinite."""


def did_you_mean(got: str, valid: Iterable[str], *, most: int = 3) -> str:
    """Return ` Did you mean …?` for the names nearest to `got`, or nothing when none is near.

    Args:
        got: The unknown name.
        valid: The names that would have been right.
        most: How many to offer, nearest first.
    """
    nearest = difflib.get_close_matches(got, list(valid), n=most, cutoff=0.6)
    return f" Did you mean {' or '.join(nearest)}?" if nearest else ""
