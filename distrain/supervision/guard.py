"""A guard above the process that forks a run's ranks: it ends what two deaths at once would leave behind.

    supervisor ── guard ── fork server ──┬─ agent
                                         └─ ranks ── what they start

An orphan goes to the nearest subreaper above it, so each of the three at the left can end all that is to its right.
One command may kill two of them before either has acted on the other's end: `pkill -9 -f distrain` matches supervisor
and fork server. The guard has a name that nothing else has, and does nothing but wait for that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

from distrain.supervision.process_state import num_threads
from distrain.supervision.reaping import (
    adopt_orphans,
    die_with_parent,
    kill_descendants,
    reap,
    signal_at_parents_end,
)

__all__ = ["NAME", "guarded"]

NAME = "run-guard"
"""What `top` shows, and how the command line in `ps` begins. It must not resemble what else a run consists of."""

_ENV_GUARD = "_DISTRAIN_GUARD"
"""The environment variable that tells a process its guard, when it begins anew below it."""

_PARENT_ENDED = signal.SIGUSR1


def guarded(parent_pid: int) -> int:
    """Go on in a child, in a session of its own, and leave its parent as the guard, in the session there was.

    The guard hears no signal but SIGKILL. The child dies with it until it takes that back (`outlive_parent`): as long
    as nothing else is running, the guard is no less needed than the child.

    To be called early, as what is in memory by then stays there twice. A fork has one thread: where there are others,
    begun by a .pth file or sitecustomize, the child is a fresh interpreter with the same command line.

    Args:
        parent_pid: The parent until now, which the guard watches; when it is gone already, this process ends at once.

    Returns:
        The pid of the parent from now on: the guard, or who was it before where orphans are not handed on (macOS).
    """
    if not sys.platform.startswith("linux"):
        die_with_parent(parent_pid)
        return parent_pid
    if guard := os.environ.pop(_ENV_GUARD, ""):
        die_with_parent(int(guard))
        return int(guard)
    adopt_orphans()
    guard_pid = os.getpid()
    has_threads = num_threads() > 1
    child_pid = os.fork()
    if child_pid != 0:
        _stand_guard(child_pid, parent_pid)
    os.setsid()
    die_with_parent(guard_pid)
    if has_threads:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, _ENV_GUARD: str(guard_pid)})  # noqa: S606 - no shell
    return guard_pid


def _stand_guard(child_pid: int, parent_pid: int) -> NoReturn:
    """Wait until the child or the parent has ended, then end all descendants, and this process as the child ended."""
    _let_go()
    wake_fd = _hear_of_ends_alone()
    _rename(parent_pid)
    ended = dict(reap())
    while child_pid not in ended and os.getppid() == parent_pid:
        os.read(wake_fd, 4096)
        ended.update(reap())
    kill_descendants(tell=ended.__setitem__)
    code = ended.get(child_pid, -signal.SIGKILL)
    os._exit(code if code >= 0 else 128 - code)


def _hear_of_ends_alone() -> int:
    """Ignore every signal but those that tell of an end; return what becomes readable at one of these.

    It works as well where other threads take the signals, as `sigwait` would not.
    """
    wake_fd, signal_fd = os.pipe()
    os.set_blocking(signal_fd, False)
    signal.set_wakeup_fd(signal_fd, warn_on_full_buffer=False)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError):  # SIGKILL and SIGSTOP
            signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGCHLD, _PARENT_ENDED):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal_at_parents_end(_PARENT_ENDED)
    return wake_fd


def _let_go() -> None:
    """Close what the child talks by: while it is open here, nobody would notice that the child has closed it."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > sys.stderr.fileno():
            with contextlib.suppress(OSError):  # the folder's own is closed already
                os.close(fd)


def _rename(parent_pid: int) -> None:
    import setproctitle

    setproctitle.setproctitle(f"{NAME}: ends what is left when process {parent_pid} is killed")
    setproctitle.setthreadtitle(NAME)
