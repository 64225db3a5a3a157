"""The Python stacks that `faulthandler` leaves in a rank's stacks.log, or on standard error, read.

A worker registers `faulthandler` on `STACKS_SIGNAL` and enables it for fatal signals, both into the same file. The
format is that of CPython's Python/traceback.c, 3.10 to 3.14.
"""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distrain.supervision.frames import Frame, is_library

__all__ = ["STACKS_SIGNAL", "Dump", "Thread", "last_dump", "parse", "part_crash"]

# Real-time signals near SIGRTMIN belong to the C library and to tools that count from there; macOS has none.
STACKS_SIGNAL: int = signal.SIGRTMIN + 9 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2

_HEADER = re.compile(
    r"(?P<kind>Current thread|Thread|Stack)(?: (?P<ident>0x[0-9a-f]+))?(?: \[(?P<name>.*)\])?"
    r" \(most recent call first\):"
)
_NATIVE_HEADER = "Current thread's C stack trace (most recent call first):"
_FRAME = re.compile(r'  File (?P<file>".*"|\?\?\?), line (?P<line>\d+|\?\?\?) in (?P<function>.*)')
_FATAL = "Fatal Python error: "
_OF_A_CRASH = ("  ", "...", "Python runtime state: ", "Extension modules: ", _NATIVE_HEADER)
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """One thread's stack.

    Args:
        ident: Its identity, hexadecimal as pthreads has it; "" when not told.
        name: Its name, where Python tells it (3.14); else "".
        is_current: Whether it took the signal.
        is_main: Whether it is the main thread.
        frames: Its frames, the most recent call last.
    """

    ident: str
    name: str
    is_current: bool
    is_main: bool
    frames: tuple[Frame, ...]

    @property
    def title(self) -> str:
        """Its name, or else its identity."""
        return self.name or self.ident

    @property
    def is_users(self) -> bool:
        """Whether code of the user's is on its stack."""
        return any(not is_library(frame.file) for frame in self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """What one signal made `faulthandler` write.

    Args:
        fatal: `Fatal Python error: Segmentation fault` when the process died of it, else "".
        threads: Its threads, the youngest first.
        native: The lines of the C stack, innermost first; Python 3.14 writes one when it crashes.
    """

    fatal: str
    threads: tuple[Thread, ...]
    native: tuple[str, ...] = ()

    @property
    def main(self) -> Thread | None:
        """The main thread; None when the dump broke off before it."""
        return next((thread for thread in self.threads if thread.is_main), None)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The main thread's frames, the most recent call last; () when there are none."""
        return self.main.frames if self.main else ()

    @property
    def crashed(self) -> Thread | None:
        """The thread that the signal struck; the main one where that has no Python frames, as threads of C++ have."""
        return next((thread for thread in self.threads if thread.is_current and thread.frames), self.main)


def parse(text: str) -> list[Dump]:
    """Return the dumps in the content of a stacks.log, oldest first; other lines are passed over.

    Threads of one dump are parted by an empty line. A thread without one before it begins the next dump.

    Args:
        text: All of the file or what was appended to it.
    """
    return [_dump(lines) for lines in _split(text.splitlines())]


def part_crash(lines: Sequence[str]) -> tuple[Dump | None, list[str]]:
    """Part the last crash that is told on standard error from the rest of it.

    Args:
        lines: What a process wrote to standard error, or the end of it.

    Returns:
        The dump, None when there is none, and the other lines.
    """
    begins = [n for n, line in enumerate(lines) if _FATAL in line]
    if not begins:
        return None, list(lines)
    begin = begins[-1]
    end = begin + 1
    while end < len(lines) and _is_of_a_crash(lines[end]):
        end += 1
    before, mark, words = lines[begin].rpartition(_FATAL)  # a progress bar leaves its line unfinished
    rest = [*lines[:begin], *([before] if before else []), *lines[end:]]
    return _dump([mark + words, *lines[begin + 1 : end]]), rest


def _is_of_a_crash(line: str) -> bool:
    return not line or line.startswith(_OF_A_CRASH) or _HEADER.fullmatch(line) is not None


def _split(lines: Sequence[str]) -> Iterator[list[str]]:
    """Part the lines of several dumps; what comes before the first stays with it."""
    dump: list[str] = []
    has_content = has_thread = False
    for before, line in itertools.pairwise(["", *lines]):
        is_thread, is_crash = bool(_HEADER.fullmatch(line)), line.startswith(_FATAL)
        if has_content and (is_crash or (is_thread and has_thread and before)):
            yield dump
            dump, has_content, has_thread = [], False, False
        has_content |= is_thread or is_crash
        has_thread |= is_thread
        dump.append(line)
    if has_content:
        yield dump


def _dump(lines: Sequence[str]) -> Dump:
    threads: list[tuple[re.Match[str], list[Frame]]] = []
    native: list[str] = []
    in_native = False
    for line in lines:
        in_native = line == _NATIVE_HEADER or (in_native and line.startswith("  "))
        if header := _HEADER.fullmatch(line):
            threads.append((header, []))
        elif threads and (frame := _FRAME.fullmatch(line)):
            threads[-1][1].insert(0, _frame(frame))
        elif in_native and line != _NATIVE_HEADER:
            native.append(line.strip())
    main = _main_thread(threads)
    return Dump(
        fatal=next((line for line in lines if line.startswith(_FATAL)), ""),
        threads=tuple(
            Thread(
                ident=header["ident"] or "",
                name=header["name"] or "",
                is_current=header["kind"] != "Thread",
                is_main=n == main,
                frames=tuple(_of_the_program(frames)),
            )
            for n, (header, frames) in enumerate(threads)
        ),
        native=tuple(native),
    )


def _main_thread(threads: Sequence[tuple[re.Match[str], list[Frame]]]) -> int:
    """Return which one is the main thread: the last, since the youngest is listed first; -1 when the list was cut.

    Lists are cut at 100 threads. A thread of `threading` begins in `_bootstrap`, and so does what it forked, which
    then has no other thread.
    """
    of_threading = [bool(frames) and frames[0].function == "_bootstrap" for _, frames in threads]
    if len(threads) < 2 or not of_threading[-1]:
        return len(threads) - 1
    current = (n for n, (header, _) in enumerate(threads) if header["kind"] != "Thread" and not of_threading[n])
    return next(current, -1)


def _of_the_program(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Leave out the frames at the bottom that are the launcher's own: a program begins where that runs it."""
    ours = [n for n, frame in enumerate(frames) if frame.file.endswith("distrain/launcher/bootstrap.py")]
    return frames[ours[-1] + 1 :] if ours else frames


def _frame(match: re.Match[str]) -> Frame:
    return Frame(
        file=_unescaped(match["file"].strip('"')),
        line=int(match["line"]) if match["line"].isdigit() else 0,
        function=_unescaped(match["function"]),
    )


def _unescaped(text: str) -> str:
    """Put back what faulthandler, which may only write ASCII, wrote as \\xf6."""
    return _ESCAPE.sub(lambda match: chr(int(match[1] or match[2] or match[3], 16)), text)


def last_dump(path: Path, since_nbytes: int = 0) -> Dump | None:
    """Return the newest dump in a stacks.log.

    Args:
        path: The file.
        since_nbytes: Where to begin to read: what the file held before the signal was sent.

    Returns:
        None when nothing was appended or there is no such file.
    """
    try:
        with path.open("rb") as file:
            file.seek(since_nbytes)
            dumps = parse(file.read().decode(errors="replace"))
    except OSError:
        return None
    return dumps[-1] if dumps else None
