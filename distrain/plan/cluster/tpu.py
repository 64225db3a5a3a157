"""The hosts of a TPU pod."""

from __future__ import annotations

from collections.abc import Mapping

from distrain.errors import UsageError
from distrain.plan.cluster.placement import Placement, number

__all__ = ["placement"]


def placement(environ: Mapping[str, str]) -> Placement | None:
    """Return the place of a host; its worker number and the hosts are in the variables of the TPU's runtime."""
    hosts = tuple(host for host in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host)
    if not hosts or "TPU_WORKER_ID" not in environ:
        return None
    rank = number(environ, "TPU_WORKER_ID")
    if rank >= len(hosts):
        raise UsageError(f"TPU_WORKER_ID is {rank} and TPU_WORKER_HOSTNAMES names {len(hosts)} hosts.")
    return Placement(
        scheduler="TPU",
        detail=f"TPU host {rank} of {len(hosts)}",
        nnodes=len(hosts),
        node_rank=rank,
        head=hosts[0],
        hosts=hosts,
    )
