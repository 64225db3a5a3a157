"""A folder in the temporary directory that goes with its run: sockets of the ranks' processes, requests to runners.

What ends a process from outside leaves the files that it would have removed itself. They lie in one folder, which the
supervisor removes at the end. One that was killed removes nothing: its folder is removed by the next run on this host,
which knows by the lock that nobody holds it any more. Sockets need a short path on a local disk, so this is not the run
directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks: then nothing that another run has left is removed
    fcntl = None  # type: ignore[assignment]

__all__ = ["Scratch"]

_LONGEST = 78
"""Of the folder's path: a socket's is at most 107 characters long, and those below have up to 29 more."""


class Scratch:
    """The folder of one run; "" as its path where none can be made.

    Args:
        parent: Where; the temporary directory by default.
    """

    def __init__(self, parent: Path | None = None) -> None:
        ours = hashlib.sha256(f"{os.getuid()} {_machine()}".encode()).hexdigest()[:6]
        self._prefix = f"distrain-{ours}-"
        self._lock = -1
        self.path = ""
        with contextlib.suppress(OSError):  # a read-only system has no temporary directory
            folder = Path(tempfile.gettempdir()) if parent is None else parent
            self._remove_leftovers(folder)
            self._make(folder)

    def remove(self) -> None:
        """Remove the folder."""
        if self.path:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path = ""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _make(self, parent: Path) -> None:
        while not self.path:
            path = tempfile.mkdtemp(prefix=self._prefix, dir=parent)
            if len(path) > _LONGEST:
                os.rmdir(path)
                return
            try:
                self._lock = _locked(path)
            except (BlockingIOError, FileNotFoundError):
                continue  # another run, which begins at the same moment, takes it for a leftover
            except OSError:
                pass  # no locks here, so nobody else can have it either
            self.path = path

    def _remove_leftovers(self, parent: Path) -> None:
        for path in parent.glob(f"{self._prefix}*"):
            with contextlib.suppress(OSError):
                if path.is_symlink() or path.stat().st_uid != os.getuid():
                    continue
                lock = _locked(str(path))
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _machine() -> str:
    """Return what names this machine, the same in all of its containers: locks reach as far, perhaps not to others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return socket.gethostname()


def _locked(path: str) -> int:
    """Return a descriptor that holds the lock of a folder as long as it is open.

    Raises:
        OSError: Another process has it, or the file system knows no locks.
    """
    if fcntl is None:
        raise OSError("no locks")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(path)  # it may have been removed before it was locked
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
