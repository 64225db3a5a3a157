"""The supervisor's part of a smoke test: a run directory for the time being, a second start, and the verdict.

    first start    ranks leave their findings in <run directory>/smoke and fail on purpose when a checkpoint is taken
    second start   torch's agent starts them again, as after any failure; they go on from that checkpoint
    end            the findings are judged, a table says what came of it

After each start it is noted what is left of the processes. Without a checkpoint there is one start.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from distrain.launcher.smoke_checks import Check, checks, table
from distrain.rundir import RunDir
from distrain.supervision.reaping import descendants

__all__ = ["EXIT_FAILED", "SmokeTest"]

EXIT_FAILED = 1
"""The exit code of a smoke test in which anything failed."""

LEAVES_WITHIN_S = 1.5
POLL_S = 0.02


class SmokeTest:
    """One smoke test, as the supervisor sees it.

    Args:
        rundir: The run directory.
        nproc: The number of ranks.
        script: How messages call the script.
    """

    def __init__(self, rundir: RunDir, nproc: int, script: str) -> None:
        self._rundir = rundir
        self._nproc = nproc
        self._script = script
        self._left: list[str] = []
        self._is_second = False
        self.checks: list[Check] = []

    def begins_again(self) -> bool:
        """Whether the ranks have failed on purpose, to be started a second time."""
        self._is_second = not self._is_second and all(
            each is not None and each["ended"] == "again" for each in self._findings(0)
        )
        return self._is_second

    def saved_at(self) -> int:
        """Return the iteration of the checkpoint that the second start begins with."""
        first = self._findings(0)[0]
        assert first is not None, "there is no second start without one"
        saved_at: int = first["checkpoint"]["saved_at"]
        return saved_at

    def note_left(self, ours: Collection[int]) -> None:
        """Note the processes that the script has left behind. Those that are about to end have a moment for it.

        Args:
            ours: The supervisor's descendants that are the launcher's own.
        """
        deadline = time.monotonic() + LEAVES_WITHIN_S
        while (left := _living(ours)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._left += [f"{name} (pid {pid})" for pid, name in left.items()]

    def conclude(self, trouble: str) -> int:
        """Judge.

        Args:
            trouble: Why the script failed, "" if it did not.

        Returns:
            The exit code: 0 when nothing failed.
        """
        num_starts = 2 if self._is_second else 1
        starts = [self._findings(start) for start in range(num_starts)]
        data = [self._read(0, f"rank-{rank}.data.json") for rank in range(self._nproc)]
        self.checks = checks(starts, data, trouble=trouble, left=self._left)
        return EXIT_FAILED if any(each.standing == "failed" for each in self.checks) else 0

    def text(self, took_s: float) -> str:
        """Return the verdict for people.

        Args:
            took_s: How long it took.
        """
        said = []
        for standing, word in (("failed", "failed"), ("unknown", "could not be checked")):
            names = [each.name for each in self.checks if each.standing == standing]
            said += [f"{len(names)} {word}: {', '.join(names)}"] if names else []
        last = " · ".join(said) or "all passed"
        ranks = f"{self._nproc} rank{'s' * (self._nproc != 1)}"
        return f"smoke test of {self._script}, {ranks}, {took_s:.1f} s\n{table(self.checks)}\n{last}"

    def _findings(self, start: int) -> list[dict[str, Any] | None]:
        return [self._read(start, f"rank-{rank}.json") for rank in range(self._nproc)]

    def _read(self, start: int, name: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads((self._rundir.smoke / f"start-{start}" / name).read_bytes())
        except FileNotFoundError:
            return None
        return content


def _living(ours: Collection[int]) -> dict[int, str]:
    """Return the descendants of this process that are not the launcher's and have not ended, with what they run."""
    found = {}
    for pid in descendants(os.getpid()):
        if pid in ours:
            continue
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        except OSError:  # it has just ended
            continue
        if state not in ("Z", "X"):
            found[pid] = b" ".join(words).decode(errors="replace")[:60]
    return found
