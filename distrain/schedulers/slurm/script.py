"""The batch script of a launch, as text. Nothing is asked, written or submitted here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distrain.errors import EXIT_PREEMPTED, UsageError

__all__ = ["BatchJob", "directive", "render", "seconds_of"]

_PLAIN = re.compile(r"[\w@%+=:,./\[\]^~-]+", re.ASCII)

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """A launch as a job of Slurm.

    Args:
        name: The job's name, part of its run directory's.
        folder: Where logs and run directories go, absolute.
        launch: The words of `distrain launch …` with all its options, the script and its arguments.
        requeue: The words of `distrain requeue`.
        options: Option of sbatch to its value, in the order in which they are written.
        passed: Words for sbatch that go behind those, as they are; they are stronger.
        container: Words before `launch` on each node, such as those of `apptainer exec image.sif`.
        setup: Lines of shell to run first.
        signal_lead_s: How long before the time limit the job is asked to end; 0 for never.
        budget: How often in a row it may be queued again without a newer checkpoint.
        run_dir: The run directory, absolute; "" names one after the job.
        is_array: Whether the job is an array, each task of which has a run directory of its own.
    """

    name: str
    folder: str
    launch: Sequence[str]
    requeue: Sequence[str]
    options: Sequence[tuple[str, str]] = ()
    passed: Sequence[str] = ()
    container: Sequence[str] = ()
    setup: Sequence[str] = ()
    signal_lead_s: int = 120
    budget: int = 3
    run_dir: str = ""
    is_array: bool = False

    @property
    def log(self) -> str:
        """The log's path as sbatch takes it, where `%j` (in an array `%A_%a`) stands for the job.

        Raises:
            UsageError: It holds a backslash, which has sbatch leave every `%j` as it is.
        """
        if "\\" in self.folder + self.name:
            raise UsageError(
                f"{self.folder}/…-{self.name}.log holds a backslash, with which sbatch does not put the job's number "
                "into a log's name. Submit from a folder without one (--name names the job)."
            )
        job = "%A_%a" if self.is_array else "%j"
        return f"{self.folder.replace('%', '%%')}/slurm-{job}-{self.name.replace('%', '%%')}.log"

    def log_of(self, job: str) -> str:
        """Return the log's path of a job that is no array.

        Args:
            job: Its id.
        """
        return f"{self.folder}/slurm-{job}-{self.name}.log"

    def run_dir_of(self, job: str) -> str:
        """Return the run directory of a job that is no array.

        Args:
            job: Its id.
        """
        return self.run_dir or f"{self.folder}/slurm-{job}-{self.name}"


def render(job: BatchJob) -> str:
    """Return the batch script of a job.

    Args:
        job: The job.

    Raises:
        UsageError: An option of sbatch holds a line break, which a script's head cannot, or the log's path a backslash.
    """
    return "\n".join(_lines(job)) + "\n"


def _lines(job: BatchJob) -> Iterator[str]:
    yield "#!/bin/bash"
    head = [("job-name", job.name), ("output", job.log), *job.options]
    words = [f"--{name}={value}" for name, value in head]
    words += ["--ntasks-per-node=1", "--requeue", "--open-mode=append"]
    if job.signal_lead_s:
        words.append(f"--signal=USR2@{job.signal_lead_s}")
    yield from (f"#SBATCH {directive(word)}" for word in words)
    if job.passed:
        yield f"#SBATCH {' '.join(map(directive, job.passed))}"
    yield ""
    yield from job.setup
    yield from _run_dir(job)
    if any(name == "cpus-per-task" for name, _ in job.options):
        yield "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it over in every release"
    yield ""
    yield "# One launch on each node, none of which is ended because another one is done first."
    yield "code=0"
    yield f"srun --kill-on-bad-exit=0 --wait=0 {shlex.join([*job.container, *job.launch])} || code=$?"
    yield ""
    yield f"# {EXIT_PREEMPTED}: asked to end, and the state is saved. Queue the job again, as long as it gets on."
    again = shlex.join([*job.requeue, f"--budget={job.budget}"])
    yield f'[ "$code" != {EXIT_PREEMPTED} ] || {again} "$0" || true'
    yield 'exit "$code"'


def _run_dir(job: BatchJob) -> Iterator[str]:
    """Yield what names the run directory: the same when the job is queued again, also as another job."""
    if job.run_dir:
        yield f"export DISTRAIN_RUN_DIR={shlex.quote(job.run_dir)}"
        return
    number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.is_array else "$SLURM_JOB_ID"
    before, after = shlex.quote(f"{job.folder}/slurm-"), shlex.quote(f"-{job.name}")
    yield f'[ -n "${{DISTRAIN_RUN_DIR:-}}" ] || DISTRAIN_RUN_DIR={before}"{number}"{after}'
    yield "export DISTRAIN_RUN_DIR"


def directive(word: str) -> str:
    """Return a word as sbatch reads it from a script's head: between quotes where it has to be.

    Args:
        word: The word.

    Raises:
        UsageError: It holds a line break.
    """
    if "\n" in word or "\r" in word:
        raise UsageError(f"{word!r} holds a line break, which sbatch cannot read from a script's head.")
    if _PLAIN.fullmatch(word):
        return word
    escaped = re.sub(r'(["\\])', r"\\\1", word)
    return f'"{escaped}"'


def seconds_of(limit: str) -> int | None:
    """Return the seconds of a time limit as Slurm writes it; None where it is none, or of no end.

    Args:
        limit: `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` or
            `days-hours:minutes:seconds`.
    """
    found = _TIME.fullmatch(limit)
    if found is None:
        return None
    numbers = [int(found[name]) for name in ("first", "second", "third") if found[name] is not None]
    if found["days"] is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return ((int(found["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(numbers) == 3:
        return (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)
