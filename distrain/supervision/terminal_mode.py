"""The mode of the terminal that a run was started on, which ranks change and do not always put back."""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Iterator
from typing import Any

__all__ = ["kept_terminal_mode"]

_STDIN = 0


@contextlib.contextmanager
def kept_terminal_mode() -> Iterator[None]:
    """Put the mode of the terminal on standard input back at the block's end, where this process has it then and now.

    A rank that is killed at a prompt of readline or getpass (a debugger's, say) leaves its terminal without echo. In
    the background the mode is the shell's own, and setting it would stop this process.
    """
    before = _mode() if _has_the_terminal() else None
    try:
        yield
    finally:
        if before is not None and _has_the_terminal() and _mode() != before:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(_STDIN, termios.TCSANOW, before)


def _has_the_terminal() -> bool:
    try:
        return os.tcgetpgrp(_STDIN) == os.getpgrp()
    except OSError:
        return False


def _mode() -> list[Any] | None:
    try:
        return termios.tcgetattr(_STDIN)
    except termios.error:
        return None
