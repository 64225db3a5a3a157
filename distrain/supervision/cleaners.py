"""Processes that clean up behind others: they end by themselves, a little after those.

Python's resource tracker unlinks semaphores and shared memory of the processes that have its pipe. torch's
`torch_shm_manager` does so for tensors that are shared by files; it waits for two more seconds, and then removes the
folder of its socket.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cleans_up", "socket_folder"]

_MANAGER = b"torch_shm_manager"
_COMMANDS = (b"multiprocessing.resource_tracker", _MANAGER)
_FOLDER = "torch-shm-dir-"


def cleans_up(pid: int) -> bool:
    """Whether a process is one of these.

    Args:
        pid: The process.
    """
    return any(each in _command(pid) for each in _COMMANDS)


def socket_folder(pid: int) -> Path | None:
    """Return the folder that a `torch_shm_manager` removes at its end; None of another process.

    Args:
        pid: The process.
    """
    if _MANAGER not in _command(pid):
        return None
    try:
        links = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        table = Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]
    except OSError:
        return None
    for fields in (line.split(maxsplit=7) for line in table):
        if len(fields) == 8 and f"socket:[{fields[6]}]" in links:
            folder = Path(fields[7]).parent
            if folder.name.startswith(_FOLDER):
                return folder
    return None


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
