"""Hangs, by a fake clock: two hours of every slow shape without a false alarm, and every hang found in time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrain.supervision.beat import Beat
from distrain.supervision.hangs import Hang, HangWatch

S = 1_000_000_000
LOOK_S = 0.5
TWO_HOURS_S = 7200.0
AT_START_NS = 5_000 * S

# What a rank does: at which second, and step, beat, pause, resume, restart or end.
Life = Iterable[tuple[float, str]]


def not_begun(rank: int, pid: int = 0) -> Beat:
    return Beat(rank=rank, pid=pid, beats=0, steps=0, last_ns=0, slowest_ns=0, state="not begun")


def after(beat: Beat, what: str, now_ns: int) -> Beat:
    """The board's own rules."""
    if what == "restart":
        return not_begun(beat.rank, beat.pid + 1)
    if what == "pause":
        return replace(beat, state="paused")
    gap_ns = now_ns - beat.last_ns if beat.state == "going" else 0
    return replace(
        beat,
        beats=beat.beats + (what in {"step", "beat"}),
        steps=beat.steps + (what == "step"),
        last_ns=now_ns,
        slowest_ns=max(beat.slowest_ns, gap_ns),
        state="going",
    )


def watch_run(
    lives: Mapping[int, Life],
    *,
    timeout: float | str | None = "auto",
    until_s: float = TWO_HOURS_S,
    looks_s: Iterable[float] = (),
) -> tuple[float, Hang] | None:
    """Return the first hang and the second it was told, looking every half second unless `looks_s` says when."""
    watch = HangWatch(timeout)
    board = {rank: not_begun(rank, 100 * (rank + 1)) for rank in lives}
    todo = heapq.merge(*([(at_s, rank, what) for at_s, what in life] for rank, life in lives.items()))
    following = next(todo, None)
    for now_s in looks_s or itertools.takewhile(lambda now_s: now_s <= until_s, itertools.count(0, LOOK_S)):
        while following and following[0] <= now_s:
            at_s, rank, what = following
            if what == "end":
                del board[rank]
            else:
                board[rank] = after(board[rank], what, AT_START_NS + round(at_s * S))
            following = next(todo, None)
        hang = watch.look(AT_START_NS + round(now_s * S), list(board.values()))
        if hang:
            return now_s, hang
    return None


def every(period_s: float, *, start_s: float = 0.0, until_s: float = TWO_HOURS_S, what: str = "step") -> Iterator:
    at_s = start_s + period_s
    while at_s <= until_s:
        yield at_s, what
        at_s += period_s


def lockstep(num_ranks: int, gaps_s: Iterable[float], seed: int = 0) -> dict[int, list[tuple[float, str]]]:
    """Ranks that do every step together but for some milliseconds."""
    skew = random.Random(seed)
    ends_s = list(itertools.accumulate(gaps_s))
    return {rank: sorted((end_s + skew.random() / 100, "step") for end_s in ends_s) for rank in range(num_ranks)}


def slow_with_outliers() -> Iterator[float]:
    chance = random.Random(1)
    left_s = TWO_HOURS_S
    while left_s > 0:
        gap_s = 590.0 if chance.random() < 0.003 else chance.expovariate(1 / 4)
        left_s -= gap_s
        yield gap_s


def ever_slower() -> Iterator[float]:
    """Each step twice as long as the one before, until one takes half an hour; auto follows."""
    return (2.0**power for power in range(-2, 12))


def long_start() -> dict[int, Life]:
    return {rank: list(every(1, start_s=5000 + 900 * rank)) for rank in range(4)}


def one_starts_late() -> dict[int, Life]:
    """Rank 0 shows life while it downloads, then waits an hour for rank 1, which loads."""
    late = list(every(1, start_s=4000))
    return {0: [(1.0, "beat"), (2.0, "beat"), *late], 1: late}


def rank_0_evaluates() -> dict[int, Life]:
    """An hour of heartbeats on one rank while the others wait in a barrier."""
    steps = list(every(1, until_s=600))
    again = list(every(1, start_s=4200))
    heartbeats = list(every(200, start_s=600, until_s=4200, what="beat"))
    return {0: steps + heartbeats + again, **dict.fromkeys(range(1, 4), steps + again)}


def two_ranks_one_evaluates() -> dict[int, Life]:
    lives = rank_0_evaluates()
    return {0: lives[0], 1: lives[1]}


def all_evaluate() -> dict[int, Life]:
    steps = list(every(1, until_s=600))
    return {
        rank: steps + list(every(3 + rank, start_s=600, until_s=4000, what="beat")) + list(every(1, start_s=4000))
        for rank in range(4)
    }


def slow_checkpoints_of_rank_0() -> dict[int, Life]:
    """One of two ranks writes for 25 minutes; the other waits for it in the next step."""
    steps = [*every(1, until_s=100), *every(1, start_s=1600, until_s=1700)]
    return {0: sorted([*steps, (100.1, "pause"), (1600.0, "resume")]), 1: steps}


def paused_checkpoints() -> dict[int, Life]:
    """A checkpoint of half an hour each hour, all ranks in it for not quite the same time."""
    return {
        rank: [
            *every(2, until_s=1800),
            (1800.5 + rank, "pause"),
            (3600.5 - rank, "resume"),
            *every(2, start_s=3700, until_s=5400),
            (5400.1, "pause"),
            (7199.0, "resume"),
        ]
        for rank in range(4)
    }


def rank_0_saves() -> dict[int, Life]:
    """Only one rank is in the checkpoint, the others wait for it at the next step."""
    steps, again = list(every(1, until_s=600)), list(every(1, start_s=3000))
    return {0: [*steps, (600.1, "pause"), (2999.0, "resume"), *again], 1: steps + again, 2: steps + again}


def ranks_end() -> dict[int, Life]:
    return {rank: [*every(1, until_s=1000 * (rank + 1)), (1000.5 * (rank + 1), "end")] for rank in range(4)}


def restarts() -> dict[int, Life]:
    """Three attempts, each with a start-up of twenty minutes."""
    return {
        rank: [
            event
            for begin_s in (0, 2400, 4800)
            for event in ((begin_s, "restart"), *every(1, start_s=begin_s + 1200, until_s=begin_s + 2399))
        ]
        for rank in range(2)
    }


def apart() -> dict[int, Life]:
    """Ranks that never meet before the end, where the fastest waits for the slowest."""
    return {0: list(every(1, until_s=600)), 1: list(every(12)), 2: list(every(500))}


SHAPES = {
    "slow, with outliers": lambda: lockstep(4, slow_with_outliers()),
    "ever slower": lambda: lockstep(2, ever_slower()),
    **{
        shape.__name__: shape
        for shape in (
            long_start,
            one_starts_late,
            rank_0_evaluates,
            two_ranks_one_evaluates,
            all_evaluate,
            paused_checkpoints,
            slow_checkpoints_of_rank_0,
            rank_0_saves,
            ranks_end,
            restarts,
            apart,
        )
    },
    "no rank ever begins": lambda: {0: [], 1: []},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_two_hours_of_a_slow_run_raise_no_alarm(shape):
    assert watch_run(shape()) is None


@settings(max_examples=30, deadline=None)
@given(
    gaps_s=st.lists(st.floats(0.05, 599), min_size=1, max_size=30),
    num_ranks=st.integers(1, 8),
    hang_after=st.integers(1, 30),
    timeout=st.sampled_from(["auto", 700.0]),
)
def test_any_run_is_left_alone_until_it_hangs_and_then_found_in_time(gaps_s, num_ranks, hang_after, timeout):
    gaps_s = gaps_s[:hang_after]
    last_s = sum(gaps_s)
    limit_s = 700.0 if timeout == 700.0 else max(600.0, 20 * (max(gaps_s[1:], default=0) + 0.01))
    found = watch_run(lockstep(num_ranks, gaps_s), timeout=timeout, until_s=last_s + limit_s + 2)
    assert found is not None
    now_s, hang = found
    assert now_s >= last_s + 600
    assert {each.beat.rank for each in hang.silent} == set(range(num_ranks))
    assert hang.suspects == tuple(range(num_ranks))
    assert hang.since_ns == pytest.approx(AT_START_NS + last_s * S, abs=0.02 * S)


def stuck(lives: dict[int, list], at_s: Mapping[int, float]) -> dict[int, list]:
    return {rank: [event for event in life if event[0] <= at_s.get(rank, 1e9)] for rank, life in lives.items()}


def stuck_in_evaluation() -> dict[int, Life]:
    """Rank 3 stops in a loop that the others finish."""
    return stuck(all_evaluate(), {0: 4000, 1: 4000, 2: 4000, 3: 1000})


def stuck_before_a_checkpoint() -> dict[int, Life]:
    """Rank 1 does not arrive at the checkpoint in which rank 0 waits for it; only writing is a pause."""
    steps = list(every(1, until_s=100))
    return {0: steps, 1: steps}


def stuck_after_a_checkpoint() -> dict[int, Life]:
    return {rank: [*every(1, until_s=50), (50.5, "pause"), (100.0, "resume")] for rank in range(2)}


def stuck_behind() -> dict[int, Life]:
    """Rank 2 stops and nobody needs it: the others go on."""
    return stuck({rank: list(every(1)) for rank in range(4)}, {2: 100})


def stuck_between_reduction_and_step() -> dict[int, Life]:
    return stuck({rank: list(every(1)) for rank in range(4)}, {0: 100, 1: 100, 2: 99, 3: 100})


def stuck_evaluator() -> dict[int, Life]:
    """Rank 0, which evaluated alone, stops; the others wait longer already."""
    return stuck(rank_0_evaluates(), dict.fromkeys(range(4), 2000))


def stuck_last_of_all() -> dict[int, Life]:
    """The others have ended."""
    return {0: [*every(1, until_s=50), (51, "end")], 1: list(every(1, until_s=100))}


def stuck_after_a_restart() -> dict[int, Life]:
    return {rank: [*every(1, until_s=50), (60, "restart"), *every(1, start_s=80, until_s=100)] for rank in range(2)}


def stuck_beside_a_rank_without_steps() -> dict[int, Life]:
    """Rank 2 serves data and never beats."""
    return {0: list(every(1, until_s=100)), 1: list(every(1, until_s=100)), 2: []}


@pytest.mark.parametrize("timeout", ["auto", 20.0])
@pytest.mark.parametrize(
    ("shape", "since_s", "suspects"),
    [
        (stuck_in_evaluation, 996, (3,)),
        (stuck_before_a_checkpoint, 100, (0, 1)),
        (stuck_after_a_checkpoint, 100, (0, 1)),
        (stuck_behind, 100, (2,)),
        (stuck_between_reduction_and_step, 100, (2,)),
        (stuck_last_of_all, 100, (1,)),
        (stuck_after_a_restart, 100, (0, 1)),
        (stuck_beside_a_rank_without_steps, 100, (0, 1)),
    ],
)
def test_a_hang_is_found_in_time_and_the_right_rank_named(shape, since_s, suspects, timeout):
    limit_s = 600.0 if timeout == "auto" else timeout
    found = watch_run(shape(), timeout=timeout)
    assert found is not None
    now_s, hang = found
    assert since_s + limit_s - 1 <= now_s <= since_s + limit_s + 2
    assert hang.suspects == suspects
    assert hang.timeout_s == limit_s


def test_an_evaluator_that_stops_is_found_by_the_timeout_that_its_slow_heartbeats_made():
    now_s, hang = watch_run(stuck_evaluator())
    assert 2000 + 20 * 200 - 1 <= now_s <= 2000 + 20 * 200 + 2
    assert hang.suspects == (0, 1, 2, 3)


def test_a_hang_names_who_is_silent_since_when_and_how_far_each_is():
    lives = {0: [(1, "step"), (2, "step")], 1: [(1, "step"), (1.5, "beat"), (2.25, "step")]}
    now_s, hang = watch_run(lives, timeout=5, until_s=20)
    assert now_s == 7.5  # rank 1 was busy until then, and rank 0 may have waited for it
    assert hang.since_ns == AT_START_NS + 2.25 * S
    first, second = hang.silent
    assert (first.beat.rank, first.beat.pid, first.silent_s, first.beat.steps) == (0, 100, 5.5, 2)
    assert (second.beat.rank, second.beat.pid, second.silent_s, second.beat.steps) == (1, 200, 5.25, 2)


def test_off_never_tells_a_hang():
    assert watch_run({0: [(1, "step")]}, timeout=None) is None
    assert HangWatch(None).timeout_s is None


def test_auto_is_twenty_times_the_slowest_beat_of_any_rank_also_of_one_that_ended():
    watch = HangWatch()
    assert watch.timeout_s == 600
    beat = Beat(rank=0, pid=1, beats=2, steps=2, last_ns=S, slowest_ns=40 * S, state="going")
    watch.look(2 * S, [beat])
    assert watch.timeout_s == 800
    watch.look(3 * S, [])
    assert watch.timeout_s == 800


def looks(*spans: tuple[float, float]) -> list[float]:
    return [start_s + LOOK_S * n for start_s, end_s in spans for n in range(int((end_s - start_s) / LOOK_S) + 1)]


def test_a_job_that_was_suspended_with_its_supervisor_is_not_silent_and_no_slow_step_was_seen():
    """Slurm's gang scheduling, Ctrl-Z or a paused virtual machine, for an hour."""
    steps = [*every(1, until_s=100), *every(1, start_s=3700, until_s=3800)]
    assert watch_run({0: steps}, looks_s=looks((0, 100.5), (3700.5, 4399))) is None
    now_s, hang = watch_run({0: steps}, looks_s=looks((0, 100.5), (3700.5, 5000)))
    assert now_s == 4400
    assert hang.timeout_s == 600


def test_a_rank_that_hung_before_the_suspension_is_found_after_it():
    now_s, _ = watch_run({0: list(every(1, until_s=100))}, looks_s=looks((0, 400), (4000, 5000)))
    assert now_s == pytest.approx(4300, abs=1)


def test_ranks_of_another_node_count_by_their_changes_not_by_their_clock():
    watch = HangWatch(5)

    def far(number: int) -> Beat:
        return Beat(rank=9, pid=7, beats=number, steps=number, last_ns=number, slowest_ns=0, state="going")

    assert all(watch.look(now * S, [far(now)]) is None for now in range(100, 130))
    told = [now for now in range(130, 140) if watch.look(now * S, [far(129)])]
    assert told[0] == 134
