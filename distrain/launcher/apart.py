"""Calls that wait in native code, made in another thread, so that the main thread stays free.

While the main thread is inside such a call no signal handler runs and no deadline is looked at, and torch's stores wait
for many minutes: on a link that was cut, or for an answer that never comes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["apart"]

_LOOK_S = 0.1

T = TypeVar("T")


def apart(
    call: Callable[[], T],
    *,
    check: Callable[[], None] = lambda: None,
    after: Sequence[tuple[float, Callable[[], None]]] = (),
) -> T:
    """Make a call in another thread and return what it returns.

    Args:
        call: The call. It is left to itself when the waiting ends early.
        check: Called again and again meanwhile; what it raises ends the waiting.
        after: Seconds, and what is called once when the call has taken so long; what that raises ends the waiting too.
    """
    began_s = time.monotonic()
    due = sorted(after, key=lambda each: each[0])
    outcome: list[tuple[T | None, BaseException | None]] = []

    def make() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            outcome.append((None, error))

    thread = threading.Thread(target=make, name="distrain-apart", daemon=True)
    thread.start()
    while not outcome:
        check()
        thread.join(_LOOK_S)
        if due and time.monotonic() - began_s > due[0][0] and not outcome:
            due.pop(0)[1]()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # it is there when there is no error
