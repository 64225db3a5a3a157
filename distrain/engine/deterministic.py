"""An engine whose data come out the same when a run is resumed, also in the middle of an epoch.

A *pass* is one iteration over the data; it is an epoch where `epoch_length` is the length of the data. This is what
`DeterministicEngine` adds to a run:

    at STARTED:            state.seed = the saved seed, or one drawn from torch's generator
    whenever data starts:  seed Python, NumPy and torch with state.seed + the number of the pass
                           iter(data), and draw the order of all batches at once
                           when resuming inside a pass: leave out the batches it had, set the saved random states

ignite's engine of this name does not save its seed, nor CUDA's random states, nor the pass it is in; it restores the
random states before the order is drawn, so that without worker processes a resumed epoch is shuffled differently; and
it may use one seed twice after `terminate_epoch()`. Without that call, seeds and batches are the same as ignite's.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from distrain.engine.engine import Engine
from distrain.engine.events import Events
from distrain.random_state import random_state, seed_all, set_random_state

__all__ = ["DeterministicEngine", "ReproducibleBatchSampler", "keep_random_state", "update_dataloader"]

P = ParamSpec("P")
T = TypeVar("T")


@runtime_checkable
class KeepsItsPlace(Protocol):
    """Data that know their own place: `iter()` goes on from it, and at the end of a pass with the next pass.

    Such are the loaders of `distrain.dataloader` and torchdata's `StatefulDataLoader`. They are used as they are, and
    their place is saved with the run.
    """

    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any, /) -> None: ...


class ReproducibleBatchSampler(BatchSampler):
    """Draws the order of all batches of a pass at once, and can leave out the first ones.

    Args:
        batch_sampler: The sampler whose batches these are.
        start_iteration: How many batches the next pass leaves out.

    Raises:
        TypeError: `batch_sampler` is no sampler of torch.
    """

    def __init__(self, batch_sampler: Sampler[Any], start_iteration: int | None = None) -> None:
        if not isinstance(batch_sampler, Sampler):
            raise TypeError(
                "Argument batch_sampler should be torch.utils.data.sampler.BatchSampler (or another sampler of "
                f"batches), got {type(batch_sampler)}"
            )
        self.batch_sampler = batch_sampler
        self.start_iteration = start_iteration
        self.sampler = getattr(batch_sampler, "sampler", batch_sampler)
        self._latest: _Batches | None = None

    def __iter__(self) -> Iterator[Any]:
        self._latest = _Batches(self)
        return self._latest

    def draw(self) -> bool:
        """Draw the order of the latest pass now, not at its first batch; False when no pass has begun since."""
        latest, self._latest = self._latest, None
        if latest is not None:
            latest.draw()
        return latest is not None

    def __len__(self) -> int:
        return len(self.batch_sampler)  # type: ignore[arg-type]


class _Batches(Iterator[Any]):
    """The batches of one pass. A loader with workers makes two of these and uses the second: drawing is what counts."""

    def __init__(self, owner: ReproducibleBatchSampler) -> None:
        self._owner = owner
        self._left: Iterator[Any] | None = None

    def draw(self) -> Iterator[Any]:
        if self._left is None:
            start, self._owner.start_iteration = self._owner.start_iteration or 0, None
            self._left = itertools.islice(list(self._owner.batch_sampler), start, None)
        return self._left

    def __next__(self) -> Any:
        return next(self.draw())


def update_dataloader(dataloader: DataLoader[Any], new_batch_sampler: BatchSampler) -> DataLoader[Any]:
    """Return a copy of the loader, of its own class and with all of its settings, that has another batch sampler.

    Args:
        dataloader: The loader; it stays as it is.
        new_batch_sampler: The batch sampler of the copy.
    """
    updated = copy.copy(dataloader)
    # A loader refuses a new sampler because its workers may hold the old one. The copy has no workers yet.
    object.__setattr__(updated, "batch_sampler", new_batch_sampler)
    object.__setattr__(updated, "_iterator", None)
    return updated


def keep_random_state(func: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that the random states after it are those before it, also when it raises.

    Args:
        func: The function, for instance a handler that runs an evaluation.
    """

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        state = random_state()
        try:
            return func(*args, **kwargs)
        finally:
            set_random_state(state)

    return wrapper


class DeterministicEngine(Engine):
    """An engine that gives a resumed run the batches that the uninterrupted run would have had.

    Save `state_dict()` and load it into a new engine: the seed, the pass, the place in the epoch and the random states
    of Python, NumPy, torch and every CUDA device are under "rng_states", as plain containers and tensors, which
    `torch.load` reads with `weights_only=True`. A state dict with `rng_states=None` is placed by its iteration alone;
    seed torch the same way before both runs then.

    Data that keep their own place, such as the loaders of `distrain.dataloader`, are iterated as they are: each pass,
    also of a later run, is their next. Their place is under "rng_states" too; without it they begin where they are.

    Where CUDA is available, deterministic algorithms are asked of torch (with warnings where there are none) and
    cuDNN's benchmark mode is off.

    Args:
        process_function: Takes the engine and a batch; what it returns is put in `state.output`.
        replay: How to resume inside a pass. False leaves out the indices of the batches that were had: at once, and
            the same batches, except that random transforms in worker processes draw anew. True fetches those batches
            again and drops them: as slow as the data is, and such transforms come out the same too, unless the
            workers persist from pass to pass.
    """

    def __init__(self, process_function: Callable[[Any, Any], Any], *, replay: bool = False) -> None:
        super().__init__(process_function)
        self.replay = replay
        self.state_dict_user_keys.append("rng_states")
        self.state.rng_states = None
        self._pass = -1
        self._pass_start = 0
        self._generator_states: list[torch.Tensor] = []
        self._data_start: Any = None
        self.add_event_handler(Events.STARTED, self._init_run)

    def state_dict(self) -> OrderedDict[str, Any]:
        """As `Engine.state_dict`, with what a resumption needs under "rng_states"."""
        state_dict = super().state_dict()
        state_dict["rng_states"] = {
            "seed": self.state.seed,
            "pass": [self._pass, self._pass_start],
            "place": [self.state.iteration, *self.place],
            "generators": [
                [before, generator.get_state()]
                for before, generator in zip(self._generator_states, self._generators(), strict=False)
            ],
            **random_state(),
        }
        if isinstance(data := self.state.dataloader, KeepsItsPlace):
            # Of ours the place of this engine's own pass, whoever has begun another since.
            now = data.state_dict_of(self._dataloader_iter) if hasattr(data, "state_dict_of") else data.state_dict()
            state_dict["rng_states"]["data"] = [self._data_start, now]
        return state_dict

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As `Engine.load_state_dict`; what `state_dict` put under "rng_states" is used when the run goes on."""
        super().load_state_dict(state_dict)
        iteration, *place = self._saved().get("place", (None,))
        if iteration == self.state.iteration:
            self.place = tuple(place)

    def set_data(self, data: Iterable[Any]) -> None:
        """As `Engine.set_data`; a pass over the new data begins."""
        self.state.dataloader = data
        self._setup_dataloader_iter()

    def _saved(self) -> Mapping[str, Any]:
        """What a state dict brought; nothing when it had None, or the list of states that ignite saves."""
        saved = getattr(self.state, "rng_states", None)
        return saved if isinstance(saved, Mapping) else {}

    def _init_run(self) -> None:
        seed = self._saved().get("seed")
        self.state.seed = int(torch.randint(0, int(1e9), (1,)).item()) if seed is None else seed
        if torch.cuda.is_available():
            torch.use_deterministic_algorithms(mode=True, warn_only=True)
            torch.backends.cudnn.benchmark = False

    def _setup_engine(self) -> None:
        self._prepare_data()
        state, saved = self.state, self._saved()
        if saved.get("seed") is not None:
            state.seed = saved["seed"]
        length = self._dataloader_len
        number, start = saved.get("pass", (-1, 0))
        had = state.iteration - start
        if number < 0 or had < 0:
            # Nothing saved, or the state was moved after saving: count passes from the start of the run.
            number, had = divmod(state.iteration, length) if length else (0, state.iteration)
        else:
            has_ended = had == length
            self._restore_data(saved, replay=self.replay and not has_ended)
            if has_ended:
                number, had = number + 1, 0
            for generator, (before, now) in zip(self._generators(), saved["generators"], strict=False):
                generator.set_state(now if has_ended else before)
        self._begin_pass(number, had)
        if had > 0 and getattr(state, "rng_states", None) is not None:
            _set_rng_states(state.rng_states)
        state.rng_states = None
        self._init_iter = self._iterations_had()

    def _restore_data(self, saved: Mapping[str, Any], *, replay: bool) -> None:
        """Put data that keep their place where they were, or, to replay a pass, where it began."""
        if "data" in saved and isinstance(data := self.state.dataloader, KeepsItsPlace):
            self._data_start, now = saved["data"]
            data.load_state_dict(self._data_start if replay else now)

    def _setup_dataloader_iter(self) -> None:
        self._prepare_data()
        self._begin_pass(max(self.state.iteration // (self._dataloader_len or 1), self._pass + 1), 0)

    def _prepare_data(self) -> None:
        """Give a loader the sampler that draws all at once, where its data have indices."""
        data = self.state.dataloader
        if data is None:
            raise ValueError(
                "Deterministic engine does not support the option of data=None. Please, provide data as iterable"
            )
        self._dataloader_len = self._get_data_length(data)
        if isinstance(data, KeepsItsPlace) or not isinstance(data, DataLoader):
            return
        if isinstance(getattr(data, "dataset", None), IterableDataset):
            return
        if hasattr(data.sampler, "epoch") and self._dataloader_len not in (None, self.state.epoch_length):
            warnings.warn(
                "When defined engine's epoch length is different of input dataloader length, "
                "distributed sampler indices can not be setup in a reproducible manner",
                stacklevel=2,
            )
        batch_sampler: Any = data.batch_sampler
        is_finite = isinstance(batch_sampler, Sampler) and self._get_data_length(batch_sampler) is not None
        if is_finite and not isinstance(batch_sampler, ReproducibleBatchSampler):
            self.state.dataloader = update_dataloader(data, ReproducibleBatchSampler(batch_sampler))

    def _begin_pass(self, number: int, had: int) -> None:
        self._pass, self._pass_start = number, self.state.iteration - had
        self._setup_seed()
        self._generator_states = [generator.get_state() for generator in self._generators()]
        self._dataloader_iter = self._iterate(had)

    def _setup_seed(self, iter_counter: int | None = None) -> None:
        """Seed for the current pass, or for the one that the iteration is in when passes have `iter_counter` batches.

        Raises:
            ValueError: `iter_counter` is not positive.
        """
        if iter_counter is not None and iter_counter <= 0:
            raise ValueError(f"iter_counter should be positive value, got {iter_counter}")
        number = self._pass if iter_counter is None else self.state.iteration // iter_counter
        seed_all(cast(int, self.state.seed) + number)

    def _iterate(self, had: int) -> Iterator[Any]:
        data = cast(Iterable[Any], self.state.dataloader)
        if isinstance(data, KeepsItsPlace):
            return self._iterate_from_its_place(data, had)
        batch_sampler = getattr(data, "batch_sampler", None)
        if isinstance(batch_sampler, ReproducibleBatchSampler):
            batch_sampler.start_iteration = None if self.replay else had
            if getattr(data, "_iterator", None) is not None:
                # Workers that persist keep their seed; a resumed run has new ones, for which the loader draws one.
                torch.empty((), dtype=torch.int64).random_(generator=getattr(data, "generator", None))
            batches = iter(data)
            # Before a handler or a saved state can touch the generator that the order is drawn from.
            if batch_sampler.draw() and not self.replay:
                return batches
            batch_sampler.start_iteration = None
        else:
            batches = iter(data)
        return self._fetch_again(data, batches, had)

    def _iterate_from_its_place(self, data: KeepsItsPlace, had: int) -> Iterator[Any]:
        batches = iter(data)
        if had == 0:
            self._data_start = data.state_dict()
        is_at_start = had > 0 and self.replay and self._data_start is not None
        return self._fetch_again(data, batches, had if is_at_start else 0)

    def _fetch_again(self, data: Iterable[Any], batches: Iterator[Any], had: int) -> Iterator[Any]:
        if had:
            self.logger.info(
                "Resuming by fetching the %d batches before iteration %d again.", had, self.state.iteration
            )
        fetched, start = 0, self.state.iteration - had
        while fetched < had:
            try:
                next(batches)
                fetched += 1
            except StopIteration:  # noqa: PERF203  # once in a pass
                if self._pass_start == start + fetched:
                    raise ValueError("Input data has zero size. Please provide non-empty data") from None
                # Without a length the passes are only known by their ends: seed the next as the run had done.
                self._pass, self._pass_start = max(start + fetched, self._pass + 1), start + fetched
                self._setup_seed()
                batches = iter(data)
        return batches

    def _generators(self) -> list[torch.Generator]:
        """The loader's own random generators, if it was given any."""
        data = self.state.dataloader
        parts = [data, *(getattr(data, name, None) for name in ("sampler", "batch_sampler"))]
        parts.append(getattr(parts[-1], "sampler", None))
        found = {id(g): g for g in (getattr(part, "generator", None) for part in parts) if g is not None}
        return list(found.values())


def _get_rng_states() -> dict[str, Any]:
    return random_state()


def _set_rng_states(states: Mapping[str, Any] | Sequence[Any]) -> None:
    """Set random states: ours, or the list `[python, torch, numpy]` that ignite saves."""
    if not isinstance(states, Mapping):
        states = dict(zip(("python", "torch", "numpy"), states, strict=False))
    set_random_state(states)


def _repr_rng_state(states: Mapping[str, Any] | Sequence[Any]) -> str:
    """Return a short fingerprint of each random state, to compare two by eye."""
    values = states.values() if isinstance(states, Mapping) else states
    return " ".join(hashlib.sha256(str(list(value)).encode()).hexdigest()[:12] for value in values)
