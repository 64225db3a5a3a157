"""What a test may not leave behind: seen before it, seen after it, the difference is its leak.

The test process makes itself the reaper of orphans (`PR_SET_CHILD_SUBREAPER`), so a process that outlives the
command that started it comes back here as a child, and counts. One consequence for tests: such an orphan stays a
zombie until the end of the test; ask `processes.is_alive`, which knows that a zombie does not run.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Process, children, kill_all

__all__ = ["Snapshot", "adopt_orphans", "clean_up", "lasting_process", "leaks_since"]

PR_SET_CHILD_SUBREAPER = 36
LISTENING = "0A"
OWN_VARIABLES = {"PYTEST_CURRENT_TEST"}
OWN_SIGNALS = {signal.SIGALRM}  # pytest-timeout's
PATIENCE_S = 10.0

_lasting: set[int] = set()


def lasting_process(pid: int) -> None:
    """Say that the child `pid` belongs to the whole test run: a server that several tests share."""
    _lasting.add(pid)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of this process that a test must hand back as it was."""

    environment: dict[str, str]
    threads: frozenset[threading.Thread]
    processes: frozenset[tuple[int, int]]
    ports: frozenset[str]
    signals: dict[int, object]
    directory: str
    start_method: str | None
    process_group: bool

    @classmethod
    def take(cls) -> Snapshot:
        return cls(
            environment={key: value for key, value in os.environ.items() if key not in OWN_VARIABLES},
            threads=frozenset(threading.enumerate()),
            processes=frozenset((child.pid, child.started) for child in children(os.getpid())),
            ports=listening_ports(),
            signals={number: signal.getsignal(number) for number in signal.valid_signals() - OWN_SIGNALS},
            directory=os.getcwd(),
            start_method=multiprocessing.get_start_method(allow_none=True),
            process_group=has_process_group(),
        )


def listening_ports() -> frozenset[str]:
    """Return the TCP ports that this very process listens on, as `port` texts."""
    mine = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            mine.add(target[8:-1])
    found = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        if not os.path.exists(table):
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in mine:
                found.add(str(int(fields[1].rpartition(":")[2], 16)))
    return frozenset(found)


def has_process_group() -> bool:
    """Whether torch.distributed has a process group here; never imports torch to find out."""
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed is not None and distributed.is_available() and distributed.is_initialized())


def leaks_since(before: Snapshot) -> list[str]:
    """Return one line for each thing that is there now and was not at `before`.

    What only takes a moment to go (a thread that ends, a child that is being reaped, a socket that the garbage
    collector closes) is waited for, `PATIENCE_S` at most.

    Args:
        before: What was there when the test began.
    """
    end = time.monotonic() + PATIENCE_S
    passing = _passing_leaks(before)
    while passing and time.monotonic() < end:
        gc.collect()
        time.sleep(0.02)
        passing = _passing_leaks(before)
    return [*_state_leaks(before), *passing]


def _state_leaks(before: Snapshot) -> list[str]:
    now = {key: value for key, value in os.environ.items() if key not in OWN_VARIABLES}
    found = [
        f"environment variable {key}: {before.environment.get(key)!r} became {now.get(key)!r}"
        for key in sorted(now.keys() | before.environment.keys())
        if now.get(key) != before.environment.get(key)
    ]
    for number, handler in before.signals.items():
        if signal.getsignal(number) != handler:
            found.append(f"handler of {signal.Signals(number).name}: {handler!r} became {signal.getsignal(number)!r}")
    if os.getcwd() != before.directory:
        found.append(f"working directory: {before.directory} became {os.getcwd()}")
    method = multiprocessing.get_start_method(allow_none=True)
    if method != before.start_method and before.start_method is not None:
        found.append(f"multiprocessing start method: {before.start_method!r} became {method!r}")
    if has_process_group() and not before.process_group:
        found.append("torch.distributed process group: still initialized")
    return found


def _passing_leaks(before: Snapshot) -> list[str]:
    found = [
        f"thread {thread.name!r} ({'daemon' if thread.daemon else 'not a daemon'})"
        for thread in threading.enumerate()
        if thread not in before.threads
    ]
    found += [f"process {child.pid} (group {child.group}): {child.command}" for child in _new_children(before)]
    found += [f"listening TCP port {port}" for port in sorted(listening_ports() - before.ports)]
    return found


def _new_children(before: Snapshot) -> list[Process]:
    found = []
    for child in children(os.getpid()):
        if (child.pid, child.started) in before.processes or child.pid in _lasting | _resource_tracker():
            continue
        if child.is_zombie:
            _reap(child.pid)
        else:
            found.append(child)
    return found


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _resource_tracker() -> set[int]:
    """The pid of multiprocessing's own helper, which lives as long as this process."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    pid = module._resource_tracker._pid if module is not None else None
    return set() if pid is None else {pid}


def clean_up(before: Snapshot) -> None:
    """Put back what can be put back, so that one leaking test does not fail the next one too."""
    kill_all(_new_children(before))
    _new_children(before)  # reaps them
    os.chdir(before.directory)
    for number, handler in before.signals.items():
        if signal.getsignal(number) != handler and (callable(handler) or isinstance(handler, int)):
            signal.signal(number, handler)  # type: ignore[arg-type]
    for key in list(os.environ):
        if key not in before.environment and key not in OWN_VARIABLES:
            del os.environ[key]
    os.environ.update(before.environment)
    if has_process_group() and not before.process_group:
        sys.modules["torch.distributed"].destroy_process_group()
