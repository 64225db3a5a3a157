"""What a rank of a smoke test has seen, in files that the launcher reads.

    <run directory>/smoke/start-0/rank-0.json         after each step, so that a crash leaves it too
                                  rank-0.data.json    at the end: long, where there are many samples
                    checkpoint/step-00000002/         from which the second start begins

A rank writes for itself; comparing the ranks is the launcher's.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distrain.rundir import write_atomic

__all__ = ["Checkpoint", "Findings", "Weights"]

MEETING_S = 20.0
POLL_S = 0.005


@dataclass(slots=True, kw_only=True)
class Weights:
    """The parameters at one moment.

    Args:
        when: `start` or `end`.
        steps: The optimizer steps so far.
        names: The parameters.
        prints: What each holds; "" for one that is spread over the ranks.
    """

    when: str
    steps: int
    names: list[str]
    prints: list[str]


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """How a trainer with a Checkpointer was saved and resumed.

    Args:
        objects: What was attached, by name and type.
        optimizers: Optimizers of the trainer's steps that were not attached, by type.
        is_loader_attached: Whether the trainer's data was.
        others: What else holds state at the end of the trainer's run, see `states`.
        saved_at: The iteration of the checkpoint; None where none was taken.
        resumed_at: The iteration that the second start has found; None in the first.
        why_not: Why none was taken, "" if one was.
    """

    objects: dict[str, str]
    optimizers: list[str] = field(default_factory=list)
    is_loader_attached: bool = False
    others: dict[str, list[str]] = field(default_factory=dict)
    saved_at: int | None = None
    resumed_at: int | None = None
    why_not: str = ""


@dataclass(slots=True, kw_only=True)
class Findings:
    """What one rank has seen in one start.

    Args:
        folder: The smoke test's.
        rank: Which rank.
        world_size: Of how many.
        start: Which start, from 0.
        ended: How it was left: `again` to be started once more, `cut` where the script was ended, `exit` where it
            ended; "" as long as it runs, or if it died.
        steps: Optimizer steps.
        losses: What `backward` was called on: iteration or step, and the value in `float.hex`.
        batches: What a trainer's batches hold, by iteration.
        parameters: The names of the parameters that require a gradient.
        without: Those that have got none so far.
        not_finite: Those that had one that is nan or infinite, and at which step first.
        unstepped: Those that belong to no optimizer.
        idle: Optimizers that took no step, as people read them.
        weights: The parameters at the beginning and at the end.
        checkpoint: The trainer's; None without one.
    """

    folder: Path
    rank: int
    world_size: int
    start: int
    ended: str = ""
    steps: int = 0
    losses: list[tuple[int, str]] = field(default_factory=list)
    batches: dict[int, str] = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    not_finite: dict[str, int] = field(default_factory=dict)
    unstepped: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    checkpoint: Checkpoint | None = None

    @property
    def checkpoint_folder(self) -> Path:
        """Where the checkpoint is that the second start begins with."""
        return self.folder / "checkpoint"

    def write(self) -> None:
        """Leave what is known so far."""
        self._write(self._path(self.rank), {**asdict(self), "folder": str(self.folder)})

    def write_data(self, data: dict[str, Any]) -> None:
        """Leave which samples this rank was given.

        Args:
            data: What `loaders` knows of the training data.
        """
        self._write(self._path(self.rank).with_suffix(".data.json"), data)

    def meet(self) -> None:
        """Wait until every rank has written how it was left, so that none goes while another one still needs it."""
        deadline = time.monotonic() + MEETING_S
        waited_for = set(range(self.world_size)) - {self.rank}
        while waited_for and time.monotonic() < deadline:
            waited_for = {rank for rank in waited_for if not self._has_ended(rank)}
            time.sleep(POLL_S)

    def _has_ended(self, rank: int) -> bool:
        try:
            return bool(json.loads(self._path(rank).read_bytes())["ended"])
        except FileNotFoundError:
            return False

    def _path(self, rank: int) -> Path:
        return self.folder / f"start-{self.start}" / f"rank-{rank}.json"

    @staticmethod
    def _write(path: Path, content: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(content))
