"""The failure report: which rank brought the run down, what it said, and where to read on.

The report is made from values; finding them (exit codes, the recorded exception, the end of the log) and
showing the result is the supervisor's part.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Exit", "Failure", "describe", "find_root_cause", "render", "summary", "to_json"]

_LOG_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How one worker ended.

    Args:
        rank: Global rank.
        attempt: The round of workers it belonged to.
        pid: Its process id.
        exit_code: Its exit code; -S when signal S ended it.
        monotonic_ns: When it was collected, on this host's monotonic clock, in nanoseconds.
    """

    rank: int
    attempt: int
    pid: int
    exit_code: int
    monotonic_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The root cause of a failed attempt, with what is known about it.

    Args:
        rank: The rank that failed first.
        host: Where it ran.
        kind: The exception's type, `exit code N` or the signal's name.
        message: What the exception said, or what the signal means.
        exit_code: The worker's exit code; -S when signal S ended it.
        pid: Its process id.
        attempt: The round of workers it belonged to.
        traceback: Its uncaught exception's, "" when there was none.
        log_tail: The last lines it wrote to standard error, oldest first.
        log_path: The file they come from.
        others: Rank to exit code, of those that ended badly after it, without our doing.
    """

    rank: int
    host: str
    kind: str
    message: str
    exit_code: int
    pid: int
    attempt: int
    traceback: str
    log_tail: Sequence[str]
    log_path: str
    others: Mapping[int, int] = field(default_factory=dict)


def find_root_cause(exits: Sequence[Exit], raised_ns: Mapping[int, int]) -> Exit | None:
    """Return the exit that came first among the bad ones.

    A rank that raised failed when it raised, also with `sys.exit(1)`: it may still have been ending while its peers,
    cut off from it, were gone already.

    Args:
        exits: The exits of one attempt, but for those we asked for.
        raised_ns: Rank to the moment its uncaught exception was raised, on the same clock.
    """
    bad = [end for end in exits if end.exit_code != 0]
    return min(bad, key=lambda end: raised_ns.get(end.rank, end.monotonic_ns), default=None)


def describe(exit_code: int, exception: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return the kind and the message of a failure.

    Args:
        exit_code: The worker's; -S when signal S ended it.
        exception: What `bootstrap` recorded of its uncaught exception, if it had one; also of a SystemExit.
    """
    if exit_code < 0:
        name = signal_name(-exit_code)
        return name, _SIGNALS.get(name, "ended by this signal")
    if exception is not None and exception["type"] != "SystemExit":
        return str(exception["type"]), str(exception["message"]).strip().split("\n", 1)[0]
    return f"exit code {exit_code}", "the program ended itself with this code"


def signal_name(number: int) -> str:
    """Return `SIGTERM` for 15; real-time signals have only their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_SIGNALS = {
    "SIGKILL": "killed from outside; often the kernel, out of memory (see dmesg), or a scheduler",
    "SIGSEGV": "segmentation fault, in native code",
    "SIGABRT": "aborted by native code; its last words are on standard error",
    "SIGBUS": "bus error; often a full /dev/shm or a file cut short under a memory map",
    "SIGTERM": "asked to end from outside",
    "SIGINT": "interrupted",
}


def summary(failure: Failure) -> str:
    """Return the root cause in one line."""
    return f"root cause: rank {failure.rank} on {failure.host}: {failure.kind}: {failure.message}"


def render(failure: Failure) -> str:
    """Return the report as text, its first line the root cause."""
    lines = [summary(failure)]
    lines.append(f"  attempt {failure.attempt}, pid {failure.pid}, exit code {failure.exit_code}")
    if failure.traceback:
        lines += ["", *("  " + line for line in failure.traceback.rstrip().splitlines())]
    elif failure.log_tail:
        lines += ["", f"  last lines of its standard error ({failure.log_path}):"]
        lines += ["    " + line for line in failure.log_tail[-_LOG_LINES:]]
    if failure.others:
        ended = ", ".join(f"rank {rank}: {code}" for rank, code in sorted(failure.others.items()))
        lines += ["", f"  ended after it, probably because of it (exit codes): {ended}"]
    return "\n".join(lines)


def to_json(failure: Failure) -> dict[str, Any]:
    """Return the content of failure.json."""
    return {"root_cause": asdict(failure) | {"log_tail": list(failure.log_tail)}}
