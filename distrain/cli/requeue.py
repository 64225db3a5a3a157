"""`distrain requeue`: inside a job that was asked to end and has saved its state, have it queued again."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from distrain.cli.parsing import Parser
from distrain.errors import UsageError
from distrain.supervision.output import say

__all__ = ["main"]


def _parser() -> Parser:
    parser = Parser(
        prog="distrain requeue",
        usage="distrain requeue [options] [BATCH_SCRIPT]",
        description="Have the present Slurm job queued again by scontrol, or the batch script submitted where that is "
        'refused or not there. A batch script calls it as: distrain requeue "$0", after a launch has ended with 75.',
    )
    parser.add_argument(
        "--budget",
        metavar="N",
        default="3",
        help="how often in a row that may be without a newer checkpoint; default: 3",
    )
    parser.add_argument("--run-dir", metavar="DIR", help="the run directory; default: $DISTRAIN_RUN_DIR")
    parser.add_argument("--checkpoints", metavar="DIR", help="where the checkpoints are, if not in the run directory")
    parser.add_argument(
        "--check", action="store_true", help="ask nobody: count, and end with 0 if the job may be queued again, else 1"
    )
    parser.add_argument("script", nargs="?", help=argparse.SUPPRESS)
    return parser


@contextlib.contextmanager
def _sigterm_ignored() -> Iterator[None]:
    """Ignore SIGTERM, in the programs started meanwhile too.

    Slurm ends the present incarnation as soon as the job is queued again: it would strike scontrol, whose death reads
    as a refusal, or this process before it has said what it did.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str]) -> int:
    """Run `distrain requeue`.

    Args:
        argv: The arguments after `requeue`.

    Returns:
        0.

    Raises:
        UsageError: This is no job of Slurm, or the run directory is not known.
        DistrainError: The job is not queued again.
    """
    options = _parser().parse_args(argv)
    if not (options.budget.isascii() and options.budget.isdigit() and int(options.budget) > 0):
        raise UsageError(f"--budget: got {options.budget!r}; give a whole number of at least 1.")
    run_dir = options.run_dir or os.environ.get("DISTRAIN_RUN_DIR")
    if not run_dir:
        raise UsageError("no run directory: set DISTRAIN_RUN_DIR before the launch, or give --run-dir.")
    if not Path(run_dir).is_dir():
        raise UsageError(f"the run directory {run_dir} does not exist; give the one of the launch.")
    if not os.environ.get("SLURM_JOB_ID"):
        raise UsageError("SLURM_JOB_ID is not set: distrain requeue belongs into a batch script of Slurm.")

    from distrain.schedulers.slurm.requeueing import queue_again

    with _sigterm_ignored():
        line = queue_again(
            Path(run_dir).absolute(),
            os.environ,
            budget=int(options.budget),
            checkpoints=Path(options.checkpoints) if options.checkpoints else None,
            script=options.script,
            only_count=options.check,
        )
        say(f"distrain: {line}")
    return 0
