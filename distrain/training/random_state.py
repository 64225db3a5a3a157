"""The states of this process's random generators, as tensors and plain values that torch.load reads safely."""

from __future__ import annotations

import random
from typing import Any

import torch

from distrain.runtime import xla

__all__ = ["random_state", "set_random_state"]


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, the current CUDA or XLA device's once in use."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": (version, list(numbers), gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    if xla.is_in_use():
        state["xla"] = xla.random_state()
    try:
        import numpy as np
    except ImportError:
        return state
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state["numpy"] = (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached))
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the generators to what `random_state` returned.

    Args:
        state: The states.
    """
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "xla" in state and xla.is_in_use():
        xla.set_random_state(state["xla"])
    if "numpy" in state:
        import numpy as np

        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
