"""How a command hands out its result."""

from __future__ import annotations

import signal
import sys

from distrain.supervision.output import give_up, say

__all__ = ["tell"]


def tell(result: str | bytes) -> None:
    """Write a command's result to standard output.

    Args:
        result: All of it, or its next part.

    Raises:
        SystemExit: It was not taken. A reader that has gone is told nothing, and the exit code is what a shell has for
            SIGPIPE; all else is said in a line.
    """
    if sys.stdout is None:
        say("distrain: standard output is closed")
        raise SystemExit(1)
    data = result.encode(sys.stdout.encoding, sys.stdout.errors or "strict") if isinstance(result, str) else result
    try:
        while data:
            written = sys.stdout.buffer.write(data)
            if written is None:  # without buffers that is how a full pipe says no, if it is non-blocking
                raise BlockingIOError(0, "its reader is too slow, and it does not wait")
            data = data[written:]
        sys.stdout.flush()
    except BrokenPipeError:
        give_up(sys.stdout)
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        give_up(sys.stdout)
        say(f"distrain: standard output cannot be written: {error.strerror}")
        raise SystemExit(1) from None
