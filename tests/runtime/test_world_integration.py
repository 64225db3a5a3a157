import json
import os
import sys

import pytest
import torch
import torch.distributed as dist

import distrain
from distrain.runtime import from_main, gather_on_main, sum_on_main
from tests.support.processes import run
from tests.support.ranks import run_ranks

FAILING = """
    import sys, time, torch, torch.distributed as dist, distrain
    how = sys.argv[1]
    def body(world):
        if world.rank == 1:
            if how == "error":
                raise ValueError("rank 1 is lost")
            if how == "interrupt":
                raise KeyboardInterrupt
            sys.exit(3)
        try:
            dist.all_reduce(torch.ones(1))   # rank 1 never joins
        finally:
            time.sleep(30)                   # of those that have ended, torchrun names any
    if sys.argv[2] == "with":
        with distrain.init() as world:
            body(world)
    else:
        body(distrain.init())
"""


two = pytest.mark.distributed(nproc=2)


def gathered(value):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


@two
def test_two_ranks_agree_on_a_run_directory_that_one_asks_for_first(tmp_path, monkeypatch):
    monkeypatch.delenv("DISTRAIN_RUN_DIR")
    monkeypatch.chdir(tmp_path)
    with distrain.init() as world:
        if world.rank == 1:  # nobody waits for the other
            assert world.run_dir.parent == tmp_path / "runs"
        world.barrier()
        assert gathered(world.run_dir) == [world.run_dir] * 2


@two
def test_two_ranks_draw_the_same_and_talk_to_the_main_one():
    with distrain.init(seed=3) as world:
        assert world.rank == int(os.environ["RANK"]) == dist.get_rank()
        assert from_main(world.rank) == 0
        assert gather_on_main(world.rank) == ([0, 1] if world.is_main else [])
        total = sum_on_main(torch.tensor([float(world.rank + 1)]))
        assert not world.is_main or total.item() == 3
        assert len(set(gathered(torch.rand(1).item()))) == 1


@two
def test_a_world_can_be_opened_again_over_the_same_store():
    for _ in range(2):
        with distrain.init():
            one = torch.ones(1)
            dist.all_reduce(one)
            assert one.item() == 2
        assert not dist.is_initialized()


@two
def test_a_good_exit_leaves_the_world():
    with pytest.raises(SystemExit), distrain.init():
        raise SystemExit(0)
    assert not dist.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "style", "exit_code"),
    [
        pytest.param("error", "with", 1, marks=pytest.mark.deep),
        ("exit", "with", 3),
        pytest.param("exit", "atexit", 3, marks=pytest.mark.deep),
    ],
)
def test_a_rank_that_fails_ends_at_once_with_its_own_exit_code(tmp_path, how, style, exit_code):
    done = run_ranks(tmp_path, FAILING, args=[how, style], deadline_s=60)
    assert done.returncode == 1
    root_cause = done.stderr.partition("Root Cause")[2]
    assert f"exitcode  : {exit_code} " in root_cause, done.stderr
    assert "rank      : 1 " in root_cause
    assert how != "error" or "ValueError: rank 1 is lost" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("body", "num_ranks", "num_worlds"),
    [
        ("in_with", 2, 2),
        pytest.param("in_with", 4, 6, marks=pytest.mark.deep),
        pytest.param("with_slow_peers", 3, 6, marks=pytest.mark.deep),
        pytest.param("at_exit", 2, 6, marks=pytest.mark.deep),
    ],
)
def test_worlds_end_without_abort_or_hang(body, num_ranks, num_worlds):
    words = [sys.executable, "-m", "tests.support.forked_ranks", body, str(num_ranks), str(num_worlds)]
    done = run(words, deadline_s=280, env={"OMP_NUM_THREADS": "1"}).check()
    assert json.loads(done.stdout) == {"0": num_ranks * num_worlds}, done.stderr
