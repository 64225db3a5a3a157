"""The rendezvous of a run on one node: a fresh store for each attempt, on the loopback interface only.

torch's own c10d rendezvous keeps one TCPStore for the whole run and hands it to the workers too, so a
restarted worker finds the keys of the attempt before it and connects to ports nobody listens on any more
(pytorch#135712, #167288). Here each attempt gets a store of its own. Its listening socket is bound before the
store takes it over, so no other process can take the port in between.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo, rendezvous_handler_registry

from distrain.launcher.precheck import is_own_address, resolve
from distrain.launcher.protocol import AgentJob
from distrain.plan.environment import is_alone, loopback_variables
from distrain.plan.meeting import Meeting

__all__ = ["BACKEND", "SingleNodeRendezvous", "create", "settings"]

BACKEND = "distrain-single-node"
_HOST = "127.0.0.1"


class SingleNodeRendezvous(RendezvousHandler):
    """Join the only agent there is.

    Args:
        run_id: The run's name.
        timeout_s: How long a worker waits for a key of the store.
        host: The workers' MASTER_ADDR.
        port: Their MASTER_PORT; 0 takes a free one.
    """

    def __init__(self, run_id: str, timeout_s: float, host: str = _HOST, port: int = 0) -> None:
        self._run_id = run_id
        self._host = host
        self._port = port
        self._worker_store: TCPStore | None = None
        self._timeout = timedelta(seconds=timeout_s)
        self._closed = False

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Open the store of the next attempt's workers; the one before it has to free its port first."""
        self._worker_store = None
        self._worker_store, port = self._open(self._host, self._port)
        agent_store, _ = self._open(_HOST, 0)
        return RendezvousInfo(PrefixStore("agent", agent_store), 0, 1, RendezvousStoreInfo(self._host, port))

    def _open(self, host: str, port: int) -> tuple[TCPStore, int]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
        port = listener.getsockname()[1]
        store = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=self._timeout,
            master_listen_fd=listener.detach(),
        )
        return store, port

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        self._worker_store = None
        return True


def create(parameters: RendezvousParameters) -> RendezvousHandler:
    """Make the handler torch's registry asks for."""
    timeout = parameters.get_as_int("timeout")
    assert timeout is not None
    host, _, port = parameters.endpoint.rpartition(":")
    return SingleNodeRendezvous(parameters.run_id, timeout, host.strip("[]"), int(port))


def settings(job: AgentJob) -> dict[str, Any]:
    """Return the fields of torch's `LaunchConfig` that say how the nodes meet.

    One node meets nobody; its workers meet where the user said, else anywhere on the loopback interface. Other backends
    for several nodes are torch's alone.
    """
    meeting = None if job.meeting is None else Meeting(**job.meeting)
    if is_alone(meeting):
        rendezvous_handler_registry.register(BACKEND, create)
        os.environ.update(loopback_variables(os.environ))
        named = meeting is not None and not meeting.is_in_file
        here = meeting is not None and named and any(map(is_own_address, resolve(meeting.host, meeting.port)))
        port = 0 if meeting is None else meeting.port
        return {
            "min_nodes": 1,
            "max_nodes": 1,
            "run_id": job.run_id if meeting is None else meeting.run_id,
            "rdzv_backend": BACKEND,
            "rdzv_endpoint": meeting.endpoint if meeting is not None and here else f"{_HOST}:{port}",
        }
    assert meeting is not None
    static = meeting.backend == "static"
    if not static:  # torch's own store of the workers would keep the keys of the attempt before
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    return {
        "min_nodes": meeting.min_nodes,
        "max_nodes": meeting.max_nodes,
        "run_id": meeting.run_id,
        "rdzv_backend": meeting.backend,
        "rdzv_endpoint": meeting.endpoint,
        "rdzv_configs": {**meeting.conf, **({"rank": meeting.node_rank or 0} if static else {})},
        "local_addr": meeting.local_addr,
    }
