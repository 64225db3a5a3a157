"""Whose turn it is when the node where all meet is lost: each round of an elastic run is a file that one node can make.

A node that is not heard of may be dead, or cut off and alive. Both sides of a cut would go on, were there nothing that
both see: the run directory, which they share anyhow to go on from one checkpoint. The node where all meet (the head)
takes the number of each round, `.rounds/00000003.json`, before its ranks start. Who takes the next number has the run;
its file says where the nodes meet from then on.

Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distrain.rundir import write_once

__all__ = ["Held", "Rounds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Who has a round, and where its nodes meet.

    Args:
        token: Names the head's agent among all there ever were.
        name: How a message calls the head's node.
        address: Where it answers.
        port: The port of torch's store there.
        watch_port: The port of the watch there.
        since: When the number was taken, on the head's clock.
    """

    token: str
    name: str
    address: str
    port: int
    watch_port: int
    since: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Held:
        """Return what a file says."""
        return cls(**{name: data[name] for name in cls.__dataclass_fields__})


class Rounds:
    """The numbers of a run directory's rounds.

    Args:
        folder: Where their files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, held: Held) -> int:
        """Take the number after all that are taken, and return it.

        Raises:
            OSError: The folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            number = max(self._numbers(), default=0) + 1
            if self.take(number, held):
                return number

    def take(self, number: int, held: Held) -> bool:
        """Take a number; return False where another node has it.

        Raises:
            OSError: The folder cannot be written.
        """
        told = asdict(held) | {"since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        return write_once(self._path(number), json.dumps(told) + "\n")

    def holder(self, number: int) -> Held | None:
        """Return who has a number; None where nobody has, or none that this node can see."""
        try:
            return Held.from_json(json.loads(self._path(number).read_bytes()))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def newest(self) -> Held | None:
        """Return who has the highest number."""
        return self.holder(max(self._numbers(), default=0))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._folder)
        except OSError:
            return []
        return [int(stem) for name in names if (stem := name.removesuffix(".json")).isdigit()]
