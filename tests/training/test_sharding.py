import itertools
import math

import pytest

from distrain.training.sharding import ShardSampler, batch_sizes, mixed_seed

SPREADS = [
    (n, b, w)
    for n, b, w in itertools.product(range(1, 41), (1, 2, 3, 4, 8), (1, 2, 3, 4))
    if n // w >= math.ceil(math.ceil(n / w) / b)
]


def epoch_of(n, b, w, *, shuffle=False, drop_last=False, epoch=0, first_batch=0, seed=0):
    ranks = []
    for rank in range(w):
        sampler = ShardSampler(n, b, rank=rank, world_size=w, shuffle=shuffle, drop_last=drop_last, seed=seed)
        sampler.epoch, sampler.first_batch = epoch, first_batch
        ranks.append(list(sampler))
    return ranks


def test_every_sample_comes_once_and_every_rank_has_as_many_batches():
    assert len(SPREADS) > 400
    for n, b, w in SPREADS:
        ranks = epoch_of(n, b, w)
        assert len({len(batches) for batches in ranks}) == 1, (n, b, w)
        assert all(1 <= len(batch) <= b for batches in ranks for batch in batches), (n, b, w)
        assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(n)), (n, b, w)


def test_drop_last_gives_full_batches_only():
    ranks = epoch_of(23, 4, 2, drop_last=True, shuffle=True)
    assert [[len(batch) for batch in batches] for batches in ranks] == [[4, 4], [4, 4]]
    seen = [i for batches in ranks for batch in batches for i in batch]
    assert len(set(seen)) == len(seen) == 16


def test_a_rank_that_would_lack_a_batch_shares_its_last_full_one():
    assert batch_sizes(9, 4, 0, 2, drop_last=False) == [4, 1]
    assert batch_sizes(9, 4, 1, 2, drop_last=False) == [3, 1]


@pytest.mark.parametrize(("n", "b", "w"), [(3, 1, 2), (1, 4, 2), (0, 4, 1)])
def test_what_cannot_be_spread_without_repeating_is_refused(n, b, w):
    with pytest.raises(ValueError, match=f"{n} samples cannot be spread over {w} ranks"):
        batch_sizes(n, b, 0, w, drop_last=False)


def test_drop_last_of_everything_is_refused():
    with pytest.raises(ValueError, match="do not fill one batch of 4 on each of 2 ranks"):
        batch_sizes(7, 4, 0, 2, drop_last=True)


def test_each_epoch_and_each_seed_has_its_own_order():
    orders = {str(epoch_of(20, 5, 1, shuffle=True, epoch=e, seed=s)) for e in range(3) for s in range(3)}
    assert len(orders) == 9
    assert epoch_of(20, 5, 2, shuffle=True, epoch=2) == epoch_of(20, 5, 2, shuffle=True, epoch=2)
    assert mixed_seed(0, 1) != mixed_seed(1, 0)


def test_a_first_batch_leaves_out_those_before_it():
    whole, rest = epoch_of(21, 4, 2, shuffle=True), epoch_of(21, 4, 2, shuffle=True, first_batch=2)
    assert rest == [batches[2:] for batches in whole]
