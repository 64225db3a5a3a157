"""One seed for every random generator of this process."""

from __future__ import annotations

import operator

from distrain.random_state import seed_all
from distrain.runtime import xla

__all__ = ["seed_everything"]


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, the latter on all devices.

    Every rank gets the same seed: splits of the data must agree, and weights made before DDP's broadcast are the
    same anyway. What must differ between ranks, such as which samples a rank sees, differs by the sampler.
    Workers of a DataLoader get seeds of their own from torch.

    Args:
        seed: From 0 to 2**32 - 1, the range NumPy takes.

    Raises:
        ValueError: The seed is out of range.
        TypeError: It is no whole number.
    """
    try:
        seed = operator.index(seed)  # Python's generator takes no number of NumPy's
    except TypeError:
        raise TypeError(f"seed is {seed!r}; it must be a whole number.") from None
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must be from 0 to {2**32 - 1}, the range that NumPy's generator takes.")
    seed_all(seed)
    if xla.is_in_use():
        xla.set_random_state(seed)
