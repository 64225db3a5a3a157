"""Nodes that share a file system do not take each other's run directory."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from distrain.errors import RunDirError
from distrain.launcher.node_run_dir import open_run_dir
from distrain.plan import Program, resolve


def opened(stack, tmp_path: Path, is_head: bool, **flags):
    plan = resolve(
        Program(kind="script", target="train.py", args=(), interpreter="python"), flags, environ={}, cwd=tmp_path
    )
    record, shared = open_run_dir(plan, is_head=is_head)
    stack.callback(record.close)
    return record.rundir.root, shared


@pytest.fixture
def stack():
    with contextlib.ExitStack() as made:
        yield made


TWO = {"nnodes": "2", "rdzv_endpoint": "h0:29400", "run_dir": "run"}


def test_node_0_takes_the_runs_own_and_the_others_one_in_it(tmp_path, stack):
    run = tmp_path / "run"
    assert opened(stack, tmp_path, True, **TWO, node_rank="0") == (run, run)
    assert opened(stack, tmp_path, False, **TWO, node_rank="1") == (run / "node-1", run)
    with pytest.raises(RunDirError, match="belongs to a run"):
        opened(stack, tmp_path, False, **TWO, node_rank="1")


def test_without_node_ranks_the_host_names_it(tmp_path, stack):
    run, host = tmp_path / "run", socket.gethostname()
    assert opened(stack, tmp_path, True, **TWO) == (run, run)
    assert opened(stack, tmp_path, False, **TWO) == (run / f"node-{host}", run)
    assert opened(stack, tmp_path, False, **TWO) == (run / f"node-{host}-2", run)


def test_a_run_with_an_id_is_named_after_it(tmp_path, stack, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"nnodes": "2", "rdzv_endpoint": "h0:29400", "rdzv_id": "slurm-77", "node_rank": "1"}
    run = tmp_path / "runs" / "slurm-77-train"
    assert opened(stack, tmp_path, False, **flags) == (run / "node-1", run)


def test_one_node_is_as_it_was(tmp_path, stack):
    run = tmp_path / "run"
    assert opened(stack, tmp_path, False, run_dir="run") == (run, run)


@pytest.mark.parametrize(
    ("step", "name"), [({"SLURM_STEP_ID": "1", "SLURM_PROCID": "0"}, "slurm-17.1-train"), ({}, None)]
)
def test_alone_in_a_step_of_slurm_the_run_is_found_again(tmp_path, monkeypatch, stack, step, name):
    """In the batch script itself it is not: all that the script starts would be one run."""
    environ = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1", **step}
    plan = resolve(Program(kind="script", target="train.py"), {}, environ=environ, cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    record, shared = open_run_dir(plan, is_head=False)
    stack.callback(record.close)
    assert shared.parent == tmp_path / "runs"
    assert shared.name == name or (name is None and not shared.name.startswith("slurm-"))
    later = resolve(
        Program(kind="script", target="train.py"), {}, environ={**environ, "SLURM_RESTART_COUNT": "1"}, cwd=tmp_path
    )
    again, _ = open_run_dir(later, is_head=False)
    stack.callback(again.close)
    assert (again.rundir.root == shared) == (name is not None)
    assert bool(again.warning) == (name is not None)
