import random
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

import distrain
from distrain.errors import RunDirError, RuntimeStateError
from distrain.runtime import current_world, from_main, gather_on_main, rank_and_size, sum_on_main


def test_alone_torch_distributed_works_and_ends_with_the_block():
    hook = sys.excepthook
    with distrain.init(device="cpu") as world:
        total = torch.ones(2)
        dist.all_reduce(total)
        world.barrier()
        assert (world.rank, world.world_size, world.is_main, world.device) == (0, 1, True, torch.device("cpu"))
        assert current_world() is world
        assert rank_and_size() == (0, 1)
    assert total.tolist() == [1, 1]
    assert not dist.is_initialized()
    assert current_world() is None
    assert sys.excepthook is hook
    with pytest.raises(RuntimeStateError, match="closed"):
        world.barrier()


def test_a_world_can_be_made_again_but_not_twice_at_once():
    with distrain.init(device="cpu") as world, pytest.raises(RuntimeStateError, match="called already"):
        distrain.init(device="cpu")
    world.close()
    with distrain.init(device="cpu"):
        assert dist.is_initialized()


def test_after_an_error_in_the_block_the_group_stays_until_the_next_world():
    with pytest.raises(KeyError), distrain.init(device="cpu"):
        raise KeyError("x")
    assert dist.is_initialized()
    with distrain.init(device="cpu"):
        assert dist.get_world_size() == 1
    assert not dist.is_initialized()


def test_a_group_that_exists_is_taken_and_left():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.warns(UserWarning, match="timeout_s=…\\) is ignored"), distrain.init(timeout_s=5) as world:
            assert world.world_size == 1
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_the_seed_reaches_every_generator():
    drawn = []
    for seed in (7, 7, np.int64(7)):
        with distrain.init(seed=seed, device="cpu"):
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert len(set(drawn)) == 1
    with pytest.raises(ValueError, match="seed is -1"):
        distrain.init(seed=-1)
    with pytest.raises(TypeError, match="seed is 'a'; it must be a whole number"):
        distrain.init(seed="a")


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), "30", True])
def test_a_timeout_that_is_none_is_refused(timeout_s):
    with pytest.raises(ValueError, match=r"timeout_s is .*; it must be a number of seconds above 0"):
        distrain.init(timeout_s=timeout_s)
    assert not dist.is_initialized()


def test_the_run_directory_is_made_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTRAIN_RUN_DIR", raising=False)
    with distrain.init(device="cpu") as world:
        assert list(tmp_path.iterdir()) == []
        assert world.run_dir.is_dir()
        assert world.run_dir is world.run_dir
        assert world.run_dir.parent == tmp_path / "runs"
    with distrain.init(device="cpu", run_dir="here") as world:
        assert world.run_dir == tmp_path / "here"
    monkeypatch.setenv("DISTRAIN_RUN_DIR", str(tmp_path / "launched"))
    with pytest.warns(UserWarning, match="run_dir='here'\\) is ignored"), distrain.init(run_dir="here") as world:
        assert world.run_dir == tmp_path / "launched"
    (tmp_path / "file").touch()
    monkeypatch.setenv("DISTRAIN_RUN_DIR", str(tmp_path / "file" / "x"))
    with distrain.init(device="cpu") as world, pytest.raises(RunDirError, match="cannot be made: Not a directory"):
        _ = world.run_dir


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("meta", RuntimeStateError, "not supported by distrain .*; supported are cpu, cuda, mps, xla"),
        ("gpu", ValueError, "torch knows no device 'gpu'"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused(device, error, message):
    with pytest.raises(error, match=message):
        distrain.init(device=device)
    assert not dist.is_initialized()


def test_without_a_group_everything_is_rank_0s():
    assert from_main("x") == "x"
    assert gather_on_main(3) == [3]
    assert sum_on_main(torch.tensor([2.0])).tolist() == [2.0]
