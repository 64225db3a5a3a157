"""Starts the ranks of a round on XLA devices by `torch_xla.launch`, and is the body of each of them."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

from distrain.launcher import bootstrap
from distrain.launcher.protocol import Channel, WorkerJob
from distrain.launcher.xla_processes import Children, end, in_the_main_thread, run_to_its_end
from distrain.plan.environment import ENV_XLA_SPMD
from distrain.rundir import RunDir
from distrain.supervision.heartbeat import ENV_HEARTBEAT
from distrain.supervision.reaping import die_with_parent

__all__ = ["main"]


def main(address: str, host_pid: int) -> None:
    """Import torch_xla, wait for the ranks' jobs, launch them and wait for them; alone, be the rank.

    Args:
        address: Where the host listens.
        host_pid: The process to die with.
    """
    die_with_parent(host_pid)
    os.environ.pop("TORCHELASTIC_RUN_ID", None)  # of a launch around this one: torch_xla's would start nothing
    before = dict(os.environ)
    import torch_xla
    import torch_xla.runtime

    channel = _connect(address)
    channel.send("runner")
    while not (messages := channel.receive()):
        if channel.closed:
            return
    request = {**messages[0], "address": address, "parent_pid": os.getpid()}
    for job in request["jobs"]:  # the rest has come to torch_xla already, which may have added to it
        job["env"] = {name: value for name, value in job["env"].items() if before.get(name) != value}
    if request["is_alone"]:
        channel.close()
        program = _Rank(request)
        program.begin(is_alone=True)
        if ENV_XLA_SPMD in os.environ:
            # Not by torch_xla's launch, which confines a single process to one chip.
            torch_xla.runtime.use_spmd()
            program(0)
        else:
            torch_xla.launch(program, debug_single_process=True)
        return
    for name in request["signals"]:
        # They are the ranks' business. What is ignored would be so in them, too; a handler is not inherited.
        signal.signal(signal.Signals[name], lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.Signals[name] for name in request["signals"]])
    children = Children(lambda pid, code: channel.send("died", pid=pid, exit_code=code))
    try:
        torch_xla.launch(_Rank(request))
    finally:
        children.stop()


class _Rank:
    """What torch_xla calls in each process that it starts.

    It is unpickled there ahead of that, in the main thread and before the device is touched. That is the moment to tell
    the host of the process: to find the processes of the other hosts may take torch_xla minutes.

    Args:
        request: What the host has asked for.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._is_alone = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _begun, (self._request,)

    def begin(self, *, is_alone: bool = False) -> None:
        """Tell the host that this process is there."""
        self._is_alone = is_alone
        self._channel = _connect(self._request["address"])
        self._channel.send("begun", pid=os.getpid())

    def __call__(self, _index: int) -> None:
        """Run the program, as the rank that torch_xla says."""
        worker, problem = _worker(self._request)
        files = {"stdout": worker.stdout, "stderr": worker.stderr, "error_file": worker.error_file}
        self._channel.send("placed", pid=os.getpid(), rank=worker.rank, local_rank=worker.local_rank, **files)
        bootstrap.become_rank_of_xla(worker)
        if self._is_alone:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.Signals[name] for name in self._request["signals"]])
            bootstrap.run(worker)  # this process's own end is the rank's
            return
        code, in_order = run_to_its_end(worker, problem)
        if not in_order:
            end(code)  # what waits for this rank elsewhere must see its connections close
        self._channel.send("ended", pid=os.getpid(), exit_code=code)


def _begun(request: dict[str, Any]) -> _Rank:
    """Return what torch_xla will call, in a process that it has just started."""
    os.setsid()
    die_with_parent(request["parent_pid"])
    rank = _Rank(request)
    rank.begin()
    in_the_main_thread()
    return rank


def _worker(request: dict[str, Any]) -> tuple[WorkerJob, str]:
    """Return this process's job, with the numbers that torch_xla has given it, and what is wrong with those."""
    import torch_xla.runtime as xr

    jobs = [WorkerJob(**job) for job in request["jobs"]]
    world, nproc = int((os.environ | jobs[0].env)["WORLD_SIZE"]), len(jobs)
    rank, local_rank = xr.global_ordinal(), xr.local_ordinal()
    problem = ""
    if world > 1 and xr.addressable_device_count() > 1:
        problem = (
            f"torch_xla has {xr.addressable_device_count()} devices in each process on this kind of TPU, and runs the "
            "program in a thread for each. distrain runs one rank a process: --xla-spmd uses all devices of a host."
        )
    elif world > 1 and xr.world_size() != world:
        problem = (
            f"torch_xla finds {xr.world_size()} devices, and {world} ranks were launched, {nproc} on each host. Launch "
            "on every host of the slice, with all its chips; TPU_WORKER_HOSTNAMES, TPU_WORKER_ID and the bounds that "
            "torch_xla reads have to tell of the same hosts."
        )
    job = jobs[min(local_rank, nproc - 1)]
    rundir = RunDir(root=Path(request["run_dir"]))
    folder = rundir.rank_dir(job.attempt, rank)
    folder.mkdir(parents=True, exist_ok=True)
    terminals = request["terminals"].get(str(rank))
    stdout, stderr = terminals or [str(rundir.stdout(job.attempt, rank)), str(rundir.stderr(job.attempt, rank))]
    numbers = {
        "RANK": str(rank),
        "ROLE_RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "TORCHELASTIC_ERROR_FILE": str(folder / "error.json"),
    }
    board = {ENV_HEARTBEAT: f"{request['board']}:{local_rank}"} if request["board"] else {}
    worker = WorkerJob(
        rank=rank,
        local_rank=local_rank,
        attempt=job.attempt,
        kind=job.kind,
        target=job.target,
        args=job.args,
        command=job.command,
        warm=True,
        env={**os.environ, **job.env, **numbers, **board},
        stdout=stdout,
        stderr=stderr,
        error_file=str(rundir.exception(job.attempt, rank)),
        stacks_file=str(rundir.stacks(job.attempt, rank)),
    )
    return worker, problem


def _connect(address: str) -> Channel:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(f"\0{address}")
    # What a rank forks may outlive it, and must not look like the rank: its connection tells the host that it lives.
    os.register_at_fork(after_in_child=sock.close)
    return Channel(sock)
