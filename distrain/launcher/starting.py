"""What the supervisor starts: the fork server, or what takes its place, and the job that it hands over."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import distrain
from distrain.launcher.profile_facts import profile_says
from distrain.launcher.protocol import AgentJob, Channel
from distrain.plan.plan import Plan
from distrain.rundir import RunDir

__all__ = ["agent_job", "start_server"]

PROGRAM = """\
import sys
if sys.path[:1] == [""]: del sys.path[0]
sys.path.insert(0, sys.argv[3])
from distrain.launcher.{module} import main
del sys.path[0]
main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[4].split(","))
"""
"""`python -c` puts the current folder first on the path, which a rank's program may not see; what remains afterwards is
the path of a plain interpreter."""


def start_server(
    plan: Plan, *, env: Mapping[str, str], log: Path, door: int | None
) -> tuple[subprocess.Popen[bytes], Channel]:
    """Start the process that starts the workers, below its guard.

    Args:
        plan: What to launch.
        env: Its environment, which is the workers' too.
        log: What it prints is appended there.
        door: The bound socket where several nodes meet, to be inherited; None where another node has it.

    Returns:
        The guard's process, and the channel to the one that starts the workers.
    """
    module = "xla_host" if plan.device == "xla" else "forkserver"
    ours, theirs = socket.socketpair()
    with open(log, "ab") as file, _blocked(plan.signals) as blocked:
        guard = subprocess.Popen(
            [
                *(sys.executable, "-u", "-c", PROGRAM.format(module=module)),
                *(str(theirs.fileno()), str(os.getpid()), str(Path(distrain.__file__).parent.parent)),
                ",".join(blocked),
            ],
            env=_server_environ(env),
            stdout=file,
            stderr=file,
            pass_fds=[theirs.fileno(), *([door] if door is not None else [])],
            start_new_session=True,
        )
    theirs.close()
    return guard, Channel(ours)


@contextlib.contextmanager
def _blocked(names: Iterable[str]) -> Iterator[list[str]]:
    """Have what is started meanwhile begin with these signals blocked; yield the names of those that were not before.

    A scheduler sends its signal to every process of a job at once. What dies of it would take the workers along, so it
    must not strike before there is somebody to bear it.
    """
    every = {signal.Signals[name] for name in names}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, every)
    try:
        yield sorted(each.name for each in every - before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def agent_job(  # noqa: PLR0917  # called in one place
    plan: Plan,
    env: dict[str, str],
    rundir: RunDir,
    shared_run_dir: Path,
    first_attempt: int,
    terminals: dict[str, list[str]],
    board: str,
    scratch: str,
    door: int | None,
) -> AgentJob:
    """Return what the agent of this node needs to know.

    Args:
        plan: What to launch.
        env: The environment shared by the workers.
        rundir: This node's run directory.
        shared_run_dir: The one that the ranks of all nodes share, if this node comes first.
        first_attempt: The attempt to count from.
        terminals: As in `AgentJob`.
        board: As there.
        scratch: As there.
        door: As in `start_server`.
    """
    task = None if plan.placement is None else plan.placement.local_task
    return AgentJob(
        nproc=plan.nproc,
        max_restarts=plan.max_restarts,
        run_id=rundir.root.name,
        run_dir=str(rundir.root),
        first_attempt=first_attempt,
        grace_s=plan.grace_s,
        kind=plan.program.kind,
        target=plan.program.target,
        args=list(plan.program.args),
        command=plan.program.command,
        warm=plan.warm,
        env=env,
        terminals=terminals,
        board=board,
        scratch=scratch,
        monitor_interval_s=plan.monitor_interval_s,
        role=plan.role,
        signals=list(plan.signals),
        virtual_local_rank=plan.virtual_local_rank,
        local_task=None if task is None else list(task),
        meeting=None if plan.meeting is None else asdict(plan.meeting),
        passed=dict(plan.passed),
        door=door,
        facts={
            "device": plan.device,
            "profile": str(plan.settings["profile"].value) if "profile" in plan.settings else "",
            "profile_says": profile_says(plan),
            "retry": plan.retry,
            "shared_run_dir": str(shared_run_dir),
        },
    )


def _server_environ(env: Mapping[str, str]) -> dict[str, str]:
    """Return the fork server's own environment.

    OpenBLAS starts its threads when it is loaded, and a process with threads cannot be forked safely; the
    workers get theirs back. Asking NVML keeps torch's checks for a GPU from creating a CUDA context here.
    """
    return {**env, "OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
