"""Starts the ranks of a run on XLA devices by `torch_xla.launch`, and is the body of each of them."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from distrain.launcher import bootstrap
from distrain.launcher.protocol import Channel, WorkerJob
from distrain.plan.environment import ENV_XLA_SPMD
from distrain.rundir import RunDir
from distrain.supervision.heartbeat import ENV_HEARTBEAT

__all__ = ["main"]


def main(request_file: str) -> None:
    """Launch the ranks and wait for them; with one device, be the rank.

    Args:
        request_file: Where the host has written the job, the attempt and its address.
    """
    request = json.loads(Path(request_file).read_text())
    import torch
    import torch_xla
    import torch_xla.runtime

    channel = _connect(request)
    channel.send("ready", pid=os.getpid(), threads=1, torch=torch.__version__)
    channel.close()
    if ENV_XLA_SPMD in os.environ:
        # Not by torch_xla's launch, which confines a single process to one chip.
        torch_xla.runtime.use_spmd()
        _be_rank(0, request)
        return
    torch_xla.launch(_be_rank, args=(request,), debug_single_process=request["job"]["nproc"] == 1)


def _be_rank(_index: int, request: dict[str, Any]) -> None:
    """Run the program as one rank; torch_xla calls this in each process it starts, in a thread for each device."""
    import torch_xla.runtime as xr

    job, attempt = request["job"], request["attempt"]
    rank, local_rank = xr.global_ordinal(), xr.local_ordinal()
    rundir = RunDir(root=Path(job["run_dir"]))
    folder = rundir.rank_dir(attempt, rank)
    folder.mkdir(parents=True, exist_ok=True)
    terminals = job["terminals"].get(str(rank))
    stdout, stderr = terminals or [str(rundir.stdout(attempt, rank)), str(rundir.stderr(attempt, rank))]
    worker = WorkerJob(
        rank=rank,
        local_rank=local_rank,
        attempt=attempt,
        kind=job["kind"],
        target=job["target"],
        args=job["args"],
        command=job["command"],
        warm=True,
        env={**os.environ, **_variables(rank, local_rank, job, attempt), **_board(job, local_rank)},
        stdout=stdout,
        stderr=stderr,
        error_file=str(rundir.exception(attempt, rank)),
        stacks_file=str(rundir.stacks(attempt, rank)),
    )
    channel = _connect(request)
    begun = {"rank": rank, "local_rank": local_rank, "pid": os.getpid()}
    channel.send("started", **begun, stdout=stdout, stderr=stderr, error_file=worker.error_file)
    bootstrap.become_rank_of_xla(worker)
    if threading.current_thread() is threading.main_thread() and job["nproc"] == 1:
        bootstrap.run(worker)  # this process's own end is the rank's
        return
    code = _run_to_its_end(worker)
    channel.send("ended", exit_code=code)
    if code:
        raise SystemExit(code)


def _variables(rank: int, local_rank: int, job: dict[str, Any], attempt: int) -> dict[str, str]:
    """Return torchrun's variables. With them a script that calls `torch_xla.launch` itself runs on in this process."""
    import torch_xla.runtime as xr

    # A process that is alone may see several devices, and uses one of them, or all as one.
    world = xr.world_size()
    local_world = 1 if world == 1 else xr.local_process_count() * xr.addressable_device_count()
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(local_world),
        "GROUP_RANK": str(rank // local_world),
        "ROLE_RANK": str(rank),
        "ROLE_NAME": job["role"],
        "GROUP_WORLD_SIZE": str(world // local_world),
        "ROLE_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0" if world == 1 else os.environ.get("MASTER_PORT", "29500"),
        "TORCHELASTIC_RUN_ID": job["run_id"],
        "TORCHELASTIC_RESTART_COUNT": str(attempt - job["first_attempt"]),
        "TORCHELASTIC_MAX_RESTARTS": str(job["max_restarts"]),
    }


def _board(job: dict[str, Any], local_rank: int) -> dict[str, str]:
    return {ENV_HEARTBEAT: f"{job['board']}:{local_rank}"} if job["board"] else {}


def _run_to_its_end(worker: WorkerJob) -> int:
    """Run the program where its end must not be the process's; return the exit code that it would have been."""
    try:
        bootstrap.run(worker)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 - as the interpreter itself does
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _connect(request: dict[str, Any]) -> Channel:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(request["address"])
    return Channel(sock)
