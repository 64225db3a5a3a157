"""The board: one shared-memory slot for each local rank, where it shows that it moves and leaves word when it fails.

    supervisor   Board.create(4)                    one memory file, which has no name and ends with the supervisor
    worker       DISTRAIN_HEARTBEAT=<path>:<slot>   the supervisor's descriptor, seen through /proc
                 open_slot(…), then stamps          two numbers are written; nobody is waited for
    supervisor   Board.look(slot)                   they are read twice a second

A stamp costs less than half a microsecond, so each optimizer step and each iteration of an engine can have one. Where
there is no board, under another launcher say, there is nothing to stamp and every call does nothing.

A slot is a page of numbers of 64 bits, then the record of the rank's failure: that is kept in memory as well as on
disk, because a full disk is one of the reasons to fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from distrain.supervision.beat import Beat

__all__ = [
    "ENV_HEARTBEAT",
    "Board",
    "engine_stamp",
    "heartbeat",
    "leave_record",
    "open_slot",
    "optimizer_stamp",
    "paused",
]

ENV_HEARTBEAT = "DISTRAIN_HEARTBEAT"
"""The environment variable that tells a worker its slot: the board's path and the slot's number."""

RECORD_NBYTES = 60 << 10

_STEPS, _ITERATIONS, _ITERATION, _HEARTBEATS, _LAST_NS, _PAUSED, _PID, _RECORD_NBYTES, _FLIGHT_FD = range(9)
_PAGE = 4096
_SLOT_NBYTES = _PAGE + RECORD_NBYTES

_MAP_FIXED = 0x10  # Python does not name it; Linux, macOS and the BSDs agree


class Board:
    """The supervisor's side: it makes the board and reads it.

    Args:
        fd: The memory file; the board owns it from now on.
        num_slots: How many slots it has.
        path: Where the workers find it.
    """

    def __init__(self, fd: int, num_slots: int, path: str) -> None:
        self._fd = fd
        self._memory = mmap.mmap(fd, num_slots * _SLOT_NBYTES)
        self._seen: dict[int, Beat] = {}
        self.path = path

    @classmethod
    def create(cls, num_slots: int, fallback: Path) -> Board:
        """Make a board.

        Args:
            num_slots: Local ranks.
            fallback: A file to use where the system has no memory files or no /proc (macOS).

        Raises:
            OSError: There is no memory for it, or the file cannot be written.
        """
        if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
            fd = os.memfd_create("distrain-heartbeats")
            path = f"/proc/{os.getpid()}/fd/{fd}"
        else:
            fd = os.open(fallback, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            path = str(fallback)
        os.ftruncate(fd, num_slots * _SLOT_NBYTES)
        return cls(fd, num_slots, path)

    def variable(self, slot: int) -> str:
        """Return the value of `ENV_HEARTBEAT` for the worker of a slot."""
        return f"{self.path}:{slot}"

    def look(self, slot: int, rank: int) -> Beat:
        """Return what a worker has shown so far.

        The slowest gap is measured here, between two looks, so that a stamp need not: what lasts longer than the time
        between two looks is seen exactly.

        Args:
            slot: Its slot.
            rank: Its global rank, for the answer.
        """
        numbers = struct.unpack_from("8Q", self._memory, slot * _SLOT_NBYTES)
        beats = numbers[_STEPS] + numbers[_ITERATIONS] + numbers[_HEARTBEATS]
        before, last_ns, slowest_ns = self._seen.get(slot), numbers[_LAST_NS], 0
        if before is not None and before.pid == numbers[_PID]:
            is_gap = before.state == "going" and beats > before.beats
            slowest_ns = max(before.slowest_ns, last_ns - before.last_ns if is_gap else 0)
        seen = Beat(
            rank=rank,
            pid=numbers[_PID],
            beats=beats,
            steps=numbers[_STEPS],
            iteration=numbers[_ITERATION],
            last_ns=last_ns,
            slowest_ns=slowest_ns,
            state="not begun" if last_ns == 0 else "paused" if numbers[_PAUSED] else "going",
        )
        self._seen[slot] = seen
        return seen

    def flight_fd(self, slot: int) -> int:
        """Return the descriptor by which a worker is asked for torch's flight recorder, 0 where it cannot be."""
        (fd,) = struct.unpack_from("Q", self._memory, slot * _SLOT_NBYTES + 8 * _FLIGHT_FD)
        return int(fd)

    def record(self, slot: int) -> bytes:
        """Return the record of a worker's failure, empty when it left none."""
        start = slot * _SLOT_NBYTES
        (nbytes,) = struct.unpack_from("Q", self._memory, start + 8 * _RECORD_NBYTES)
        return self._memory[start + _PAGE : start + _PAGE + min(nbytes, RECORD_NBYTES)]

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        os.close(self._fd)


class _Slot:
    """The worker's side of one slot."""

    def __init__(self, path: str, number: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._address = _map(None, _SLOT_NBYTES, mmap.MAP_SHARED, fd, number * _SLOT_NBYTES)
        finally:
            os.close(fd)
        self.memory = memoryview((ctypes.c_ubyte * _SLOT_NBYTES).from_address(self._address)).cast("B")
        self.numbers = self.memory[:_PAGE].cast("Q")

    def begin(self) -> None:
        """Make it this process's own, with nothing shown yet."""
        for field in (_LAST_NS, _RECORD_NBYTES, _FLIGHT_FD, _PAUSED, _STEPS, _ITERATIONS, _ITERATION, _HEARTBEATS):
            self.numbers[field] = 0
        self.numbers[_PID] = os.getpid()

    def leave(self) -> None:
        """Put memory of this process's own in the slot's place, for whoever still writes there."""
        _map(self._address, _SLOT_NBYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED, -1, 0)


def _map(address: int | None, nbytes: int, flags: int, fd: int, offset: int) -> int:
    """Map memory for the rest of the process's life; return where.

    Python's own mmap keeps a descriptor open, the lowest that is free, which the program's first file would get
    (python/cpython#78502; `trackfd=False` in 3.13).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *([ctypes.c_int] * 3), ctypes.c_long]
    mapped = libc.mmap(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset)
    if mapped is None or mapped == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return int(mapped)


_slot: _Slot | None = None
_is_looked_for = False


def open_slot(variable: str) -> None:
    """Take possession of a slot, in the process that becomes a rank; what it showed before is wiped.

    Args:
        variable: The value of `ENV_HEARTBEAT`; a board that cannot be reached is done without.
    """
    global _slot, _is_looked_for
    path, _, number = variable.rpartition(":")
    _slot, _is_looked_for = None, True
    with contextlib.suppress(OSError, ValueError):
        slot = _Slot(path, int(number))
        slot.begin()
        _slot = slot


def _own_slot() -> _Slot | None:
    """Return this process's slot, if it has one. A process that a rank has started is not the rank."""
    global _slot, _is_looked_for
    if not _is_looked_for:
        _is_looked_for = True
        path, _, number = os.environ.get(ENV_HEARTBEAT, "").rpartition(":")
        with contextlib.suppress(OSError, ValueError):
            found = _Slot(path, int(number))
            if found.numbers[_PID] == os.getpid():
                _slot = found
    return _slot


def _forget() -> None:
    """In a forked child: the slot is the parent's, and so is every stamp that was taken before the fork."""
    global _slot
    slot, _slot = _slot, None
    if slot is not None:
        with contextlib.suppress(OSError):
            slot.leave()


os.register_at_fork(after_in_child=_forget)


def optimizer_stamp(answer: Callable[[], int]) -> Callable[..., None] | None:
    """Return what shows that an optimizer has stepped, to be torch's hook; None without a board.

    Args:
        answer: Called at the first step; has this process answer when it is asked for torch's flight recorder, and
            returns by which descriptor, 0 without one.
    """
    slot = _own_slot()
    if slot is None:
        return None
    numbers, clock, steps = slot.numbers, time.monotonic_ns, slot.numbers[_STEPS]

    def stamp(*_: object) -> None:
        nonlocal steps
        if not steps:
            numbers[_FLIGHT_FD] = answer()
        steps += 1
        numbers[_STEPS] = steps
        numbers[_LAST_NS] = clock()

    return stamp


def engine_stamp() -> Callable[[int], None] | None:
    """Return what shows that an engine has done an iteration, given its number; None without a board."""
    slot = _own_slot()
    if slot is None:
        return None
    numbers, clock = slot.numbers, time.monotonic_ns

    def stamp(iteration: int) -> None:
        numbers[_ITERATIONS] += 1
        numbers[_ITERATION] = iteration
        numbers[_LAST_NS] = clock()

    return stamp


def heartbeat() -> None:
    """Show that this rank moves, where no optimizer step and no iteration of an engine does: in a long evaluation, say.

    Without `distrain launch` it does nothing. A rank that has shown nothing for `--hang-timeout` counts as hung.
    """
    slot = _own_slot()
    if slot is not None:
        slot.numbers[_HEARTBEATS] += 1
        slot.numbers[_LAST_NS] = time.monotonic_ns()


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Have the time until the end of the block not counted: what is done there, a checkpoint say, may take long."""
    slot = _own_slot()
    if slot is None or slot.numbers[_LAST_NS] == 0:
        yield
        return
    within = slot.numbers[_PAUSED]
    slot.numbers[_PAUSED] = 1
    try:
        yield
    finally:
        slot.numbers[_LAST_NS] = time.monotonic_ns()
        slot.numbers[_PAUSED] = within


def leave_record(record: bytes) -> None:
    """Leave the record of this rank's failure on the board.

    Args:
        record: JSON; one that is too long for the board is left out, the disk has it.
    """
    slot = _own_slot()
    if slot is not None and len(record) <= RECORD_NBYTES:
        slot.memory[_PAGE : _PAGE + len(record)] = record
        slot.numbers[_RECORD_NBYTES] = len(record)
