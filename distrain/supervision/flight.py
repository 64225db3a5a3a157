"""torch's flight recorder: at a hang each rank has torch write down which collectives it has begun.

    worker       from its first optimizer step on a thread waits for a byte in a pipe; it takes no lock and no time
    supervisor   finds the pipe by way of /proc, and writes the byte
    worker       the thread saves torch's record, also while the main thread is stuck in a collective

A main thread that is stuck in C code with the interpreter's lock keeps the thread from answering.
"""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from distrain.rundir import write_atomic

__all__ = ["ask", "begin_to_answer", "position"]

_FD = 210
"""A high descriptor, so that the program's own get the numbers that they would get elsewhere."""

_POLL_S = 0.01
_DUMPS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")
"""torch's functions for the collectives of NCCL, and for those of gloo (since 2.10)."""


def begin_to_answer(path: Path) -> int:
    """Answer to a byte in a pipe from now on; return the descriptor to write to, 0 where that is not possible.

    Args:
        path: Where the record goes.
    """
    if not _dumps():
        return 0
    ends = []
    try:
        for low in os.pipe():
            ends.append(fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _FD))
            os.close(low)
    except OSError:  # so many are not allowed
        return 0
    read, write = ends
    _thread.start_new_thread(_answer, (read, path))  # not of `threading`: programs count those
    return write


def _dumps() -> list[Callable[[], bytes]]:
    c10d = sys.modules.get("torch._C._distributed_c10d")
    return [getattr(c10d, name) for name in _DUMPS if hasattr(c10d, name)]


def _answer(read: int, path: Path) -> None:
    while os.read(read, 1):
        with contextlib.suppress(Exception):  # a disk that is full: the hang is reported all the same
            texts = [dump() for dump in _dumps()]
            # only one of them has anything, unless the program uses both backends
            write_atomic(path, max(texts, key=len).decode())
    os.close(read)


def ask(ranks: Mapping[int, tuple[int, int, Path]], *, timeout_s: float) -> dict[int, Mapping[str, Any]]:
    """Have ranks save their records, and read them.

    Args:
        ranks: Rank to its process, its descriptor as `begin_to_answer` returned it, and where its record goes.
        timeout_s: How long to wait for all of them, in seconds.

    Returns:
        The records of those that answered, as torch has them.
    """
    asked = {rank: path for rank, (pid, fd, path) in ranks.items() if fd and _asked(pid, fd, path)}
    end_s = time.monotonic() + timeout_s
    while not all(path.exists() for path in asked.values()) and time.monotonic() < end_s:
        time.sleep(_POLL_S)
    records = {}
    for rank, path in asked.items():
        with contextlib.suppress(OSError, ValueError):
            records[rank] = json.loads(path.read_text())
    return records


def _asked(pid: int, fd: int, path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
        pipe = os.open(f"/proc/{pid}/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(pipe, b"x")
        finally:
            os.close(pipe)
    except OSError:
        return False
    return True


def position(record: Mapping[str, Any]) -> str:
    """Return which collective a rank is at, "" when it has begun none: `at collective 11 (gloo:all_reduce)`.

    Args:
        record: As torch has it.
    """
    statuses = record.get("pg_status", {})
    entries = record.get("entries", [])
    parts = []
    for group in sorted(statuses, key=int):
        begun, done = (int(statuses[group][f"last_{what}_collective"]) for what in ("enqueued", "completed"))
        if begun < 0:
            continue
        where = f" of group {group}" if len(statuses) > 1 else ""
        if begun == done:
            parts.append(f"past collective {begun}{where}")
        else:
            parts.append(f"at collective {done + 1}{where}{_name(entries, group, done + 1)}")
    return ", ".join(parts)


def _name(entries: Iterable[Mapping[str, Any]], group: str, number: int) -> str:
    names = (
        each["profiling_name"]
        for each in entries
        if str(each["pg_id"]) == group and each["collective_seq_id"] == number and not each["is_p2p"]
    )
    name = next(names, "")
    return f" ({name})" if name else ""
