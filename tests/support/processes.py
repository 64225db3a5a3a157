"""Real processes under test: run one with a deadline, wait on a condition, look at a tree of them.

Everything reads /proc, because a test must see what the kernel sees, also of processes that are nobody's child.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = [
    "Finished",
    "Process",
    "children",
    "descendants",
    "free_port",
    "is_alive",
    "kill_all",
    "process_table",
    "run",
    "wait_until",
]

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]


def wait_until(condition: Callable[[], T], deadline_s: float, *, what: str | None = None, poll_s: float = 0.02) -> T:
    """Return the first true value of `condition`.

    Args:
        condition: Asked again and again until its value is true.
        deadline_s: How long to ask.
        what: What is waited for, for the error's text; the condition's name by default.
        poll_s: The pause between two questions.

    Raises:
        TimeoutError: The deadline passed. The text holds the last value.
    """
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            name = what or getattr(condition, "__name__", repr(condition))
            raise TimeoutError(f"{name} did not come true within {deadline_s} s; the last value was {value!r}")
        time.sleep(poll_s)


def free_port() -> int:
    """Return a TCP port of this host that is free, below those that the kernel gives out to other tests meanwhile."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(first // 2, first)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One line of the process table."""

    pid: int
    ppid: int
    group: int
    session: int
    state: str
    started: int
    """Clock ticks since boot; with the pid it names a process for good."""
    name: str

    @property
    def command(self) -> str:
        """The whole command line, or the bare name where there is none left."""
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            words = []
        return b" ".join(words).decode(errors="replace").strip() or f"[{self.name}]"

    @property
    def is_zombie(self) -> bool:
        return self.state in "ZX"


def read_process(pid: int) -> Process | None:
    """Return what /proc says about `pid`, or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return Process(
        pid=pid,
        ppid=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        state=fields[0],
        started=int(fields[19]),
        name=name,
    )


def process_table() -> dict[int, Process]:
    """Return every process of this pid namespace, zombies too."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return {pid: process for pid in pids if (process := read_process(pid)) is not None}


def children(pid: int) -> list[Process]:
    """Return the direct children of `pid`, zombies too."""
    return [process for process in process_table().values() if process.ppid == pid]


def descendants(pid: int) -> list[Process]:
    """Return the children of `pid`, their children and so on, zombies left out."""
    by_parent: dict[int, list[Process]] = {}
    for process in process_table().values():
        by_parent.setdefault(process.ppid, []).append(process)
    found, parents = [], [pid]
    while parents:
        for process in by_parent.get(parents.pop(), []):
            parents.append(process.pid)
            if not process.is_zombie:
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def is_alive(pid: int) -> bool:
    """Whether `pid` still runs. A zombie does not: it only waits for its parent to look."""
    process = read_process(pid)
    return process is not None and not process.is_zombie


def kill_all(processes: Iterable[Process], *, deadline_s: float = 10) -> None:
    """SIGKILL each of `processes` that is still the one seen, and wait until it is gone."""
    processes = list(processes)
    for process in processes:
        now = read_process(process.pid)
        if now is not None and now.started == process.started and not now.is_zombie:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    wait_until(lambda: not any(is_alive(process.pid) for process in processes), deadline_s, what="killed processes end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A command that ended.

    Args:
        args: The command.
        returncode: Its exit code, negative for a signal.
        stdout: All it printed.
        stderr: All it complained about.
        seconds: Wall time from start to exit.
    """

    args: Sequence[str]
    returncode: int
    stdout: str
    stderr: str
    seconds: float

    def check(self, returncode: int = 0) -> Finished:
        """Return self, or fail with the whole output when the exit code is another."""
        assert self.returncode == returncode, (
            f"{' '.join(self.args)}\nexit code {self.returncode}, expected {returncode}\n"
            f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"
        )
        return self


def run(
    args: Sequence[str | os.PathLike[str]],
    *,
    deadline_s: float = 110,
    env: Mapping[str, str | None] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: int | None = subprocess.DEVNULL,
) -> Finished:
    """Run a command to its end in a session of its own and return what it printed.

    Its output goes to files, so a descendant that keeps the pipe open cannot hold the test up.

    Args:
        args: The command; no shell.
        deadline_s: After it the command and everything it started is killed.
        env: Changes to this process's environment; None removes a variable.
        cwd: Where it runs.
        stdin: As for `subprocess.Popen`.

    Raises:
        TimeoutError: The deadline passed. The text holds the output so far.
    """
    words = [os.fspath(word) for word in args]
    whole = {key: value for key, value in {**os.environ, **(env or {})}.items() if value is not None}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        process = subprocess.Popen(
            words, stdin=stdin, stdout=out, stderr=err, env=whole, cwd=cwd, start_new_session=True
        )
        try:
            process.wait(deadline_s)
        except BaseException as exc:
            tree = descendants(process.pid)
            listing = "\n".join(f"{each.pid} {each.state} {each.command}" for each in tree)
            process.kill()
            process.wait()
            kill_all(tree)
            if isinstance(exc, subprocess.TimeoutExpired):
                raise TimeoutError(
                    f"{' '.join(words)}\nstill ran after {deadline_s} s\n--- descendants\n{listing}\n"
                    f"--- stdout\n{_read(out)}\n--- stderr\n{_read(err)}"
                ) from None
            raise
        return Finished(
            args=words,
            returncode=process.returncode,
            stdout=_read(out),
            stderr=_read(err),
            seconds=time.monotonic() - began,
        )


def _read(file: tempfile._TemporaryFileWrapper[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
