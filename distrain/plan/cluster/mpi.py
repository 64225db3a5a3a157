"""mpirun: that of Open MPI, and those that speak PMI (MPICH, Intel MPI)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from distrain.errors import UsageError
from distrain.plan.cluster.placement import DEFAULT_PORT, Placement, derived_port, number
from distrain.plan.cluster.slurm import first_host

__all__ = ["started_by_mpirun", "started_with_pmi"]

OPEN_MPI = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
PMI = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")

JOB_KEY, JOB_NUMBER = "OMPI_MCA_orte_precondition_transports", "OMPI_MCA_ess_base_jobid"
"""mpirun draws 128 random bits for a job, unless the site has set them. The number alone is no id: it is 16 bits of
mpirun's process id and its host's name, which come again. hydra has nothing of the kind."""


def started_by_mpirun(environ: Mapping[str, str]) -> Placement | None:
    """Return the place of a process of Open MPI's mpirun, or of hydra, MPICH's and Intel MPI's.

    Args:
        environ: The environment.

    Raises:
        UsageError: The variables contradict each other.
    """
    if OPEN_MPI[0] in environ:
        return _placement(environ, OPEN_MPI, "Open MPI")
    if PMI[0] in environ and PMI[3] in environ:
        return _placement(environ, PMI, "PMI")
    return None


def started_with_pmi(environ: Mapping[str, str]) -> Placement | None:
    """Return the place of a process that another launcher has told its rank by PMI, and no more than that.

    Args:
        environ: The environment.

    Raises:
        UsageError: The variables contradict each other.
    """
    return _placement(environ, PMI, "PMI") if PMI[0] in environ and PMI[1] in environ else None


def _placement(environ: Mapping[str, str], names: tuple[str, str, str, str], kind: str) -> Placement:
    rank, size = number(environ, names[0]), number(environ, names[1])
    local_rank, local_size = number(environ, names[2], default=0), number(environ, names[3], default=1)
    if rank >= size or local_rank >= local_size or local_size > size:
        raise UsageError(
            f"{kind}'s variables contradict each other: "
            f"{', '.join(f'{name}={environ.get(name)}' for name in names if name in environ)}."
        )
    one_host = size == local_size
    job = _job(environ)
    return Placement(
        scheduler="MPI",
        detail=f"{kind}, process {rank} of {size}, {local_size} on this host",
        nnodes=size,
        node_rank=rank,
        head=environ.get("MASTER_ADDR") or ("127.0.0.1" if one_host else _head(environ)),
        port=number(environ, "MASTER_PORT", default=derived_port(job) if job else DEFAULT_PORT),
        run_id=f"mpi-{job:016x}" if job else "",
        local_task=(local_rank, local_size) if local_size > 1 else None,
        local_tasks=tuple((task, size) for task in range(size)) if one_host and size > 1 else (),
    )


def _job(environ: Mapping[str, str]) -> int:
    """Return a number that no other job of mpirun has, 0 where there is none."""
    if not environ.get(JOB_KEY):
        return 0
    import hashlib

    text = f"{environ[JOB_KEY]} {environ.get(JOB_NUMBER, '')}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _head(environ: Mapping[str, str]) -> str | None:
    """Return the first host: Slurm's inside its job, else that of mpirun; a host list can say otherwise."""
    found = re.search(r"tcp://([\d.]+)", environ.get("OMPI_MCA_orte_hnp_uri", ""))
    return first_host(environ) or (found[1] if found is not None and not found[1].startswith("127.") else None)
