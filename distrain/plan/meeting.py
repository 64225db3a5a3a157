"""How several nodes find each other: how many, which one this is, and where they meet."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from distrain.errors import UsageError
from distrain.plan.cluster import Placement
from distrain.plan.sources import Given, Setting, whole_number

__all__ = ["Meeting", "resolve_meeting"]

C10D_PORT = 29400
STATIC_PORT = 29500

ANY_PORT_HERE = ("localhost:0", "127.0.0.1:0")
"""How torchrun's users say that a single node may meet wherever it likes."""

NAMES = ("nnodes", "node_rank", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "rdzv_conf", "local_addr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """A rendezvous of several nodes, or one that the user described.

    Args:
        min_nodes: The fewest nodes to run with.
        max_nodes: The most.
        node_rank: This node's number in the order of ranks; None leaves the order to torch.
        backend: torch's name of the rendezvous backend.
        host: Where the nodes meet.
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
    def endpoint(self) -> str:
        """Host and port, as torch takes them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def resolve_meeting(
    found: Mapping[str, Given], placement: Placement | None, settings: MutableMapping[str, Setting]
) -> Meeting | None:
    """Return how the nodes meet, and note the settings; None for one node with nothing said about its rendezvous.

    Without a backend, c10d is taken, with the ranks in the order of the node ranks: torchrun's own default, static,
    cannot restart. A multi-node run without a place to meet is an error: localhost would be a world for each node.

    Args:
        found: What was given.
        placement: What the scheduler says, or None.
        settings: Where the settings are noted.

    Raises:
        UsageError: A value is not valid, or it contradicts the allocation.
    """
    for name in NAMES:
        said = found.get(name)
        if said is not None:
            settings[name] = Setting(value=said.text, origin=said.origin, detail=said.where)
    low, high = _nnodes(found, placement, settings)
    alone = high == 1
    backend = found.get("rdzv_backend")
    told = any(name in found for name in ("master_port", "rdzv_conf", "rdzv_id")) or (
        "rdzv_endpoint" in found and found["rdzv_endpoint"].text not in ANY_PORT_HERE
    )
    if "standalone" in found or (alone and not told and (backend is None or backend.text in ("c10d", "static"))):
        return None
    node_rank = _node_rank(found, placement, settings, high)
    name = backend.text if backend is not None else "c10d"
    if backend is None:
        settings["rdzv_backend"] = Setting(value=name, origin="default", detail="not given")
    host, port = _endpoint(found, placement, settings, name, alone=alone)
    run_id = found["rdzv_id"].text if "rdzv_id" in found else (placement.run_id if placement is not None else "none")
    if "rdzv_id" not in found:
        origin = "default" if placement is None else "detected"
        detail = "not given" if placement is None else placement.detail
        settings["rdzv_id"] = Setting(value=run_id, origin=origin, detail=detail)  # type: ignore[arg-type]
    return Meeting(
        min_nodes=low,
        max_nodes=high,
        node_rank=node_rank,
        backend=name,
        host=host,
        port=port,
        run_id=run_id,
        conf=_conf(found.get("rdzv_conf")),
        local_addr=found["local_addr"].text if "local_addr" in found else None,
    )


def _nnodes(
    found: Mapping[str, Given], placement: Placement | None, settings: MutableMapping[str, Setting]
) -> tuple[int, int]:
    said = found.get("nnodes")
    if said is None or "standalone" in found:
        count = 1 if placement is None or "standalone" in found else placement.nnodes
        origin = "default" if placement is None else "detected"
        detail = "not given" if placement is None else placement.detail
        settings["nnodes"] = Setting(value=str(count), origin=origin, detail=detail)  # type: ignore[arg-type]
        return count, count
    match = re.fullmatch(r"(\d+)(?::(\d+))?", said.text)
    if match is None:
        raise UsageError(
            f"{said.where}: got {said.text!r}; give a number of nodes, or the fewest and the most, as 1:4."
        )
    low, high = int(match[1]), int(match[2] or match[1])
    if not 0 < low <= high:
        raise UsageError(f"{said.where}: got {said.text!r}; the fewest must be at least 1 and no more than the most.")
    if placement is None:
        return low, high
    if placement.only_here and high > 1:
        raise UsageError(
            f"{said.where}: got {said.text!r}, and distrain was started on one node only ({placement.detail}). Start "
            "it on each: srun --ntasks-per-node=1 distrain launch …"
        )
    # A task for each rank counts as a node of its own, so there the allocation speaks of something else.
    if placement.local_task is None and high > placement.nnodes:
        raise UsageError(
            f"{said.where}: got {said.text!r}, and the allocation has {placement.nnodes} ({placement.detail}). Leave "
            "it out to use them all, or ask the scheduler for more."
        )
    return (placement.nnodes,) * 2 if placement.local_task is not None else (low, high)


def _node_rank(
    found: Mapping[str, Given], placement: Placement | None, settings: MutableMapping[str, Setting], high: int
) -> int | None:
    said = found.get("node_rank")
    if said is not None:
        rank = whole_number(said, "a whole number", least=0)
        if rank >= high:
            raise UsageError(f"{said.where}: got {rank} with at most {high} nodes; valid are 0 to {high - 1}.")
        return rank
    if placement is not None:
        settings["node_rank"] = Setting(value=placement.node_rank, origin="detected", detail=placement.detail)
        return placement.node_rank
    settings["node_rank"] = Setting(value=None, origin="default", detail="not given: torch orders the nodes")
    return None


def _endpoint(
    found: Mapping[str, Given],
    placement: Placement | None,
    settings: MutableMapping[str, Setting],
    backend: str,
    *,
    alone: bool,
) -> tuple[str, int]:
    said = found.get("rdzv_endpoint")
    default_port = STATIC_PORT if backend == "static" else C10D_PORT
    if said is not None:
        return _host_and_port(said, default_port)
    address, given_port = found.get("master_addr"), found.get("master_port")
    port = STATIC_PORT if given_port is None else whole_number(given_port, "a port", least=0)
    if given_port is not None and port > 65535:
        raise UsageError(f"{given_port.where}: got {port}; a port is at most 65535.")
    if address is not None or (alone and given_port is not None):
        host = "127.0.0.1" if address is None else address.text
        where = " and ".join(each.where for each in (address, given_port) if each is not None)
        origin = (address or given_port).origin  # type: ignore[union-attr]  # one of them is there
        settings["rdzv_endpoint"] = Setting(value=f"{host}:{port}", origin=origin, detail=where)
        return host, port
    if alone:
        return "127.0.0.1", 0
    if placement is not None and placement.head is not None:
        port = placement.port if given_port is None else port
        value = f"{placement.head}:{port}"
        settings["rdzv_endpoint"] = Setting(value=value, origin="detected", detail=placement.detail)
        return placement.head, port
    raise UsageError(
        "several nodes need a place to meet: give --rdzv-endpoint HOST:PORT, an address of one of the nodes and a free "
        "port there, the same on all of them."
    )


def _host_and_port(said: Given, default_port: int) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::(\d+))?", said.text.strip())
    if match is None or int(match[3] or 0) > 65535:
        raise UsageError(f"{said.where}: got {said.text!r}; give HOST:PORT, such as node01:29400.")
    return match[1] or match[2], int(match[3]) if match[3] else default_port


def _conf(said: Given | None) -> dict[str, str]:
    if said is None:
        return {}
    pairs: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in said.text.split(","))):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise UsageError(f"{said.where}: got {part!r}; give settings as key=value, separated by commas.")
        pairs[key.strip()] = value.strip()
    return pairs
