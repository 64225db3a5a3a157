"""Queueing a job again that has saved its state: by scontrol, else by sbatch, as long as it gets on.

How often that was asked stands in the run directory (`requeue.json`), which is the same for every incarnation.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from distrain.errors import DistrainError
from distrain.rundir import RunDir, newest_checkpoint, write_atomic
from distrain.schedulers.slurm.submission import environment_of_a_new_job

__all__ = ["Asked", "NoProgressError", "NotQueuedError", "asked_again", "id_of", "queue_again", "read_asked"]


class NoProgressError(DistrainError):
    """A job was asked to end several times in a row without a newer checkpoint."""


class NotQueuedError(DistrainError):
    """Slurm does not queue the job again, or cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked of Slurm so far.

    Args:
        times: How often.
        checkpoint: The newest checkpoint the last time, "" where there was none.
        number: Its number, which counts checkpoints.
        without_progress: How often in a row there was no newer one.
        job: Which job asked last.
        next_job: The job that it was resubmitted as; "" where Slurm has requeued it.
    """

    times: int = 0
    checkpoint: str = ""
    number: int = 0
    without_progress: int = 0
    job: str = ""
    next_job: str = ""


def read_asked(run_dir: RunDir) -> Asked:
    """Return what was asked so far; a record that cannot be read counts as none.

    Args:
        run_dir: The run directory.
    """
    try:
        return Asked(**json.loads(run_dir.requeue.read_bytes()))
    except (OSError, ValueError, TypeError):
        return Asked()


def asked_again(before: Asked, newest: tuple[str, int] | None, *, job: str, budget: int) -> Asked:
    """Return the record with one more request.

    Args:
        before: The record so far.
        newest: The newest checkpoint and its number; None where there is none.
        job: The job that asks.
        budget: How often in a row it may ask without a newer checkpoint.

    Raises:
        NoProgressError: It has asked that often.
    """
    name, number = newest or ("", 0)
    has_moved = (name, number) != (before.checkpoint, before.number) and number > 0
    without = 0 if has_moved else before.without_progress + 1
    if without > budget:
        where = f"{name} is still the newest checkpoint" if name else "there is no checkpoint yet"
        raise NoProgressError(
            f"job {job} is not queued again: it was {budget} times in a row without getting on ({where}). A longer "
            "time limit, a longer --signal-lead or more frequent checkpoints may help; then submit it again with the "
            "same run directory."
        )
    return Asked(times=before.times + 1, checkpoint=name, number=number, without_progress=without, job=job)


def queue_again(
    run_dir: Path,
    environ: Mapping[str, str],
    *,
    budget: int,
    checkpoints: Path | None = None,
    script: str | None = None,
    only_count: bool = False,
) -> str:
    """Queue the present job again, and return a line that says how.

    Args:
        run_dir: Its run directory.
        environ: The environment inside the job.
        budget: How often in a row that may be without a newer checkpoint.
        checkpoints: Where the checkpoints are, if they are not in the run directory.
        script: The batch script, to be submitted where Slurm does not requeue.
        only_count: Whether to ask nobody, only to count and to say whether it may be asked.

    Raises:
        NoProgressError: The budget is spent.
        NotQueuedError: Neither way works.
    """
    rundir = RunDir(root=run_dir)
    job = id_of(environ)
    newest = newest_checkpoint(checkpoints or rundir.checkpoints)
    asked = asked_again(read_asked(rundir), newest, job=job, budget=budget)
    _write(rundir, asked)
    after = f"after {asked.checkpoint}" if asked.checkpoint else "before the first checkpoint"
    if only_count:
        return f"job {job} may be queued again, {after}"
    refusal = _requeue(job)
    if refusal is None:
        return f"job {job} is queued again, {after}"
    next_job = _resubmit(environ, run_dir, script, refusal)
    _write(rundir, Asked(**{**asdict(asked), "next_job": next_job}))
    return f"job {job} goes on as job {next_job}, {after} (scontrol requeue: {refusal})"


def id_of(environ: Mapping[str, str]) -> str:
    """Return the present job's id. One task of an array has the number of the whole as its job's, so they are not used.

    Args:
        environ: The environment inside the job.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ["SLURM_JOB_ID"]


def _write(rundir: RunDir, asked: Asked) -> None:
    try:
        write_atomic(rundir.requeue, json.dumps(asdict(asked), indent=2) + "\n")
    except OSError as error:
        # A job that cannot count would ask for ever.
        reason = f"{rundir.requeue} cannot be written: {error.strerror}"
        raise NotQueuedError(f"the job is not queued again: {reason}.") from None


def _requeue(job: str) -> str | None:
    """Have Slurm queue a job again; return why it does not."""
    if shutil.which("scontrol") is None:
        return "not on PATH here"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def _resubmit(environ: Mapping[str, str], run_dir: Path, script: str | None, refusal: str) -> str:
    job = id_of(environ)
    missing = "no batch script was named" if script is None else ""
    if shutil.which("sbatch") is None:
        missing = "sbatch is not on PATH here"
    elif script is not None and not Path(script).is_file():
        missing = f"{script} does not exist here"
    if missing:
        raise NotQueuedError(
            f"job {job} is not queued again: scontrol requeue: {refusal}; and {missing}. In a container, call distrain "
            "requeue outside of it, or distrain requeue --check inside and scontrol requeue outside."
        )
    words = ["sbatch", "--parsable", "--export=ALL"]
    if environ.get("SLURM_JOB_NAME"):
        words.append(f"--job-name={environ['SLURM_JOB_NAME']}")
    if environ.get("SLURM_ARRAY_TASK_ID"):
        words.append(f"--array={environ['SLURM_ARRAY_TASK_ID']}")
    assert script is not None
    done = subprocess.run(
        [*words, script], env=environment_of_a_new_job(run_dir), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise NotQueuedError(
            f"job {job} is not queued again: scontrol requeue: {refusal}; sbatch: {done.stderr.strip()}"
        )
    return done.stdout.strip().partition(";")[0]
