"""The signals that the supervisor takes over, kept in order until its loop looks at them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator

__all__ = ["IncomingSignals"]


class IncomingSignals:
    """Signals that have come and are not obeyed yet, the oldest first. Those that are ignored (nohup) stay ignored.

    Args:
        names: The signals, by name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(set(names))
        self._came: deque[int] = deque()

    @contextlib.contextmanager
    def taken_over(self) -> Iterator[int]:
        """Take them over; yield a descriptor that becomes readable when one has come.

        Afterwards they are ignored: how the run ended is settled, and one that comes a moment before the process ends
        would put an exit code of its own in place of the run's.
        """
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        every = [signal.Signals[name] for name in self._names]
        ours = [sig for sig in every if signal.getsignal(sig) != signal.SIG_IGN]
        for sig in ours:
            signal.signal(sig, self._keep)
        previous_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        try:
            yield read_fd
        finally:
            signal.set_wakeup_fd(previous_fd)
            for sig in ours:
                signal.signal(sig, signal.SIG_IGN)
            os.close(read_fd)
            os.close(write_fd)

    def __iter__(self) -> Iterator[signal.Signals]:
        while self._came:
            yield signal.Signals(self._came.popleft())

    def _keep(self, number: int, _frame: object) -> None:
        self._came.append(number)
