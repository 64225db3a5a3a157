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
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from distrain.supervision.output import Output

__all__ = ["Console", "PseudoTerminal", "tail_lines"]

_CHUNK = 1 << 16
_LONGEST = 1 << 18
"""A line of a rank that shares a stream is shown in pieces of about so many bytes."""
_BAR_EVERY_S = 0.5
"""How often a rank that shares a stream shows how far a progress bar has come."""
_GOES_ON = b" [goes on]"


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
        self._hurried = False

    @property
    def trouble(self) -> str:
        """What of the ranks' output was not shown, and why; "" where it was, or nobody would want to know."""
        why = self._outputs["stdout"].trouble
        if why:
            return f"standard output was given up: {why}; what the ranks print is in their logs"
        return "a signal left the rest of what the ranks print unshown; it is in their logs" if self._hurried else ""

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
            is_urgent: Asked again and again: whether to leave the rest, and to wait no longer for who takes nothing.
        """
        for followed in self._followed:
            output = self._outputs[followed.stream]
            while output.is_open:
                has_more = self._copy(followed)
                output.drain(patience_s, is_urgent)
                if not has_more:
                    self.write(followed.stream, followed.rest())
                    break
                self._hurried = self._hurried or is_urgent()
                if self._hurried:
                    break
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
    """A file being appended to, read in whole lines when it shares a stream with others.

    There, a line in which carriage returns follow one another is a progress bar: as long as it grows, what stands
    before the last of them is shown now and then, as a line of its own, and what that had overwritten is not.
    """

    def __init__(self, path: Path, stream: str, prefix: bytes) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._parts: list[bytes] = []
        self._nbytes = 0
        self._prefix = prefix
        self._has_return = False
        self._is_bar = False
        self._shown_s = time.monotonic()
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
        end = data.rfind(b"\n") + 1
        if not self._prefix:
            end = end if self.has_more and end else len(data)
            return self._take(data[:end], data[end:])
        if end:
            text = self._take(data[:end], data[end:])
            if self._is_bar:  # the end of a line that was shown
                text = text.removeprefix(b"\r\n")
            self._is_bar = False
            self._shown_s = time.monotonic()
            return b"".join(self._line(line) for line in text.split(b"\n")[:-1])
        self._keep(data)
        is_long = self._nbytes > _LONGEST
        is_due = time.monotonic() > self._shown_s + _BAR_EVERY_S
        if self._has_return and (is_long or is_due):
            return self._progress(is_due=is_due)
        return self._piece() if is_long else b""

    def _keep(self, data: bytes) -> None:
        if data:
            self._parts.append(data)
            self._nbytes += len(data)
            self._has_return |= b"\r" in data

    def _take(self, data: bytes, rest: bytes) -> bytes:
        """Return what was kept and `data`, and keep the rest."""
        text = b"".join((*self._parts, data))
        self._parts, self._nbytes, self._has_return = [], 0, False
        self._keep(rest)
        return text

    def _progress(self, *, is_due: bool) -> bytes:
        """Return what the last carriage return ended, if anything, as a line, and forget what that had overwritten.

        That carriage return is kept: a newline may follow.
        """
        text = self._take(b"", b"")
        complete = text.rpartition(b"\r")[0]
        visible = complete.rstrip(b"\r \t")
        begin = visible.rfind(b"\r") + 1
        if visible and not is_due and begin:
            self._keep(text[begin:])
            return b""
        self._keep(text[len(complete) :] if visible else text)
        self._has_return = False
        if not visible:
            return b""
        self._is_bar = True
        self._shown_s = time.monotonic()
        return self._line(text[begin : text.index(b"\r", len(visible))])

    def _piece(self) -> bytes:
        """Return what there is of a long line, but for a character that may be incomplete, as a line."""
        text = self._take(b"", b"")
        end = len(text) - 1
        while end > len(text) - 4 and text[end] & 0xC0 == 0x80:  # UTF-8's later bytes
            end -= 1
        if text[end] < 0xC0:
            end = len(text)
        self._keep(text[end:])
        return self._line(text[:end] + _GOES_ON)

    def _line(self, text: bytes) -> bytes:
        """Return a line with its prefix, also where a carriage return begins it anew."""
        body = text.rstrip(b"\r")
        anew = body.lstrip(b"\r").replace(b"\r", b"\r" + self._prefix)
        return self._prefix + anew + text[len(body) :] + b"\n"

    def rest(self) -> bytes:
        text = self._take(b"", b"")
        return self._line(text) if text.strip(b"\r") else b""

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
    r"""Return the last lines of a file as a terminal was left with them, none when it cannot be read.

    A progress bar writes its line many times, each time from the line's beginning: only what follows the last `\r`
    counts. No character but `\n` ends a line.

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
    lines = text.removesuffix("\n").split("\n")[-count:] if text else []
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines]
