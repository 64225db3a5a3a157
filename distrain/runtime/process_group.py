"""The process group: set up for the device, taken down without turning an end into an abort or an error into a hang.

What bites at the end, in gloo (torch 2.13): a backward pass puts a copy of the context variables into the thread's
state, each all-reduce that DDP starts inside it keeps a reference, and after the pass gloo's own thread may hold the
last one. To drop it that thread needs the interpreter lock. When the main thread is in DDP's destructor by then, it
holds the lock and joins the thread: a hang, seen in a debugger, also with a barrier before the end. When the
interpreter is being torn down by then, asking for the lock ends the thread inside a C++ destructor, which would explain
the rarer "terminate called without an active exception", exit code -6; that part is inferred, not observed.

So after the barrier, which keeps a rank from taking its connections away while a peer uses them, the end gives gloo's
threads a moment with the lock free, and a group that anybody else still holds (each DDP model does) is kept for good,
so no destructor joins its threads. The moment is a pause, not a proof: a thread starved for longer could still be late.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from distrain.runtime import xla
from distrain.runtime.environment import WorkerEnvironment

__all__ = ["barrier", "default_store", "destroy", "leave", "meet_in_store", "restore_excepthook", "set_up"]

POLL_S = 0.01

_num_set_up = 0

NOBODY_ELSE = 2
"""What `sys.getrefcount` says of an object that one variable holds: that one, and the call's own."""


def set_up(environment: WorkerEnvironment, device: torch.device, timeout_s: float | None) -> None:
    """Make the default process group for this worker.

    Without a launcher it is a group of this process alone (a millisecond; nothing is connected), so a script that
    calls `torch.distributed` runs the same with and without one.

    Args:
        environment: The place of this worker.
        device: Where it computes. On CUDA, CPU tensors are still reduced by gloo.
        timeout_s: Seconds after which a collective operation gives up; torch's own default when None.
    """
    global _num_set_up
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    store: Store = _launcher_store(environment.rank, environment.world_size, timeout_s)
    # A store outlives a group: without a prefix of its own a second group would find the addresses of the first.
    store = PrefixStore(f"distrain/{_num_set_up}", store)
    _num_set_up += 1
    alone = environment.world_size == 1
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=store,
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timeout,
        # With a device, NCCL connects at once and a broken fabric shows here; alone there is nothing to connect.
        device_id=device if on_cuda and not alone else None,
    )


@functools.lru_cache(maxsize=1)
def _launcher_store(rank: int, world_size: int, timeout_s: float | None) -> Store:
    """Connect to the launcher's store, once per process: where rank 0 serves it, it must outlive every group."""
    if world_size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    timeout = {} if timeout_s is None else {"timeout": timedelta(seconds=timeout_s)}
    store, _, _ = next(rendezvous("env://", rank, world_size, **timeout))
    assert isinstance(store, Store)
    return store


def default_store() -> Store:
    """Return the store of the default process group, also when the user made the group."""
    # torch has no public way to ask a group for its store.
    store: Store = dist.distributed_c10d._get_default_store()  # noqa: SLF001
    return store


def barrier(device: torch.device) -> None:
    """Wait until every rank is here and the device has done what it was given.

    Args:
        device: This rank's device.

    Raises:
        RuntimeError: A peer went away, or did not come within the group's timeout.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "xla":
        xla.wait()
    kind = "cpu" if "gloo" in str(dist.get_backend_config()) else device
    dist.all_reduce(torch.zeros(1, device=kind))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def meet_in_store(world_size: int, within_s: float) -> bool:
    """Say that this rank has come to its end, and whether all others have, too.

    Unlike a barrier it connects to no peer: who has come may be gone already, and who never comes costs `within_s`.

    Args:
        world_size: The number of ranks to meet.
        within_s: How long to wait for them.
    """
    end = time.monotonic() + within_s
    try:
        store = default_store()
        store.add("end", 1)
        while store.add("end", 0) < world_size:
            if time.monotonic() > end:
                return False
            time.sleep(POLL_S)
    except (RuntimeError, dist.DistError):  # the store's host has gone: the run is over for everybody
        return False
    return True


def destroy() -> None:
    """Destroy every process group; the peers must have met before, see `barrier` and `meet_in_store`."""
    group: Any = dist.group.WORLD
    dist.destroy_process_group()
    time.sleep(POLL_S)
    if sys.getrefcount(group) > NOBODY_ELSE:
        _keep_for_good(group)
    # Otherwise this was the last reference: torch joins the threads here, with the interpreter lock released.
    del group


def leave() -> None:
    """Let the process end with its groups as they are: nobody is waited for, and the system closes the connections."""
    time.sleep(POLL_S)
    _keep_for_good(dist.group.WORLD)


def _keep_for_good(group: Any) -> None:
    """Keep a group out of every destructor, also the interpreter's own at its end, which would join its threads."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def restore_excepthook(before: Any) -> None:
    """Undo the hook that `init_process_group` put in front of `before`, unless somebody else put one since.

    Args:
        before: `sys.excepthook` as it was before the group was made.
    """
    if getattr(sys.excepthook, "__name__", "") == "_distributed_excepthook":
        sys.excepthook = before
