"""What a terminal was left with of what a rank wrote."""

from __future__ import annotations

from pathlib import Path

__all__ = ["lines_left"]


def lines_left(path: Path, count: int, *, nbytes: int = 1 << 16) -> list[str]:
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
