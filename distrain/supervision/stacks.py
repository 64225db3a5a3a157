"""The Python stacks that `faulthandler` leaves in a rank's stacks.log: read, compared between ranks, shown.

A worker registers `faulthandler` on `STACKS_SIGNAL` and enables it for fatal signals, both into the same file. The
format is that of CPython's Python/traceback.c, 3.10 to 3.14.
"""

from __future__ import annotations

import itertools
import linecache
import re
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distrain.supervision import places
from distrain.supervision.frames import Frame, fold, is_library, short_path
from distrain.supervision.places import Place
from distrain.supervision.process_state import ProcessState, native_stack, process_state

__all__ = [
    "STACKS_SIGNAL",
    "Dump",
    "Group",
    "ProcessState",
    "Thread",
    "group",
    "last_dump",
    "native_stack",
    "odd_ones_out",
    "parse",
    "part_crash",
    "process_state",
    "ranks_in_words",
    "render",
    "whereabouts",
]

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
_COLLECTIVES = ("torch/distributed/distributed_c10d.py", "torch/distributed/_functional_collectives.py")
_MAY_WAIT = ("torch/distributed/", "torch/nn/parallel/distributed.py", "torch/autograd/graph.py", "torch/_tensor.py")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks whose main threads stand at the same place.

    Args:
        ranks: In ascending order.
        dump: The stacks of the first of them; None when these ranks gave none.
        is_stopped: Whether a signal had stopped these processes.
    """

    ranks: tuple[int, ...]
    dump: Dump | None
    is_stopped: bool = False

    @property
    def waits_for_others(self) -> bool:
        """Whether its innermost calls are a collective or a backward pass, which other ranks must take part in."""
        return _waiting_in(self.dump.frames if self.dump else ()) is not None

    @property
    def place(self) -> Place:
        """The same in few words."""
        return Place(
            ranks=self.ranks,
            is_stopped=self.is_stopped,
            is_known=self.dump is not None,
            waits_for_others=self.waits_for_others,
            mark=places.mark_of(self.dump.frames if self.dump else ()),
        )


def group(by_rank: Mapping[int, Dump | None], stopped: Collection[int] = ()) -> list[Group]:
    """Return the ranks in groups of the same main stack (file, line and function of every frame), largest first.

    Args:
        by_rank: Each rank's dump; None when it gave none, as a stopped process does.
        stopped: The ranks whose processes a signal had stopped.
    """
    members: dict[tuple[bool, tuple[Frame, ...] | None], list[int]] = {}
    for rank in sorted(by_rank):
        dump = by_rank[rank]
        members.setdefault((rank in stopped, dump.frames if dump else None), []).append(rank)
    groups = [
        Group(ranks=tuple(ranks), dump=by_rank[ranks[0]], is_stopped=is_stopped)
        for (is_stopped, _), ranks in members.items()
    ]
    return sorted(groups, key=lambda each: (-len(each.ranks), each.ranks))


def odd_ones_out(groups: Sequence[Group]) -> tuple[int, ...]:
    """Return the ranks that the others probably wait for, () when the stacks do not tell.

    Args:
        groups: As `group` returns them.
    """
    return places.odd_ones_out([each.place for each in groups])


def _last_run(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The library frames below the user's last one."""
    users = [n for n, frame in enumerate(frames) if not is_library(frame.file)]
    return frames[users[-1] + 1 :] if users else frames


def _waiting_in(frames: Sequence[Frame]) -> Frame | None:
    """The library's frame that waits for other ranks, None when none does.

    DDP reduces inside the backward pass, whose only Python frame is autograd's, and waits for the rest before the
    next forward pass. There the frame must be the innermost, since wrapped modules run inside such frames too.
    """
    run = [frame for frame in _last_run(frames) if short_path(frame.file) != "torch/distributed/c10d_logger.py"]
    if run and short_path(run[-1].file).startswith(_MAY_WAIT):
        return run[-1]
    return next((frame for frame in reversed(run) if short_path(frame.file).startswith(_COLLECTIVES)), None)


def _doing(dump: Dump | None) -> str:
    """What the main thread is in, in a few words, "" when its frames say all."""
    run = _last_run(dump.frames) if dump else ()
    if waiting := _waiting_in(dump.frames if dump else ()):
        return f"waiting in {waiting.function} ({short_path(waiting.file)})"
    if any(short_path(frame.file) == "torch/utils/data/dataloader.py" for frame in run):
        return "waiting for a worker of its DataLoader"
    return f"in {run[-1].function} ({short_path(run[-1].file)})" if run else ""


def whereabouts(dump: Dump) -> str:
    """Return where a main thread stands, as the rest of a sentence: the user's innermost frame, and what it does below.

    Args:
        dump: The stacks of one process.
    """
    users = [frame for frame in dump.frames if not is_library(frame.file)]
    place = f"in {users[-1].function} (line {users[-1].line} of {Path(users[-1].file).name})" if users else ""
    return ", ".join(filter(None, [place, _doing(dump)])) or "outside of Python"


def render(
    groups: Sequence[Group],
    states: Mapping[int, ProcessState | None],
    odd: Collection[int] | None = None,
    *,
    why_none: str = "",
) -> str:
    """Return the stacks of all ranks as text: who stands where, the odd ones named, library frames folded.

    Of each group the main thread is shown, and the other threads of its first rank that run code of the user's.

    Args:
        groups: As `group` returns them.
        states: What each rank's process was doing before it was asked for its stack; may lack ranks.
        odd: The odd ranks, where more is known than these groups; None finds them here.
        why_none: Why ranks give no stacks, where that is known ahead.
    """
    odd = odd_ones_out(groups) if odd is None else odd
    return "\n".join(
        line for each in groups for line in _render_group(each, states, odd=each.ranks[0] in odd, why_none=why_none)
    )


def _render_group(each: Group, states: Mapping[int, ProcessState | None], *, odd: bool, why_none: str) -> Iterator[str]:
    known = [state for rank in each.ranks if (state := states.get(rank))]
    words = dict.fromkeys(state.words for state in known if odd or state.state != "S")
    title = ranks_in_words(each.ranks) + (
        ", the odd one out" if odd and len(each.ranks) == 1 else ", the odd ones out" * odd
    )
    title += f" ({', '.join(words)})" if words else ""
    doing = _doing(each.dump)
    yield f"{title}, {doing}:" if doing else f"{title}:"
    if each.dump is None or not each.dump.threads:
        yield f"  no Python stack was given{f': {why_none}' if why_none else ''}"
        return
    if each.dump.fatal:
        yield f"  {each.dump.fatal}"
    yield from (f"  {line}" for line in fold(_with_code(each.dump.frames)) or ["no Python frame"])
    for thread in each.dump.threads:
        if not thread.is_main and (thread.is_users or (each.dump.fatal and thread.is_current)):
            crashed = ", which crashed" if each.dump.fatal and thread.is_current else ""
            yield f"  thread {thread.title}{crashed}:"
            yield from (f"    {line}" for line in fold(_with_code(thread.frames)))


def _with_code(frames: Sequence[Frame]) -> Iterator[Frame]:
    for frame in frames:
        linecache.checkcache(frame.file)
        code = "" if is_library(frame.file) else linecache.getline(frame.file, frame.line).strip()
        yield replace(frame, code=code or frame.code)


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Return `rank 3` or `ranks 0-2, 5`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
