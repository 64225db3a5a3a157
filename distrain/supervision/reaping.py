"""No process outlives the one that answers for it: parent-death signals, adoption of orphans, and reaping.

Linux offers both through `prctl(2)`. Where it is missing (macOS) the calls do nothing, and what is left to
clean up is cleaned up only as long as the supervisor itself lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from distrain.supervision.cleaners import cleans_up, socket_folder

__all__ = [
    "adopt_orphans",
    "descendants",
    "die_with_parent",
    "kill_descendants",
    "outlive_parent",
    "reap",
    "signal_at_parents_end",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_CLEANERS_S = 0.5
"""How long those that clean up behind the others may go on after these."""


def _prctl(option: int, value: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however the parent ends.

    Args:
        parent_pid: The parent's pid, taken before this process was made; when it is gone already, this
            process ends at once.
    """
    signal_at_parents_end(signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(128 + signal.SIGKILL)


def signal_at_parents_end(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends; it may have ended already.

    Args:
        number: The signal; 0 for none.
    """
    _prctl(_PR_SET_PDEATHSIG, number)


def outlive_parent(parent_pid: int) -> None:
    """Take `die_with_parent` back, for a process that has something to clean up first.

    Args:
        parent_pid: As for `die_with_parent`; when the parent is gone already, this process ends at once.
    """
    signal_at_parents_end(0)
    if os.getppid() != parent_pid:
        os._exit(128 + signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends (a child subreaper)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _parents() -> dict[int, int]:
    """Return the parent of every process of this machine that /proc shows."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
    return parents


def descendants(pid: int) -> Iterator[int]:
    """Yield the pids of every descendant of `pid`, nearest generation first.

    Args:
        pid: The process to start from; it is not part of the answer.
    """
    parents = _parents()
    generation = {pid}
    while generation:
        generation = {child for child, parent in parents.items() if parent in generation}
        yield from sorted(generation)


def reap() -> Iterator[tuple[int, int]]:
    """Collect every child that has ended, without waiting.

    Yields:
        Its pid and its exit code; the code is -S when signal S ended it.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def kill_descendants(
    *,
    spare: frozenset[int] = frozenset(),
    deadline_s: float = 10.0,
    tell: Callable[[int, int], object] | None = None,
) -> list[int]:
    """Kill every descendant of this process and collect them, orphans included after `adopt_orphans()`.

    Those that clean up behind the others are left a moment for it.

    Args:
        spare: Descendants that are not ours to kill, by pid.
        deadline_s: How long to wait for the kernel to let them go.
        tell: Called with the pid and the exit code of each child that is collected meanwhile, as `reap` yields them;
            one that was spared may end just then.

    Returns:
        The pids that would not go, stuck inside the kernel; almost always none.
    """
    deadline = time.monotonic() + deadline_s
    others_s = time.monotonic()
    folders: set[Path] = set()
    while left := [pid for pid in descendants(os.getpid()) if pid not in spare]:
        cleaners = {pid for pid in left if cleans_up(pid)}
        folders |= {folder for pid in cleaners if (folder := socket_folder(pid)) is not None}
        now = time.monotonic()
        if cleaners != set(left):
            others_s = now
        may_clean = cleaners if now - others_s < _CLEANERS_S and now < deadline else set()
        for pid in left:
            if pid not in may_clean:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        for ended in reap():
            if tell is not None:
                tell(*ended)
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return left
