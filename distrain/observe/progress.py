"""The progress of a run, on rank 0: a bar on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from distrain.engine import Engine, Events
from distrain.runtime import rank_and_size

__all__ = ["ProgressBar"]


class ProgressBar:
    """Shows epoch, iteration, speed and `state.metrics`; attach it after whatever fills the metrics.

    On a terminal it is a tqdm bar for each epoch. Anywhere else it writes a line at most every `every_s` seconds and
    one at the end of each epoch, so a log stays short.

    Args:
        every_s: Seconds between two plain lines.
        file: Where to write; standard error by default.
    """

    def __init__(self, *, every_s: float = 5.0, file: TextIO | None = None) -> None:
        self.every_s = every_s
        self._file = file
        self._bar: Any = None
        self._last_s = 0.0
        self._epoch_began_s = 0.0
        self._first_iteration = 0

    def attach(self, engine: Engine) -> None:
        """Follow an engine; does nothing on other ranks than 0.

        Args:
            engine: A trainer or an evaluator.
        """
        if rank_and_size()[0] != 0:
            return
        on_terminal = (self._file or sys.stderr).isatty()
        engine.add_event_handler(Events.EPOCH_STARTED, self._open_bar if on_terminal else self._start_lines)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._move_bar if on_terminal else self._maybe_write)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._close_bar if on_terminal else self._write_line)
        if on_terminal:
            engine.add_event_handler(Events.TERMINATE, self._close_bar)

    def _open_bar(self, engine: Engine) -> None:
        from tqdm import tqdm

        class Bar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]  # tqdm has no types
            monitor_interval = 0  # no thread of its own: workers fork, and a bar that is not fed may stand still

        state = engine.state
        self._shown: dict[str, Any] = {}
        done = state.iteration % state.epoch_length if state.epoch_length else 0
        self._bar = Bar(
            desc=_epoch(engine), total=state.epoch_length, initial=done, file=self._file or sys.stderr, leave=True
        )

    def _move_bar(self, engine: Engine) -> None:
        if self._bar is None:
            return
        metrics = engine.state.metrics
        if metrics and metrics != self._shown:
            self._shown = dict(metrics)
            self._bar.set_postfix_str(_metrics(metrics), refresh=False)
        self._bar.update()

    def _close_bar(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(_metrics(engine.state.metrics), refresh=False)
            self._bar.close()
            self._bar = None

    def _start_lines(self, engine: Engine) -> None:
        self._epoch_began_s = self._last_s = time.monotonic()
        self._first_iteration = engine.state.iteration

    def _maybe_write(self, engine: Engine) -> None:
        if time.monotonic() - self._last_s >= self.every_s:
            self._write_line(engine)

    def _write_line(self, engine: Engine) -> None:
        self._last_s = time.monotonic()
        state = engine.state
        seconds = max(self._last_s - self._epoch_began_s, 1e-9)
        length = state.epoch_length
        inside = f"{(state.iteration - 1) % length + 1}/{length}" if length else str(state.iteration)
        speed = f"{(state.iteration - self._first_iteration) / seconds:.1f} it/s"
        parts = [_epoch(engine), f"iteration {inside}", _metrics(state.metrics), speed]
        print("  ".join(part for part in parts if part), file=self._file or sys.stderr, flush=True)


def _epoch(engine: Engine) -> str:
    state = engine.state
    return f"epoch {state.epoch}" + (f"/{state.max_epochs}" if state.max_epochs else "")


def _metrics(metrics: Mapping[str, Any]) -> str:
    """Return `name value` for each metric that is a single number."""
    shown = []
    for name, value in metrics.items():
        number = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
        if isinstance(number, (int, float)):
            shown.append(f"{name} {number:.4g}")
    return "  ".join(shown)
