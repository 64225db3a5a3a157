"""What a worker records of the exception that ends it: enough to explain it elsewhere, whatever the exception is like.

It runs in a process that is about to fail, so nothing in it may fail: not a `__str__` that raises, not a message of a
hundred megabytes, not ten thousand frames.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import linecache
import os
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

__all__ = ["encode", "exception_record"]

RECORD_NBYTES = 60 << 10
"""The most that a record takes as JSON: what fits on the board."""

_MESSAGE_NBYTES = 20_000
_TRACEBACK_CHARS = 30_000
_NUM_FRAMES = 200
_NUM_CHAINED = 10
_NUM_CHAINED_FRAMES = 20
_NUM_FORMATTED = 1_000
_NUM_MEMBERS = 30
_NUM_CHAINED_IN_GROUPS = 3
_MOST_DEPTH = 4


def exception_record(
    error: BaseException,
    trace: TracebackType | None,
    *,
    rank: int,
    step: int | None = None,
) -> dict[str, Any]:
    """Return what is to be known of an uncaught exception.

    `sys.exit(7)` is recorded for its moment: until the interpreter is torn down and the process gone, its peers have
    lost their connections to it, raised, and look like the cause.

    Args:
        error: The exception.
        trace: Its traceback, beginning with the program's first frame.
        rank: The rank it ends.
        step: The optimizer steps the rank had done, if known.

    Returns:
        Values for JSON: `rank`, `pid`, `host`, `step`, `monotonic_ns`, `exit_code`, `type` (qualified unless it is a
        builtin or of the program itself), `module`, `message`, `notes`, `traceback` (text), `frames` (of `file`,
        `line`, `function`, `code`; most recent call last), `place` (of a syntax error; else None), `chain`: the
        exceptions it came from, nearest first, each with `how` (`cause` or `context`), `type`, `message`, `frames` and
        `members`, and `members`: those of a group, each with `type`, `message`, `frames`, a `chain` and `members`.
    """
    monotonic_ns = time.monotonic_ns()
    return {
        "rank": rank,
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "step": step,
        "monotonic_ns": monotonic_ns,
        "exit_code": _exit_code(error),
        "type": _type_name(error),
        "module": type(error).__module__,
        "message": _message(error),
        "notes": _notes(error),
        "traceback": _text(error, trace),
        "frames": _frames(trace, _NUM_FRAMES),
        "place": _place(error),
        **_origins(error, itertools.count()),
    }


def encode(record: dict[str, Any]) -> bytes:
    """Return a record as JSON of at most 60 KiB; texts and frames that do not fit are cut in their middle.

    Args:
        record: As `exception_record` makes it.
    """
    chars, num_frames = _TRACEBACK_CHARS, _NUM_FRAMES
    while len(data := _dump(record)) > RECORD_NBYTES:
        chars, num_frames = chars * 2 // 3, num_frames * 2 // 3
        record = _cut_record(record, chars, num_frames)
    return data


def _dump(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode(errors="replace")


def _cut_record(record: dict[str, Any], chars: int, num_frames: int) -> dict[str, Any]:
    frames = [{**frame, "code": frame["code"][:chars]} for frame in _ends(record["frames"], num_frames)]
    return {
        **record,
        "type": record["type"][:chars],
        "module": record["module"][:chars],
        "message": _cut(record["message"], chars),
        "traceback": _cut(record["traceback"], chars),
        "notes": [_cut(note, chars) for note in record["notes"][:num_frames]],
        "frames": frames,
        "place": record["place"] if chars > 1_000 else None,
        **_cut_origins(record, chars, num_frames),
    }


def _cut_origins(record: dict[str, Any], chars: int, num_frames: int) -> dict[str, Any]:
    return {
        name: [
            {
                **each,
                "type": each["type"][:chars],
                "message": _cut(each["message"], chars // 4),
                "frames": _ends(each["frames"], num_frames // 8),
                **_cut_origins(each, chars, num_frames),
            }
            for each in record[name]
        ]
        for name in ("chain", "members")
        if name in record
    }


def _exit_code(error: BaseException) -> int:
    code = error.code if isinstance(error, SystemExit) else 1
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _message(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception as second:  # noqa: BLE001 - the program's code
        return f"<no message: its __str__ raised {type(second).__name__}>"
    while len(message.encode(errors="replace")) > _MESSAGE_NBYTES:
        message = _cut(message, min(len(message) * 3 // 4, _MESSAGE_NBYTES))
    return message


def _notes(error: BaseException) -> list[str]:
    try:
        notes = getattr(error, "__notes__", None)
        return [_cut(note, 2_000) for note in notes[:20] if isinstance(note, str)] if isinstance(notes, list) else []
    except Exception:  # noqa: BLE001 - the program's code
        return []


def _text(error: BaseException, trace: TracebackType | None) -> str:
    try:
        lines = traceback.TracebackException(type(error), error, trace, limit=-_NUM_FORMATTED).format()
        return _cut("".join(lines), _TRACEBACK_CHARS)
    except Exception:  # noqa: BLE001 - an exception may have any attribute of any kind
        frames = "".join(
            f'  File "{frame["file"]}", line {frame["line"]}, in {frame["function"]}\n    {frame["code"]}\n'
            for frame in _frames(trace, _NUM_FRAMES)
        )
        return f"Traceback (most recent call last):\n{frames}{_type_name(error)}: {_message(error)}\n"


def _frames(trace: TracebackType | None, most: int) -> list[dict[str, Any]]:
    every = list(_walk(trace))
    return [
        {
            "file": each.tb_frame.f_code.co_filename,
            "line": each.tb_lineno or 0,
            "function": each.tb_frame.f_code.co_name,
            "code": _code(each),
        }
        for each in _ends(every, most)
    ]


def _walk(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _code(trace: TracebackType) -> str:
    frame = trace.tb_frame
    try:
        line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno, frame.f_globals)
    except Exception:  # noqa: BLE001 - a loader of the program's may be asked for the source
        return ""
    return line.strip()[:200]


def _place(error: BaseException) -> dict[str, Any] | None:
    if not isinstance(error, SyntaxError) or not isinstance(error.filename, str):
        return None
    return {
        "file": error.filename,
        "line": error.lineno if isinstance(error.lineno, int) else 0,
        "column": error.offset if isinstance(error.offset, int) else 0,
        "code": error.text.strip()[:200] if isinstance(error.text, str) else "",
    }


def _origins(error: BaseException, count: Iterator[int], depth: int = 0) -> dict[str, Any]:
    """Return the `chain` and the `members` of an exception.

    Args:
        error: The exception.
        count: Counts the members that the record has, of all its groups.
        depth: In how many groups it is.
    """
    links = _chain(error)[: _NUM_CHAINED_IN_GROUPS if depth else None]
    chain = [{"how": how, **_shown(each), "members": _members(each, count, depth)} for how, each in links]
    return {"chain": chain, "members": _members(error, count, depth)}


def _members(error: BaseException, count: Iterator[int], depth: int) -> list[dict[str, Any]]:
    try:
        members = getattr(error, "exceptions", None)  # also that of the backport for Python 3.10
    except Exception:  # noqa: BLE001 - the program's code
        return []
    if not isinstance(members, tuple) or depth == _MOST_DEPTH:
        return []
    known = (each for each in members if isinstance(each, BaseException))
    kept = [each for each in itertools.islice(known, _NUM_CHAINED) if next(count) < _NUM_MEMBERS]
    return [{**_shown(each), **_origins(each, count, depth + 1)} for each in kept]


def _shown(error: BaseException) -> dict[str, Any]:
    return {
        "type": _type_name(error),
        "message": _message(error),
        "frames": _frames(error.__traceback__, _NUM_CHAINED_FRAMES),
    }


def _chain(error: BaseException) -> list[tuple[str, BaseException]]:
    """Return the exceptions that this one came from, as Python prints them."""
    found: list[tuple[str, BaseException]] = []
    seen = {id(error)}
    each: BaseException | None = error
    while each is not None and len(found) < _NUM_CHAINED:
        how, each = ("cause", each.__cause__) if each.__cause__ is not None else ("context", _context(each))
        if each is None or id(each) in seen:
            break
        seen.add(id(each))
        found.append((how, each))
    return found


def _context(error: BaseException) -> BaseException | None:
    return None if error.__suppress_context__ else error.__context__


def _cut(text: str, chars: int) -> str:
    """Leave the middle of a text out when it is longer: the beginning says where, the end says what."""
    if len(text) <= chars:
        return text
    head, tail = text[: chars // 3], text[len(text) - chars * 2 // 3 + 60 :] if chars > 120 else ""
    with contextlib.suppress(ValueError):  # whole lines, where it has lines
        if text.count("\n", len(head) - chars // 6, len(head)):
            head = head[: head.rindex("\n") + 1]
        if text.count("\n", len(text) - len(tail), len(text) - len(tail) + chars // 6):
            tail = tail[tail.index("\n") + 1 :]
    left_out = len(text) - len(head) - len(tail)
    mark = f"… {left_out} characters left out …"
    return f"{head}{mark}\n{tail}" if head.endswith("\n") or not head else f"{head} {mark} {tail}"


def _ends(items: list[Any], most: int) -> list[Any]:
    """Leave the middle of a list out when it is longer."""
    return items if len(items) <= most else [*items[: most // 2], *items[len(items) - (most - most // 2) :]]
