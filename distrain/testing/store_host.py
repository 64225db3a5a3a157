"""The store that the ranks of a test meet in: served by a process of its own, since serving one takes threads."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from multiprocessing.connection import Connection

from distrain.supervision.reaping import die_with_parent

__all__ = ["StoreHost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHost:
    """The process, as the one that forked it sees it.

    Args:
        pid: It.
        connection: To it.
    """

    pid: int
    connection: Connection

    @classmethod
    def fork(cls) -> StoreHost:
        """Fork the process; the caller must have one thread, and has one afterwards."""
        ours, theirs = socket.socketpair()
        parent_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            die_with_parent(parent_pid)
            ours.close()
            _serve(Connection(theirs.detach()))
        theirs.close()
        return cls(pid=pid, connection=Connection(ours.detach()))

    def new_store(self) -> int:
        """Return the port, on the loopback interface, of a store that nobody has used; the former one is closed."""
        self.connection.send(None)
        port: int = self.connection.recv()
        return port

    def close(self) -> None:
        """Let go of the connection; in a process that was forked later."""
        self.connection.close()


def _serve(connection: Connection) -> None:
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        while True:
            connection.recv()
            # Any free port, chosen by the system as it binds: no other process can take it in between.
            store = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
            connection.send(store.port)
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)
