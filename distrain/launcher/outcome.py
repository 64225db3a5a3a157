"""How a run went: the exits of its workers, attempt by attempt, and what follows from them."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Mapping
from typing import Any

from distrain.rundir import RunDir
from distrain.supervision.failure import Exit, Failure, describe, find_root_cause
from distrain.supervision.logs import tail_lines

__all__ = ["Outcome", "exit_code_of"]

_LOG_LINES = 20


class Outcome:
    """What is known of a run's workers.

    Args:
        rundir: The run directory, where the workers leave their records and logs.
    """

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir
        self._exits: list[Exit] = []
        self.attempt = -1

    def worker_started(self, message: Mapping[str, Any]) -> None:
        """Note a worker of a new round, and forget the round before."""
        if message["attempt"] != self.attempt:
            self.attempt = message["attempt"]
            self._exits.clear()

    def worker_exited(self, message: Mapping[str, Any]) -> None:
        """Note how a worker ended."""
        self._exits.append(
            Exit(
                rank=message["rank"],
                attempt=self.attempt,
                pid=message["pid"],
                exit_code=message["exit_code"],
                monotonic_ns=message["monotonic_ns"],
            )
        )

    def failure(self) -> Failure | None:
        """Return why the present attempt failed; None when no worker of it ended badly."""
        raised = {end.rank: record for end in self._exits if (record := self._exception(end.rank)) is not None}
        root = find_root_cause(self._exits, {rank: record["monotonic_ns"] for rank, record in raised.items()})
        if root is None:
            return None
        exception = raised.get(root.rank)
        ended_by_us = (-signal.SIGTERM, -signal.SIGKILL)
        exit_code = root.exit_code
        if exception is not None and exit_code in ended_by_us:  # it was ending when a peer's end had us end all
            exit_code = exception["exit_code"]
        kind, message = describe(exit_code, exception)
        log = self._rundir.stderr(self.attempt, root.rank)
        has_raised = exception is not None and exception["type"] != "SystemExit" and exit_code >= 0
        return Failure(
            rank=root.rank,
            host=socket.gethostname(),
            kind=kind,
            message=message,
            exit_code=exit_code,
            pid=root.pid,
            attempt=self.attempt,
            traceback=exception["traceback"] if exception is not None and has_raised else "",
            log_tail=tail_lines(log, _LOG_LINES),
            log_path=str(log),
            others={
                end.rank: end.exit_code
                for end in self._exits
                if end is not root and end.exit_code != 0 and end.exit_code not in ended_by_us
            },
        )

    def _exception(self, rank: int) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self._rundir.exception(self.attempt, rank).read_text())
        except (OSError, ValueError):
            return None
        return record


def exit_code_of(failure: Failure) -> int:
    """Return the launcher's exit code for a failure: the root cause's own, or 128+S after signal S."""
    return failure.exit_code if failure.exit_code > 0 else 128 - failure.exit_code
