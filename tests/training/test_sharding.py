import itertools
import math
import random

import pytest

from distrain.training.sharding import ShardSampler, Stretch, batch_sizes, left_after, mixed_seed

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


def stretch_of(n, former, b, w, *, num_batches):
    """Return the samples that the ranks have in some batches of what is left of an epoch, and the stretch they are."""
    ranks = []
    for rank in range(w):
        sampler = ShardSampler(n, b, rank=rank, world_size=w, shuffle=True, drop_last=False, seed=3)
        sampler.stretches = tuple(former)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == sampler.num_batches_after(former)
    assert len({len(batches) for batches in ranks}) == 1
    assert all(0 < len(batch) <= b for batches in ranks for batch in batches)
    num_batches = min(num_batches, len(ranks[0]))
    seen = [i for batches in ranks for batch in batches[:num_batches] for i in batch]
    return seen, Stretch(world_size=w, batch_size=b, drop_last=False, num_batches=num_batches)


def test_an_epoch_that_is_divided_anew_again_and_again_has_every_sample_once():
    draw = random.Random(0)
    for _ in range(300):
        n = draw.randint(40, 200)
        seen, stretches, most_left_out = [], [], 0
        for _ in range(draw.randint(1, 4)):
            w, b = draw.randint(1, 6), draw.randint(1, 6)
            try:
                had, stretch = stretch_of(n, stretches, b, w, num_batches=draw.randint(0, 8))
            except ValueError:  # a whole epoch cannot be divided so
                continue
            seen += had
            stretches.append(stretch)
            most_left_out += w - 1
        w = draw.randint(1, 4)
        rest, _ = stretch_of(n, stretches, 2, w, num_batches=n)
        seen += rest
        assert len(seen) == len(set(seen)), stretches
        assert n - (most_left_out + w - 1) <= len(seen), stretches


def test_what_is_left_of_full_batches_is_found_without_a_look_at_each_rank():
    stretch = Stretch(world_size=3, batch_size=4, drop_last=False, num_batches=2)
    assert left_after(100, [stretch]).tolist() == list(range(24, 100))
    last = Stretch(world_size=3, batch_size=4, drop_last=False, num_batches=8)
    assert left_after(100, [last]).tolist() == [96, 97, 98, 99]
    assert left_after(100, [Stretch(world_size=3, batch_size=4, drop_last=True, num_batches=8)]).tolist() == []
