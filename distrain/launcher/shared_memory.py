"""Whether /dev/shm is large enough for what the ranks share there; containers get 64 MiB of it unless told otherwise.

DataLoader workers hand their batches over in it, NCCL its buffers. Linux gives the memory when it is first written to,
so the one who finds none is killed by SIGBUS, long after the start.
"""

from __future__ import annotations

import os

__all__ = ["free_and_size", "shortage"]

PLACE = "/dev/shm"  # noqa: S108 - it is looked at, not written to

ENOUGH_NBYTES = 128 << 20
"""For one rank: a few workers with some batches of images each, and NCCL's buffers. Twice what a container gets."""


def free_and_size(path: str = PLACE) -> tuple[int, int] | None:
    """Return how many bytes are free in a file system and how many it has; None where it cannot be asked."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def shortage(free_nbytes: int, size_nbytes: int, nproc: int) -> str | None:
    """Return what to tell about too small a /dev/shm; None when it is large enough.

    Args:
        free_nbytes: What is free there.
        size_nbytes: What it has.
        nproc: The number of ranks that share it.
    """
    enough = ENOUGH_NBYTES * nproc
    if free_nbytes >= enough:
        return None
    who = "this rank" if nproc == 1 else f"{nproc} ranks"
    has = f"{_mebibytes(free_nbytes)} free of {_mebibytes(size_nbytes)}"
    more = "`ls -l` there shows what fills it; files of programs that have ended can be deleted."
    if size_nbytes < enough:
        has = _mebibytes(size_nbytes)
        more = (
            "Give the container more: docker run --shm-size=8g, or --ipc=host; in Kubernetes an emptyDir with medium "
            f"Memory at {PLACE}."
        )
    return (
        f"{PLACE} has {has}, which is little for {who}: DataLoader workers (num_workers > 0) and NCCL share data "
        f"there, and die when it is full. {more}"
    )


def _mebibytes(nbytes: int) -> str:
    return f"{nbytes >> 20:,} MiB"
