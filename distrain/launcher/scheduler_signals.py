"""What the signals of a scheduler mean, beside those of a user: it repeats itself, and it comes at any time."""

from __future__ import annotations

import signal
import time

from distrain.plan.plan import Plan

__all__ = ["SchedulerSignals"]

ECHO_S = 5.0
"""For how long a scheduler may repeat what it said first: it signals each step, and srun passes on what it gets."""

START_UP_S = 600.0
"""How long a launch without any progress may only be starting up."""


class SchedulerSignals:
    """The signals of one launch as its scheduler may have meant them; outside of a job none of them is a scheduler's.

    Args:
        plan: The plan of the launch, which begins now.
    """

    def __init__(self, plan: Plan) -> None:
        self._in_a_job = plan.placement is not None and plan.placement.scheduler == "Slurm"
        self._began_s = time.monotonic()
        self._first_came_s: dict[int, float] = {}

    def came(self, number: int) -> bool:
        """Note a signal; return whether it may only say once more what was said.

        A warning ahead of a limit, then the end, and each of them repeated. Whoever presses Ctrl-C twice means it.

        Args:
            number: The signal.
        """
        first_s = self._first_came_s.setdefault(number, time.monotonic())
        return self._in_a_job and number != signal.SIGINT and time.monotonic() - first_s < ECHO_S

    def ended_at_start(self, number: int | None, *, has_begun: bool) -> bool:
        """Whether a scheduler has asked for the end before the ranks were at work, so that the job can come as it is.

        A program that shows no progress at all is at work after a while, too.

        Args:
            number: The signal that ended the launch.
            has_begun: Whether a rank has shown progress.
        """
        asked = number in (signal.SIGTERM, signal.SIGUSR2) and self._in_a_job
        return asked and not has_begun and time.monotonic() - self._began_s < START_UP_S
