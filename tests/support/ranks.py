"""Run a piece of a program on several real ranks, under plain torchrun."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.processes import REPOSITORY, Finished, run

__all__ = ["run_alone", "run_ranks"]


def run_ranks(
    folder: Path,
    program: str | Path,
    num_ranks: int = 2,
    args: Sequence[str] = (),
    *,
    env: Mapping[str, str | None] | None = None,
    deadline_s: float = 110,
) -> Finished:
    """Run a program on `num_ranks` CPU ranks under torchrun, in `folder`. It sees no GPU: a machine may have fewer.

    Args:
        folder: Where the program runs and, given as text, is written.
        program: Its text, indented as you like, or a path.
        num_ranks: How many ranks.
        args: Its arguments.
        env: Changes to the environment.
        deadline_s: After it everything is killed.
    """
    options = ["--standalone", "--nproc_per_node", str(num_ranks), "--log-dir", str(folder / "torchrun-logs")]
    torchrun = ["-m", "torch.distributed.run", *options]
    return _run(folder, torchrun, program, args, env, deadline_s)


def run_alone(
    folder: Path,
    program: str | Path,
    args: Sequence[str] = (),
    *,
    env: Mapping[str, str | None] | None = None,
    deadline_s: float = 110,
) -> Finished:
    """Run a program with no launcher; see `run_ranks`."""
    return _run(folder, [], program, args, env, deadline_s)


def _run(  # noqa: PLR0917  # private, called twice above
    folder: Path,
    launcher: Sequence[str],
    program: str | Path,
    args: Sequence[str],
    env: Mapping[str, str | None] | None,
    deadline_s: float,
) -> Finished:
    if isinstance(program, str):
        path = folder / "program.py"
        path.write_text(textwrap.dedent(program))
        program = path
    words = [sys.executable, *launcher, str(program), *args]
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY), **(env or {})}
    return run(words, cwd=folder, env=settings, deadline_s=deadline_s)
