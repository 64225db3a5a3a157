"""The engine: a loop over data that fires events.

`DeterministicEngine` needs torch and is loaded on first use; the rest imports the standard library only. The steps and
the factories of trainers, which ignite has in its module of this name, are built on the engine, not a part of it: the
flat API of `distrain` has them, and a script that looks for them here is led there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distrain.engine.engine import Engine
from distrain.engine.events import CallableEventWithFilter, EventEnum, Events, EventsList
from distrain.engine.handlers import RemovableEventHandle
from distrain.engine.state import State

if TYPE_CHECKING:
    from distrain.engine.deterministic import DeterministicEngine

__all__ = [
    "CallableEventWithFilter",
    "DeterministicEngine",
    "Engine",
    "EventEnum",
    "Events",
    "EventsList",
    "RemovableEventHandle",
    "State",
]


def __getattr__(name: str) -> Any:
    if name == "DeterministicEngine":
        from distrain.engine.deterministic import DeterministicEngine

        return DeterministicEngine
    import distrain

    if name in distrain.__all__ or name == "_prepare_batch":
        return getattr(distrain, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
