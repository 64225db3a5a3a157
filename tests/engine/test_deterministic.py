"""The deterministic engine: what is resumed equals what was not interrupted."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, WeightedRandomSampler

from distrain.engine import DeterministicEngine, Engine, Events
from distrain.engine.deterministic import ReproducibleBatchSampler, keep_random_state, update_dataloader

SIZE, BATCH = 24, 4


@pytest.fixture(autouse=True, scope="module")
def start_a_worker_once() -> None:
    """The first worker process of a loader has torch handle SIGCHLD for good, which is no leak of a test's."""
    assert list(DataLoader(range(1), num_workers=1)) == [torch.tensor([0])]


class Augmented(torch.utils.data.Dataset[torch.Tensor]):
    """Adds noise to each item, drawn wherever the item is made."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index) + torch.rand(()) / 2


class Shuffled:
    """Data of our own that draw their order from Python's generator, and have a length."""

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[int]:
        return iter(random.sample(range(6), 6))


class Unsized:
    def __iter__(self) -> Iterator[int]:
        return iter(random.sample(range(6), 6))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(SIZE).tolist())


class Placed:
    """Data that keep their place, and have another order in each pass."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.place = [0, 0]
        self.is_restored = False

    def __len__(self) -> int:
        return len(self.data) // BATCH

    def __iter__(self) -> Iterator[Any]:
        number, had = self.place
        if not (self.is_restored and had < len(self)) and had > 0:
            number, had = number + 1, 0
        self.place, self.is_restored = [number, had], False
        return self._rest()

    def _rest(self) -> Iterator[Any]:
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.place[0]))
        while self.place[1] < len(self):
            self.place[1] += 1
            yield order[BATCH * (self.place[1] - 1) : BATCH * self.place[1]]

    def state_dict(self) -> dict[str, Any]:
        return {"place": list(self.place)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.place, self.is_restored = list(state_dict["place"]), True


def loader(data: Any = None, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(torch.arange(SIZE) if data is None else data, **({"batch_size": BATCH, "shuffle": True} | kwargs))


MAKERS: dict[str, Callable[[], Any]] = {
    "shuffled": loader,
    "shuffled, augmented": lambda: loader(Augmented()),
    "workers": lambda: loader(num_workers=2),
    "persistent workers": lambda: loader(num_workers=2, persistent_workers=True),
    "own generator": lambda: loader(generator=torch.Generator().manual_seed(3)),
    "weighted": lambda: loader(shuffle=False, sampler=WeightedRandomSampler([1.0, 2.0] * 12, SIZE)),
    "distributed": lambda: loader(shuffle=False, sampler=DistributedSampler(range(SIZE), 1, 0)),
    "one by one": lambda: loader(batch_size=None),
    "keeps its place": lambda: Placed(range(SIZE)),
    "stream": lambda: loader(Stream(), shuffle=False),
    "own data": Shuffled,
    "own data without length": Unsized,
}


def run(
    make: Callable[[], Any],
    *,
    save_at: int | None = None,
    state_dict: dict[str, Any] | None = None,
    seed: int = 0,
    cut_at: int | None = None,
    max_epochs: int = 3,
    epoch_length: int | None = 6,
    **kwargs: Any,
) -> tuple[list[Any], dict[str, Any]]:
    """Run; return the batches with a random number of the step's own, and the state dict saved at `save_at`."""
    seen: list[Any] = []
    saved: dict[str, Any] = {}

    def step(engine: Any, batch: Any) -> None:
        drawn = (random.random(), float(np.random.rand()), torch.rand(()).item())
        seen.append((torch.as_tensor(batch).tolist(), *drawn))

    engine = DeterministicEngine(step, **kwargs)
    if save_at is not None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=save_at), lambda: saved.update(engine.state_dict()))
    if cut_at is not None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=cut_at), engine.terminate_epoch)

    @engine.on(Events.EPOCH_STARTED)
    def set_epoch(engine: Any) -> None:
        if isinstance(sampler := getattr(engine.state.dataloader, "sampler", None), DistributedSampler):
            sampler.set_epoch(engine.state.epoch)

    if state_dict is not None:
        engine.load_state_dict(state_dict)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    engine.run(make(), max_epochs=max_epochs, epoch_length=epoch_length)
    engine.state.dataloader = None  # workers that persist end with their loader
    return seen, saved


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("save_at", [2, 6, 8, 17])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_resumed_run_has_the_batches_and_random_numbers_of_the_uninterrupted(name: str, save_at: int) -> None:
    whole, saved = run(MAKERS[name], save_at=save_at)
    resumed, _ = run(MAKERS[name], state_dict=through_a_file(saved), seed=99)
    assert len(whole) == 18
    assert resumed == whole[save_at:]


@pytest.mark.parametrize("save_at", [2, 8, 17])
def test_replaying_gives_the_random_transforms_of_worker_processes_too(save_at: int) -> None:
    make = lambda: loader(Augmented(), num_workers=2)
    whole, saved = run(make, save_at=save_at, max_epochs=3)
    assert run(make, state_dict=saved, seed=99, replay=True)[0] == whole[save_at:]
    skipped = run(make, state_dict=saved, seed=99)[0]
    assert [[int(x) for x in batch] for batch, *_ in skipped] == [[int(x) for x in b] for b, *_ in whole[save_at:]]


@pytest.mark.parametrize("epoch_length", [4, 11])
@pytest.mark.parametrize("save_at", [3, 7, 12, 15])
@pytest.mark.parametrize("name", ["shuffled", "own data", "own data without length"])
def test_epochs_that_are_not_passes(name: str, save_at: int, epoch_length: int) -> None:
    options = {"epoch_length": epoch_length, "max_epochs": 4 if epoch_length == 4 else 2}
    whole, saved = run(MAKERS[name], save_at=save_at, **options)
    resumed, _ = run(MAKERS[name], state_dict=saved, seed=99, **options)
    assert [batch for batch, *_ in resumed] == [batch for batch, *_ in whole[save_at:]]


@pytest.mark.parametrize("save_at", [9, 12, 17])
def test_after_an_epoch_that_was_cut_short(save_at: int) -> None:
    """ignite places a resumed run by its iteration alone, which is wrong from here on."""
    whole, saved = run(MAKERS["shuffled"], save_at=save_at, cut_at=8, max_epochs=4)
    resumed, _ = run(MAKERS["shuffled"], state_dict=saved, seed=99, max_epochs=4)
    assert len(whole) == 20
    assert resumed == whole[save_at:]


def test_data_that_keep_their_place_go_on_with_it_in_a_second_run_as_under_a_plain_engine() -> None:
    seen: list[list[Any]] = []
    for make in (Engine, DeterministicEngine):
        data, batches = Placed(range(SIZE)), []
        engine = make(lambda engine, batch, batches=batches: batches.append(batch.tolist()))
        engine.run(data, max_epochs=1)
        engine.run(data, max_epochs=1)
        assert engine.state.dataloader is data
        seen.append(batches)
    assert seen[0] == seen[1]
    assert seen[0][:6] != seen[0][6:]


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("is_restored", [False, True])
def test_data_that_keep_their_place_are_put_there_once(replay: bool, is_restored: bool) -> None:
    """Whoever saved them beside the run may have restored them already."""
    whole, saved = run(lambda: Placed(range(SIZE)), save_at=8)

    def make() -> Placed:
        data = Placed(range(SIZE))
        if is_restored:
            data.load_state_dict({"place": [1, 2]})
        return data

    assert run(make, state_dict=through_a_file(saved), seed=99, replay=replay)[0] == whole[8:]


def test_every_pass_has_an_order_of_its_own_after_a_cut() -> None:
    """ignite seeds by iteration // batches had, and may come to the same seed twice."""
    seen, _ = run(MAKERS["shuffled"], cut_at=8, max_epochs=5)
    batches = [tuple(batch) for batch, *_ in seen]
    starts = [0, 6, 8, 14, 20]
    assert len({batches[start] for start in starts}) == len(starts)


def test_cutting_before_the_first_batch() -> None:
    """ignite fails: it divides by the number of batches that the epoch had."""
    engine = DeterministicEngine(lambda engine, batch: batch)
    engine.add_event_handler(Events.GET_BATCH_STARTED(once=6), engine.terminate_epoch)
    engine.run(loader(), max_epochs=2)
    assert (engine.state.epoch, engine.state.iteration) == (2, 6)


def test_the_seed_is_saved_and_the_state_is_plain() -> None:
    engine = DeterministicEngine(lambda engine, batch: batch)
    torch.manual_seed(5)
    engine.run(loader())
    state_dict = through_a_file(dict(engine.state_dict()))
    assert list(state_dict) == ["epoch_length", "iteration", "max_epochs", "rng_states"]
    assert state_dict["rng_states"]["seed"] == engine.state.seed
    assert {"python", "numpy", "torch", "pass"} < set(state_dict["rng_states"])


def test_ignites_state_dict_is_understood(ignite: ModuleType) -> None:
    peer = ignite.DeterministicEngine(lambda engine, batch: batch)
    saved: dict[str, Any] = {}
    peer.add_event_handler(ignite.Events.ITERATION_COMPLETED(once=8), lambda: saved.update(peer.state_dict()))
    torch.manual_seed(5)
    peer.run(loader(), max_epochs=3)
    assert isinstance(saved["rng_states"], list)
    before = list(saved["rng_states"])
    resumed, _ = run(loader, state_dict=saved, seed=5)
    # Its seed is not in there, but drawn anew from the same state: the batches of a whole run, from its place on.
    whole, _ = run(loader, seed=5)
    assert [batch for batch, *_ in resumed] == [batch for batch, *_ in whole[8:]]
    assert all(now is then for now, then in zip(saved["rng_states"], before, strict=True))


@pytest.mark.parametrize("epoch_length", [None, 4, 11])
@pytest.mark.parametrize("name", ["shuffled", "shuffled, augmented", "weighted", "one by one", "own data"])
def test_the_batches_of_a_whole_run_are_ignites(ignite: ModuleType, name: str, epoch_length: int | None) -> None:
    seen: list[list[Any]] = []
    for make in (DeterministicEngine, ignite.DeterministicEngine):
        batches: list[Any] = []
        engine = make(lambda engine, batch, batches=batches: batches.append(torch.as_tensor(batch).tolist()))
        torch.manual_seed(5)
        engine.run(MAKERS[name](), max_epochs=3, epoch_length=epoch_length)
        seen.append(batches)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("start", [None, 3])
def test_the_sampler_leaves_out_the_first_batches_once(start: int | None) -> None:
    source = torch.utils.data.BatchSampler(range(10), 2, drop_last=False)
    sampler = ReproducibleBatchSampler(source, start)
    assert list(sampler) == list(source)[start or 0 :]
    assert list(sampler) == list(source)
    assert len(sampler) == 5


def test_an_updated_loader_is_of_the_same_class_and_leaves_the_old_one_alone() -> None:
    class Mine(DataLoader[Any]):
        def __init__(self, extra: str) -> None:
            super().__init__(range(6), batch_size=2)
            self.extra = extra

    old = Mine("kept")
    new = update_dataloader(old, ReproducibleBatchSampler(old.batch_sampler, 1))
    assert (type(new), new.extra) == (Mine, "kept")
    assert [len(list(new)), len(list(old))] == [2, 3]


def test_keeping_the_random_state() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    @keep_random_state
    def disturb(*, fail: bool) -> str:
        draw()
        if fail:
            raise ValueError("on purpose")
        return "result"

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = [draw(), draw()]
    seed()
    assert disturb(fail=False) == "result"
    first = draw()
    with pytest.raises(ValueError, match="on purpose"):
        disturb(fail=True)
    assert [first, draw()] == expected


def test_data_are_needed() -> None:
    with pytest.raises(ValueError, match="does not support the option of data=None"):
        DeterministicEngine(lambda engine, batch: batch).run(epoch_length=3)


@pytest.mark.gpu
def test_the_states_of_cuda_devices_are_restored() -> None:
    def draws(state_dict: dict[str, Any] | None) -> tuple[list[float], dict[str, Any]]:
        seen: list[float] = []
        engine = DeterministicEngine(lambda engine, batch: seen.append(torch.rand((), device="cuda").item()))
        saved: dict[str, Any] = {}
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=8), lambda: saved.update(engine.state_dict()))
        if state_dict is not None:
            engine.load_state_dict(state_dict)
        engine.run(loader(), max_epochs=3)
        return seen, saved

    whole, saved = draws(None)
    assert len(saved["rng_states"]["cuda"]) == torch.cuda.device_count()
    assert draws(through_a_file(saved))[0] == whole[8:]
