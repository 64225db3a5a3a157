"""What the ranks print: whole on disk, and on the terminal for the ranks that are shown.

Each rank appends to its own two files, with nobody in between: a rank never waits for a reader, and what it
wrote is there whatever becomes of the supervisor. The supervisor follows the files of the ranks that are shown.
When exactly one is shown and we are on a terminal, that rank writes to pseudo-terminals instead, so progress
bars, colours and debuggers work in it; the supervisor then copies what it reads to the files, and follows those.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import shutil
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from distrain.supervision.output import Output

__all__ = ["Console", "PseudoTerminal", "tail_lines"]

_CHUNK = 1 << 16


class Console:
    """The supervisor's own two streams, shared by the ranks that are shown.

    Nobody waits for who reads them: what they do not take now stays in the rank's file, and is read there later.

    Args:
        prefixed: Whether each line begins with the host and the rank it came from, for when several ranks are shown.
        stdout: Our standard output.
        stderr: Our standard error; it may be the same.
    """

    def __init__(self, *, prefixed: bool, stdout: Output, stderr: Output) -> None:
        self.prefixed = prefixed
        self.is_on_terminal = stdout.is_terminal and stderr.is_terminal
        """Whether both are terminals."""
        self._outputs = {"stdout": stdout, "stderr": stderr}
        self._followed: list[_Followed] = []
        self._line_open = False

    @property
    def trouble(self) -> str:
        """What of the ranks' output was not shown, and why; "" where it was, or nobody would want to know."""
        why = self._outputs["stdout"].trouble
        return f"standard output was given up: {why}; what the ranks print is in their logs" if why else ""

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

    def awaited(self) -> set[int]:
        """Return the descriptors that become writable when a stream that is behind takes more."""
        return {fd for output in self._outputs.values() if (fd := output.awaited()) is not None}

    def show(self) -> bool:
        """Copy a part of what was appended to each file, as far as it is taken; return whether to go on at once."""
        more = False
        for output in self._outputs.values():
            output.flush()
        for followed in list(self._followed):
            output = self._outputs[followed.stream]
            if not output.has_room():
                continue
            has_more = self._copy(followed)
            if output.is_behind:  # next time it is the others' turn
                self._followed.remove(followed)
                self._followed.append(followed)
            else:
                more |= has_more
        return more

    def _copy(self, followed: _Followed) -> bool:
        self.write(followed.stream, followed.read())
        return followed.has_more

    def finish(self, *, patience_s: float, is_urgent: Callable[[], bool]) -> None:
        """Copy the rest, unfinished lines included, and follow nothing more.

        Args:
            patience_s: A reader that takes nothing for so long has left the rest.
            is_urgent: Asked while nothing is taken: whether to wait no longer.
        """
        for followed in self._followed:
            output = self._outputs[followed.stream]
            has_more = True
            while has_more and output.is_open:
                has_more = self._copy(followed)
                output.drain(patience_s, is_urgent)
            self.write(followed.stream, followed.rest())
            followed.close()
        self._followed.clear()
        for output in self._outputs.values():
            output.drain(patience_s, is_urgent)

    def break_line(self) -> None:
        """Have what `say` writes next begin on a line of its own, if that is on a terminal."""
        self._line_open |= self._outputs["stderr"].is_terminal

    def say(self, text: str) -> None:
        """Write lines of the launcher's own to standard error, below an unfinished line of a rank."""
        self.write("stderr", ("\n" * self._line_open + text + "\n").encode(errors="replace"))

    def write(self, stream: str, data: bytes) -> None:
        """Write to one of our streams; when it takes nothing any more, the run goes on without it."""
        if data and self._outputs[stream].is_open:
            self._outputs[stream].write(data)
            self._line_open = data[-1:] != b"\n"


class _Followed:
    """A file being appended to, read in whole lines when it shares a stream with others."""

    def __init__(self, path: Path, stream: str, prefix: bytes) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._partial = b""
        self._prefix = prefix
        self.stream = stream
        self.has_more = False
        """Whether the last part that was read was not the last that is there."""

    def read(self) -> bytes:
        """Return the next part; it ends with a line unless it is all that is there and has no prefix."""
        if self._file is None:
            try:
                self._file = self._path.open("rb", buffering=0)
            except FileNotFoundError:
                return b""
        data = self._file.read(_CHUNK)
        self.has_more = len(data) == _CHUNK
        data = self._partial + data
        end = data.rfind(b"\n") + 1
        if not self._prefix and not (self.has_more and end):
            end = len(data)
        data, self._partial = data[:end], data[end:]
        if not self._prefix:
            return data
        return b"".join(self._prefix + line + b"\n" for line in data.split(b"\n")[:-1])

    def rest(self) -> bytes:
        partial, self._partial = self._partial, b""
        return self._prefix + partial + b"\n" if partial else b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class PseudoTerminal:
    """Two pseudo-terminals for one rank, its standard output's and its standard error's.

    Args:
        console: Where the output is shown as long as it is in no file, which the console could follow.
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
        """From now on, write what the rank prints to these files."""
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
                rest = data[self._keep(stream, data) :]
                if rest:
                    self._console.show()
                    self._console.write(stream, rest)

    def _keep(self, stream: str, data: bytes) -> int:
        """Write to the rank's file, and return how much of it is there."""
        kept = 0
        if stream in self._files:
            try:
                while kept < len(data):
                    kept += self._files[stream].write(data[kept:])
            except OSError as error:
                self.trouble = f"{self._files[stream].name} is incomplete: {error.strerror}"
        return kept

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
