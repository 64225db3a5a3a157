"""Where ranks stand, in so few words that the nodes of a run can tell each other, and which of them is the odd one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from distrain.supervision.frames import Frame

__all__ = ["Place", "mark_of", "merged", "odd_ones_out"]

_MARK_NBYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One place, and the ranks whose main threads stand there.

    Args:
        ranks: In ascending order.
        is_stopped: Whether a signal had stopped their processes.
        is_known: Whether they gave a stack.
        waits_for_others: Whether they are in a call that other ranks must take part in.
        mark: The same for the same place on every node.
    """

    ranks: tuple[int, ...]
    is_stopped: bool
    is_known: bool
    waits_for_others: bool
    mark: str


def mark_of(frames: Iterable[Frame]) -> str:
    """Return the mark of a main stack."""
    text = repr([(frame.file, frame.line, frame.function) for frame in frames])
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=_MARK_NBYTES).hexdigest()


def merged(places: Iterable[Place]) -> list[Place]:
    """Return the places of several nodes with those of the same mark as one, the largest first."""
    by_place: dict[Place, list[int]] = {}
    for each in places:
        by_place.setdefault(replace(each, ranks=()), []).extend(each.ranks)
    found = [replace(place, ranks=tuple(sorted(ranks))) for place, ranks in by_place.items()]
    return sorted(found, key=lambda each: (-len(each.ranks), each.ranks))


def odd_ones_out(places: Sequence[Place]) -> tuple[int, ...]:
    """Return the ranks that the others probably wait for, () when the places do not tell.

    Those that were stopped, if not all were; else those that do not wait for others, or gave no stack, among those that
    do wait; else those without a stack among those with one; else those that are not at the largest place, when it is
    larger than all the others together.

    Args:
        places: The largest first.
    """
    for is_odd in (
        [each.is_stopped for each in places],
        [not each.waits_for_others for each in places],
        [not each.is_known for each in places],
    ):
        if any(is_odd) and not all(is_odd):
            return tuple(sorted(rank for each, odd in zip(places, is_odd, strict=True) if odd for rank in each.ranks))
    odd = [rank for each in places[1:] for rank in each.ranks]
    return tuple(sorted(odd)) if places and len(odd) < len(places[0].ranks) else ()
