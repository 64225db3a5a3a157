"""The data loader of a rank: its shard, reshuffled each epoch, resumable in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
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


@dataclass(slots=True, kw_only=True)
class _Place:
    """How far a pass over a loader is.

    Args:
        epoch: Its number, from 0.
        position: How far the epoch is, of `len(loader)`.
        began: Where the present stretch did.
        stretches: How the epoch was divided before.
    """

    epoch: int = 0
    position: int = 0
    began: int = 0
    stretches: tuple[Stretch, ...] = ()


class _Pass(Iterator[Any]):
    """Hands out batches and counts them."""

    def __init__(self, loader: ShardedDataLoader[Any], place: _Place, batches: Iterator[Any]) -> None:
        self.loader = loader
        self.place = place
        self._batches = batches

    def __next__(self) -> Any:
        batch = next(self._batches)
        self.place.position += 1
        return batch


class ShardedDataLoader(DataLoader[T_co]):
    """What `dataloader` returns: torch's DataLoader over this rank's shard, with a position that can be saved.

    Each pass (`iter(loader)`) is the next epoch: nobody calls `set_epoch`. A position counts the batches handed out,
    not those that worker processes have fetched ahead; the end of an epoch is at `len(loader)`. In an epoch that was
    divided anew the present stretch begins so far ahead of that as it has batches. The epoch and the position are those
    of the newest pass.
    """

    def __init__(self, dataset: Dataset[T_co], sampler: ShardSampler, **options: Any) -> None:
        self._shard = sampler
        self._place = _Place()
        self._last_epoch = 0
        self._resumes = False
        self._reseeds = sampler.seeds_processes = options.get("generator") is None
        if self._reseeds:
            options["generator"] = torch.Generator()
        super().__init__(dataset, batch_sampler=sampler, **options)

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._last_epoch + 1 if self._place.position == len(self) else self._place.epoch

    @property
    def position(self) -> int:
        """How far the present epoch is, of `len(loader)`."""
        return self._place.position

    @property
    def is_divided_anew(self) -> bool:
        """Whether the present epoch began with other ranks, or with another batch size."""
        return bool(self._place.stretches)

    def __iter__(self) -> Any:
        goes_on = self._resumes and self._place.position < len(self)
        if not goes_on and (self._place.position > 0 or self._place.stretches):
            self._last_epoch += 1
            self._place = _Place(epoch=self._last_epoch)
        self._resumes = False
        place = self._place = replace(self._place)
        self._shard.epoch, self._shard.first_batch = place.epoch, place.position - place.began
        self._shard.stretches = place.stretches
        if self._reseeds:
            # Worker processes are seeded from this generator: another stream on each rank, the same in each run, and
            # the global generator is left alone.
            self.generator.manual_seed(mixed_seed(self._shard.seed, place.epoch, self._shard.rank))
        return _Pass(self, place, super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the epoch, the batches of it that were handed out, and what they depend on."""
        return self._state_at(self._place)

    def state_dict_of(self, batches: Any) -> dict[str, Any]:
        """Return the position of a pass that others may have begun after, such as an evaluation on the same loader.

        Args:
            batches: What `iter(loader)` returned; where it was anything else, the position is that of the newest pass.
        """
        return self._state_at(batches.place if isinstance(batches, _Pass) and batches.loader is self else self._place)

    def _state_at(self, place: _Place) -> dict[str, Any]:
        return {
            "epoch": place.epoch,
            "last_epoch": self._last_epoch,
            "position": place.position,
            "num_batches": len(self),
            "num_samples": self._shard.num_samples,
            "world_size": self._shard.world_size,
            "batch_size": self._shard.batch_size,
            "drop_last": self._shard.drop_last,
            "seed": self._shard.seed,
            "stretches": [asdict(each) for each in place.stretches],
            "began": place.began,
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
        place = self._place_in(state)
        self._shard.seed, self._place, self._resumes = state["seed"], place, True
        self._last_epoch = state.get("last_epoch", place.epoch)

    def _place_in(self, state: Mapping[str, Any]) -> _Place:
        epoch = state["epoch"]
        former = tuple(Stretch(**each) for each in state.get("stretches", ()))
        began = state.get("began", 0)
        had = state["position"] - began
        if state["position"] == state["num_batches"]:
            return _Place(epoch=epoch, position=len(self))
        if not (had or former):
            return _Place(epoch=epoch)
        if self._divides_as(state):
            return _Place(epoch=epoch, position=state["position"], began=began, stretches=former)
        stretches = (*former, self._stretch_of(state, had)) if had else former
        begins = len(self) - self._shard.num_batches_after(stretches)
        return _Place(epoch=epoch, position=begins, began=begins, stretches=stretches)

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
