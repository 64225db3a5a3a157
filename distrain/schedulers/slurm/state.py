"""What Slurm says of a job: its state and its exit code, by way of scontrol."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

__all__ = ["JobState", "ask", "parse"]

_OVER = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
    "OUT_OF_MEMORY",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """A job's state.

    Args:
        state: Slurm's name of it.
        code: The batch script's exit code.
        signal: The signal that ended it, else 0.
        reason: Why it waits, or ended.
    """

    state: str
    code: int
    signal: int
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and is not queued again."""
        return self.state in _OVER

    @property
    def exit_code(self) -> int:
        """The exit code as a shell has it: 128+S after signal S, and never 0 for a job that did not complete."""
        code = 128 + self.signal if self.signal else self.code
        return code if self.state == "COMPLETED" else code or 1


def parse(text: str) -> JobState | None:
    """Return the state that `scontrol show job --oneliner` tells, None where it tells none.

    Args:
        text: What it printed.
    """
    state = re.search(r" JobState=(\w+)", text)
    code = re.search(r" ExitCode=(\d+):(\d+)", text)
    reason = re.search(r" Reason=(\S+)", text)
    if state is None or code is None:
        return None
    return JobState(
        state=state[1],
        code=int(code[1]),
        signal=int(code[2]),
        reason="" if reason is None or reason[1] == "None" else reason[1],
    )


def ask(job: str, cluster: str = "") -> JobState | None:
    """Return a job's state; None where Slurm does not answer or has forgotten the job.

    Args:
        job: Its id.
        cluster: Its cluster, "" for the one here.
    """
    there = [f"--clusters={cluster}"] if cluster else []
    words = ["scontrol", *there, "show", "job", "--oneliner", job]
    try:
        told = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse(told.stdout)
