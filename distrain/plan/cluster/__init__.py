"""Where this process was started: in which place of which scheduler's job, read off its variables.

A module for each scheduler has a function that returns a `Placement`, or None outside its jobs. They are asked in the
order of `DETECTORS`; the first answer counts. Nothing is executed. Nobody is asked over the network, but for the
metadata server of a machine with TPU chips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distrain.plan.cluster import kubernetes, mpi, slurm, tpu
from distrain.plan.cluster.placement import Placement

__all__ = ["DETECTORS", "Placement", "find"]

DETECTORS: tuple[Callable[[Mapping[str, str]], Placement | None], ...] = (
    mpi.started_by_mpirun,
    slurm.placement,
    mpi.started_with_pmi,
    kubernetes.placement,
    tpu.placement,
)
"""mpirun inside a Slurm allocation: the processes are mpirun's, and Slurm's variables are those of the script that
called it, the same for all. With bare PMI variables it is the other way round: `srun --mpi=pmi2` sets them for its own
tasks."""


def find(environ: Mapping[str, str]) -> Placement | None:
    """Return this process's place, None where no scheduler started it.

    Args:
        environ: The environment.

    Raises:
        UsageError: A scheduler's variables contradict each other.
    """
    return next((found for detector in DETECTORS if (found := detector(environ)) is not None), None)
