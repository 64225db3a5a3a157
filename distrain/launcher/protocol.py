"""What the supervisor, the fork server and the agent say to each other: jobs, and JSON lines over a socket.

    supervisor ──control──► fork server ──► agent        one Job each way down
    supervisor ◄─control─── fork server ◄── agent        what happened, each way up

Nothing here needs torch.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["AgentJob", "Channel", "WorkerJob"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJob:
    """One rank to start.

    Args:
        rank: Global rank.
        local_rank: Rank on this node.
        attempt: The round of workers it belongs to.
        kind: `script`, `module`, `path` or `command`.
        target: Path, module or executable.
        args: The program's arguments.
        command: The command line of an equal fresh process.
        warm: Run in the forked interpreter; otherwise execute `command` in its place.
        env: The whole environment.
        stdout: File or terminal that standard output is appended to; "" leaves it as it is.
        stderr: Likewise for standard error.
        error_file: Where an uncaught exception is recorded.
        stacks_file: Where the Python stacks go when the process crashes or is asked for them.
        scratch: A folder that it may make for what goes with the run; "" for none.
        numa_binding: torch's name for the way to bind the process to CPUs near its GPU; "" leaves it unbound.
    """

    rank: int
    local_rank: int
    attempt: int
    kind: Literal["script", "module", "path", "command"]
    target: str
    args: list[str]
    command: list[str]
    warm: bool
    env: dict[str, str]
    stdout: str
    stderr: str
    error_file: str
    stacks_file: str = ""
    scratch: str = ""
    numa_binding: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentJob:
    """Everything the agent of this node needs.

    Args:
        nproc: Number of local ranks.
        max_restarts: As in `Plan`.
        run_id: The run's name, torch's `TORCHELASTIC_RUN_ID`.
        run_dir: The run directory, absolute.
        first_attempt: The attempt to count from; more than 0 when the run directory was used before.
        grace_s: Seconds between the first signal to a worker and SIGKILL.
        kind: As in `WorkerJob`.
        target: As in `WorkerJob`.
        args: As in `WorkerJob`.
        command: As in `WorkerJob`.
        warm: As in `WorkerJob`.
        env: The environment shared by the workers.
        terminals: Rank (as text) to the devices its standard output and error are written to.
        monitor_interval_s: How often the workers are looked at.
        role: Their role in torch elastic.
        signals: Names of the signals that end the run in order.
        virtual_local_rank: As in `Plan`.
        local_task: As in `Placement`.
        meeting: The fields of `Meeting`; None on a single node.
        passed: As in `Plan`.
        board: Where the workers' heartbeats go; "" without a board.
        scratch: A folder that goes with the run, as `supervision.scratch` makes it; "" without one.
        door: The descriptor of the bound socket where the nodes meet, on the node that opens the place.
        facts: What the other nodes are told: `device`, `profile`, `profile_says`, `retry`,
            `shared_run_dir`.
    """

    nproc: int
    max_restarts: int
    run_id: str
    run_dir: str
    first_attempt: int
    grace_s: int
    kind: Literal["script", "module", "path", "command"]
    target: str
    args: list[str]
    command: list[str]
    warm: bool
    env: dict[str, str]
    terminals: dict[str, list[str]]
    monitor_interval_s: float = 0.1
    role: str = "default"
    signals: list[str] = field(default_factory=lambda: ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
    virtual_local_rank: bool = False
    local_task: list[int] | None = None
    meeting: dict[str, Any] | None = None
    passed: dict[str, str | None] = field(default_factory=dict)
    board: str = ""
    scratch: str = ""
    door: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Channel:
    """Messages over one end of a stream socket: dictionaries, a JSON line each.

    Args:
        sock: The connected socket; the channel owns it from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pending = b""
        self._sending = threading.Lock()
        self.closed = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, op: str, **fields: Any) -> None:
        """Send one message.

        Args:
            op: What it is about.
            **fields: What it says; dataclasses are sent as dictionaries.

        Raises:
            OSError: The other end is gone.
        """
        body = {
            key: asdict(value) if hasattr(value, "__dataclass_fields__") else value for key, value in fields.items()
        }
        with self._sending:
            self._sock.sendall(json.dumps({"op": op, **body}).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived, waiting for the first bytes; `closed` tells the end."""
        try:
            data = self._sock.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def is_open(self) -> bool:
        """Whether the other end is still there, whatever it has said that was not received yet."""
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self._sock.close()


def worker_job(message: Mapping[str, Any]) -> WorkerJob:
    """Return the job a `spawn` message carries."""
    return WorkerJob(**message["job"])


def agent_job(message: Mapping[str, Any]) -> AgentJob:
    """Return the job a `start_agent` message carries."""
    return AgentJob(**message["job"])
