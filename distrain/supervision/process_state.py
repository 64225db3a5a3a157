"""What the kernel and py-spy can say of a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessState", "catches", "native_stack", "num_threads", "process_state"]

_STATES = {
    "R": "busy on a core",
    "S": "sleeping",
    "D": "stuck in the kernel",
    "Z": "ended, not collected yet",
    "X": "ended",
    "t": "stopped by a debugger",
    "I": "idle",
}
_EXIT_CODE = 51  # of /proc/<pid>/stat, from 0: since Linux 5.15 the signal that stopped it, while it is stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """What a process is doing, as its kernel tells (proc(5)).

    Args:
        pid: The process.
        state: The letter of /proc/<pid>/stat of its main thread: R S D T t Z.
        wchan: The kernel's function that it waits in, "" when it runs or the kernel does not tell.
        stop_signal: The signal that stopped it, such as `SIGSTOP`; "" when it is not stopped or that is unknown.
    """

    pid: int
    state: str
    wchan: str
    stop_signal: str = ""

    @property
    def is_stopped(self) -> bool:
        """Whether a signal stopped it; SIGCONT lets it go on."""
        return self.state == "T"

    @property
    def words(self) -> str:
        """A few words for a report, such as `process stopped by a signal, SIGSTOP`."""
        if self.is_stopped:
            return f"process stopped by a signal, {self.stop_signal or 'such as SIGSTOP'}"
        words = _STATES.get(self.state, f"in state {self.state}")
        return f"process {words}, in {self.wchan}" if self.state in "SD" and self.wchan else f"process {words}"


def process_state(pid: int) -> ProcessState | None:
    """Return what a process of this host is doing, None when there is none or the system has no /proc (macOS).

    Args:
        pid: The process.
    """
    folder = Path("/proc", str(pid))
    try:
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    try:
        wchan = (folder / "wchan").read_text().strip("0\n")
    except OSError:
        wchan = ""
    state = fields[0]
    stop_signal = _signal_name(fields[_EXIT_CODE - 2 :][:1]) if state == "T" else ""
    return ProcessState(pid=pid, state=state, wchan=wchan, stop_signal=stop_signal)


def _signal_name(number: list[str]) -> str:
    try:
        return signal.Signals(int(number[0])).name
    except (IndexError, ValueError):
        return ""


def catches(pid: int, signum: int) -> bool:
    """Whether a process has a handler for a signal; one without would die of it.

    Args:
        pid: A process of this host.
        signum: The signal.

    Returns:
        False also where there is no /proc to tell.
    """
    try:
        status = Path("/proc", str(pid), "status").read_text(errors="replace")
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)


def native_stack(pid: int, timeout_s: float = 5.0) -> str | None:
    """Return the stack of a process with its native frames, by py-spy (https://github.com/benfred/py-spy).

    py-spy refuses `--nonblocking` together with `--native`, and pausing a process that is stopped already fails: then
    it reads the Python frames alone.

    Args:
        pid: A process of this user.
        timeout_s: How long py-spy may take, in seconds.

    Returns:
        What `py-spy dump` prints; None when py-spy is not installed, may not look (ptrace), or takes too long.
    """
    beside_python = Path(sys.executable).with_name("py-spy")
    program = shutil.which("py-spy") or (str(beside_python) if os.access(beside_python, os.X_OK) else None)
    if program is None:
        return None
    state = process_state(pid)
    ways = ["--nonblocking"] if state and state.is_stopped else ["--native", "--nonblocking"]
    for way in ways:
        command = [program, "dump", way, "--pid", str(pid)]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout.decode(errors="replace")
    return None


def num_threads() -> int:
    """Return the number of threads of this process, those of C libraries included (Linux; else Python's own)."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        import threading

        return threading.active_count()
