"""What the ranks print: whole on disk, and on the terminal for the ranks that are shown.

Each rank appends to its own two files, with nobody in between: a rank never waits for a reader, and what it
wrote is there whatever becomes of the supervisor. The supervisor follows the files of the ranks that are shown.
When exactly one is shown and we are on a terminal, that rank writes to pseudo-terminals instead, so progress
bars, colours and debuggers work in it; the supervisor then copies what it reads to the screen and to the files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import shutil
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["Console", "PseudoTerminal", "tail_lines"]

_CHUNK = 1 << 16


class Console:
    """The supervisor's own two streams, shared by the ranks that are shown.

    Args:
        prefixed: Whether each line begins with the host and the rank it came from, for when several ranks are shown.
        stdout: Our standard output; None takes the process's.
        stderr: Likewise standard error.
    """

    def __init__(self, *, prefixed: bool, stdout: BinaryIO | None = None, stderr: BinaryIO | None = None) -> None:
        self.prefixed = prefixed
        self._streams: dict[str, BinaryIO | None] = {
            "stdout": stdout or sys.stdout.buffer,
            "stderr": stderr or sys.stderr.buffer,
        }
        self._followed: list[_Followed] = []
        self._line_open = False

    def follow(self, *, rank: int, host: str, stream: str, path: Path) -> None:
        """Show what is appended to `path` from its beginning on.

        Args:
            rank: Whose output it is.
            host: Where that rank runs.
            stream: `stdout` or `stderr`, the stream it is copied to.
            path: The file; it may appear later.
        """
        prefix = f"[{host}:{rank}] ".encode() if self.prefixed else b""
        self._followed.append(_Followed(path, stream, prefix))

    def show(self) -> None:
        """Copy what has been appended since the last call."""
        for followed in self._followed:
            for data in followed.read():
                self.write(followed.stream, data)

    def finish(self) -> None:
        """Copy the rest, unfinished lines included, and follow nothing more."""
        self.show()
        for followed in self._followed:
            self.write(followed.stream, followed.rest())
            followed.close()
        self._followed.clear()

    def break_line(self) -> None:
        """Have what `say` writes next begin on a line of its own."""
        self._line_open = True

    def say(self, text: str) -> None:
        """Write lines of the launcher's own to standard error, below an unfinished line of a rank."""
        self.write("stderr", ("\n" * self._line_open + text + "\n").encode(errors="replace"))

    def write(self, stream: str, data: bytes) -> None:
        """Write to one of our streams; when nobody reads it any more, the run goes on without it."""
        target = self._streams[stream]
        if target is None or not data:
            return
        try:
            target.write(data)
            target.flush()
            self._line_open = data[-1:] != b"\n"
        except BrokenPipeError:
            self._streams[stream] = None
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, target.fileno())
            os.close(devnull)


class _Followed:
    """A file being appended to, read in whole lines when it shares a stream with others."""

    def __init__(self, path: Path, stream: str, prefix: bytes) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._partial = b""
        self._prefix = prefix
        self.stream = stream

    def read(self) -> Iterator[bytes]:
        if self._file is None:
            try:
                self._file = self._path.open("rb", buffering=0)
            except FileNotFoundError:
                return
        while data := self._file.read(_CHUNK):
            if not self._prefix:
                yield data
                continue
            *lines, self._partial = (self._partial + data).split(b"\n")
            yield b"".join(self._prefix + line + b"\n" for line in lines)

    def rest(self) -> bytes:
        partial, self._partial = self._partial, b""
        return self._prefix + partial + b"\n" if partial else b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class PseudoTerminal:
    """Two pseudo-terminals for one rank, its standard output's and its standard error's.

    Args:
        console: Where the output is shown.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._masters: dict[int, str] = {}
        self._slaves: list[int] = []
        self._files: dict[str, BinaryIO] = {}
        self.trouble = ""
        self.names: list[str] = []
        for stream in ("stdout", "stderr"):
            master, slave = pty.openpty()
            attributes = termios.tcgetattr(slave)
            attributes[1] &= ~termios.OPOST  # the screen's own terminal turns \n into \r\n; the file keeps \n
            termios.tcsetattr(slave, termios.TCSANOW, attributes)
            os.set_blocking(master, False)
            self._masters[master] = stream
            self._slaves.append(slave)
            self.names.append(os.ttyname(slave))
        self.resize()

    def fds(self) -> list[int]:
        """The descriptors that become readable when the rank has written something."""
        return list(self._masters)

    def record_to(self, stdout: Path, stderr: Path) -> None:
        """From now on, write what the rank prints to these files as well."""
        self.drain()
        for file in self._files.values():
            file.close()
        self._files = {"stdout": stdout.open("ab", buffering=0), "stderr": stderr.open("ab", buffering=0)}

    def drain(self) -> None:
        """Copy what the rank has written."""
        for master, stream in self._masters.items():
            while True:
                try:
                    data = os.read(master, _CHUNK)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    break
                if not data:
                    break
                self._console.write(stream, data)
                if stream in self._files:
                    self._keep(stream, data)

    def _keep(self, stream: str, data: bytes) -> None:
        file = self._files[stream]
        try:
            file.write(data)
        except OSError as error:
            self.trouble = f"{file.name} is incomplete: {error.strerror}"

    def resize(self) -> None:
        """Take over the size of the screen."""
        size = shutil.get_terminal_size()
        with contextlib.suppress(OSError):
            for slave in self._slaves:
                fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))

    def close(self) -> None:
        self.drain()
        for file in self._files.values():
            file.close()
        for fd in (*self._masters, *self._slaves):
            os.close(fd)


def tail_lines(path: Path, count: int, *, nbytes: int = 1 << 16) -> list[str]:
    """Return the last lines of a file, none when it cannot be read.

    Args:
        path: The file.
        count: How many lines at most.
        nbytes: How much of the file's end is looked at, in bytes.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - nbytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-count:]
