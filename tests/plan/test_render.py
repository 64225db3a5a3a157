"""A plan as it is shown; each profile that comes with distrain, on a machine that is made up."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from distrain.plan import Program, detect, render, resolve
from distrain.rundir import ENV_RUN_DIR
from tests.plan.test_cluster import A_TASK_A_RANK, JOB, OPEN_MPI, STEP

PROFILES = Path(__file__).parents[2] / "launch/profiles"

PROGRAM = Program(kind="script", target="train.py", args=("--lr", "0.1"), interpreter="/usr/bin/python3")

MEET = {"rdzv_endpoint": "node0:29400", "rdzv_id": "run1"}

GIVEN = {"gpu-8-elastic": (MEET, {}), "slurm-2x8": ({}, STEP)}
"""What a profile leaves to the command line, or to the scheduler."""


@pytest.fixture
def made_up_machine(monkeypatch):
    monkeypatch.setattr(detect, "visible_gpus", lambda environ: 8)
    monkeypatch.setattr(detect, "visible_chips", lambda environ: (8, "8 TPU chips"))
    monkeypatch.setattr(detect, "visible_cpus", lambda: 64)
    monkeypatch.setattr(detect, "available_cpus", lambda: 64)
    monkeypatch.setattr(sys, "executable", PROGRAM.interpreter)


def data(plan, environ):
    return render.as_data(plan, environ, host="here", run_dir_variable=ENV_RUN_DIR)


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.toml")))
def test_each_profile(made_up_machine, golden, name):
    flags, environ = GIVEN.get(name, ({}, {}))
    plan = resolve(PROGRAM, {"profile": name, **flags}, environ=environ, cwd=Path("/"))
    text = render.as_text(data(plan, environ)).replace(str(PROFILES), "launch/profiles")
    golden(f"dry-run-{name}.txt", text)


def test_the_json_says_all_that_the_text_says(made_up_machine):
    plan = resolve(PROGRAM, {"nproc": "2"}, environ={})
    said = json.loads(render.as_json(data(plan, {})))
    assert said["command"] == ["/usr/bin/python3", "-u", "train.py", "--lr", "0.1"]
    assert said["settings"]["nproc"] == {"value": 2, "origin": "flag", "detail": "--nproc"}
    assert said["settings"] == {name: dataclasses.asdict(setting) for name, setting in plan.settings.items()}
    assert [rank["environment"]["RANK"] for rank in said["ranks"]] == ["0", "1"]


def test_many_ranks_are_not_listed_one_by_one(made_up_machine):
    plan = resolve(PROGRAM, {"nproc": "40", "device": "cpu"}, environ={})
    assert "… and 24 more; --json shows all" in render.as_text(data(plan, {}))


def test_a_schedulers_variables_are_those_of_the_rank(made_up_machine):
    plan = resolve(PROGRAM, {"nproc": "2"}, environ=STEP)
    environment = data(plan, {**STEP, "SLURM_NTASKS": "2"})["ranks"][3]["environment"]
    assert (environment["RANK"], environment["SLURM_PROCID"], environment["SLURM_LOCALID"]) == ("3", "3", "1")
    assert environment["SLURM_NTASKS"] == "4"


def test_with_a_task_a_rank_each_has_its_own_local_rank_and_host(made_up_machine):
    said = data(resolve(PROGRAM, environ=A_TASK_A_RANK), A_TASK_A_RANK)
    local = [(rank["environment"]["LOCAL_RANK"], rank["environment"]["LOCAL_WORLD_SIZE"]) for rank in said["ranks"]]
    assert local == [(str(task), "4") for task in (0, 1, 2, 3, 0, 1, 2, 3)]
    assert [node["host"] for node in said["nodes"]] == ["gpu01"] * 4 + ["gpu02"] * 4


def test_what_only_the_scheduler_knows_is_not_made_up(made_up_machine):
    plan = resolve(PROGRAM, environ=OPEN_MPI)
    said = data(plan, OPEN_MPI)
    local = [rank["environment"]["LOCAL_RANK"] for rank in said["ranks"]]
    assert local == ["(as the scheduler places it)"] * 3 + ["1"]
    assert [node["host"] for node in said["nodes"]] == [None, None, None, "here"]


def test_on_xla_what_torch_xla_decides_is_not_made_up(made_up_machine):
    environ = {"PJRT_DEVICE": "TPU", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}
    for rank in data(resolve(PROGRAM, {"device": "xla"}, environ=environ), environ)["ranks"]:
        assert "TORCHELASTIC_SIGNALS_TO_HANDLE" not in rank["environment"]  # the torch of torch_xla does not set it
        assert rank["environment"]["RANK"] == "(as torch_xla numbers it)"
        assert rank["environment"]["MASTER_PORT"] == "(chosen at the start)"


def test_a_profiles_variables_count_in_the_ranks_own(made_up_machine, tmp_path):
    (tmp_path / "p.toml").write_text('[env]\nTORCH_NCCL_ASYNC_ERROR_HANDLING = "3"')
    plan = resolve(PROGRAM, {"profile": str(tmp_path / "p.toml")}, environ={})
    assert data(plan, {})["ranks"][0]["environment"]["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "3"


def test_warnings_are_shown(made_up_machine):
    said = data(resolve(PROGRAM, environ=JOB), JOB)
    assert f"\nwarning: {said['warnings'][0]}\n" in render.as_text(said)
