"""What `--smoke` makes of the other options."""

from __future__ import annotations

import pytest

from distrain.errors import UsageError
from distrain.plan import Program, resolve

SCRIPT = Program(kind="script", target="train.py")


def plan(*flags, environ=None, program=SCRIPT):
    return resolve(program, {"smoke": "1", **dict(flags)}, environ=environ or {})


def test_it_is_two_cpu_ranks_on_this_node_that_may_be_started_twice():
    found = plan()
    assert (found.smoke, found.device, found.nproc, found.max_restarts) == (True, "cpu", 2, 1)
    assert (found.meeting, found.run_dir, found.warm, found.warnings) == (None, None, True, ())
    assert found.hang_timeout == 120
    assert not resolve(SCRIPT, environ={}).smoke


def test_the_variable_asks_for_one_too():
    assert resolve(SCRIPT, environ={"DISTRAIN_SMOKE": "1"}).smoke


def test_another_number_of_ranks_is_respected():
    assert plan(("nproc", "3")).nproc == 3
    found = plan(environ={"DISTRAIN_NPROC": "8", "DISTRAIN_DEVICE": "cuda"})
    assert (found.nproc, found.device) == (2, "cpu")
    assert found.warnings == (
        "DISTRAIN_DEVICE (cuda) is ignored: --smoke computes on the CPU",
        "DISTRAIN_NPROC (8) is ignored: --smoke starts 2 ranks",
    )


def test_in_an_allocation_it_is_on_this_node_alone():
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_PROCID": "1"}
    found = plan(environ={**slurm, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"})
    assert (found.meeting, found.placement, found.nproc) == (None, None, 2)


def test_what_it_does_not_do_is_warned_of():
    found = plan(("nnodes", "2"), ("run_dir", "runs/mine"), ("max_restarts", "5"))
    assert (found.meeting, found.run_dir, found.max_restarts) == (None, None, 1)
    assert len(found.warnings) == 3
    assert "--run-dir (runs/mine) is ignored: --smoke keeps nothing and starts at most twice" in found.warnings


@pytest.mark.parametrize(
    ("flags", "program", "said"),
    [
        ([("device", "cuda")], SCRIPT, "--device: got 'cuda', and --smoke computes on the CPU"),
        ([("no_fork_server", "1")], SCRIPT, "--no-fork-server starts plain ones"),
        ([], Program(kind="command", target="train"), "--no-python starts plain ones"),
        ([], Program(kind="script", target="train.py", interpreter="/opt/python"), "PYTHON_EXEC starts plain ones"),
    ],
)
def test_what_it_cannot_do_is_refused(flags, program, said):
    with pytest.raises(UsageError, match=r".*") as error:
        plan(*flags, program=program)
    assert said in str(error.value)


def test_the_workers_are_told_where_to_leave_what_they_find():
    from distrain.plan.environment import shared_variables

    assert shared_variables(plan(), "/run", "DISTRAIN_RUN_DIR")["DISTRAIN_SMOKE_TEST"] == "/run/smoke"
    assert "DISTRAIN_SMOKE_TEST" not in shared_variables(resolve(SCRIPT, environ={}), "/run", "DISTRAIN_RUN_DIR")
