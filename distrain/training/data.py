"""The data loader of a rank: its shard, reshuffled each epoch, resumable in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from distrain.errors import CheckpointError
from distrain.runtime import from_main, rank_and_size
from distrain.training.checks import positive_int, whole_number
from distrain.training.sharding import ShardSampler, Stretch, mixed_seed

__all__ = ["ShardedDataLoader", "dataloader"]

T_co = TypeVar("T_co", covariant=True)

OURS = ("sampler", "batch_sampler")


class ShardedDataLoader(DataLoader[T_co]):
    """What `dataloader` returns: torch's DataLoader over this rank's shard, with a position that can be saved.

    Each pass (`iter(loader)`) is the next epoch: nobody calls `set_epoch`. A position counts the batches handed out,
    not those that worker processes have fetched ahead; the end of an epoch is at `len(loader)`. In an epoch that was
    divided anew the present stretch begins so far ahead of that as it has batches.
    """

    def __init__(self, dataset: Dataset[T_co], sampler: ShardSampler, **options: Any) -> None:
        self._shard = sampler
        self._epoch = 0
        self._position = 0
        self._stretches: tuple[Stretch, ...] = ()
        self._began = 0  # where the present stretch did
        self._resumes = False
        self._reseeds = sampler.seeds_processes = options.get("generator") is None
        if self._reseeds:
            options["generator"] = torch.Generator()
        super().__init__(dataset, batch_sampler=sampler, **options)

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._epoch + (self._position == len(self))

    @property
    def position(self) -> int:
        """How far the present epoch is, of `len(loader)`."""
        return self._position

    @property
    def is_divided_anew(self) -> bool:
        """Whether the present epoch began with other ranks, or with another batch size."""
        return bool(self._stretches)

    def __iter__(self) -> Any:
        goes_on = self._resumes and self._position < len(self)
        if not goes_on and (self._position > 0 or self._stretches):
            self._epoch, self._position, self._began, self._stretches = self._epoch + 1, 0, 0, ()
        self._resumes = False
        self._shard.epoch, self._shard.first_batch = self._epoch, self._position - self._began
        self._shard.stretches = self._stretches
        if self._reseeds:
            # Worker processes are seeded from this generator: another stream on each rank, the same in each run, and
            # the global generator is left alone.
            self.generator.manual_seed(mixed_seed(self._shard.seed, self._epoch, self._shard.rank))
        return self._hand_out(super().__iter__())

    def _hand_out(self, batches: Iterator[Any]) -> Iterator[Any]:
        epoch = self._epoch
        for batch in batches:
            if epoch == self._epoch:  # an iterator of an older pass no longer moves the position
                self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the epoch, the batches of it that were handed out, and what they depend on."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "num_batches": len(self),
            "num_samples": self._shard.num_samples,
            "world_size": self._shard.world_size,
            "batch_size": self._shard.batch_size,
            "drop_last": self._shard.drop_last,
            "seed": self._shard.seed,
            "stretches": [asdict(each) for each in self._stretches],
            "began": self._began,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the very next batch after the saved position; the samples before it are not even read.

        The saved seed takes the place of this loader's, so that later epochs come in the original order, too. Any world
        size and batch size may go on: in the middle of an epoch the samples that it has left are divided among the
        ranks that are there now. Each sample still comes once; where the batches are of one sample, or fewer samples
        than ranks are left, as many as one for each rank less one may be left out.

        Args:
            state: What `state_dict` returned.

        Raises:
            CheckpointError: The position is inside an epoch of another data set.
        """
        self._shard.seed, self._epoch, self._resumes = state["seed"], state["epoch"], True
        former = [Stretch(**each) for each in state.get("stretches", ())]
        began = state.get("began", 0)
        had = state["position"] - began
        if state["position"] == state["num_batches"] or not (had or former):
            self._stretches, self._began = (), 0
            self._position = len(self) if state["position"] == state["num_batches"] else 0
        elif self._divides_as(state):
            self._stretches, self._began, self._position = tuple(former), began, state["position"]
        else:
            stretch = self._stretch_of(state, had)
            self._stretches = (*former, stretch) if had else tuple(former)
            self._began = self._position = len(self) - self._shard.num_batches_after(self._stretches)

    def _divides_as(self, state: Mapping[str, Any]) -> bool:
        """Whether a saved epoch was divided as this loader divides it."""
        shard = self._shard
        divided = {"world_size": shard.world_size, "num_samples": shard.num_samples, "num_batches": len(self)}
        if "batch_size" in state:
            divided |= {"batch_size": shard.batch_size, "drop_last": shard.drop_last}
        return all(state[key] == value for key, value in divided.items())

    def _stretch_of(self, state: Mapping[str, Any], num_batches: int) -> Stretch:
        if state["num_samples"] != self._shard.num_samples or "batch_size" not in state:
            was = (
                f"the data set had {state['num_samples']} samples and has {self._shard.num_samples} now"
                if "batch_size" in state
                else "an earlier version of distrain has saved it, which did not tell how the epoch was divided"
            )
            raise CheckpointError(
                f"The loader's position is inside epoch {state['epoch']} (batch {state['position']} of "
                f"{state['num_batches']}), and {was}. Go on with the former data, ranks and batch size, or from a "
                "checkpoint taken at the end of an epoch."
            )
        return Stretch(
            world_size=state["world_size"],
            batch_size=state["batch_size"],
            drop_last=state["drop_last"],
            num_batches=num_batches,
        )


def dataloader(
    dataset: Dataset[T_co],
    batch_size: int = 1,
    shuffle: bool = False,  # noqa: FBT001, FBT002  # torch's DataLoader has it here
    *,
    drop_last: bool = False,
    seed: int | None = None,
    **options: Any,
) -> ShardedDataLoader[T_co]:
    """Return a DataLoader over this rank's shard of a data set. Every rank must call it.

    Shards are disjoint, and every rank has the same number of batches. Without `drop_last` the shards are complete
    as well: each sample comes exactly once an epoch, on one rank, so an evaluation counts each once; nothing is
    repeated to fill up. The last two batches may be smaller for it, on some ranks by one sample more than on others.
    With `drop_last` all batches are full and an epoch leaves out fewer than `batch_size * world_size` samples.

    With `shuffle` each epoch has another order. The loader's `state_dict()` and `load_state_dict()` let a run go on
    with the very next batch, at any `num_workers`. Random transforms inside the data set come out the same, too: where
    this process reads the data by the random states that `Checkpointer` restores, and in worker processes, because
    those seed Python, NumPy and torch for each batch. They do not where a `generator` is given, which then seeds the
    workers once, as torch does.

    Args:
        dataset: A data set with a length and an index.
        batch_size: Samples in a batch of one rank; a step of the whole world takes `batch_size * world_size`.
        shuffle: Draw a new order for each epoch.
        drop_last: Leave an incomplete tail out.
        seed: The seed of the order, the same on every rank; rank 0's torch seed when None.
        **options: More of `torch.utils.data.DataLoader`'s: `num_workers`, `collate_fn`, `pin_memory`, …

    Raises:
        ValueError: The data set is too small to give every rank equally many batches without repeating a sample.
        TypeError: The data set has no length, an option contradicts the sharding, or the seed is no whole number.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{type(dataset).__name__} has no length, so it cannot be sharded by index. Use torch's DataLoader and "
            "give each rank its own part inside the data set."
        )
    for name in OURS:
        if options.get(name) is not None:
            raise TypeError(
                f"dataloader() makes the {name} itself, which is how it shards. Leave {name} out, or use torch's "
                "DataLoader."
            )
    positive_int("batch_size", batch_size)
    rank, world_size = rank_and_size()
    sampler = ShardSampler(
        len(dataset),
        batch_size,
        rank=rank,
        world_size=world_size,
        shuffle=shuffle,
        drop_last=drop_last,
        seed=from_main(torch.initial_seed()) if seed is None else whole_number("seed", seed),
    )
    return ShardedDataLoader(dataset, sampler, **options)
