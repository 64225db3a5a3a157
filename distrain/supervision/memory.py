"""Out of memory, told from other SIGKILLs: by the control group's counters and by how the memory went before.

The kernel sends the same SIGKILL as `kill -9`. What it leaves is a counter in the control group of the process it
killed (cgroup v2: memory.events, v1: memory.oom_control), and one of the whole machine in /proc/vmstat.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["OomWatch", "Sample"]

_SAMPLE_EVERY_NS = 1_000_000_000
_NUM_SAMPLES = 120
_EARLIER_NS = 10_000_000_000
_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")
_UNLIMITED = 1 << 60
_SCARCE = 0.03
_NEAR_LIMIT = 0.97
_DEPTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The memory at one moment, in bytes.

    Args:
        monotonic_ns: When.
        resident: Rank to what it and its children hold.
        available: What the machine could still give; None when not known.
        used: What the control group uses; None when not known.
    """

    monotonic_ns: int
    resident: Mapping[int, int]
    available: int | None
    used: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """How often the kernel has killed for memory: in the control group, and on the whole machine; None: not known."""

    group: int | None
    machine: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Groups:
    """The control group of a process and those above it, nearest first, with the names that their version has."""

    folders: tuple[Path, ...] = ()
    version: int = 2

    @classmethod
    def of(cls, pid: int | str, root: Path) -> _Groups:
        """Find them by /proc/<pid>/cgroup and the mounts; none where there is no control group for memory."""
        lines = _read(root / "proc" / str(pid) / "cgroup").splitlines()
        entries = [line.split(":", 2) for line in lines if line.count(":") >= 2]
        v1 = next((path for _, controllers, path in entries if "memory" in controllers.split(",")), None)
        v2 = next((path for number, controllers, path in entries if number == "0" and not controllers), None)
        path = v1 if v1 is not None else v2
        if path is None:
            return cls()
        version = 1 if v1 is not None else 2
        for inside, mount in _mounts(root, version):
            below = os.path.relpath(path, inside)
            at = root / mount.lstrip("/")
            folder = at if below.startswith("..") else Path(os.path.normpath(at / below))
            while not folder.is_dir() and folder != at:  # a path from outside our namespace
                folder = folder.parent
            return cls(folders=tuple(_upwards(folder, at)), version=version)
        return cls()

    def num_kills(self) -> int | None:
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _field(self.folders[0] / name, "oom_kill") if self.folders else None

    def tightest(self) -> tuple[Path, int] | None:
        """Return the control group whose limit is the lowest, and that limit in bytes."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        limits = [(folder, _number(folder / name)) for folder in self.folders]
        known = [(folder, limit) for folder, limit in limits if limit is not None and limit < _UNLIMITED]
        return min(known, key=lambda each: each[1], default=None)

    def used(self, folder: Path) -> int | None:
        return _number(folder / ("memory.current" if self.version == 2 else "memory.usage_in_bytes"))


def _mounts(root: Path, version: int) -> Iterator[tuple[str, str]]:
    """Yield the root inside the hierarchy and the place of each mount of control groups that manages memory."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if (version == 2 and kind[0] == "cgroup2") or (
            version == 1 and kind[0] == "cgroup" and "memory" in kind[-1].split(",")
        ):
            yield fields[3], fields[4].replace("\\040", " ")


def _upwards(folder: Path, top: Path) -> Iterator[Path]:
    yield folder
    while folder != top:
        folder = folder.parent
        yield folder


@dataclass(slots=True)
class OomWatch:
    """The memory of one node's workers.

    Args:
        root: The root of the file system to look at; another one than `/` in tests.
        pid: The process whose control group counts; the workers inherit the supervisor's.
    """

    root: Path = Path("/")
    pid: int | str = "self"
    _groups: _Groups = field(init=False)
    _before: _Counts = field(init=False)
    _samples: deque[Sample] = field(init=False, default_factory=lambda: deque(maxlen=_NUM_SAMPLES))

    def __post_init__(self) -> None:
        self._groups = _Groups.of(self.pid, self.root)
        self._before = self._counts()

    def begin(self) -> None:
        """Forget what was, for a new attempt."""
        self._before = self._counts()
        self._samples.clear()

    def sample(self, now_ns: int, pids: Mapping[int, int]) -> None:
        """Note the memory, once a second at most; it costs some ten microseconds a process.

        Args:
            now_ns: The monotonic clock, in nanoseconds.
            pids: Rank to process id.
        """
        if self._samples and now_ns - self._samples[-1].monotonic_ns < _SAMPLE_EVERY_NS:
            return
        limit = self._groups.tightest()
        self._samples.append(
            Sample(
                monotonic_ns=now_ns,
                resident={rank: held for rank, pid in pids.items() if (held := self._held(pid)) is not None},
                available=self._meminfo("MemAvailable"),
                used=None if limit is None else self._groups.used(limit[0]),
            )
        )

    def history(self) -> tuple[Sample, ...]:
        """Return the samples of the last two minutes, oldest first."""
        return tuple(self._samples)

    def verdict(self, rank: int) -> str | None:
        """Return why a death by SIGKILL counts as out of memory, in a sentence; None when nothing speaks for it.

        Args:
            rank: The rank that was killed, or one of whose children was.
        """
        limit = self._groups.tightest()
        after = self._counts()
        if _rose(self._before.group, after.group):
            text = f"killed by the kernel, out of memory: {self._why(limit)}"
        elif self._before.group is None and _rose(self._before.machine, after.machine):
            text = "probably killed by the kernel, out of memory: the machine's count of such kills rose"
        elif scarce := self._scarce(limit):
            text = f"probably killed for want of memory: {scarce}"
        else:
            return None
        held = self._told_of(rank)
        return f"{text}; {held}" if held else text

    def _why(self, limit: tuple[Path, int] | None) -> str:
        """Tell a control group at its limit from a machine without memory: both raise the group's counter."""
        counter = "its oom_kill counter rose"
        if limit is None:
            return "the machine had none left, and the control group's oom_kill counter rose"
        used = self._samples[-1].used if self._samples else None
        if used is not None and used < limit[1] // 2 and self._is_machine_short():
            return f"the machine had none left; the control group, limited to {_bytes(limit[1])}, used {_bytes(used)}"
        return f"the control group's limit is {_bytes(limit[1])} and {counter}"

    def _scarce(self, limit: tuple[Path, int] | None) -> str:
        """Say that memory was short when last seen, for killers that leave no count; "" when it was not."""
        if self._before.group is not None and not self._is_machine_short():
            return ""  # at its limit a group is full of page cache, and the kernel would have counted
        if self._is_machine_short():
            available = self._samples[-1].available
            return f"the machine had {_bytes(available or 0)} available of {_bytes(self._meminfo('MemTotal') or 0)}"
        used = self._samples[-1].used if self._samples else None
        if limit is not None and used is not None and used > _NEAR_LIMIT * limit[1]:
            return f"the control group used {_bytes(used)} of its {_bytes(limit[1])}"
        return ""

    def _is_machine_short(self) -> bool:
        available, total = (self._samples[-1].available if self._samples else None), self._meminfo("MemTotal")
        return available is not None and total is not None and available < _SCARCE * total

    def _told_of(self, rank: int) -> str:
        """Return what a rank held when last seen, and some time before."""
        seen = [sample for sample in self._samples if rank in sample.resident]
        if not seen:
            return ""
        last = seen[-1]
        text = f"rank {rank} had {_bytes(last.resident[rank])}"
        earlier = next(
            (each for each in reversed(seen) if last.monotonic_ns - each.monotonic_ns >= _EARLIER_NS), seen[0]
        )
        seconds = round((last.monotonic_ns - earlier.monotonic_ns) / 1e9)
        if seconds:
            text += f", {_bytes(earlier.resident[rank])} {seconds} second{'s' * (seconds > 1)} before"
        others = max((held for each, held in last.resident.items() if each != rank), default=None)
        return text if others is None else f"{text} (the others at most {_bytes(others)})"

    def _counts(self) -> _Counts:
        return _Counts(group=self._groups.num_kills(), machine=_field(self.root / "proc/vmstat", "oom_kill"))

    def _meminfo(self, name: str) -> int | None:
        match = re.search(rf"^{name}:\s+(\d+) kB", _read(self.root / "proc/meminfo"), re.MULTILINE)
        return int(match[1]) << 10 if match else None

    def _held(self, pid: int) -> int | None:
        """Return what a process holds in memory, and its children beyond what they share with it."""
        pages = self._statm(pid)
        if pages is None:
            return None
        held = pages[0]
        generation = self._children(pid)
        for _ in range(_DEPTH):
            for child in generation:
                resident, shared = self._statm(child) or (0, 0)
                held += max(0, resident - shared)
            generation = [grandchild for child in generation for grandchild in self._children(child)]
        return held * _PAGE_NBYTES

    def _statm(self, pid: int) -> tuple[int, int] | None:
        fields = _read(self.root / f"proc/{pid}/statm").split()
        return (int(fields[1]), int(fields[2])) if len(fields) > 2 else None

    def _children(self, pid: int) -> list[int]:
        """Return the processes that the main thread has started, from the one file that lists them."""
        return [int(child) for child in _read(self.root / f"proc/{pid}/task/{pid}/children").split()]


def _rose(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _bytes(number: int) -> str:
    if number >= 10 << 30:
        return f"{number / (1 << 30):.0f} GiB"
    return f"{number / (1 << 30):.1f} GiB" if number >= 1 << 30 else f"{number / (1 << 20):.0f} MiB"


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _field(path: Path, name: str) -> int | None:
    match = re.search(rf"^{name} (\d+)$", _read(path), re.MULTILINE)
    return int(match[1]) if match else None
