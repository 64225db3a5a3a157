"""Handing a batch script to sbatch, and following the job to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distrain.errors import EXIT_PREEMPTED, DistrainError
from distrain.rundir import RunDir
from distrain.schedulers.slurm import state
from distrain.schedulers.slurm.script import BatchJob

__all__ = ["SubmissionError", "environment_of_a_new_job", "follow", "submit"]

POLL_S = 1.0

LOST_AFTER_S = 120.0
"""How long Slurm may not answer before a job counts as lost sight of."""


class SubmissionError(DistrainError):
    """Slurm did not take a job, or does not answer any more."""


def submit(script: str, *, folder: Path) -> tuple[str, str]:
    """Submit a batch script; return the job's id, and its cluster, "" where that is the one here.

    Args:
        script: The script.
        folder: Where the log goes; made if need be, because Slurm does not.

    Raises:
        SubmissionError: sbatch refuses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SubmissionError(f"{folder} cannot be made: {error.strerror}. The job's log would go there.") from None
    done = subprocess.run(
        ["sbatch", "--parsable"], input=script.encode(errors="surrogateescape"), capture_output=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().removeprefix("sbatch: error: ")
        raise SubmissionError(f"sbatch refuses the job: {said}. --dry-run shows the script.")
    sys.stderr.write(done.stderr.decode(errors="replace"))
    number, _, cluster = done.stdout.decode().strip().partition(";")
    return number, cluster


def follow(
    job: str, batch: BatchJob, *, cluster: str = "", show: Callable[[bytes], object], say: Callable[[str], object]
) -> int:
    """Show a job's log until the job is over, those that it is resubmitted as included; return its exit code.

    Args:
        job: The job's id.
        batch: What was submitted.
        cluster: The job's cluster, "" for the one here.
        show: Takes what the job has written.
        say: Takes a line on the job's state.

    Raises:
        SubmissionError: Slurm does not answer for too long.
    """
    run_dir = RunDir(root=Path(batch.run_dir_of(job)))
    while True:
        code = _follow(job, Path(batch.log_of(job)), cluster=cluster, show=show, say=say)
        following = _resubmitted_as(run_dir, job) if code == EXIT_PREEMPTED else None
        if following is None:
            return code
        say(f"job {job} goes on as job {following}")
        job = following


def _follow(job: str, log: Path, *, cluster: str, show: Callable[[bytes], object], say: Callable[[str], object]) -> int:
    shown, told = 0, ""
    answered_s = time.monotonic()
    while True:
        now = state.ask(job, cluster)
        shown += _show_new(log, shown, show)
        if now is None:
            if time.monotonic() - answered_s > LOST_AFTER_S:
                raise SubmissionError(f"Slurm has not said anything of job {job} for {LOST_AFTER_S:g} s; see squeue.")
        else:
            answered_s = time.monotonic()
            text = now.state.lower().replace("_", " ") + (f" ({now.reason})" if now.reason and not now.is_over else "")
            if text != told:
                told = text
                say(f"job {job} is {text}")
            if now.is_over:
                _show_new(log, shown, show)
                return now.exit_code
        time.sleep(POLL_S)


def _show_new(log: Path, shown: int, show: Callable[[bytes], object]) -> int:
    try:
        with open(log, "rb") as file:
            file.seek(shown)
            new = file.read()
    except OSError:  # the job has not begun, or its node's file system lags behind
        return 0
    if new:
        show(new)
    return len(new)


def _resubmitted_as(run_dir: RunDir, job: str) -> str | None:
    try:
        asked = json.loads(run_dir.requeue.read_bytes())
    except (OSError, ValueError):
        return None
    return asked["next_job"] or None if asked.get("job") == job else None


def environment_of_a_new_job(run_dir: Path) -> dict[str, str]:
    """Return the environment to submit a job with from inside another one, whose variables it must not have.

    Args:
        run_dir: The run directory in which it goes on.
    """
    inherited = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SBATCH_")) or name in ("SLURM_CONF", "SLURM_CLUSTERS")
    }
    return {**inherited, "DISTRAIN_RUN_DIR": str(run_dir)}
