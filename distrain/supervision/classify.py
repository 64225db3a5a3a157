"""Which failures are causes and which only follow from another's: told by what torch says when a peer is lost.

The texts are those of torch 2.4 to 2.13; a row whose text no longer occurs does no harm.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from distrain.supervision.failure import Failure, Standing

__all__ = ["Verdict", "classify", "did_not_take_part", "root_cause"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Where a failure stands.

    Args:
        standing: How strongly it is held to be the cause.
        reason: What it is a case of, as the rest of a sentence that begins with the rank; "" for a plain cause.
    """

    standing: Standing
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    standing: Standing
    reason: str
    message: str
    type: str = ""
    where: str = ""


_CAUSE, _DOUBTFUL = Standing.CAUSE, Standing.DOUBTFUL
_LATE, _CUT, _TORN = Standing.TIMED_OUT, Standing.CUT_OFF, Standing.TORN_DOWN
_LATE_WORDS = "waited for the other ranks in vain"
_CUT_WORDS = "lost the connection to a peer"
_STORE_WORDS = "lost the connection to the store, which rank 0 holds"

# The first row that matches decides. The patterns are searched for: `message` in what the exception says, or for a
# crash in the last lines of standard error; `type` in the exception's qualified type; `where` in the files of its
# frames, outermost first. "" matches all.
_ROWS = (
    # multiprocessing, by way of torch.utils.data: the loader process died with a batch whose memory it had yet to hand
    # over, and the rank notices at the socket where it asks for that.
    _Row(
        _CAUSE,
        "lost a DataLoader worker",
        "",
        type=r"^(?:Connection(?:Reset|Refused)|BrokenPipe|EOF|FileNotFound)Error$",
        where=r"torch/utils/data/dataloader\.py .*multiprocessing/resource_sharer\.py ",
    ),
    # torch.utils.data: the loader process died; the connection error that led to its discovery is the context.
    _Row(_CAUSE, "lost a DataLoader worker", r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed|exited)"),
    _Row(_CAUSE, "waited for a DataLoader worker in vain", r"DataLoader timed out after"),
    # c10/cuda: the caching allocator, and a kernel's assert that surfaces wherever the device is used next.
    _Row(_CAUSE, "ran out of the device's memory", r"CUDA out of memory|CUDA error: out of memory|HIP out of memory"),
    _Row(_CAUSE, "failed an assertion on the device", r"device-side assert triggered"),
    # torch DDP's reducer, and its comparison of parameters with rank 0.
    _Row(_CAUSE, "", r"Expected to have finished reduction in the prior iteration"),
    _Row(_CAUSE, "differs from the other ranks", r"appears not to match (?:sizes|strides) of the same param"),
    # gloo's tcp/pair.cc: ranks gave tensors of different sizes. The message is in the what() of an abort.
    _Row(_CAUSE, "differs from the other ranks", r"Received data size doesn't match expected size"),
    # TCPStore and Python's sockets: the port is taken.
    _Row(_CAUSE, "", r"EADDRINUSE|[Aa]ddress already in use"),
    # ProcessGroupNCCL's watchdog, and its blocking wait.
    _Row(_LATE, _LATE_WORDS, r"Watchdog caught collective operation timeout|timed out in blocking wait"),
    # NCCL, by way of ProcessGroupNCCL; in old ones a lost peer surfaces as an internal error (NVIDIA/nccl#795).
    _Row(_CUT, _CUT_WORDS, r"remote process exited or there was a network error|ncclRemoteError"),
    _Row(_CUT, _CUT_WORDS, r"Net : (?:Connection closed by remote peer|Call to (?:recv|send).* failed)"),
    _Row(_CUT, "stopped with the process group", r"NCCL communicator (?:was|has been) aborted"),
    _Row(_CAUSE, "", r"NCCL error.*(?:unhandled cuda error|invalid (?:usage|argument))"),
    _Row(_DOUBTFUL, "got an error of NCCL's", r"NCCL error"),
    # gloo's unbound_buffer.cc and pair.cc; the second is said to whoever uses the pair afterwards.
    _Row(_LATE, _LATE_WORDS, r"Timed out waiting \d+ms for (?:recv|send) operation to complete"),
    _Row(_LATE, _LATE_WORDS, r"Application timeout caused pair closure"),
    # ProcessGroupGloo's monitored barrier, which names the missing ranks.
    _Row(_LATE, _LATE_WORDS, r"failed to pass monitoredBarrier|timed out in monitoredBarrier"),
    # gloo's pair.cc, on both ends of a connection: read, write, hang-up.
    _Row(_CUT, _CUT_WORDS, r"Connection (?:closed|reset) by peer \["),
    _Row(_CUT, _CUT_WORDS, r"gloo/transport/.*(?:Read error|Write error|writev|[Cc]onnection|Broken pipe|SO_ERROR)"),
    # gloo's context, while the group is made.
    _Row(
        _CUT,
        "could not connect to the other ranks",
        r"Gloo connectFullMesh failed|gloo/transport/.*[Cc]onnect.* timeout",
    ),
    # c10d's TCPStore: a key that no peer sets, a world that does not come together, nobody at the address.
    _Row(_LATE, _LATE_WORDS, r"wait timeout after \d+ms, keys:|^Socket Timeout|^Wait timeout"),
    _Row(_LATE, _LATE_WORDS, r"Timed out after \d+ seconds waiting for clients"),
    _Row(_LATE, "could not reach rank 0", r"client socket has (?:timed out after|failed to connect)"),
    # c10d's socket and Utils.hpp: rank 0, which holds the store, is gone.
    _Row(_CUT, _STORE_WORDS, r"(?i)failed to recv, got \d+ bytes|Connection was likely closed"),
    _Row(_CUT, _STORE_WORDS, r"Connection to .* was closed|(?:recvValue|sendBytes|recvBytes)\w* failed on"),
    _Row(_CUT, _STORE_WORDS, r"Broken pipe|[Cc]onnection (?:reset|refused|closed)", type=r"\bDist\w*Error$"),
    # Python's own sockets: a download, a database, or a peer (torch RPC, multiprocessing, a framework's queues).
    _Row(_DOUBTFUL, "lost a connection", "", type=r"(?:^|\.)(?:Connection(?:Reset|Aborted|Refused)|BrokenPipe)Error$"),
)

# What stands on standard error when a process aborts because of its threads, not because of what it did.
_ABORTS = (
    # libstdc++, a joinable thread of gloo's destroyed with its group.
    _Row(_TORN, "aborted on the way out", r"terminate called without an active exception"),
    # glibc: a C++ thread reached the interpreter after its end.
    _Row(_TORN, "aborted on the way out", r"FATAL: exception not rethrown"),
    # CPython, likewise.
    _Row(_TORN, "aborted on the way out", r"Fatal Python error: .*(?:finaliz|PyGILState|PyThreadState|tstate)"),
)


def classify(
    exit_code: int,
    exception: Mapping[str, Any] | None = None,
    stderr_tail: Sequence[str] = (),
    *,
    was_asked: bool = False,
) -> Verdict:
    """Return where a failure stands.

    An exception is judged by the first text of its chain that says something: what was raised while a lost connection
    was handled follows from the lost connection. A group says what its members say, the strongest of them; one member
    of which nothing is known makes it a cause.

    Args:
        exit_code: The worker's; -S when signal S ended it.
        exception: The record of its uncaught exception, if it left one.
        stderr_tail: The last lines of its standard error; looked at when it was aborted.
        was_asked: Whether we had sent it the signal that ended it.
    """
    if was_asked and exit_code < 0:
        return Verdict(standing=Standing.ENDED, reason="ended by the launcher")
    if exit_code < 0:
        return _of_signal(-exit_code, exception, stderr_tail)
    return _of_exception(exception) or Verdict(standing=Standing.CAUSE)


def _of_signal(number: int, exception: Mapping[str, Any] | None, stderr_tail: Sequence[str]) -> Verdict:
    """Judge a death by signal.

    An abort after an exception was recorded stands where the exception stands.
    """
    if number == signal.SIGPIPE:
        return Verdict(standing=Standing.DOUBTFUL, reason="wrote where nobody reads")
    if number != signal.SIGABRT:
        return Verdict(standing=Standing.CAUSE)
    if said := _of_exception(exception):
        return said
    text = _last_words(stderr_tail)
    found = _find((*_ABORTS, *_ROWS), text, "")
    if found is not None and found.standing == Standing.TORN_DOWN and exception is not None:
        return Verdict(standing=Standing.CAUSE)
    return found or Verdict(standing=Standing.CAUSE)


def _last_words(stderr_tail: Sequence[str]) -> str:
    """Return what is said of an abort: from the last "terminate called" or "Fatal" on, else all."""
    begins = [i for i, line in enumerate(stderr_tail) if re.match(r"terminate called|F(?:ATAL|atal)\b", line)]
    return "\n".join(stderr_tail[begins[-1] :] if begins else stderr_tail)


def _of_exception(exception: Mapping[str, Any] | None) -> Verdict | None:
    """Judge an exception by itself and those it came from; None when nothing there says anything."""
    if exception is None:
        return None
    for each in (exception, *exception.get("chain", ())):
        files = "".join(f"{frame['file']} " for frame in each.get("frames", ()))
        if found := _find(_ROWS, str(each["message"]), str(each["type"]), files) or _of_members(each):
            return found
    return None


def _of_members(group: Mapping[str, Any]) -> Verdict | None:
    verdicts = [_of_exception(member) for member in group.get("members", ())]
    if not all(verdicts):
        return None
    return max(filter(None, verdicts), key=lambda each: each.standing, default=None)


def _find(rows: Sequence[_Row], message: str, type_name: str, files: str = "") -> Verdict | None:
    for row in rows:
        if all(map(re.search, (row.message, row.type, row.where), (message, type_name, files))):
            return Verdict(standing=row.standing, reason=row.reason)
    return None


_FailureT = TypeVar("_FailureT", bound=Failure)


def root_cause(failures: Sequence[_FailureT]) -> _FailureT | None:
    """Return the failure that brought the others down: the first one of those that stand highest.

    Args:
        failures: Those of one attempt; their times are of one clock.
    """
    return min(failures, key=lambda each: (-each.standing, each.monotonic_ns, each.rank), default=None)


def did_not_take_part(failures: Sequence[Failure], world: Collection[int]) -> list[int]:
    """Return the ranks that the others waited for in vain.

    Args:
        failures: All those of the attempt; those that we ended may be among them.
        world: Every rank of the attempt.

    Returns:
        Nothing unless the root cause is a timeout. The ranks that a monitored barrier names; else the ranks that did
        not time out themselves, unless that are all.
    """
    root = root_cause(failures)
    if root is None or root.standing != Standing.TIMED_OUT:
        return []
    late = [each for each in failures if each.standing == Standing.TIMED_OUT]
    for each in late:
        if named := re.search(r"Ranks? ([\d, ]+?) failed to pass monitoredBarrier", each.message):
            return [int(rank) for rank in named[1].replace(",", " ").split()]
    return sorted(set(world) - {each.rank for each in late})
