"""One connection of the watch: messages as JSON lines, and when the other end was last heard."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

__all__ = ["Peer"]

_LONGEST = 1 << 20


@dataclass(slots=True, kw_only=True)
class Peer:
    """The other end of one connection."""

    sock: socket.socket
    heard_s: float
    token: str = ""
    left: bool = False
    pending: bytes = b""
    unsent: bytes = b""

    def send(self, op: str, **fields: Any) -> None:
        """Send a message; what cannot go out now is kept for `flush`."""
        self.unsent += json.dumps({"op": op, **fields}).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what is left, as much as can go out now; on a connection that is closed nothing is left."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent = b""

    def receive(self) -> list[dict[str, Any]] | None:
        """Return what has arrived; None when the connection is closed."""
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self.heard_s = time.monotonic()
        *lines, self.pending = (self.pending + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            messages = [None]
        if len(self.pending) > _LONGEST or not all(isinstance(each, dict) and "op" in each for each in messages):
            return None  # somebody who does not speak this language
        return messages
