"""A node that comes to an elastic run whose nodes meet elsewhere by now, for the one where they met was lost.

Nothing here needs torch.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

from distrain.launcher.rounds import Rounds
from distrain.launcher.watch import answers_as
from distrain.plan.meeting import Meeting
from distrain.rundir import RunDir

__all__ = ["moved"]


def moved(meeting: Meeting, root: Path) -> Meeting | None:
    """Return where the nodes meet now; None where that is the place that the user named, or nobody is there yet.

    The node that was lost may be the one that comes: started again it would open the place anew, and be a second run.

    Args:
        meeting: Where the nodes met at first.
        root: The run directory that the ranks share.
    """
    if meeting.min_nodes == meeting.max_nodes or meeting.backend != "c10d":
        return None
    held = Rounds(RunDir(root=root).rounds).newest()
    if held is None or (held.port == meeting.port and held.address in _addresses(meeting.host)):
        return None
    if not answers_as(held.token, held.address, held.watch_port):
        return None
    return replace(meeting, host=held.address, port=held.port)


def _addresses(host: str) -> list[str]:
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []
