"""A plan as it is shown; each profile that comes with distrain, on a machine that is made up."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from distrain.plan import Program, detect, render, resolve
from distrain.rundir import ENV_RUN_DIR
from tests.plan.test_cluster import STEP

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
