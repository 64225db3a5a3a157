"""A launch that begins later and elsewhere: what is known of its nodes where it is submitted."""

from __future__ import annotations

from dataclasses import dataclass

from distrain.plan.cluster import Placement

__all__ = ["Ahead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What is known of the nodes before the scheduler has chosen them.

    Args:
        placement: The place of the first of them.
        gpus: How many GPUs each is asked to have; None where only the node can tell.
    """

    placement: Placement
    gpus: int | None = None
