import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import distrain
from distrain.errors import CheckpointError


def loader_of(n=22, batch_size=4, **options):
    return distrain.dataloader(TensorDataset(torch.arange(n)), batch_size, shuffle=True, seed=5, **options)


def values(batches):
    return [batch[0].tolist() for batch in batches]


def test_epochs_differ_without_set_epoch_and_are_whole():
    loader = loader_of()
    epochs = [values(loader) for _ in range(3)]
    assert len(loader) == 6
    assert len({str(epoch) for epoch in epochs}) == 3
    assert all(sorted(i for batch in epoch for i in batch) == list(range(22)) for epoch in epochs)


@pytest.mark.usefixtures("sigchld")
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_it_goes_on_with_the_very_next_batch(num_workers):
    whole = loader_of()
    expected = [values(whole) for _ in range(3)]

    first = loader_of(num_workers=num_workers)
    values(first)
    batches = iter(first)
    seen = values(next(batches) for _ in range(2))
    saved = first.state_dict()
    assert (saved["epoch"], saved["position"]) == (1, 2)
    del batches

    second = loader_of(num_workers=num_workers, batch_size=4)
    second.load_state_dict(saved)
    assert seen + values(second) == expected[1]
    assert values(second) == expected[2]


class Noisy(Dataset):
    """Whose samples are random, by each of the generators."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def noisy(**options):
    return distrain.dataloader(Noisy(), 2, shuffle=True, seed=5, **options)


@pytest.mark.usefixtures("sigchld")
@pytest.mark.parametrize("had", [3, 4])  # inside an epoch and at the end of one
def test_random_transforms_in_worker_processes_go_on_as_well(had):
    options = {"num_workers": 2, "persistent_workers": True}
    whole = noisy(**options)
    expected = torch.cat([torch.cat(list(whole)) for _ in range(2)])
    assert len(expected[:, 1:].unique()) == 3 * len(expected)
    first = noisy(**options)
    batches = iter(first)
    seen = [next(batches) for _ in range(had)]
    second = noisy(num_workers=1)
    second.load_state_dict(first.state_dict())
    rest = [batch for _ in range(1 if had == len(first) else 2) for batch in second]
    assert torch.equal(torch.cat(seen + rest), expected)


@pytest.mark.usefixtures("sigchld")
def test_a_generator_of_the_users_seeds_the_worker_processes():
    first, second = (torch.cat(list(noisy(num_workers=1, generator=generator))) for generator in map(seeded, range(2)))
    assert torch.equal(first[:, 0], second[:, 0])
    assert not (first[:, 1:] == second[:, 1:]).any()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_at_an_epochs_end_the_next_one_starts():
    loader = loader_of()
    first, second = values(loader), values(loader)
    again = loader_of()
    values(again)
    resumed = loader_of()
    resumed.load_state_dict(again.state_dict())
    assert resumed.epoch == 1
    assert values(resumed) == second != first


def test_the_saved_seed_goes_on():
    loader = loader_of()
    values(loader)
    other = distrain.dataloader(TensorDataset(torch.arange(22)), 4, shuffle=True, seed=99)
    other.load_state_dict(loader.state_dict())
    assert values(other) == values(loader)


def test_inside_an_epoch_and_at_its_end_other_sizes_go_on():
    """Twice in one epoch: batches of 4, of 3, of 5."""
    expected = loader_of()
    values(expected)
    loader, seen = loader_of(), []
    for batch_size in (3, 5):
        seen += itertools.chain(*values(itertools.islice(loader, 2)))
        resumed = loader_of(batch_size=batch_size)
        resumed.load_state_dict(loader.state_dict())
        assert resumed.is_divided_anew
        assert resumed.epoch == 0
        loader = resumed
    position = loader.position
    rest = values(loader)
    assert sorted([*seen, *itertools.chain(*rest)]) == list(range(22))
    assert position == len(loader) - math.ceil((22 - len(seen)) / 5)
    assert loader.position == len(loader)
    assert not loader_of().is_divided_anew
    whole = loader_of(batch_size=5)
    whole.load_state_dict(expected.state_dict())
    assert values(loader) == values(whole), "the next epoch is whole"
    assert not loader.is_divided_anew


def test_a_place_in_an_epoch_that_was_divided_anew_is_saved_too():
    loader = loader_of()
    next(iter(loader))
    once = loader_of(batch_size=3)
    once.load_state_dict(loader.state_dict())
    batches = iter(once)
    next(batches)
    again = loader_of(batch_size=3)
    again.load_state_dict(once.state_dict())
    assert again.position == once.position
    assert values(again) == values(batches)


def test_inside_an_epoch_other_data_are_refused_and_what_an_earlier_version_saved():
    loader = loader_of()
    next(iter(loader))
    saved = loader.state_dict()
    other = distrain.dataloader(TensorDataset(torch.arange(23)), 4, shuffle=True)
    with pytest.raises(CheckpointError, match=r"inside epoch 0 .batch 1 of 6.*had 22 samples and has 23 now"):
        other.load_state_dict(saved)
    for key in ("batch_size", "drop_last", "stretches", "began"):
        del saved[key]
    with pytest.raises(CheckpointError, match="an earlier version of distrain has saved it"):
        loader_of(batch_size=2).load_state_dict(saved)
    same = loader_of()
    same.load_state_dict(saved)
    assert same.position == 1


def test_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    values(loader_of())
    assert torch.equal(torch.rand(1), expected)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("dataset", "options", "error", "message"),
    [
        (Stream(), {}, TypeError, "Stream has no length"),
        ([1, 2], {"sampler": [0]}, TypeError, "makes the sampler itself"),
        ([1, 2], {"batch_size": 0}, ValueError, "batch_size is 0"),
        ([1, 2], {"batch_size": None}, ValueError, "batch_size is None"),
        ([1, 2], {"seed": "1"}, TypeError, "seed is '1'; it must be a whole number"),
    ],
)
def test_misuse_is_refused(dataset, options, error, message):
    with pytest.raises(error, match=message):
        distrain.dataloader(dataset, **options)
