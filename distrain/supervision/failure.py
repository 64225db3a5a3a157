"""The failure report's values: how workers ended, what is known of each failure, and the report as JSON.

They are made by the supervisor from exit codes, records and logs; `classify` judges them, `report` shows them. What
one node of a run reports goes to the others as JSON, so that all print the same.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from distrain.supervision.frames import Frame

__all__ = [
    "Exit",
    "Failure",
    "Report",
    "Standing",
    "describe",
    "exit_code_of",
    "frames_of",
    "from_json",
    "recorded_in",
    "signal_name",
    "to_json",
    "visible",
]

_HEADLINE_CHARS = 240


class Standing(IntEnum):
    """How strongly a failure is held to be the cause; the greater wins, the time decides between equals."""

    ENDED = 0
    """We ended it, because the run was over."""
    TORN_DOWN = 1
    """It was aborted on its way out, as libraries do whose other threads still run."""
    CUT_OFF = 2
    """It lost the connection to a peer."""
    TIMED_OUT = 3
    """It waited for its peers in vain."""
    DOUBTFUL = 4
    """A connection of the program's own, perhaps to a peer, perhaps to something else."""
    CAUSE = 5

    @property
    def word(self) -> str:
        """The class in failure.json: `cause`, `doubtful`, `victim` or `ended`."""
        return {0: "ended", 4: "doubtful", 5: "cause"}.get(int(self), "victim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How one worker ended.

    Args:
        rank: Global rank.
        attempt: The round of workers it belonged to.
        pid: Its process id.
        exit_code: Its exit code; -S when signal S ended it.
        monotonic_ns: When it was collected, on this host's monotonic clock, in nanoseconds.
        was_asked: Whether we had sent it a signal before.
    """

    rank: int
    attempt: int
    pid: int
    exit_code: int
    monotonic_ns: int
    was_asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One rank's failure, with what is known about it.

    Args:
        rank: Global rank.
        host: Where it ran.
        kind: The exception's type, `exit code N`, the signal's name, `OutOfMemory` or `Timeout`.
        message: What the exception said, or what the signal means: one line, never empty.
        exit_code: The worker's exit code; -S when signal S ended it.
        pid: Its process id.
        attempt: The round of workers it belonged to.
        monotonic_ns: When it raised, or else when it was collected, on its host's monotonic clock.
        standing: How strongly it is held to be the cause, by `classify`.
        reason: What it is a case of, as the rest of a sentence: "lost the connection to a peer".
        step: The optimizer steps it had done; None when not known.
        traceback: Its uncaught exception's, "" when there was none.
        frames: The frames of that traceback, or where Python was when it crashed; most recent call last.
        thread: The thread that crashed there, by name or identity; "" for the main one.
        log_tail: The last lines it wrote to standard error, oldest first.
        log_path: The file they come from.
    """

    rank: int
    host: str
    kind: str
    message: str
    exit_code: int
    pid: int
    attempt: int
    monotonic_ns: int = 0
    standing: Standing = Standing.CAUSE
    reason: str = ""
    step: int | None = None
    traceback: str = ""
    frames: Sequence[Frame] = ()
    thread: str = ""
    log_tail: Sequence[str] = ()
    log_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Why an attempt failed.

    Args:
        root_cause: The failure that brought the others down.
        consequences: The other failures, in the order of ranks: followers, failures alike, failures of their own.
        others: What the ranks that had not failed were doing, a line of text each.
        hints: What to try, a sentence or two each.
        memory: What the memory history says, a sentence; "" when it has nothing to do with it.
    """

    root_cause: Failure
    consequences: Sequence[Failure] = ()
    others: Sequence[str] = ()
    hints: Sequence[str] = ()
    memory: str = ""


_SIGNALS = {
    "SIGKILL": "killed from outside",
    "SIGSEGV": "segmentation fault, in native code",
    "SIGABRT": "aborted by native code",
    "SIGBUS": "bus error: memory that is mapped but not there, often a full /dev/shm",
    "SIGFPE": "arithmetic error in native code, often an integer division by zero",
    "SIGILL": "an instruction that this CPU does not have, or native code gone astray",
    "SIGTERM": "asked to end from outside",
    "SIGINT": "interrupted",
    "SIGHUP": "its terminal was closed",
    "SIGPIPE": "wrote to a pipe or socket that nobody reads any more",
    "SIGXCPU": "used up its limit of CPU time (ulimit -t)",
    "SIGXFSZ": "wrote a file beyond its limit of size (ulimit -f)",
}


def signal_name(number: int) -> str:
    """Return `SIGTERM` for 15; real-time signals have only their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe(
    exit_code: int, exception: Mapping[str, Any] | None, *, stderr_tail: Sequence[str] = (), memory: str = ""
) -> tuple[str, str]:
    """Return the kind and the message of a failure, both a single line that a terminal can show.

    Args:
        exit_code: The worker's; -S when signal S ended it.
        exception: What is recorded of its uncaught exception, if it had one; also of a SystemExit.
        stderr_tail: The last lines of its standard error, which say why native code aborted.
        memory: Why it counts as out of memory, "" when it does not.
    """
    if memory and exit_code == -signal.SIGKILL:
        return "OutOfMemory", memory
    if exit_code < 0:
        name = signal_name(-exit_code)
        message = _SIGNALS.get(name, "ended by this signal")
        words = _abort_words(stderr_tail) if name == "SIGABRT" else ""
        return name, f"{message}: {_headline(words)}" if words else message
    if exception is None:
        if 128 < exit_code < 128 + signal.NSIG:
            return f"exit code {exit_code}", f"what a shell returns when {signal_name(exit_code - 128)} ended a command"
        return f"exit code {exit_code}", "the process ended itself with this code"
    message = str(exception["message"]).strip()
    if exception["type"] != "SystemExit":
        return visible(str(exception["type"])), _headline(_innermost(message)) or "no message"
    said = "" if message in ("", str(exit_code)) else _headline(message)
    return f"exit code {exit_code}", f"sys.exit: {said}" if said else f"the program called sys.exit({exit_code})"


def _headline(message: str) -> str:
    """Return the first line that says something, short: without gloo's places and parting words, whole sentences.

    Characters that would have a terminal do something are shown as Python writes them.
    """
    line = next((line.strip() for line in message.splitlines() if line.strip()), "")
    line = line.partition(" Check the logs of the remote worker before reporting an error.")[0]
    line = re.sub(r"^\[(?:enforce fail at )?\S*?/third_party/(\w+)/\S+:\d+\] ", r"\1: ", line)
    line = visible(line)
    if len(line) <= _HEADLINE_CHARS:
        return line
    sentences = line.rfind(". ", 0, _HEADLINE_CHARS)
    return line[: sentences + 1] if sentences > _HEADLINE_CHARS // 4 else line[: _HEADLINE_CHARS - 1] + "…"


def visible(text: str) -> str:
    """Return a text with the characters that would have a terminal do something shown as Python writes them."""
    return re.sub(r"[\0-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def _innermost(message: str) -> str:
    """Return what an exception that torch carried over from another process or thread said there."""
    carried = re.match(r"Caught (\S+) in (.+?)\.\nOriginal Traceback \(most recent call last\):\n", message)
    if not carried:
        return message
    said = re.findall(rf"^(?:[\w.]+\.)?{re.escape(carried[1])}: (.*)", message, re.MULTILINE)
    return f"{said[-1]} (in {carried[2]})" if said else message


_ABORT_WORDS = re.compile(
    r"\s*what\(\):\s*(.+)|(Fatal Python error: .+)|.*[Aa]ssert(?:ion)?\b.* failed\b"  # C++, CPython, glibc's assert
    r"|terminate called without|free\(\)|double free|malloc|corrupted|munmap_chunk|\*\*\* "  # C++, glibc's heap
)


def _abort_words(stderr_tail: Sequence[str]) -> str:
    """Return the reason that is written when C++ or the interpreter ends the process."""
    for line in reversed(stderr_tail):
        if found := _ABORT_WORDS.match(line):
            return next((part for part in found.groups() if part), line).strip()
    return ""


def frames_of(record: Mapping[str, Any]) -> tuple[Frame, ...]:
    """Return the frames of a worker's record; none of a record that was read from standard error.

    The place of a syntax error is the last one.
    """
    frames = [Frame(**frame) for frame in record.get("frames", ())]
    if place := record.get("place"):
        frames.append(Frame(file=place["file"], line=place["line"], function="<module>", code=place["code"]))
    return tuple(frames)


_HEAD = "Traceback (most recent call last):"
_RAISED = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Z]\w*)(?:: (.*))?")
_JOINS = ("The above exception was the direct cause", "During handling of the above exception")


def recorded_in(stderr_tail: Sequence[str]) -> dict[str, Any] | None:
    """Return the exception that Python printed last, like a worker's record of it.

    For programs that leave no record: those run by another interpreter, or on a full disk.

    Args:
        stderr_tail: The last lines of standard error, oldest first.

    Returns:
        `type`, `message` and `traceback`; None when the last thing printed was no traceback.
    """
    heads = [i for i, line in enumerate(stderr_tail) if line == _HEAD]
    if not heads:
        return None
    end = next((i for i in range(heads[-1] + 1, len(stderr_tail)) if stderr_tail[i][:1].strip()), None)
    raised = None if end is None else _RAISED.fullmatch(stderr_tail[end])
    if end is None or raised is None:
        return None
    first = len(heads) - 1
    while first > 0 and any(line.startswith(_JOINS) for line in stderr_tail[heads[first - 1] : heads[first]]):
        first -= 1
    message = "\n".join([raised[2] or "", *stderr_tail[end + 1 :]]).strip()
    return {
        "type": raised[1],
        "message": message,
        "traceback": "\n".join(stderr_tail[heads[first] :]) + "\n",
    }


def exit_code_of(report: Report) -> int:
    """Return the launcher's exit code for a failure: the root cause's own, or 128+S after signal S."""
    code = report.root_cause.exit_code
    return code if code > 0 else 128 - code


def to_json(report: Report) -> dict[str, Any]:
    """Return the content of failure.json; `from_json` reads it."""
    return {
        "root_cause": _to_json(report.root_cause),
        "consequences": [_to_json(each) for each in report.consequences],
        "others": list(report.others),
        "hints": list(report.hints),
        "memory": report.memory,
    }


def from_json(content: Mapping[str, Any]) -> Report:
    """Return the report that `to_json` has written, here or on another node."""
    return Report(
        root_cause=_from_json(content["root_cause"]),
        consequences=tuple(_from_json(each) for each in content["consequences"]),
        others=tuple(content["others"]),
        hints=tuple(content["hints"]),
        memory=content["memory"],
    )


def _to_json(failure: Failure) -> dict[str, Any]:
    return {
        "rank": failure.rank,
        "host": failure.host,
        "kind": failure.kind,
        "message": failure.message,
        "exit_code": failure.exit_code,
        "class": failure.standing.word,
        "reason": failure.reason,
        "step": failure.step,
        "pid": failure.pid,
        "attempt": failure.attempt,
        "monotonic_ns": failure.monotonic_ns,
        "standing": int(failure.standing),
        "traceback": failure.traceback,
        "frames": [{"file": f.file, "line": f.line, "function": f.function, "code": f.code} for f in failure.frames],
        "thread": failure.thread,
        "log_path": failure.log_path,
        "log_tail": list(failure.log_tail),
    }


def _from_json(content: Mapping[str, Any]) -> Failure:
    values = {key: value for key, value in content.items() if key in Failure.__dataclass_fields__}
    values["standing"] = Standing(content["standing"])
    values["frames"] = tuple(Frame(**frame) for frame in content["frames"])
    values["log_tail"] = tuple(content["log_tail"])
    return Failure(**values)
