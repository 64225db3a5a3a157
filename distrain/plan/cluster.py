"""Where this process was started: in which place of which scheduler's job, read off its variables.

Each scheduler has a function that returns a `Placement`, or None outside its jobs. They are asked in the order of
`DETECTORS`; the first answer counts. Nothing is executed and nobody is asked over the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from distrain.errors import UsageError

__all__ = ["DETECTORS", "Placement", "expand_hosts", "find"]

DEFAULT_PORT = 29500


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The place of this process among those that the scheduler started.

    A *node* here is a process that starts ranks: a host, or one of several tasks on a host.

    Args:
        scheduler: `Slurm`, `MPI`, `Kubernetes` or `TPU`.
        detail: What was found, for a reader.
        nnodes: How many such processes there are.
        node_rank: Which one this is, in the scheduler's order.
        head: The address of the first, or None where it is not known.
        port: A port there.
        run_id: The job's id, the same for all.
        local_task: Where the scheduler starts a process for each rank: this one's number on its host, and how many
            there are on it.
        only_here: Whether the allocation has more hosts, on which nothing was started.
    """

    scheduler: str
    detail: str
    nnodes: int
    node_rank: int
    head: str | None
    port: int = DEFAULT_PORT
    run_id: str = ""
    local_task: tuple[int, int] | None = None
    only_here: bool = False


def find(environ: Mapping[str, str]) -> Placement | None:
    """Return this process's place, None where no scheduler started it.

    Args:
        environ: The environment.

    Raises:
        UsageError: A scheduler's variables contradict each other.
    """
    return next((found for detector in DETECTORS if (found := detector(environ)) is not None), None)


def _slurm(environ: Mapping[str, str]) -> Placement | None:
    """Slurm: srun with one task a node or one a rank, or the batch script itself.

    Ports are derived from the job's id, so that two jobs that share a host do not meet.
    """
    job = environ.get("SLURM_JOB_ID")
    if not job:
        return None
    hosts = _slurm_hosts(environ)
    if not hosts:
        return None
    array = environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else job
    port = 20000 + int(job) % 20000
    common = {"scheduler": "Slurm", "head": hosts[0], "port": port, "run_id": f"slurm-{name}"}
    where = f"Slurm job {name}, {len(hosts)} node{'s' * (len(hosts) != 1)}: {_shortened(hosts)}"
    in_step = environ.get("SLURM_STEP_ID") is not None and "SLURM_PROCID" in environ
    if not in_step or environ.get("SLURM_STEP_ID") in ("4294967291", "4294967290", "batch"):
        return Placement(
            **common,  # type: ignore[arg-type]
            detail=f"{where}, no srun",
            nnodes=1,
            node_rank=0,
            only_here=len(hosts) > 1,
        )
    num_tasks = _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=1)
    rank = _number(environ, "SLURM_PROCID", default=0)
    host = environ.get("SLURMD_NODENAME", "")
    if num_tasks == len(hosts):
        node_rank = hosts.index(host) if host in hosts else _number(environ, "SLURM_NODEID", default=rank)
        return Placement(
            **common,  # type: ignore[arg-type]
            detail=f"{where}, one task a node",
            nnodes=len(hosts),
            node_rank=node_rank,
        )
    per_node = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", "")))
    node = _number(environ, "SLURM_NODEID", default=0)
    if not per_node or node >= len(per_node) or sum(per_node) != num_tasks:
        raise UsageError(
            f"Slurm's variables contradict each other: {num_tasks} tasks on {len(hosts)} nodes, "
            f"SLURM_TASKS_PER_NODE={environ.get('SLURM_TASKS_PER_NODE', '')!r}. Start one task a node "
            "(srun --ntasks-per-node=1) or one a rank."
        )
    return Placement(
        **common,  # type: ignore[arg-type]
        detail=f"{where}, {num_tasks} tasks, one a rank",
        nnodes=num_tasks,
        node_rank=rank,
        local_task=(_number(environ, "SLURM_LOCALID", default=0), per_node[node]),
    )


def _slurm_hosts(environ: Mapping[str, str]) -> list[str]:
    """Return the hosts of the step, or of the job; those of a heterogeneous job in the order of its groups."""
    groups = environ.get("SLURM_HET_SIZE")
    if groups and groups.isdigit():
        lists = [
            environ.get(f"SLURM_JOB_NODELIST_HET_GROUP_{i}", environ.get(f"SLURM_NODELIST_HET_GROUP_{i}", ""))
            for i in range(int(groups))
        ]
        if all(lists):
            return [host for each in lists for host in expand_hosts(each)]
    text = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST", "")
    return expand_hosts(text)


def _tasks_per_node(text: str) -> list[int]:
    """Return the tasks of each node from Slurm's short form, `2(x3),1`."""
    counts: list[int] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            return []
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _mpi(environ: Mapping[str, str]) -> Placement | None:
    """Open MPI's mpirun, and PMI (MPICH, Intel MPI) with its hydra."""
    if "OMPI_COMM_WORLD_RANK" in environ:
        names = (
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        )
        kind = "Open MPI"
    elif "PMI_RANK" in environ and "PMI_SIZE" in environ:
        names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
        kind = "PMI"
    else:
        return None
    rank, size = _number(environ, names[0]), _number(environ, names[1])
    local_rank, local_size = _number(environ, names[2], default=0), _number(environ, names[3], default=1)
    if rank >= size or local_rank >= local_size or local_size > size:
        raise UsageError(
            f"{kind}'s variables contradict each other: "
            f"{', '.join(f'{name}={environ.get(name)}' for name in names if name in environ)}."
        )
    head = environ.get("MASTER_ADDR") or ("127.0.0.1" if size == local_size else _mpi_head(environ))
    return Placement(
        scheduler="MPI",
        detail=f"{kind}, process {rank} of {size}, {local_size} on this host",
        nnodes=size,
        node_rank=rank,
        head=head,
        port=_number(environ, "MASTER_PORT", default=DEFAULT_PORT),
        run_id=f"mpi-{environ.get('OMPI_MCA_ess_base_jobid', environ.get('PMI_JOBID', '0'))}",
        local_task=(local_rank, local_size) if local_size > 1 else None,
    )


def _mpi_head(environ: Mapping[str, str]) -> str | None:
    """Return the host of mpirun, which is that of rank 0 unless its host list says otherwise."""
    for name in ("OMPI_MCA_orte_hnp_uri", "PMIX_SERVER_URI41", "PMIX_SERVER_URI4", "PMIX_SERVER_URI3"):
        found = re.search(r"tcp4?://([\d.]+)", environ.get(name, ""))
        if found is not None and not found[1].startswith("127."):
            return found[1]
    return None


def _kubernetes(environ: Mapping[str, str]) -> Placement | None:
    """Kubeflow's PyTorchJob: a pod is a node, and its variables count pods.

    Its newer releases set `PET_*`, which are torchrun's own and need no detection.
    """
    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
    if "KUBERNETES_SERVICE_HOST" not in environ or any(name not in environ for name in names):
        return None
    if "LOCAL_RANK" in environ or "PET_NNODES" in environ:
        return None
    rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if rank >= size:
        raise UsageError(f"Kubernetes' variables contradict each other: RANK={rank}, WORLD_SIZE={size}.")
    return Placement(
        scheduler="Kubernetes",
        detail=f"PyTorchJob, pod {rank} of {size}",
        nnodes=size,
        node_rank=rank,
        head=environ["MASTER_ADDR"],
        port=_number(environ, "MASTER_PORT"),
        run_id=environ.get("PYTORCHJOB_NAME", "pytorchjob"),
    )


def _tpu(environ: Mapping[str, str]) -> Placement | None:
    """A TPU pod's host; its worker number and the hosts are in the variables of its runtime."""
    hosts = [host for host in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if not hosts or "TPU_WORKER_ID" not in environ:
        return None
    rank = _number(environ, "TPU_WORKER_ID")
    if rank >= len(hosts):
        raise UsageError(f"TPU_WORKER_ID is {rank} and TPU_WORKER_HOSTNAMES names {len(hosts)} hosts.")
    return Placement(
        scheduler="TPU",
        detail=f"TPU host {rank} of {len(hosts)}",
        nnodes=len(hosts),
        node_rank=rank,
        head=hosts[0],
        run_id="tpu",
    )


DETECTORS: tuple[Callable[[Mapping[str, str]], Placement | None], ...] = (_slurm, _mpi, _kubernetes, _tpu)


def expand_hosts(text: str) -> list[str]:
    """Return the hosts of Slurm's short form: `gpu[01-03,7],login` is gpu01, gpu02, gpu03, gpu7, login.

    Args:
        text: The list, also with several brackets in a name.
    """
    return [host for part in _split(text) for host in _expand(part)]


def _split(text: str) -> Iterator[str]:
    """Yield what stands between the commas outside brackets."""
    depth, word = 0, ""
    for sign in text:
        depth += (sign == "[") - (sign == "]")
        if sign == "," and depth == 0:
            yield word
            word = ""
        else:
            word += sign
    if word:
        yield word


def _expand(part: str) -> Iterator[str]:
    found = re.match(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if found is None:
        yield part
        return
    before, inside, after = found.groups()
    for piece in inside.split(","):
        first, _, last = piece.partition("-")
        for number in range(int(first), int(last or first) + 1):
            for rest in _expand(after):
                yield f"{before}{number:0{len(first)}d}{rest}"


def _shortened(hosts: list[str]) -> str:
    return ", ".join(hosts if len(hosts) <= 3 else [*hosts[:2], "…", hosts[-1]])


def _number(environ: Mapping[str, str], *names: str, default: int | None = None) -> int:
    for name in names:
        text = environ.get(name)
        if text:
            if not text.isdigit():
                raise UsageError(f"{name} is {text!r}; the scheduler sets a whole number there.")
            return int(text)
    if default is None:
        raise UsageError(f"{names[0]} is not set, and the scheduler's other variables are.")
    return default
