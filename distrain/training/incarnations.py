"""Which launch may write into a checkpoint directory: the one that began to train there last.

A scheduler that has lost sight of a node starts a job again elsewhere, while its ranks may live on there. Both know the
same directory. Each launch that trains takes the next number, `.incarnations/00000002.json`, a file that can be made
once; whoever publishes a checkpoint looks first whether a higher one is there. What slips in between is in order before
everything that the higher number writes.

All attempts of a launch share one number, so that the lost one cannot take the next by starting its ranks again.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from distrain.errors import CheckpointError, SupersededError
from distrain.rundir import write_once
from distrain.runtime.environment import launch_id, scheduler_job

__all__ = ["check", "claim"]

FOLDER = ".incarnations"


def claim(directory: Path) -> int:
    """Take the next number for this launch, or find the one that it has.

    Args:
        directory: The checkpoint directory; made if need be.

    Raises:
        SupersededError: This launch has a number, and another one has taken a higher one since. Without a launch each
            call takes the next: a process that trains now and then is none that was lost sight of.
        CheckpointError: Nothing can be written there.
    """
    mine = {
        "launch": launch_id() or _of_this_process(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": scheduler_job(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    folder = directory / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            found = _numbers(folder)
            newest = max(found, default=0)
            if newest and _told(folder, newest).get("launch") == mine["launch"]:
                return newest
            for number in found if launch_id() else ():
                if _told(folder, number).get("launch") == mine["launch"]:
                    check(directory, number)
            if write_once(folder / f"{newest + 1:08d}.json", json.dumps(mine)):
                return newest + 1
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror}, so neither can checkpoints. Check the permissions and the "
            "space there."
        ) from None


def check(directory: Path, number: int) -> None:
    """Refuse to go on where another launch has taken a higher number.

    Args:
        directory: The checkpoint directory.
        number: The number of this launch.

    Raises:
        SupersededError: One has.
    """
    newest = max(_numbers(directory / FOLDER), default=0)
    if newest > number:
        told = _told(directory / FOLDER, newest)
        who = f"pid {told.get('pid', '?')} on {told.get('host', 'an unknown host')}"
        job = f", {told['job']}" if told.get("job") else ""
        since = told.get("time", "a while ago")
        raise SupersededError(
            f"Another launch trains in {directory} since {since} ({who}{job}), so this one may write no checkpoint "
            "there any more. End this one, which a scheduler may have lost sight of, or give it a run directory of its "
            "own."
        )


def _numbers(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit())


def _told(folder: Path, number: int) -> dict[str, Any]:
    try:
        told = json.loads((folder / f"{number:08d}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


@functools.cache
def _of_this_process() -> str:
    return f"process-{secrets.token_hex(8)}"
