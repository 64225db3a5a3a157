"""The partitions' time limits, by way of sinfo: a job that asks for more is taken by Slurm, and waits for ever."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from distrain.schedulers.slurm.script import seconds_of

__all__ = ["ask", "parse", "too_long"]

_PATIENCE_S = 10.0


def ask() -> dict[str, str]:
    """Return each partition's time limit, that of the default one under "" too; nothing where Slurm does not answer."""
    words = ["sinfo", "--noheader", "--format=%P|%l"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse(done.stdout) if done.returncode == 0 else {}


def parse(text: str) -> dict[str, str]:
    """Return what `ask` returns.

    Args:
        text: Lines of sinfo: `main*|1:00:00`.
    """
    limits: dict[str, str] = {}
    for line in text.splitlines():
        name, _, limit = line.strip().partition("|")
        limits[name.rstrip("*")] = limit
        if name.endswith("*"):
            limits[""] = limit
    return limits


def too_long(time: str, partitions: str, limits: Mapping[str, str]) -> str | None:
    """Return what to warn of where no partition lets a job run as long as it asks for; None where one does.

    Args:
        time: The job's time limit.
        partitions: The partitions that it may run in, with commas between; "" is the default one.
        limits: What `ask` returned.
    """
    asked_s, names = seconds_of(time), partitions.split(",")
    known = {name: limits.get(name, "") for name in names}
    if not asked_s or any(not (limit_s := seconds_of(text)) or limit_s >= asked_s for text in known.values()):
        return None
    said = " and ".join(f"{name or 'the default one'} ({text})" for name, text in known.items())
    return f"--time {time} is longer than its partition allows, {said}: Slurm lets the job wait until that is changed"
