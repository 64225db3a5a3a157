"""What lets our classes and ignite's stand in for each other, without importing ignite.

Events compare equal by name across the two libraries. Where ignite asks `isinstance(x, Engine)` (or an event class),
our objects answer through a `__class__` property, and only once the program itself has imported ignite.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["ignite_counterpart", "share_event_attributes"]


def ignite_counterpart(own: type) -> type:
    """Return the class of ignite that stands for `own` in an `isinstance` check.

    Args:
        own: A class of `distrain.engine`, or one derived from it.

    Returns:
        ignite's class of the same name as the nearest of our classes among the bases of `own`; `own` itself when the
        program has not imported ignite.
    """
    theirs = sys.modules.get("ignite.engine")
    if theirs is None:
        return own
    for base in own.__mro__:
        counterpart = getattr(theirs, base.__name__, None) if base.__module__.startswith("distrain.engine.") else None
        if isinstance(counterpart, type):
            return counterpart
    return own


def share_event_attributes(event_to_attr: Mapping[Any, str]) -> None:
    """Tell ignite's `State`, if it is loaded, which state attribute counts our custom events.

    ignite's loggers look the attribute of an event up there, whatever engine they are attached to.

    Args:
        event_to_attr: The attribute of `engine.state` for each custom event.
    """
    theirs = sys.modules.get("ignite.engine")
    if theirs is not None and hasattr(theirs, "State"):
        theirs.State.event_to_attr.update(event_to_attr)
