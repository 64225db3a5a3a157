"""What the environment says about this worker: the one place of the worker half that reads it.

Three cases are told apart: `distrain launch` and torchrun set all of `PLACEMENT`; no launcher sets none of them; a
few of them without the rest is somebody's mistake, and guessing would train on the wrong device or in the wrong world.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distrain.errors import UsageError, did_you_mean
from distrain.rundir import ENV_LAUNCH_ID, ENV_RUN_DIR, ENV_SMOKE

__all__ = [
    "DEVICE_TYPES",
    "ENV_DEVICE",
    "ENV_XLA_SPMD",
    "PLACEMENT",
    "WorkerEnvironment",
    "is_launched",
    "launch_id",
    "num_restarts",
    "read_environment",
    "scheduler_job",
    "smoke_folder",
]

ENV_DEVICE = "DISTRAIN_DEVICE"
"""The environment variable that carries the launcher's `--device`."""

ENV_XLA_SPMD = "DISTRAIN_XLA_SPMD"
"""The environment variable that carries the launcher's `--xla-spmd`."""

DEVICE_TYPES = ("auto", "cpu", "cuda", "xla")

PLACEMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets for each worker, with torchrun's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnvironment:
    """The place of this process, as its launcher set it.

    Args:
        launched: Whether a launcher set the variables; otherwise this is a world of one process.
        rank: Number of this process among all, from 0.
        world_size: Number of processes.
        local_rank: Number of this process among those of its node, from 0.
        local_world_size: Number of processes on this node.
        device: One of `DEVICE_TYPES`.
        run_dir: The run directory of the launcher, or None.
        xla_spmd: Whether this process is to use all XLA devices as one.
    """

    launched: bool = False
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    device: str = "auto"
    run_dir: Path | None = None
    xla_spmd: bool = False


def read_environment(environ: Mapping[str, str] | None = None) -> WorkerEnvironment:
    """Read and check the variables that a launcher sets.

    `MASTER_ADDR` and `MASTER_PORT` alone count as no launcher: people export them in job scripts.

    Args:
        environ: The variables; those of this process by default.

    Raises:
        UsageError: Only some are set, one is not a number, or they contradict each other.
    """
    environ = os.environ if environ is None else environ
    device = environ.get(ENV_DEVICE) or "auto"
    if device not in DEVICE_TYPES:
        raise UsageError(
            f"{ENV_DEVICE} is {device!r}; it must be one of {', '.join(DEVICE_TYPES)}."
            f"{did_you_mean(device, DEVICE_TYPES)}"
        )
    run_dir = environ.get(ENV_RUN_DIR)
    if run_dir and not os.path.isabs(run_dir):
        raise UsageError(f"{ENV_RUN_DIR} is {run_dir!r}; it must be an absolute path, the same on every rank.")
    common = {
        "device": device,
        "run_dir": Path(run_dir) if run_dir else None,
        "xla_spmd": environ.get(ENV_XLA_SPMD, "").lower() in ("1", "true", "yes", "on"),
    }

    found = [name for name in PLACEMENT if environ.get(name)]
    if not any(name in found for name in PLACEMENT[:4]):
        return WorkerEnvironment(**common)  # type: ignore[arg-type]
    missing = [name for name in PLACEMENT if name not in found]
    if missing:
        raise UsageError(
            f"The environment is half set: {', '.join(found)} without {', '.join(missing)}. Start the script with "
            f"`distrain launch` or torchrun, which set them all, or unset {', '.join(found)} to run a single process."
        )
    rank, world_size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    local_rank, local_world_size = _number(environ, "LOCAL_RANK"), _number(environ, "LOCAL_WORLD_SIZE")
    if not (rank < world_size and local_rank < local_world_size <= world_size):
        raise UsageError(
            f"The environment contradicts itself: RANK={rank}, WORLD_SIZE={world_size}, LOCAL_RANK={local_rank}, "
            f"LOCAL_WORLD_SIZE={local_world_size}. A rank is less than its world's size, and a node's world is no "
            "larger than the whole."
        )
    return WorkerEnvironment(
        launched=True,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        **common,  # type: ignore[arg-type]
    )


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name].strip()
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name} is {environ[name]!r}; it must be a whole number, 0 or more.")
    return int(text)


def num_restarts(environ: Mapping[str, str] | None = None) -> str:
    """Return how often the launcher has started this group of workers again, "0" without a launcher.

    Args:
        environ: The variables; those of this process by default.
    """
    return (os.environ if environ is None else environ).get("TORCHELASTIC_RESTART_COUNT", "0")


def is_launched(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether a `distrain launch` stands above this process.

    Args:
        environ: The variables; those of this process by default.
    """
    return bool(launch_id(environ))


def launch_id(environ: Mapping[str, str] | None = None) -> str:
    """Return what names the launch above this process, for all its nodes and attempts; "" where there is none.

    Args:
        environ: The variables; those of this process by default.
    """
    return (os.environ if environ is None else environ).get(ENV_LAUNCH_ID, "")


def scheduler_job(environ: Mapping[str, str] | None = None) -> str:
    """Return a few words on the scheduler's job that this process belongs to, "" outside of one.

    Args:
        environ: The variables; those of this process by default.
    """
    environ = os.environ if environ is None else environ
    if not environ.get("SLURM_JOB_ID"):
        return ""
    restarts = environ.get("SLURM_RESTART_COUNT", "0")
    again = "" if restarts == "0" else f", queued again {restarts} time{'s' * (restarts != '1')}"
    return f"Slurm job {environ['SLURM_JOB_ID']}{again}"


def smoke_folder(environ: Mapping[str, str] | None = None) -> str | None:
    """Return where this worker leaves what it finds in a smoke test, None outside of one.

    Args:
        environ: The variables; those of this process by default.
    """
    return (os.environ if environ is None else environ).get(ENV_SMOKE)
