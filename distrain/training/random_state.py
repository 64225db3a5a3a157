"""The states of this process's random generators, with the XLA device's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distrain.random_state import random_state as state_without_xla
from distrain.random_state import set_random_state as set_without_xla
from distrain.runtime import xla

__all__ = ["random_state", "set_random_state"]


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, the CUDA and XLA devices' once in use."""
    return {**state_without_xla(), **({"xla": xla.random_state()} if xla.is_in_use() else {})}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to what `random_state` returned.

    Args:
        state: The states.
    """
    set_without_xla(state)
    if "xla" in state and xla.is_in_use():
        xla.set_random_state(state["xla"])
