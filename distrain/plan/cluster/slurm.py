"""Slurm: srun with one task a node or one a rank, or the batch script itself.

What srun says of its own step (`SLURM_STEP_*`) is true in every step, also in one of a heterogeneous job, whatever of
its groups it runs on. What is said of the job is true in the batch script, and there only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from distrain.errors import UsageError
from distrain.plan.cluster.hosts import expand_counts, expand_hosts
from distrain.plan.cluster.placement import Placement, derived_port, number

__all__ = ["first_host", "placement"]

T = TypeVar("T")

SCRIPTS_OWN = ("", "4294967291", "4294967290", "batch", "interactive")
"""The step ids of the batch script and of the shell that salloc opens."""

STEPS_APART = 1009
"""How far apart the ports of two steps of a job are; those of jobs whose ids are nearer than that do not meet them."""


def placement(environ: Mapping[str, str]) -> Placement | None:
    """Return the place of this process in a Slurm job, None outside.

    The run's id is that of the job, and of the step where srun made one: a job that is requeued has the same id, and
    its steps are numbered from 0 again. The port is derived from both, so that what shares a host does not meet.

    Args:
        environ: The environment.

    Raises:
        UsageError: The variables contradict each other, or one of them cannot be read.
    """
    if not environ.get("SLURM_JOB_ID"):
        return None
    job = number(environ, "SLURM_JOB_ID")
    array = environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{environ.get('SLURM_ARRAY_TASK_ID', '')}" if array else str(job)
    if environ.get("SLURM_STEP_ID", "") in SCRIPTS_OWN or "SLURM_PROCID" not in environ:
        return _in_script(environ, job, name)
    return _in_step(environ, job, name)


def first_host(environ: Mapping[str, str]) -> str | None:
    """Return the first host of the job, None outside of one.

    Args:
        environ: The environment.
    """
    hosts = _hosts_of_job(environ) if environ.get("SLURM_JOB_ID") else []
    return hosts[0] if hosts else None


def _in_script(environ: Mapping[str, str], job: int, name: str) -> Placement | None:
    hosts = _hosts_of_job(environ)
    if not hosts:
        return None
    return Placement(
        scheduler="Slurm",
        detail=f"Slurm job {name}, {_counted(hosts)}, no srun",
        nnodes=1,
        node_rank=0,
        head=hosts[0],
        port=derived_port(job),
        run_id=f"slurm-{name}",
        incarnation=number(environ, "SLURM_RESTART_COUNT", default=0),
        hosts=tuple(hosts[:1]),
        only_here=len(hosts) if len(hosts) > 1 else 0,
    )


def _in_step(environ: Mapping[str, str], job: int, name: str) -> Placement | None:
    hosts = _read(environ, "SLURM_STEP_NODELIST", expand_hosts) or _hosts_of_job(environ)
    if not hosts:
        return None
    step = number(environ, "SLURM_STEP_ID")
    num_tasks = number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=1)
    rank, node = number(environ, "SLURM_PROCID"), number(environ, "SLURM_NODEID", default=0)
    where = f"Slurm job {name}, step {step}, {_counted(hosts)}"
    port = derived_port(job + STEPS_APART * step)
    common = {
        "scheduler": "Slurm",
        "head": hosts[0],
        "port": port,
        "run_id": f"slurm-{name}.{step}",
        "is_repeated": True,
        "incarnation": number(environ, "SLURM_RESTART_COUNT", default=0),
    }
    if num_tasks == len(hosts):
        host = environ.get("SLURMD_NODENAME", "")
        node = hosts.index(host) if host in hosts else node
        if node >= len(hosts):
            raise UsageError(
                f"Slurm's variables contradict each other: SLURM_NODEID is {node}, SLURMD_NODENAME {host!r}, and the "
                f"step has {_counted(hosts)}. Variables of another job may be set: unset those that begin with SLURM."
            )
        return Placement(
            **common,  # type: ignore[arg-type]
            detail=f"{where}, one task a node",
            nnodes=len(hosts),
            node_rank=node,
            hosts=tuple(hosts),
        )
    variable = "SLURM_STEP_TASKS_PER_NODE" if "SLURM_STEP_TASKS_PER_NODE" in environ else "SLURM_TASKS_PER_NODE"
    per_host = _read(environ, variable, expand_counts)
    if len(per_host) != len(hosts) or sum(per_host) != num_tasks or node >= len(per_host):
        raise UsageError(
            f"Slurm's variables contradict each other: {num_tasks} tasks on {_counted(hosts)}, "
            f"{variable}={environ.get(variable, '')!r}. Start one task a node (srun --ntasks-per-node=1) or one a rank."
        )
    local_task = (number(environ, "SLURM_LOCALID", default=0), per_host[node])
    layout = _layout(per_host, environ.get("SLURM_DISTRIBUTION", "block"))
    known = layout[rank : rank + 1] == [(node, local_task[0])]
    return Placement(
        **common,  # type: ignore[arg-type]
        detail=f"{where}, {num_tasks} tasks, one a rank",
        nnodes=num_tasks,
        node_rank=rank,
        local_task=local_task,
        hosts=tuple(hosts[host] for host, _ in layout) if known else (),
        local_tasks=tuple((task, per_host[host]) for host, task in layout) if known else (),
    )


def _layout(per_host: Sequence[int], distribution: str) -> list[tuple[int, int]]:
    """Return the host of each task and its number there, in the two orders that follow from the counts."""
    tasks = [(host, task) for host, count in enumerate(per_host) for task in range(count)]
    if distribution.startswith("cyclic"):
        return sorted(tasks, key=lambda each: (each[1], each[0]))
    return tasks if distribution.startswith("block") else []


def _hosts_of_job(environ: Mapping[str, str]) -> list[str]:
    """Return the hosts of the job; those of a heterogeneous one in the order of its groups."""
    groups = [f"SLURM_JOB_NODELIST_HET_GROUP_{i}" for i in range(number(environ, "SLURM_HET_SIZE", default=0))]
    if groups and all(environ.get(each) for each in groups):
        return [host for each in groups for host in _read(environ, each, expand_hosts)]
    variable = "SLURM_JOB_NODELIST" if environ.get("SLURM_JOB_NODELIST") else "SLURM_NODELIST"
    return _read(environ, variable, expand_hosts)


def _read(environ: Mapping[str, str], variable: str, parse: Callable[[str], list[T]]) -> list[T]:
    try:
        return parse(environ.get(variable, ""))
    except ValueError:
        form = "hosts, such as gpu[01-03],login" if parse is expand_hosts else "numbers of tasks, such as 2(x3),1"
        raise UsageError(f"{variable} is {environ[variable]!r}; Slurm writes a list of {form} there.") from None


def _counted(hosts: Sequence[str]) -> str:
    shown = hosts if len(hosts) <= 3 else [*hosts[:2], "…", hosts[-1]]
    return f"{len(hosts)} node{'s' * (len(hosts) != 1)}: {', '.join(shown)}"
