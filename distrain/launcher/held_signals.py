"""Signals that arrive while the workers are being started, kept until there is somebody to pass them on."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any

__all__ = ["HeldSignals"]


class HeldSignals:
    """Keep signals from raising, from now until `release`.

    Torch's agent turns a signal into an exception, wherever it is. One that strikes between the start of the first
    worker and the moment when torch has the group in hand ends no worker in order: they would only be killed.

    Args:
        names: The signals, by name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._came: list[int] = []
        self._before: dict[signal.Signals, Any] = {}
        for name in set(names):
            number = signal.Signals[name]
            self._before[number] = signal.signal(number, self._keep)

    def _keep(self, number: int, _frame: FrameType | None) -> None:
        self._came.append(number)

    def release(self) -> None:
        """Put the handlers back; the first signal that came meanwhile goes to its own. Once is enough."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
        came, self._came = self._came, []
        if came:
            signal.raise_signal(came[0])
