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

    Args:
        rundir: The run directory; made when it does not exist.

    Raises:
        RunDirError: It cannot be made or written, or a live run owns it.
    """

    def __init__(self, rundir: RunDir) -> None:
        self.rundir = rundir
        self._content: dict[str, Any] = {}
        try:
            rundir.root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(rundir.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise RunDirError(
                f"the run directory {rundir.root} cannot be used: {error.strerror}. "
                "Give a folder you can write to with --run-dir."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._lock, 200).decode(errors="replace").strip()
            os.close(self._lock)
            raise RunDirError(
                f"the run directory {rundir.root} belongs to a run that is still going ({owner or 'owner unknown'}). "
                "Wait for it, end it, or give another --run-dir."
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._events = rundir.events.open("a", encoding="utf-8")
        self.trouble = ""

    def first_free_attempt(self) -> int:
        """Return the number the next attempt gets: more than 0 when the directory was used before."""
        used = [re.fullmatch(r"attempt-(\d+)", path.name) for path in self.rundir.root.iterdir()]
        return max((int(match[1]) + 1 for match in used if match), default=0)

    def update(self, **fields: Any) -> None:
        """Set fields of run.json and write it. A failure to write ends no run; `trouble` tells it."""
        self._content.update(fields)
        try:
            write_atomic(self.rundir.run_json, json.dumps(self._content, indent=2, default=str) + "\n")
        except OSError as error:
            self.trouble = f"{self.rundir.run_json} could not be written: {error.strerror}"

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Append one event, stamped with the wall clock (seconds) and the monotonic clock (nanoseconds)."""
        stamp = {"time": round(time.time(), 6), "monotonic_ns": time.monotonic_ns(), "event": name}
        try:
            self._events.write(json.dumps({**stamp, **fields}) + "\n")
            self._events.flush()
        except OSError as error:
            self.trouble = f"{self.rundir.events} could not be written: {error.strerror}"

    def close(self) -> None:
        """Give the directory up."""
        with contextlib.suppress(OSError):
            self._events.close()
        os.close(self._lock)
