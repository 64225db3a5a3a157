"""What one rank's heartbeat says at one moment; the board fills it in, the hang watch and the report read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Beat", "BeatState"]

BeatState = Literal["not begun", "going", "paused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The heartbeat of one rank, as read from the board.

    Args:
        rank: Global rank.
        pid: The process that beats; 0 before it began.
        beats: How often it showed progress: optimizer steps, engine iterations and calls of `distrain.heartbeat()`.
        steps: Optimizer steps done by this process.
        iteration: The iteration that an engine of distrain is at, counted from the run's beginning; 0 without one.
        last_ns: When it beat last or its pause ended, in nanoseconds of this host's CLOCK_MONOTONIC; 0 before it
            began.
        slowest_ns: The longest time between two of its beats that was no pause, in nanoseconds.
        state: `not begun` before the first beat, `paused` while it does what shows no progress on purpose (a
            checkpoint), else `going`.
    """

    rank: int
    pid: int
    beats: int
    steps: int
    iteration: int = 0
    last_ns: int
    slowest_ns: int
    state: BeatState
