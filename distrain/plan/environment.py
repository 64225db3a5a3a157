"""The environment of the workers: what distrain and torch add to that of the shell.

torch's agent itself sets the variables of `rank_variables` when the workers start; they are worked out here for the
plan that people read, and a test compares the two. On XLA devices torch_xla says in each process which rank it is.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from distrain.plan.cluster import Placement
from distrain.plan.meeting import Meeting
from distrain.plan.plan import ENV_DEVICE, Plan

__all__ = [
    "AT_START",
    "consistent_with_scheduler",
    "is_alone",
    "loopback_variables",
    "rank_variables",
    "shared_variables",
]

AT_START = "(chosen at the start)"

ENV_HEARTBEAT = "DISTRAIN_HEARTBEAT"
"""As in `distrain.supervision.heartbeat`, which the plan may not import."""

ENV_LAUNCH_ID = "DISTRAIN_LAUNCH_ID"
"""As in `distrain.rundir`, likewise."""

ENV_XLA_SPMD = "DISTRAIN_XLA_SPMD"
"""As in `distrain.runtime.environment`, which is the workers'."""

ENV_SMOKE = "DISTRAIN_SMOKE_TEST"
"""As in `distrain.rundir`, likewise."""

AS_PLACED = "(as the scheduler places it)"
AS_XLA_NUMBERS = "(as torch_xla numbers it)"


def shared_variables(plan: Plan, run_dir: Path | str, run_dir_variable: str) -> dict[str, str]:
    """Return the variables that every worker gets from distrain.

    Args:
        plan: The plan.
        run_dir: The run directory.
        run_dir_variable: The name of the variable that tells it.
    """
    return {
        **plan.profile_env,
        **plan.slice_env,
        "OMP_NUM_THREADS": str(plan.omp_num_threads),
        run_dir_variable: str(run_dir),
        ENV_DEVICE: plan.device,
        ENV_LAUNCH_ID: AT_START,
        **({ENV_XLA_SPMD: "1"} if plan.xla_spmd else {}),
        **({ENV_SMOKE: AT_START if run_dir == AT_START else f"{run_dir}/smoke"} if plan.smoke else {}),
    }


def rank_variables(plan: Plan, environ: Mapping[str, str], *, node_rank: int, local_rank: int) -> dict[str, str]:
    """Return what torch's agent will set for one worker of the largest world the plan allows.

    Args:
        plan: The plan.
        environ: The environment the workers inherit.
        node_rank: The node's number.
        local_rank: The worker's number on its node.
    """
    environ = {**environ, **plan.profile_env}
    nnodes = 1 if plan.meeting is None else plan.meeting.max_nodes
    rank, world = node_rank * plan.nproc + local_rank, nnodes * plan.nproc
    run_id = AT_START if plan.meeting is None else plan.meeting.run_id
    alone = is_alone(plan.meeting)
    place = None if plan.meeting is None or not alone else plan.meeting
    variables = {
        "RANK": str(rank),
        "GROUP_RANK": str(node_rank),
        "ROLE_RANK": str(rank),
        "ROLE_NAME": plan.role,
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(plan.nproc),
        "WORLD_SIZE": str(world),
        "GROUP_WORLD_SIZE": str(nnodes),
        "ROLE_WORLD_SIZE": str(world),
        "MASTER_ADDR": place.host if place is not None else "127.0.0.1" if alone else AT_START,
        "MASTER_PORT": str(place.port) if place is not None and place.port else AT_START,
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": str(plan.max_restarts),
        "TORCHELASTIC_RUN_ID": run_id,
        ENV_HEARTBEAT: AT_START,
    }
    variables |= {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_ERROR_FILE": AT_START,
        "TORCHELASTIC_SIGNALS_TO_HANDLE": ",".join(plan.signals),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    }
    if plan.device == "xla":
        del variables["TORCHELASTIC_SIGNALS_TO_HANDLE"]  # of a torch newer than torch_xla's
        if world > 1:
            variables |= {"RANK": AS_XLA_NUMBERS, "ROLE_RANK": AS_XLA_NUMBERS}
    if alone:
        variables |= loopback_variables(environ)
    if plan.virtual_local_rank:
        variables |= _virtual(environ, local_rank)
    if plan.placement is not None and plan.placement.local_task is not None:
        variables |= _local_task(plan.placement, node_rank)
    return variables | consistent_with_scheduler(environ, variables)


def _local_task(placement: Placement, node_rank: int) -> dict[str, str]:
    """Return the local rank of a scheduler's task, where its variables on this host tell it."""
    task: tuple[object, object] = (AS_PLACED, AS_PLACED)
    if placement.local_tasks:
        task = placement.local_tasks[node_rank]
    elif node_rank == placement.node_rank and placement.local_task is not None:
        task = placement.local_task
    return {"LOCAL_RANK": str(task[0]), "LOCAL_WORLD_SIZE": str(task[1])}


def is_alone(meeting: Meeting | None) -> bool:
    """Whether there is one node, whose ranks meet each other and nobody else."""
    return meeting is None or (meeting.max_nodes == 1 and meeting.backend in ("c10d", "static"))


def loopback_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what keeps the ranks of a single node from listening beyond its loopback interface.

    gloo and tensorpipe (torch.distributed.rpc) listen where the host's name leads, which is the network on most hosts,
    and whoever connects is taken for a rank. NCCL talks through memory within a node. What the user has set stays.

    Args:
        environ: The environment of the workers.
    """
    interface = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    names = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
    return {} if interface is None else {name: interface for name in names if name not in environ}


def consistent_with_scheduler(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Return a scheduler's variables as they would be had it started a process for each rank.

    Where it started one for each node, every worker inherits that one's number. Libraries take it for the rank, or
    compare the two and refuse: ignite.distributed raises in every worker whose RANK is not SLURM_PROCID (ignite#2048).

    Args:
        environ: The environment that the worker inherits.
        variables: What torch's agent sets for it.
    """
    if not environ.get("SLURM_JOB_ID"):
        return {}
    ours = {
        "SLURM_PROCID": variables["RANK"],
        "SLURM_LOCALID": variables["LOCAL_RANK"],
        "SLURM_NTASKS": variables["WORLD_SIZE"],
        "SLURM_NPROCS": variables["WORLD_SIZE"],
    }
    return {name: value for name, value in ours.items() if name in environ}


def _virtual(environ: Mapping[str, str], local_rank: int) -> dict[str, str]:
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    device = str(local_rank) if not visible else visible.split(",")[local_rank]
    return {"LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": device}
