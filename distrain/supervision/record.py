"""The supervisor's hold on a run directory: ownership, run.json and events.jsonl."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from distrain.errors import RunDirError
from distrain.rundir import RunDir, write_atomic

__all__ = ["RunRecord"]


class RunRecord:
    """A run directory this process owns, until `close` or its end; the kernel holds the lock, not a file.

    A scheduler that has lost sight of a node starts a run again while its former incarnation still lives there. The
    later one takes the directory over from the earlier one, which then records no more.

    Args:
        rundir: The run directory; made when it does not exist.
        run_id: The scheduler's id of the run, "" where it has none.
        incarnation: How often the scheduler has started that run again.

    Raises:
        RunDirError: It cannot be made or written, or a live run owns it.
    """

    def __init__(self, rundir: RunDir, *, run_id: str = "", incarnation: int = 0) -> None:
        self.rundir = rundir
        self.warning = ""
        """Says which earlier incarnation still lives, if the directory was taken over from one."""
        self._content: dict[str, Any] = {}
        self._mine = f"pid {os.getpid()} on {socket.gethostname()}"
        if run_id:
            self._mine += f", incarnation {incarnation} of {run_id}"
        self.trouble = ""
        self._lock = -1
        try:
            rundir.root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(rundir.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._take(run_id, incarnation)
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, self._mine.encode(), 0)
            self._events = rundir.events.open("a", encoding="utf-8")
        except (OSError, RunDirError) as error:
            if self._lock >= 0:
                os.close(self._lock)
            if isinstance(error, RunDirError):
                raise
            raise RunDirError(
                f"the run directory {rundir.root} cannot be used: {error.strerror}. "
                "Give a folder you can write to with --run-dir."
            ) from None

    def _take(self, run_id: str, incarnation: int) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = self._owner()
            if not _is_earlier(owner, run_id, incarnation):
                raise RunDirError(
                    f"the run directory {self.rundir.root} belongs to a run that is still going "
                    f"({owner or 'owner unknown'}). Wait for it, end it, or give another --run-dir."
                ) from None
            self.warning = (
                f"an earlier incarnation of this run still lives ({owner}); it writes no checkpoint any more once this "
                "one trains"
            )

    def first_free_attempt(self) -> int:
        """Return the number the next attempt gets: more than 0 when the directory was used before."""
        used = [re.fullmatch(r"attempt-(\d+)", path.name) for path in self.rundir.root.iterdir()]
        return max((int(match[1]) + 1 for match in used if match), default=0)

    def update(self, **fields: Any) -> None:
        """Set fields of run.json and write it. A failure to write ends no run; `trouble` tells it."""
        self._content.update(fields)
        if not self._is_still_mine():
            return
        try:
            write_atomic(self.rundir.run_json, json.dumps(self._content, indent=2, default=str) + "\n")
        except OSError as error:
            self.trouble = f"{self.rundir.run_json} could not be written: {error.strerror}"

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Append one event, stamped with the wall clock (seconds) and the monotonic clock (nanoseconds)."""
        if not self._is_still_mine():
            return
        stamp = {"time": round(time.time(), 6), "monotonic_ns": time.monotonic_ns(), "event": name}
        try:
            self._events.write(json.dumps({**stamp, **fields}) + "\n")
            self._events.flush()
        except OSError as error:
            self.trouble = f"{self.rundir.events} could not be written: {error.strerror}"

    def _owner(self) -> str:
        return os.pread(self._lock, 400, 0).decode(errors="replace").strip()

    def _is_still_mine(self) -> bool:
        owner = self._owner()
        if owner != self._mine:
            self.trouble = f"{self.rundir.root} was taken over ({owner}), so nothing more is recorded there"
        return owner == self._mine

    def close(self) -> None:
        """Give the directory up."""
        with contextlib.suppress(OSError):
            self._events.close()
        os.close(self._lock)


def _is_earlier(owner: str, run_id: str, incarnation: int) -> bool:
    """Whether an owner is an earlier incarnation of a run."""
    found = re.search(r", incarnation (\d+) of (.+)$", owner)
    return found is not None and found[2] == run_id and int(found[1]) < incarnation
