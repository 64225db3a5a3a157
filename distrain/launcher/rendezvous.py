"""The rendezvous of a run on one node: a fresh store for each attempt, on the loopback interface only.

torch's own c10d rendezvous keeps one TCPStore for the whole run and hands it to the workers too, so a
restarted worker finds the keys of the attempt before it and connects to ports nobody listens on any more
(pytorch#135712, #167288). Here each attempt gets a store of its own. Its listening socket is bound before the
store takes it over, so no other process can take the port in between.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

__all__ = ["BACKEND", "SingleNodeRendezvous", "create"]

BACKEND = "distrain-single-node"
_HOST = "127.0.0.1"


class SingleNodeRendezvous(RendezvousHandler):
    """Join the only agent there is.

    Args:
        run_id: The run's name.
        timeout_s: How long a worker waits for a key of the store.
    """

    def __init__(self, run_id: str, timeout_s: float) -> None:
        self._run_id = run_id
        self._timeout = timedelta(seconds=timeout_s)
        self._closed = False

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Open the store of the next attempt; the one before it closes with its last reference."""
        listener = socket.create_server((_HOST, 0), backlog=1024)
        port = listener.getsockname()[1]
        store = TCPStore(
            _HOST,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=self._timeout,
            master_listen_fd=listener.detach(),
        )
        return RendezvousInfo(PrefixStore("agent", store), 0, 1, RendezvousStoreInfo(_HOST, port))

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
        return True


def create(parameters: RendezvousParameters) -> RendezvousHandler:
    """Make the handler torch's registry asks for."""
    timeout = parameters.get_as_int("timeout")
    assert timeout is not None
    return SingleNodeRendezvous(parameters.run_id, timeout)
