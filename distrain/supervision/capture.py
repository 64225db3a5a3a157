"""Ask every rank of this host for its Python stacks now, and say what stands in the way of an answer."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distrain.supervision.dumps import STACKS_SIGNAL, Dump, last_dump
from distrain.supervision.process_state import ProcessState, catches, process_state

__all__ = ["Captured", "capture"]

_POLL_S = 0.01
# faulthandler writes a dump in many pieces and ends it with nothing; it is whole when the file has not grown for a
# while: a short one when the outermost frame is that of a program, else a long one.
_SETTLED_S = 0.03
_SETTLED_TORN_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What one rank gave.

    Args:
        state: What its process was doing before it was asked; None when there is no telling.
        dump: Its stacks; None when it gave none.
    """

    state: ProcessState | None
    dump: Dump | None


def capture(
    logs: Mapping[int, tuple[int, Path]], *, timeout_s: float = 2.0, wake_stopped: bool = False
) -> dict[int, Captured]:
    """Have processes dump their Python stacks, all at once, and read them.

    A process that does not catch `STACKS_SIGNAL` is not sent it: it would die. A forked child (of a DataLoader)
    answers into the file that it inherited: ask it after its parent, by a call of its own.

    Args:
        logs: Rank to the process's pid and its stacks.log.
        timeout_s: How long to wait for the answers, in seconds.
        wake_stopped: Let stopped processes go on, which they must to answer, and stop them again once they have; for a
            run that is about to be ended, since what they do in between cannot be undone.
    """
    states = {rank: process_state(pid) for rank, (pid, _) in logs.items()}
    begun: dict[int, tuple[Path, int]] = {}
    for rank, (pid, path) in logs.items():
        state = states[rank]
        stopped = state is not None and state.is_stopped
        if not catches(pid, STACKS_SIGNAL) or (stopped and not wake_stopped):
            continue
        begun[rank] = (path, _nbytes(path))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            _ask(pid)
            if stopped:
                os.kill(pid, signal.SIGCONT)
    woken = {rank: logs[rank][0] for rank in begun if (state := states[rank]) is not None and state.is_stopped}
    dumps = _await(begun, time.monotonic() + timeout_s, woken)
    return {rank: Captured(state=states[rank], dump=dumps.get(rank)) for rank in logs}


def _ask(pid: int) -> None:
    """Send the signal to the main thread.

    Of a stopped process any thread takes a signal to the process, whichever is first once it is woken; meanwhile the
    main one goes on from where it stood.
    """
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)  # Linux alone has it, glibc since 2.30
    if tgkill is None or tgkill(pid, pid, int(STACKS_SIGNAL)) != 0:
        os.kill(pid, STACKS_SIGNAL)


def _await(
    awaited: Mapping[int, tuple[Path, int]], deadline: float, woken: Mapping[int, int]
) -> dict[int, Dump | None]:
    """Read the dumps as they come, and stop at once who was woken for one.

    Args:
        awaited: Rank to its stacks.log, and how long that was before.
        deadline: On the monotonic clock, in seconds.
        woken: Rank to pid of those to stop again.
    """
    left = dict(awaited)
    dumps: dict[int, Dump | None] = {}
    sizes = {rank: (nbytes, time.monotonic()) for rank, (_, nbytes) in awaited.items()}
    while left:
        now = time.monotonic()
        for rank, (path, begun_nbytes) in list(left.items()):
            nbytes, grown = sizes[rank]
            if (current := _nbytes(path)) != nbytes:
                nbytes, grown = sizes[rank] = (current, now)
            settled_s = now - grown if nbytes > begun_nbytes else 0.0
            if settled_s < _SETTLED_S and now < deadline:
                continue
            dump = last_dump(path, begun_nbytes)
            if settled_s >= _SETTLED_TORN_S or now >= deadline or _is_whole(dump):
                if rank in woken:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(woken[rank], signal.SIGSTOP)
                dumps[rank] = dump
                del left[rank]
        if left:
            time.sleep(_POLL_S)
    return dumps


def _is_whole(dump: Dump | None) -> bool:
    frames = dump.frames if dump else ()
    return bool(frames) and frames[0].function in {"<module>", "_run_module_as_main"}


def _nbytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
