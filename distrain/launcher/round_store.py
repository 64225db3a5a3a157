"""The store of one round's workers: fresh, on a port that nobody can take in between, at an address all can reach."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

from distrain.launcher.facts import Facts
from distrain.launcher.interface import is_loopback

__all__ = ["listen", "open_store", "reachable_address"]

_WORKERS_WAIT = timedelta(minutes=10)


def reachable_address(mine: Facts, nodes: Sequence[Facts]) -> str:
    """Return the address under which the other nodes reach this one.

    On the node where all meet, the endpoint's name often leads to the loopback interface (`127.0.1.1 node01` in
    /etc/hosts); the others then tell where they came to.
    """
    if not is_loopback(mine.address):
        return mine.address
    seen = [node.head_address for node in nodes if node.token != mine.token and not is_loopback(node.head_address)]
    return seen[0] if seen else mine.address


def open_store(mine: Facts, nodes: Sequence[Facts]) -> tuple[TCPStore, str, int]:
    """Open a store on this node.

    Args:
        mine: This node.
        nodes: All of the round.

    Returns:
        The store, its address and its port.
    """
    address = reachable_address(mine, nodes)
    listener = listen(address)
    port: int = listener.getsockname()[1]
    store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_WORKERS_WAIT,
        master_listen_fd=listener.detach(),
    )
    return store, address, port


def listen(address: str) -> socket.socket:
    """Return a socket that listens at the address; where it is not this host's own (a forwarded one), everywhere."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError):
        return socket.create_server((address, 0), family=family, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)
