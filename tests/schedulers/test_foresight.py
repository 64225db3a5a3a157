"""What a launch would refuse on its node is refused where the job is submitted; what only the node knows is not."""

import pytest

from distrain.errors import UsageError
from distrain.plan import Program, detect, resolve
from distrain.schedulers.slurm.foresight import foresee

PROGRAM = Program(kind="script", target="train.py")
STEP = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "a,b",
    "SLURM_JOB_NODELIST": "a,b",
    "SLURM_NODEID": "0",
}


@pytest.fixture(autouse=True)
def no_accelerator_is_looked_up_here(monkeypatch):
    for name in ("visible_gpus", "visible_chips", "tpu"):
        monkeypatch.setattr(detect, name, None)


def plan(flags=None, environ=None, passed=(), **options):
    return foresee(PROGRAM, flags or {}, environ or {}, options=options, passed=passed)


@pytest.mark.parametrize(
    "flags",
    [
        {"hang_timeout": "foo"},
        {"nnodes": "x"},
        {"nnodes": "2:1"},
        {"nproc": "-1"},
        {"max_restarts": "x"},
        {"log_ranks": "7", "nproc": "2"},
        {"rdzv_conf": "x"},
        {"retry": "yes"},
        {"signals_to_handle": "SIGFOO"},
        {"profile": "nope"},
        {"device": "gpu"},
        {"rdzv_endpoint": "a:b:c"},
    ],
)
def test_the_words_are_those_of_the_launch(monkeypatch, flags):
    with pytest.raises(UsageError) as here:
        plan(flags, nodes="2")
    monkeypatch.undo()
    with pytest.raises(UsageError) as there:
        resolve(PROGRAM, {"device": "cpu", **flags}, environ=STEP)
    assert str(here.value) == str(there.value)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ({"device": "cuda"}, {}),
        ({"nproc": "gpu"}, {}),
        ({"device": "cuda", "nproc": "8"}, {}),
        ({"xla_spmd": "1"}, {}),
        ({"device": "xla", "nproc": "4"}, {}),
        ({"device": "xla"}, {"nodes": "2"}),
        ({"numa_binding": "node"}, {}),
        ({"log_ranks": "7"}, {}),
        ({"nnodes": "3"}, {"nodes": "1-4"}),
        ({"nnodes": "1:4"}, {"nodes": "4"}),
        ({"node_rank": "0"}, {}),
        ({"standalone": "1", "node_rank": "0"}, {"nodes": "1"}),
        ({"standalone": "1"}, {}),
    ],
)
def test_what_only_the_node_can_tell_is_not_refused(flags, options):
    plan(flags, **options)


def test_gpus_that_are_asked_for_are_counted():
    with pytest.raises(UsageError, match="got 8 ranks for 4 visible GPUs"):
        plan({"device": "cuda", "nproc": "8"}, gpus_per_node="a100:4")
    assert plan({"nproc": "8"}, gpus_per_node="4").warnings
    assert not plan({"nproc": "4"}, gpus_per_node="4").warnings


@pytest.mark.parametrize(
    ("flags", "passed", "said"),
    [
        ({"nnodes": "4"}, (), r"got '4', and the allocation has 2 \(--nodes 2\)"),
        ({"nnodes": "1"}, (), "Leave it out to join them all"),
        ({"nnodes": "2"}, ["-N", "3"], r"Slurm has started 3 processes \(--nodes 3\)"),
        ({"device": "xla", "xla_spmd": "1"}, (), "runs on one host so far, and there are 2 hosts"),
        ({"node_rank": "0"}, (), "--node-rank: got 0, and every node of the job would have it"),
        ({"local_addr": "10.0.0.1"}, (), "--local-addr: got 10.0.0.1, and every node"),
        ({"standalone": "1"}, (), r"--standalone: every node of the job would train by itself \(--nodes 2\)"),
        ({"standalone": "1", "node_rank": "0"}, ["-N1-3"], r"--standalone: .* \(--nodes 1-3\)"),
    ],
)
def test_what_contradicts_the_nodes_is_refused(flags, passed, said):
    with pytest.raises(UsageError, match=said):
        plan(flags, nodes="2", passed=passed)


def test_where_a_number_of_tasks_is_given_the_nodes_are_not_counted():
    plan({"nnodes": "16"}, nodes="2", passed=["--ntasks-per-node=8"])


def test_variables_count_where_the_job_gets_them():
    with pytest.raises(UsageError, match="DISTRAIN_HANG_TIMEOUT: got 'foo'"):
        plan(environ={"DISTRAIN_HANG_TIMEOUT": "foo"})
    plan(environ={"DISTRAIN_HANG_TIMEOUT": "foo"}, passed=["--export=NONE"])
    plan(environ=STEP, nodes="1")
