"""Every exception distrain raises on purpose.

    DistrainError                  anything below; catch this one to catch all
    ├── UsageError                 wrong use, said in one line (exit code 2)
    │   └── RunDirError            the run directory cannot be used: unwritable, owned by a live run
    ├── LaunchError                the launcher itself could not start or keep its workers
    │   └── PreemptedError         every worker was asked to end, and has saved its state (the launcher's own)
    ├── RuntimeStateError          the process group, the rank or the device is not what the call needs
    ├── CheckpointError            a checkpoint is unreadable, incomplete or belongs to something else
    │   └── SupersededError        another launch trains in the directory since, and this one may not write there
    └── NonFiniteLossError         a loss is nan or infinite, and the trainer was told to raise

    SystemExit                     Python's own, no error
    └── StoppedBySignal            the trainer was asked to stop, did so between two steps, and its state is saved

A message says what was got, what is valid and what to do next. Plain mistakes in a call's arguments stay
`ValueError` and `TypeError`, as everywhere in Python.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "EXIT_PREEMPTED",
    "CheckpointError",
    "DistrainError",
    "LaunchError",
    "NonFiniteLossError",
    "PreemptedError",
    "RunDirError",
    "RuntimeStateError",
    "StoppedBySignal",
    "SupersededError",
    "UsageError",
    "did_you_mean",
]


EXIT_PREEMPTED = 75
"""The exit code that says: asked to end, the state is saved, queue me again (EX_TEMPFAIL of sysexits.h)."""

EXIT_CODES = {signal.SIGTERM: EXIT_PREEMPTED, signal.SIGUSR2: EXIT_PREEMPTED, signal.SIGINT: 130}
"""The signals that stop a trainer, and the exit code after each; where ranks got several, the first here counts.

SIGUSR2 is what Slurm is asked to send ahead of the time limit: libraries of the ranks catch SIGUSR1."""


class DistrainError(Exception):
    """The root of the tree drawn above."""


class UsageError(DistrainError):
    """The command line, the environment or a file says something that cannot be done."""


class RunDirError(UsageError):
    """The run directory cannot be created, written or taken over."""


class LaunchError(DistrainError):
    """The launcher could not start its workers, or lost the means to watch them."""


class PreemptedError(LaunchError):
    """Every worker was asked to end, and has saved its state: how the agent comes to know of it."""


class RuntimeStateError(DistrainError, RuntimeError):
    """A call came at a time, on a rank or on a device where it cannot work."""


class CheckpointError(DistrainError):
    """A checkpoint cannot be written, read or applied."""


class SupersededError(CheckpointError):
    """Another launch has begun to train in the same checkpoint directory, so this one may write no more."""


class NonFiniteLossError(DistrainError, ArithmeticError):
    """A loss is nan or infinite."""


class StoppedBySignal(SystemExit):
    """The end of a process whose trainer stopped at a signal, with its state saved: exit code 75 or 130.

    `with distrain.init()` takes it for a good end, since every rank stops after the same iteration.

    Args:
        number: The signal, one of `EXIT_CODES`.
        step: The iteration after which the trainer stopped.
        path: The checkpoint of it.
    """

    def __init__(self, number: signal.Signals, step: int, path: Path) -> None:
        super().__init__(EXIT_CODES[number])
        self.number = number
        self.step = step
        self.path = path


_SYNONYMS = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "tpu": "xla"}


def did_you_mean(got: str, valid: Iterable[str], *, most: int = 3) -> str:
    """Return ` Did you mean …?` for the names nearest to `got`, or nothing when none is near.

    Another word for the same thing is nearer than one that is spelt alike.

    Args:
        got: The unknown name.
        valid: The names that would have been right.
        most: How many to offer, nearest first.
    """
    names = list(valid)
    meant = [name for name in names if name == _SYNONYMS.get(got.lower())]
    nearest = meant or difflib.get_close_matches(got, names, n=most, cutoff=0.6)
    return f" Did you mean {' or '.join(nearest)}?" if nearest else ""
