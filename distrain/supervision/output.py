"""Our own two streams, written without ever waiting for their readers.

Python's file objects will not do: a write may be short or refused (without buffers, in a pipe that somebody made
non-blocking), and what a reader does not take holds up whoever writes. Nor may the streams be made non-blocking, for
the shell and other programs share them.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["Output", "give_up", "open_standard_descriptors", "say", "standard_outputs"]

_LOOK_EVERY_S = 0.05


class Output:
    """One of our streams: what it does not take at once stays here until the next call.

    Args:
        fd: Its descriptor; None for one that is closed, which takes everything and shows nothing.
    """

    def __init__(self, fd: int | None) -> None:
        self.is_terminal = fd is not None and os.isatty(fd)
        self.trouble = ""
        """Why it takes nothing any more, "" where nobody would want to know."""
        self._fd = _unshared(fd) if fd is not None and self.is_terminal else fd
        self._unwritten = b""
        self._refused = False
        self._poll = select.poll()
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLOUT)

    @property
    def is_open(self) -> bool:
        """Whether it may still take something."""
        return self._fd is not None

    @property
    def is_behind(self) -> bool:
        """Whether it has not taken all that was written."""
        return bool(self._unwritten)

    def has_room(self) -> bool:
        """Whether it is open and has taken all that was written."""
        return self.is_open and not self.is_behind

    def awaited(self) -> int | None:
        """Return the descriptor that becomes writable when it takes more; None where there is nothing to wait for."""
        return self._fd if self._unwritten and not self._refused else None

    def write(self, data: bytes) -> None:
        """Write what it takes at once, and keep the rest."""
        if self._fd is not None:
            self._unwritten += data
            self.flush()

    def flush(self, wait_s: float = 0) -> None:
        """Write what was kept, as far as it takes it.

        Args:
            wait_s: How long to wait for it to take the first.
        """
        unwritten, done = memoryview(self._unwritten), 0
        try:
            # A pipe that can be written to takes that much at least.
            while done < len(unwritten) and self._fd is not None and self._poll.poll(wait_s * 1000):
                done += os.write(self._fd, unwritten[done : done + select.PIPE_BUF])
                wait_s, self._refused = 0, False
        except BlockingIOError:
            self._refused = True
        except ConnectionError:  # the reader went away, as readers do
            self._give_up("")
            return
        except OSError as error:
            self._give_up("" if self.is_terminal else os.strerror(error.errno or 0))  # one that was closed answers EIO
            return
        self._unwritten = self._unwritten[done:]

    def drain(self, patience_s: float, is_urgent: Callable[[], bool]) -> None:
        """Write all that was kept; a reader that takes nothing for so long has left it.

        Args:
            patience_s: How long.
            is_urgent: Asked while nothing is taken: whether to wait no longer.
        """
        end_s = time.monotonic() + patience_s
        while self._unwritten:
            before = len(self._unwritten)
            self.flush(_LOOK_EVERY_S)
            if len(self._unwritten) < before:
                end_s = time.monotonic() + patience_s
            elif time.monotonic() > end_s or is_urgent():
                self._give_up("nobody reads it")

    def _give_up(self, trouble: str) -> None:
        self.trouble = trouble
        self._fd = None
        self._unwritten = b""


def _unshared(fd: int) -> int:
    """Return a descriptor of a terminal that is non-blocking and nobody else's.

    A terminal that takes a little waits with the rest.
    """
    with contextlib.suppress(OSError):  # another user's, behind `su`
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    return fd


def standard_outputs() -> tuple[Output, Output]:
    """Return the process's standard output and standard error; one and the same where both go to the same place."""
    out, err = (None if stream is None else stream.fileno() for stream in (sys.stdout, sys.stderr))
    stdout = Output(out)
    is_same = out is not None and err is not None and os.path.sameopenfile(out, err)
    return stdout, stdout if is_same else Output(err)


def open_standard_descriptors() -> None:
    """Have descriptors 0, 1 and 2 lead nowhere where they are closed, or the next files that are opened become them."""
    for fd in range(3):
        if not _is_open(fd):
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - the standard library's


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def give_up(stream: TextIO) -> None:
    """Have a stream that cannot be written to lead nowhere, so that Python does not complain of it at its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


def say(text: str) -> None:
    """Write lines to standard error, where there is no supervisor to do it; they are lost if it does not take them.

    Args:
        text: The lines.
    """
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        give_up(sys.stderr)
