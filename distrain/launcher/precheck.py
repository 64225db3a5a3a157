"""What can be known before the nodes meet: does the name resolve, is the port free, does anybody answer there.

Nothing here needs torch. Nothing falls back to localhost: a world of its own for each node trains, and wrongly.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distrain.errors import LaunchError, UsageError
from distrain.launcher.apart import apart
from distrain.launcher.interface import is_loopback
from distrain.plan.meeting import Meeting

__all__ = [
    "JOIN_TIMEOUT_S",
    "PATIENCE_S",
    "Door",
    "await_answer",
    "await_name",
    "is_host",
    "is_own_address",
    "join_timeout_s",
    "loopback_of",
    "name_patience_s",
    "node_name",
    "open_door",
    "resolve",
]

JOIN_TIMEOUT_S = 300.0
PATIENCE_S = 5.0
"""After so long a user is told what is waited for."""

NAME_PATIENCE_S = 15.0
"""How long a name may take to resolve. One that is misspelt is told after a second, and ends the node after these."""

_SAY_NAME_S = 1.0
_NOT_YET = (socket.EAI_AGAIN, socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
_RETRY_S = 0.25
_CONNECT_S = 5.0
_LISTENING = "0A"
_SHARED = ("c10d", "static")
"""The backends whose meeting place is opened by one of the nodes."""


def join_timeout_s(meeting: Meeting) -> float:
    """Return how long a node waits for the others, in seconds."""
    text = meeting.conf.get("join_timeout") or meeting.conf.get("timeout") or str(JOIN_TIMEOUT_S)
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--rdzv-conf: join_timeout is {text!r}; give a number of seconds.") from None


def node_name(node_rank: int | None) -> str:
    """Return how a message calls the node that says it."""
    return "this node" if node_rank is None else f"node {node_rank}"


def loopback_of(meeting: Meeting) -> str:
    """Return the loopback address where the nodes meet; "" where they meet elsewhere.

    A name that leads to the loopback interface on this host (`127.0.1.1 node01` in /etc/hosts) is not such a place: it
    leads the others here.
    """
    host = meeting.host
    return ("127.0.0.1" if host == "localhost" else host) if is_loopback(host) else ""


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host name, as this node sees them.

    Raises:
        UsageError: It has none.
    """
    return _resolved(host, port, lambda: _addresses(host, port))


def await_name(meeting: Meeting, say: Callable[[str], None], *, patience_s: float) -> list[str]:
    """Return the addresses where the nodes meet, once their name resolves.

    Args:
        meeting: Where they meet.
        say: Told the name that does not resolve yet.
        patience_s: How long it is asked for again and again.

    Raises:
        UsageError: It has not resolved by then.
    """
    host, port = meeting.host, meeting.port
    give_up_s = time.monotonic() + patience_s

    def ask() -> list[str]:
        while True:
            try:
                return _addresses(host, port)
            except socket.gaierror as error:
                if error.errno not in _NOT_YET or time.monotonic() > give_up_s:
                    raise
            time.sleep(_RETRY_S)

    def wait() -> None:
        node, here = node_name(meeting.node_rank), socket.gethostname()
        say(f"{node}: {host!r}, where the nodes are to meet, does not resolve on {here}; trying for {patience_s:g} s")

    return _resolved(host, port, lambda: apart(ask, after=[(_SAY_NAME_S, wait)]))


def name_patience_s(meeting: Meeting, environ: Mapping[str, str]) -> float:
    """Return how long the name of the meeting place may take to resolve, in seconds.

    In a pod of Kubernetes that is as long as nobody may answer there: the name comes with the other pod.

    Args:
        meeting: Where the nodes meet.
        environ: The environment.
    """
    timeout_s = join_timeout_s(meeting)
    return timeout_s if "KUBERNETES_SERVICE_HOST" in environ else min(timeout_s, NAME_PATIENCE_S)


def _addresses(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _resolved(host: str, port: int, ask: Callable[[], list[str]]) -> list[str]:
    try:
        return ask()
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a valid name"
        raise UsageError(
            f"the nodes are to meet at {host}:{port}, and {host!r} does not resolve on {socket.gethostname()} "
            f"({reason}). Give a name or an address that every node knows: --rdzv-endpoint HOST:PORT."
        ) from None


def is_own_address(address: str) -> bool:
    """Whether this host has the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe, contextlib.suppress(OSError):
        probe.bind((address, 0))
        return True
    return False


def is_host(meeting: Meeting, addresses: list[str]) -> bool:
    """Whether this node opens the place where all meet: what --rdzv-conf says, node 0, or whose address it is."""
    said = meeting.conf.get("is_host")
    if said is not None:
        return said.strip().lower() in ("1", "true", "t", "yes", "y")
    if meeting.node_rank is not None or meeting.backend == "static":
        return not meeting.node_rank
    return any(map(is_own_address, addresses))


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """The port where the nodes meet, held by this process.

    Args:
        tcp: Bound to the port. It does not listen: until the agent is ready, others see that nobody answers.
        sign: Tells other launches on this host that the port is held, as long as this process lives.
    """

    tcp: socket.socket
    sign: socket.socket | None


def open_door(
    meeting: Meeting,
    warn: Callable[[str], None],
    *,
    say: Callable[[str], None] = lambda _: None,
    patience_s: float = 0.0,
) -> Door | None:
    """Check the meeting place and, on the node that opens it, take its port.

    Where several launches on one host have no node rank, the first one opens the place and the others find it open.

    Args:
        meeting: Where and how the nodes meet.
        warn: Told what is hardly meant.
        say: Told at once what is waited for.
        patience_s: How long the host name may take to resolve.

    Returns:
        The held port for c10d; None on other nodes and for other backends.

    Raises:
        UsageError: The host name does not resolve, or the port is taken.
    """
    alone = meeting.max_nodes == 1
    if meeting.conf.get("store_type", "tcp") != "tcp" or (alone and meeting.port == 0):
        return None
    addresses = await_name(meeting, say, patience_s=patience_s)
    if meeting.backend not in _SHARED:
        return None
    if meeting.min_nodes < meeting.max_nodes and is_loopback(meeting.host):
        warn(f"the nodes meet at {meeting.endpoint}, so only launches on this host can join")
    if not alone and not is_host(meeting, addresses):
        return None
    if not any(map(is_own_address, addresses)):
        warn(_not_here(meeting))
        if alone:
            return None
    sign = _put_up_sign(meeting.port)
    tcp = None if sign is None else _bound_socket(loopback_of(meeting), meeting.port)
    if tcp is None:
        if sign is not None:
            sign.close()
        elif meeting.node_rank is None and meeting.backend == "c10d" and not alone:
            return None
        owner = _owner(meeting.port) if sign is not None else " by another launch of distrain"
        raise UsageError(
            f"port {meeting.port} on {socket.gethostname()}, where the nodes are to meet, is taken{owner}. Give "
            f"another: --rdzv-endpoint {meeting.host}:PORT, the same on every node."
        )
    if meeting.backend == "static" or alone:
        tcp.close()
        if sign is not None:
            sign.close()
        return None
    return Door(tcp=tcp, sign=sign)


def _not_here(meeting: Meeting) -> str:
    host = socket.gethostname()
    if meeting.max_nodes == 1:
        return (
            f"{meeting.host} is no address of this host ({host}), where all ranks are; they meet at 127.0.0.1 instead"
        )
    opens = "is_host is set" if "is_host" in meeting.conf else f"--node-rank is {meeting.node_rank or 0}"
    return (
        f"this node opens the place where all meet, because {opens} here, and {meeting.host} is no address of this "
        f"host ({host}). Unless it is forwarded here, give --node-rank 0 to the node that has it"
    )


def _put_up_sign(port: int) -> socket.socket | None:
    """Return a socket with a name of this host's network only one process can have; None when another has it."""
    sign = socket.socket(socket.AF_UNIX)
    if sys.platform.startswith("linux"):
        try:
            sign.bind(f"\0distrain-meeting-place-{port}")
        except OSError:
            sign.close()
            return None
    return sign


def _bound_socket(address: str, port: int) -> socket.socket | None:
    """Return a socket that holds the port at an address, "" for every interface; None when it is taken.

    At first the kernel is asked for the port alone. Connections of an earlier run that have just been closed stand in
    the way of that; then it is asked again in the way that overlooks them.
    """
    dual = not address and socket.has_dualstack_ipv6()
    for overlook in (0, 1):
        tcp = socket.socket(socket.AF_INET6 if dual or ":" in address else socket.AF_INET)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, overlook)
        if dual:
            tcp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            tcp.bind((address, port))
        except OSError as error:
            tcp.close()
            if error.errno != errno.EADDRINUSE:
                raise UsageError(f"port {port} cannot be used on this node: {error.strerror}.") from None
        else:
            return tcp
    return None


def _owner(port: int) -> str:
    """Return ` by pid N (command)` for the process that listens on a port, as far as /proc shows it."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) in inodes for fd in (entry / "fd").iterdir()):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f" by pid {entry.name} ({_shortened(command)})"
    return " by a process of another user" if inodes else ""


def _shortened(command: str) -> str:
    words = " ".join(command.split())
    return words if len(words) <= 80 else f"{words[:79]}…"


def await_answer(meeting: Meeting, say: Callable[[str], None], check: Callable[[], None]) -> tuple[str, str]:
    """Wait until somebody answers at the meeting place.

    Args:
        meeting: Where and for how long.
        say: Told what is waited for, once it takes long.
        check: Called again and again meanwhile; what it raises ends the waiting.

    Returns:
        This node's own address on the way there, and the address there.

    Raises:
        LaunchError: Nobody answered in time.
    """
    timeout_s = join_timeout_s(meeting)
    began_s = time.monotonic()
    said = False
    node = node_name(meeting.node_rank)
    while True:
        try:
            with socket.create_connection((meeting.host, meeting.port), _CONNECT_S) as answered:
                own, there = answered.getsockname(), answered.getpeername()
            if own != there:  # a socket can connect to itself, where nobody listens on a port of the ephemeral range
                return str(own[0]), str(there[0])
            reason = "connection refused"
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        check()
        waited_s = time.monotonic() - began_s
        if waited_s > timeout_s:
            raise LaunchError(
                f"{node}: nothing has answered at {meeting.endpoint} for {timeout_s:g} s ({reason}). Is distrain "
                "launch running on the node with that address, and does its firewall let this one in?"
            )
        if waited_s > PATIENCE_S and not said:
            said = True
            say(f"{node}: nothing answers at {meeting.endpoint} yet ({reason}); waiting up to {timeout_s:g} s")
        time.sleep(_RETRY_S)
