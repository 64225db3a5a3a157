"""Which samples a rank sees, in which batches: pure arithmetic, and the sampler that a DataLoader asks.

An epoch may be divided anew in its middle, when a run goes on with another number of ranks or another batch size: what
the stretches before have left is divided as an epoch of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler, get_worker_info

from distrain.random_state import seed_all

__all__ = ["ShardSampler", "Stretch", "batch_sizes", "left_after", "mixed_seed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of an epoch that is over, and how it was divided.

    Args:
        world_size: Number of ranks.
        batch_size: Samples in a full batch of one rank.
        drop_last: See `batch_sizes`.
        num_batches: How many batches each rank had of it.
    """

    world_size: int
    batch_size: int
    drop_last: bool
    num_batches: int


def batch_sizes(num_samples: int, batch_size: int, rank: int, world_size: int, *, drop_last: bool) -> list[int]:
    """Return the sizes of a rank's batches; their number is the same on every rank.

    With `drop_last` every batch is full and what does not fill one on every rank is left out. Without it each sample
    goes to exactly one rank: shards differ by one sample at most, and the tail is spread so that every rank has as
    many batches as the longest shard needs. A rank whose shard would need one batch less gives one sample of its
    last full batch to a batch of its own.

    Args:
        num_samples: Samples in the data set.
        batch_size: Samples in a full batch of one rank.
        rank: Whose batches.
        world_size: Number of ranks.
        drop_last: Leave an incomplete tail out.

    Raises:
        ValueError: Some rank would have no batch, or fewer than the others, without repeating a sample.
    """
    if drop_last:
        num_batches = num_samples // (batch_size * world_size)
        if num_batches == 0:
            raise ValueError(
                f"{num_samples} samples do not fill one batch of {batch_size} on each of {world_size} ranks, and "
                "drop_last leaves all of them out. Use a smaller batch_size or drop_last=False."
            )
        return [batch_size] * num_batches
    longest = -(-num_samples // world_size)
    shard = num_samples // world_size + (rank < num_samples % world_size)
    num_batches = -(-longest // batch_size)
    if num_samples // world_size < num_batches or num_samples == 0:
        raise ValueError(
            f"{num_samples} samples cannot be spread over {world_size} ranks with batch_size={batch_size} so that "
            "every rank has equally many batches and no sample is used twice. Use a batch_size of 2 or more (and at "
            "least one sample for each rank), or drop_last=True."
        )
    tail = shard - (num_batches - 1) * batch_size
    if tail > 0:
        return [batch_size] * (num_batches - 1) + [tail]
    return [batch_size] * (num_batches - 2) + [batch_size - 1, 1]


def left_after(num_samples: int, stretches: Sequence[Stretch]) -> torch.Tensor:
    """Return the places in an epoch's order that are left after some stretches, in order, of shape (left,).

    Args:
        num_samples: Samples in the data set.
        stretches: What the epoch had so far.
    """
    left = torch.arange(num_samples)
    for stretch in stretches:
        num_full = stretch.num_batches * stretch.batch_size * stretch.world_size
        left = left[: _divisible(len(left), stretch.batch_size, stretch.world_size, drop_last=stretch.drop_last)]
        if num_full + 2 * stretch.batch_size * stretch.world_size <= len(left):  # all ranks' batches were full ones
            left = left[num_full:]
            continue
        ranks = []
        for rank in range(stretch.world_size):
            sizes = _sizes_of_rest(len(left), stretch.batch_size, rank, stretch.world_size, drop_last=stretch.drop_last)
            ranks.append(left[rank :: stretch.world_size][sum(sizes[: stretch.num_batches]) :])
        left = torch.cat(ranks).sort().values
    return left


def _divisible(num_samples: int, batch_size: int, world_size: int, *, drop_last: bool) -> int:
    """Return how many of the samples that an epoch has left can be divided; less than one for each rank is over."""
    if drop_last:
        return num_samples - num_samples % (batch_size * world_size)
    longest = -(-num_samples // world_size)
    is_spread = num_samples // world_size >= -(-longest // batch_size)
    return num_samples if is_spread else num_samples - num_samples % world_size


def _sizes_of_rest(num_samples: int, batch_size: int, rank: int, world_size: int, *, drop_last: bool) -> list[int]:
    num_samples = _divisible(num_samples, batch_size, world_size, drop_last=drop_last)
    return batch_sizes(num_samples, batch_size, rank, world_size, drop_last=drop_last) if num_samples else []


def mixed_seed(*parts: int) -> int:
    """Return a seed made of several numbers, so that (seed 0, epoch 1) and (seed 1, epoch 0) have nothing in common.

    Args:
        *parts: The numbers.
    """
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class SeededIndices(list[int]):
    """The indices of a batch; a loader's process that receives them seeds Python, NumPy and torch for this batch.

    So its random transforms depend on the batch alone, not on those that the same process has had before: a resumed
    run draws what the other would have. It receives a plain list.

    Args:
        indices: The indices.
        seed: The seed.
    """

    def __init__(self, indices: list[int], seed: int) -> None:
        super().__init__(indices)
        self._seed = seed

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (list(self), self._seed)


def _received(indices: list[int], seed: int) -> list[int]:
    if get_worker_info() is not None:
        seed_all(seed)
    return indices


class ShardSampler(Sampler[list[int]]):
    """The batches of indices of one rank, for the epoch and from the batch that were set.

    The order of an epoch is a permutation of the whole data set that depends on the seed and the epoch only; rank r
    of W takes its samples r, r + W, r + 2 W, … So the ranks' shards are disjoint, and the order does not depend on
    who else is there. Of an epoch that was divided otherwise so far (`stretches`) the rest is divided so.

    Args:
        num_samples: Samples in the data set.
        batch_size: Samples in a full batch of one rank.
        rank: Whose batches.
        world_size: Number of ranks.
        shuffle: Draw a new order for each epoch.
        drop_last: See `batch_sizes`.
        seed: The seed of the order.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0
        self.stretches: tuple[Stretch, ...] = ()
        self.seeds_processes = True
        """Whether a loader's processes are seeded for each batch."""
        self._sizes = batch_sizes(num_samples, batch_size, rank, world_size, drop_last=drop_last)

    def __len__(self) -> int:
        """Return how many batches a whole epoch has."""
        return len(self._sizes)

    def num_batches_after(self, stretches: Sequence[Stretch]) -> int:
        """Return how many batches the rest of an epoch has, after some stretches."""
        return len(self._sizes_after(len(left_after(self.num_samples, stretches))))

    def _sizes_after(self, num_left: int) -> list[int]:
        return _sizes_of_rest(num_left, self.batch_size, self.rank, self.world_size, drop_last=self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
            order = torch.randperm(self.num_samples, generator=generator)
        else:
            order = torch.arange(self.num_samples)
        sizes = self._sizes
        if self.stretches:
            order = order[left_after(self.num_samples, self.stretches)]
            sizes = self._sizes_after(len(order))
            order = order[: _divisible(len(order), self.batch_size, self.world_size, drop_last=self.drop_last)]
        shard = order[self.rank :: self.world_size]
        start = sum(sizes[: self.first_batch])
        for number, size in enumerate(sizes[self.first_batch :], self.first_batch):
            indices = shard[start : start + size].tolist()
            place = self.epoch, self.rank, len(self.stretches), number
            yield SeededIndices(indices, mixed_seed(self.seed, *place)) if self.seeds_processes else indices
            start += size
