"""How several nodes find each other: how many, which one this is, and where they meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distrain.errors import UsageError, did_you_mean
from distrain.plan.draft import Draft
from distrain.plan.endpoint import resolve_endpoint
from distrain.plan.related import ANY_PORT_HERE
from distrain.plan.sources import Given, as_number, seconds, whole_number

__all__ = ["Meeting", "resolve_meeting"]

NAMES = ("nnodes", "node_rank", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "rdzv_conf", "local_addr")

BACKENDS = ("c10d", "static", "etcd", "etcd-v2")
"""torch's own; a package may bring others, as entry points of `torchrun.handlers`."""

WHOLE_NUMBERS = (
    "close_timeout",
    "heartbeat_timeout",
    "join_timeout",
    "keep_alive_interval",
    "keep_alive_max_attempt",
    "last_call_timeout",
    "read_timeout",
    "timeout",
)
NODE_TIMEOUT = "node_timeout"
"""What torch's backends, and distrain itself, read from `--rdzv-conf` as numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """A rendezvous of several nodes, or one that the user described.

    Args:
        min_nodes: The fewest nodes to run with.
        max_nodes: The most.
        node_rank: This node's number in the order of ranks; None leaves the order to torch.
        backend: torch's name of the rendezvous backend.
        host: Where the nodes meet; the path of a file, where they meet in one.
        port: The port there.
        run_id: The run's id, the same on every node.
        conf: Further settings of the rendezvous.
        local_addr: The address under which the others reach this node; None lets torch find it.
    """

    min_nodes: int
    max_nodes: int
    node_rank: int | None
    backend: str
    host: str
    port: int
    run_id: str
    conf: Mapping[str, str] = field(default_factory=dict)
    local_addr: str | None = None

    @property
    def is_in_file(self) -> bool:
        """Whether c10d's store is a file that the nodes share."""
        return _is_in_file(self.backend, self.conf)

    @property
    def endpoint(self) -> str:
        """Host and port, or the file's path, as torch takes them."""
        if self.is_in_file:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def resolve_meeting(draft: Draft) -> Meeting | None:
    """Return how the nodes meet, and note the settings; None for one node with nothing said about its rendezvous.

    Without a backend, c10d is taken, with the ranks in the order of the node ranks: torchrun's own default, static,
    cannot restart. A multi-node run without a place to meet is an error: localhost would be a world for each node.

    Args:
        draft: The plan in the making.

    Raises:
        UsageError: A value is not valid, or it contradicts the allocation.
    """
    found = draft.found
    for name in NAMES:
        if name in found:
            draft.given(name, found[name].text)
    low, high = _nnodes(draft)
    alone = high == 1
    backend = _backend(found.get("rdzv_backend"))
    conf = _conf(found.get("rdzv_conf"), backend)
    told = any(name in found for name in ("master_port", "rdzv_conf", "rdzv_id")) or (
        "rdzv_endpoint" in found and found["rdzv_endpoint"].text not in ANY_PORT_HERE
    )
    if "standalone" in found:
        return None
    if alone and not told and backend in ("c10d", "static"):
        if "node_rank" in found:
            _node_rank(draft, high)
        return None
    node_rank = _node_rank(draft, high)
    if "rdzv_backend" not in found:
        draft.note("rdzv_backend", backend, "default")
    in_file = _is_in_file(backend, conf)
    host, port = (_file(draft), 0) if in_file else resolve_endpoint(draft, backend, alone=alone)
    if port == 0 and not alone and not in_file and backend in ("c10d", "static"):
        raise UsageError(
            f"the nodes are to meet at {host}:0, and port 0 stands for any that is free, which the other nodes do not "
            "know; give one, the same on all of them: --rdzv-endpoint HOST:PORT."
        )
    return Meeting(
        min_nodes=low,
        max_nodes=high,
        node_rank=node_rank,
        backend=backend,
        host=host,
        port=port,
        run_id=_run_id(draft),
        conf=conf,
        local_addr=found["local_addr"].text if "local_addr" in found else None,
    )


def _is_in_file(backend: str, conf: Mapping[str, str]) -> bool:
    return backend == "c10d" and conf.get("store_type") == "file"


def _file(draft: Draft) -> str:
    said = draft.found.get("rdzv_endpoint")
    if said is None:
        conf = draft.found["rdzv_conf"].where
        raise UsageError(f"{conf}: store_type=file has the nodes meet in a file; name it: --rdzv-endpoint PATH.")
    return said.text


def _nnodes(draft: Draft) -> tuple[int, int]:
    said, placement = draft.found.get("nnodes"), draft.placement
    if said is None:
        if placement is None:
            draft.note("nnodes", "1", "default")
            return 1, 1
        if placement.only_here:
            draft.warnings.append(
                f"the allocation has {placement.only_here} nodes, and the run uses this one alone: distrain was not "
                "started on the others (srun --ntasks-per-node=1 distrain launch …)"
            )
        draft.note("nnodes", str(placement.nnodes), "detected", placement.detail)
        return placement.nnodes, placement.nnodes
    counts = [as_number(text) for text in said.text.split(":")]
    low, high = counts[0], counts[-1]
    if len(counts) > 2 or low is None or high is None:
        raise UsageError(
            f"{said.where}: got {said.text!r}; give a number of nodes, or the fewest and the most, as 1:4."
        )
    if not 0 < low <= high:
        raise UsageError(f"{said.where}: got {said.text!r}; the fewest must be at least 1 and no more than the most.")
    if placement is None:
        return low, high
    if placement.only_here and high > 1:
        raise UsageError(
            f"{said.where}: got {said.text!r}, and distrain was started on one node only ({placement.detail}). Start "
            "it on each: srun --ntasks-per-node=1 distrain launch …"
        )
    # A task for each rank counts as a node of its own, so there the user may count hosts.
    of_tasks = placement.local_task is not None
    valid = {placement.nnodes, (placement.num_hosts or high) if of_tasks else placement.nnodes}
    if high > max(valid):
        raise UsageError(
            f"{said.where}: got {said.text!r}, and the allocation has {max(valid)} ({placement.detail}). Leave "
            "it out to use them all, or ask the scheduler for more."
        )
    if high not in valid:
        raise UsageError(
            f"{said.where}: got {said.text!r}, and {placement.scheduler} has started {placement.nnodes} processes "
            f"({placement.detail}). Leave it out to join them all, start no more than are needed, or give --standalone "
            "if each is to be a world of its own."
        )
    return (placement.nnodes,) * 2 if of_tasks else (low, high)


def _node_rank(draft: Draft, high: int) -> int | None:
    said, placement = draft.found.get("node_rank"), draft.placement
    if said is not None:
        rank = whole_number(said, "a whole number", least=0)
        if rank >= high == 1:
            raise UsageError(
                f"{said.where}: got {rank}, and the run has one node, number 0. Say how many there are: --nnodes N."
            )
        if rank >= high:
            raise UsageError(f"{said.where}: got {rank} with at most {high} nodes; valid are 0 to {high - 1}.")
        return rank
    if placement is not None:
        draft.note("node_rank", placement.node_rank, "detected", placement.detail)
        return placement.node_rank
    draft.note("node_rank", None, "default", "not given: torch orders the nodes")
    return None


def _run_id(draft: Draft) -> str:
    """Return the id; `none`, torch's own word, where neither the user nor the scheduler has one of this run alone.

    A run directory is named after an id and goes on there, so one that comes again would mix two runs up.
    """
    if "rdzv_id" in draft.found:
        return draft.found["rdzv_id"].text
    if draft.placement is not None and draft.placement.run_id:
        draft.note("rdzv_id", draft.placement.run_id, "detected", draft.placement.detail)
        return draft.placement.run_id
    draft.note("rdzv_id", "none", "default")
    return "none"


def _backend(said: Given | None) -> str:
    if said is None:
        return BACKENDS[0]
    if said.text not in BACKENDS:
        from importlib.metadata import entry_points

        valid = [*BACKENDS, *sorted(each.name for each in entry_points(group="torchrun.handlers"))]
        if said.text not in valid:
            raise UsageError(
                f"{said.where}: got {said.text!r}; valid are {', '.join(valid)}.{did_you_mean(said.text, valid)}"
            )
    return said.text


def _conf(said: Given | None, backend: str) -> dict[str, str]:
    if said is None:
        return {}
    pairs: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in said.text.split(","))):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not (key and equals and value):
            raise UsageError(f"{said.where}: got {part!r}; give settings as key=value, separated by commas.")
        pairs[key] = value
        one = Given(text=value, origin=said.origin, where=f"{said.where}: {key}")
        if key == NODE_TIMEOUT:
            seconds(one)
        elif key in WHOLE_NUMBERS and backend in BACKENDS:
            whole_number(one, "a whole number", least=1)
    return pairs
