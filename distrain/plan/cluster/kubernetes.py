"""Kubeflow's PyTorchJob on Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping

from distrain.errors import UsageError
from distrain.plan.cluster.placement import Placement, number

__all__ = ["placement"]


def placement(environ: Mapping[str, str]) -> Placement | None:
    """Return the place of a pod, which is a node; PyTorchJob's variables count pods.

    Its newer releases set `PET_*`, which are torchrun's own and need no detection. The job's name is no id of the run:
    the next job may have it too.
    """
    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
    if "KUBERNETES_SERVICE_HOST" not in environ or any(name not in environ for name in names):
        return None
    if "LOCAL_RANK" in environ or "PET_NNODES" in environ:
        return None
    rank, size = number(environ, "RANK"), number(environ, "WORLD_SIZE")
    if rank >= size:
        raise UsageError(f"Kubernetes' variables contradict each other: RANK={rank}, WORLD_SIZE={size}.")
    return Placement(
        scheduler="Kubernetes",
        detail=f"PyTorchJob, pod {rank} of {size}",
        nnodes=size,
        node_rank=rank,
        head=environ["MASTER_ADDR"],
        port=number(environ, "MASTER_PORT"),
    )
