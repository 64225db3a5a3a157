"""Which samples torch's DataLoader gives to this rank.

torch has no hook for that, so two methods of its iterators are followed: the one that asks the sampler, and the one
that hands a batch out. The order of a whole pass is asked at once, in the place where training begins to ask, so it is
the order that training gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Subset
from torch.utils.data.dataloader import _BaseDataLoaderIter, _DatasetKind

from distrain.random_state import random_state, seed_all, set_random_state
from distrain.smoke.findings import Findings
from distrain.smoke.prints import print_of

__all__ = ["Loaders", "follow"]

MOST_SAMPLES = 2_000_000
MOST_BATCHES = 8
PROBE_SEED = 20_240_229


@dataclass(slots=True, kw_only=True)
class Source:
    """A loader, known by the sampler that its iterators ask.

    Args:
        sampler: What gives indices, or lists of them.
        dataset: The data set.
        order: The indices of the first pass; None where they are not known.
        why_not: Why.
        batches: What the first batches hold.
    """

    sampler: Any
    dataset: Any
    order: list[int] | None = None
    why_not: str = ""
    batches: list[str] = field(default_factory=list)


def follow(findings: Findings) -> Loaders:
    """Look on at every DataLoader of this process.

    Args:
        findings: Where it is noted.
    """
    loaders = Loaders(findings)
    followed: Any = _BaseDataLoaderIter
    next_index, hand_out = followed._next_index, followed.__next__

    def seen_next_index(self: Any) -> Any:
        loaders.about_to_ask(self)
        return next_index(self)

    def seen_hand_out(self: Any) -> Any:
        batch = hand_out(self)
        loaders.handed_out(self, batch)
        return batch

    followed._next_index, followed.__next__ = seen_next_index, seen_hand_out
    return loaders


class Loaders:
    """The loaders of this process, and which of them the training is fed from.

    Args:
        findings: Where it is noted.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._sources: dict[int, Source] = {}
        self._latest: Source | None = None
        self._training: Source | None = None

    def about_to_ask(self, iterator: Any) -> None:
        """Follow an iterator that is about to ask its sampler for the first time in a pass.

        Args:
            iterator: One of torch's.
        """
        if isinstance(iterator._sampler_iter, _Followed):
            return
        source = self._source(iterator)
        if source.order is None and not source.why_not:
            source.why_not = _why_not(iterator)
            if not source.why_not:
                asked = list(iterator._sampler_iter)
                iterator._sampler_iter = iter(asked)
                source.order, source.why_not = _flat(asked)
        iterator._sampler_iter = _Followed(iterator._sampler_iter)

    def handed_out(self, iterator: Any, batch: Any) -> None:
        """Note a batch.

        Args:
            iterator: The iterator that gives it.
            batch: The batch.
        """
        self._latest = source = self._source(iterator)
        if len(source.batches) < MOST_BATCHES:
            source.batches.append(print_of(batch))

    def note_backward(self) -> None:
        """Take the loader that gave a batch last for the one of the training."""
        self._training = self._training or self._latest

    @property
    def training_sampler(self) -> Any:
        """What the training's loader asks for indices; None without such a loader."""
        return None if self._training is None else self._training.sampler

    def conclude(self) -> None:
        """Write down which samples the training got."""
        if self._training is not None:
            self._findings.write_data(_described(self._training))

    def _source(self, iterator: Any) -> Source:
        sampler = iterator._index_sampler
        return self._sources.setdefault(id(sampler), Source(sampler=sampler, dataset=iterator._dataset))


class _Followed:
    """An iterator that is known already."""

    def __init__(self, indices: Iterator[Any]) -> None:
        self._indices = indices

    def __iter__(self) -> _Followed:
        return self

    def __next__(self) -> Any:
        return next(self._indices)


def _why_not(iterator: Any) -> str:
    """Return why the order of a pass cannot be known, "" where it can."""
    sampler = iterator._index_sampler
    if iterator._dataset_kind == _DatasetKind.Iterable:
        return f"{type(iterator._dataset).__name__} is iterated over, its samples have no numbers"
    if getattr(getattr(sampler, "sampler", sampler), "replacement", False):
        return "its sampler draws with replacement"
    try:
        num_samples = len(sampler) * (getattr(sampler, "batch_size", None) or 1)
    except TypeError:
        return f"its {type(sampler).__name__} has no length"
    return "" if num_samples <= MOST_SAMPLES else f"it has more than {MOST_SAMPLES:,} samples"


def _flat(asked: list[Any]) -> tuple[list[int] | None, str]:
    indices = [index for each in asked for index in (each if isinstance(each, (list, tuple)) else [each])]
    if not all(isinstance(index, int) for index in indices):
        return None, "its sampler gives no numbers"
    return indices, ""


def _described(source: Source) -> dict[str, Any]:
    """Return what the launcher needs to compare ranks; indices are those of the data set below all `Subset`s."""
    dataset, used, available = source.dataset, source.order, None
    if used is not None:
        available = list(range(len(dataset)))
    while isinstance(dataset, Subset):
        indices = [int(index) for index in dataset.indices]
        if used is not None and available is not None:
            used, available = [indices[each] for each in used], [indices[each] for each in available]
        dataset = dataset.dataset
    sampler = source.sampler
    inner = getattr(sampler, "sampler", sampler)
    is_whole = available is None or available == list(range(len(available)))
    return {
        "used": used,
        "available": len(available) if is_whole and available is not None else available,
        "why_not": source.why_not,
        "dataset": type(dataset).__name__,
        "sampler": type(inner).__name__,
        "batch_size": getattr(sampler, "batch_size", None) or 1,
        "drops_last": bool(getattr(sampler, "drop_last", False) or getattr(inner, "drop_last", False)),
        "probe": "" if used is None else _probe(dataset),
        "batches": source.batches,
    }


def _probe(dataset: Any) -> str:
    """Return the name of a few samples, which ranks with the same data set have alike; "" where it is vague."""
    places = sorted({0, len(dataset) // 2, len(dataset) - 1})
    before = random_state()
    try:
        names = []
        for _ in range(2):  # what is random beyond our seeds differs from itself
            seed_all(PROBE_SEED)
            names.append(print_of([len(dataset), type(dataset).__name__, *(dataset[each] for each in places)]))
    except Exception:  # noqa: BLE001  # a user's data set may raise anything
        return ""
    finally:
        set_random_state(before)
    return names[0] if names[0] == names[1] else ""
