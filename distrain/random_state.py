"""The random generators of this process: Python's, NumPy's and torch's, the latter on every CUDA device.

States are plain containers and tensors, which `torch.load` reads with `weights_only=True`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["random_state", "seed_all", "set_random_state"]


def seed_all(seed: int) -> None:
    """Seed all of them.

    Args:
        seed: Any whole number that torch takes; NumPy gets it modulo 2**32.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    if (np := _numpy()) is not None:
        np.random.seed(seed % 2**32)


def random_state() -> dict[str, Any]:
    """Return their states; those of the CUDA devices once CUDA is in use."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if (np := _numpy()) is not None:
        kind, keys, position, has_gauss, cached = np.random.get_state()
        state["numpy"] = (kind, keys.tolist(), position, has_gauss, cached)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators that the state knows; the others are left as they are.

    Args:
        state: What `random_state` returned, or a part of it. Of CUDA devices as many are set as there are in both.
    """
    if "python" in state:
        random.setstate(state["python"])
    if "torch" in state:
        torch.set_rng_state(state["torch"].cpu())
    if "numpy" in state and (np := _numpy()) is not None:
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    if state.get("cuda") and torch.cuda.is_available():
        saved, visible = state["cuda"], torch.cuda.device_count()
        if len(saved) != visible:
            warnings.warn(
                f"Random states of {len(saved)} CUDA devices were saved and {visible} are visible: the first ones are "
                "set.",
                stacklevel=2,
            )
        for device, each in zip(range(visible), saved, strict=False):
            torch.cuda.set_rng_state(each.cpu(), device)


def _numpy() -> Any:
    """Return NumPy if it is installed. Users' code and libraries draw from its global generator."""
    try:
        import numpy as np
    except ImportError:
        return None
    return np
