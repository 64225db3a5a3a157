"""`--xla-spmd`: one process for all XLA devices."""

from __future__ import annotations

import pytest

from distrain.plan import Program, resolve
from distrain.plan.environment import shared_variables

SCRIPT = Program(kind="script", target="train.py")


@pytest.mark.parametrize("environ", [{"DISTRAIN_XLA_SPMD": "1"}, {"DISTRAIN_XLA_SPMD": "1", "PJRT_DEVICE": "TPU"}])
def test_the_variable_asks_for_it_too_and_workers_are_told(environ):
    plan = resolve(SCRIPT, {"device": "xla"}, environ=environ)
    assert (plan.xla_spmd, plan.nproc) == (True, 1)
    assert plan.settings["nproc"].detail == "DISTRAIN_XLA_SPMD: one for all XLA devices"
    assert shared_variables(plan, "/run", "DISTRAIN_RUN_DIR")["DISTRAIN_XLA_SPMD"] == "1"


def test_a_launch_inside_a_worker_does_not_inherit_it():
    worker = {"RANK": "0", "TORCHELASTIC_RUN_ID": "x", "DISTRAIN_XLA_SPMD": "1"}
    assert not resolve(SCRIPT, {"device": "xla"}, environ=worker).xla_spmd
