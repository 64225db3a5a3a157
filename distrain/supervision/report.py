"""The failure report as text: what happened first, the user's own lines of it, what followed, what to try."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from distrain.supervision.failure import Failure, Report, Standing, signal_name, visible
from distrain.supervision.frames import fold, is_library, package_of

__all__ = ["fold_traceback", "rank_names", "render", "summary"]

_LOG_LINES = 20
_WIDTH = 110
_ALIKE_FRAMES = 3
_LINE_CHARS = 500
_KEPT = re.compile(r"(\x1b\[[\d;:]*m|\t)")


def summary(report: Report) -> str:
    """Return the root cause in one line."""
    cause = report.root_cause
    return f"root cause: rank {cause.rank} on {cause.host}: {cause.kind}: {cause.message}"


def render(report: Report) -> str:
    """Return the report as text, its first line the root cause."""
    cause = report.root_cause
    alike = [each for each in report.consequences if _is_like(each, cause)]
    rest = [each for each in report.consequences if each not in alike]
    sections = [
        _happened(cause, alike),
        [*_traceback(cause)],
        _standard_error(cause),
        [report.memory] if report.memory and report.memory != cause.message else [],
        _titled("the other ranks meanwhile:", report.others),
        _titled("failed too, on their own account:", _told(each for each in rest if each.standing.word == "cause")),
        _titled("failed only because of it:", _told(each for each in rest if each.standing.word != "cause")),
        _titled("what to try:", [line for hint in report.hints for line in _bullet(hint)]),
    ]
    body = "\n\n".join("\n".join(line.rstrip() for line in section) for section in sections if section)
    return f"{summary(report)}\n{textwrap.indent(body, '  ')}"


def rank_names(ranks: Iterable[int]) -> str:
    """Return `rank 3`, `ranks 0-7` or `ranks 0, 2-7`."""
    numbers = sorted(set(ranks))
    spans = []
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        span = [number for _, number in run]
        spans += [str(span[0])] if len(span) == 1 else [f"{span[0]}-{span[-1]}"]
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(spans)}"


def fold_traceback(text: str) -> list[str]:
    """Return a traceback's lines with each run of library frames folded into one line.

    Everything else stays: chained exceptions, notes, the place of a syntax error, members of a group, what torch
    carried over from another process.

    Args:
        text: A traceback as Python prints it.
    """
    lines = _lines_of(text)
    folded: list[str] = []
    run: list[str] = []
    indent = ""
    for block in _blocks(lines):
        if (frame := _FRAME.match(block[0])) and is_library(frame["file"]):
            if run and frame["indent"] != indent:
                folded.append(_folded(indent, run))
                run = []
            indent = frame["indent"]
            run += [package_of(frame["file"])] * _frames_in(block)
            continue
        if run:
            folded.append(_folded(indent, run))
            run = []
        folded += block
    return [*folded, _folded(indent, run)] if run else folded


_FRAME = re.compile(r'(?P<indent>[ |]*)File "(?P<file>[^"]*)", line \d+, in ')


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield each frame with the lines that belong to it, and every other line by itself."""
    block: list[str] = []
    for line in lines:
        frame = _FRAME.match(block[0]) if block else None
        if frame and line.startswith(frame["indent"] + "  "):
            block.append(line)
            continue
        if frame and re.match(re.escape(frame["indent"]) + r"\[Previous line repeated \d+ more times?\]", line):
            block.append(line)
            continue
        if block:
            yield block
        block = [line]
    if block:
        yield block


def _frames_in(block: Sequence[str]) -> int:
    repeated = re.search(r"\[Previous line repeated (\d+) more", block[-1])
    return 1 + (int(repeated[1]) if repeated else 0)


def _folded(indent: str, packages: Sequence[str]) -> str:
    names = ", ".join(dict.fromkeys(packages))
    return f"{indent}… {len(packages)} frame{'s' * (len(packages) > 1)} in {names}"


def _happened(cause: Failure, alike: Sequence[Failure]) -> list[str]:
    end = f"exit code {cause.exit_code}" if cause.exit_code >= 0 else f"ended by {signal_name(-cause.exit_code)}"
    if cause.kind == end:
        end = ""
    step = "" if cause.step is None else (f"after step {cause.step}" if cause.step else "before its first step")
    where = f"rank {cause.rank}, {f'pid {cause.pid}, ' if cause.pid else ''}on {cause.host}"
    facts = [fact for fact in (where, f"attempt {cause.attempt}", step, end) if fact]
    lines = [" · ".join(facts)]
    if cause.standing not in (Standing.CAUSE, Standing.ENDED) and cause.reason:
        lines.append(f"It {cause.reason}; no rank of this run is known to have failed for a reason of its own.")
    if alike:
        lines.append(f"{rank_names([cause.rank, *(each.rank for each in alike)])} all failed alike; this is the first.")
    return lines


def _traceback(cause: Failure) -> list[str]:
    if cause.traceback:
        return [_shown(line) for line in fold_traceback(cause.traceback)]
    if not cause.frames:
        return []
    what = "ended itself" if cause.kind.startswith("exit code") else "was"
    thread = f", in thread {cause.thread}" if cause.thread else ""
    return [f"where it {what}{thread}, most recent call last:", *("  " + _shown(line) for line in fold(cause.frames))]


def _standard_error(cause: Failure) -> list[str]:
    """Return what the rank wrote last, but for the traceback that is shown already."""
    lines = _lines_of(cause.traceback)
    known = {text.strip() for line in lines for text in (line, line.rpartition("\r")[2])}
    tail = [line for line in _without_native_frames(cause.log_tail) if not _is_known(line, known)]
    while tail and not tail[0].strip():
        tail.pop(0)
    while tail and not tail[-1].strip():
        tail.pop()
    if not tail:
        return [f"the whole traceback: {cause.log_path}"] if cause.log_path and _is_folded(cause) else []
    title = "last lines of its standard error" + (f" ({cause.log_path}):" if cause.log_path else ":")
    return _titled(title, [_shown(line) for line in tail[-_LOG_LINES:]])


def _lines_of(traceback: str) -> list[str]:
    """Return a traceback's lines, which nothing but a line feed ends: its message may hold all characters."""
    text = traceback.rstrip()
    return re.split(r"\r?\n", text) if text else []


def _shown(line: str) -> str:
    """Return a line of the program's as a terminal may have it: with its colours, and no other orders; not too long."""
    # The pattern's matches are every second part.
    text = "".join(part if n % 2 else visible(part) for n, part in enumerate(_KEPT.split(line[:_LINE_CHARS])))
    return text + "\x1b[0m" * ("\x1b" in text) + "… (line cut)" * (len(line) > _LINE_CHARS)


def _is_folded(cause: Failure) -> bool:
    lines = _lines_of(cause.traceback)
    is_shorter = len(fold_traceback(cause.traceback)) < len(lines) or any(len(line) > _LINE_CHARS for line in lines)
    return bool(cause.log_tail) and is_shorter


def _is_known(line: str, known: set[str]) -> bool:
    """Whether a line is one of the traceback's; its marks under the code may be at another place.

    The log may be read from the middle of a long line on, and the traceback may lack the middle of it: the end decides.
    """
    text = re.sub(r"^\[rank\d+\]: ?", "", line).strip()  # torch's own excepthook marks each line
    if len(text) > _LINE_CHARS:
        return any(text[-_LINE_CHARS:] in each for each in known)
    return bool(known) and (text in known or not text.strip("^~ "))


def _without_native_frames(lines: Sequence[str]) -> list[str]:
    """Fold the C++ stacks that torch adds to what it says."""
    kept: list[str] = []
    for is_frame, run in itertools.groupby(lines, lambda line: bool(re.match(r"frame #\d+: |<omitting python", line))):
        group = list(run)
        kept += [f"… {len(group)} C++ frames"] if is_frame and len(group) > 1 else group
    return kept


def _is_like(one: Failure, other: Failure) -> bool:
    """Whether two ranks failed at the same place in the same way; numbers in the message may differ."""
    same_words = re.sub(r"\d+", "0", one.message) == re.sub(r"\d+", "0", other.message)
    frames = list(one.frames)[-_ALIKE_FRAMES:] == list(other.frames)[-_ALIKE_FRAMES:]
    return (one.kind, one.standing) == (other.kind, other.standing) and same_words and frames


def _told(failures: Iterable[Failure]) -> list[str]:
    """Return a line for each way to fail, with the ranks that failed so."""
    groups: dict[str, list[int]] = {}
    for each in failures:
        told = each.reason if each.standing.word != "cause" and each.reason else _kind_and_message(each)
        detail = f" ({each.kind})" if told == each.reason else ""
        groups.setdefault(told + detail, []).append(each.rank)
    names = {text: rank_names(ranks) for text, ranks in groups.items()}
    width = max(map(len, names.values()), default=0)
    return [f"{name:<{width}}  {text}" for text, name in names.items()]


def _kind_and_message(failure: Failure) -> str:
    text = f"{failure.kind}: {failure.message}"
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _titled(title: str, lines: Sequence[str]) -> list[str]:
    return [title, *("  " + line if line else "" for line in lines)] if lines else []


def _bullet(text: str) -> list[str]:
    wrapped = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [("- " if i == 0 else "  ") + line for i, line in enumerate(wrapped)]
