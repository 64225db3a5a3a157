"""SPMD with the real torch_xla: one process, four virtual CPU devices, each batch divided. One launch does it all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.launching import launch
from tests.training import xla_spmd

pytestmark = [pytest.mark.xla, pytest.mark.usefixtures("xla_device")]


@pytest.fixture(scope="module")
def spmd(tmp_path_factory):
    """Return what the program saw on four devices, and what XLA compiled for them."""
    folder = tmp_path_factory.mktemp("spmd")
    env = {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": "4",
        "XLA_FLAGS": f"--xla_dump_to={folder}/hlo --xla_dump_hlo_as_text {os.environ.get('XLA_FLAGS', '')}",
    }
    program = Path(xla_spmd.__file__)
    done = launch("--device", "xla", "--xla-spmd", "--run-dir", "run", program, cwd=folder, env=env, deadline_s=110)
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    compiled = [path.read_text() for path in (folder / "hlo").glob("*after_optimizations.txt")]
    return found, compiled


@pytest.fixture(scope="module", params=list(xla_spmd.OPTIONS))
def both(request, spmd, xla_device):
    """Return what came of one way to train on four devices, and on one, which is this process's."""
    return spmd[0][request.param], xla_spmd.train(xla_device, **xla_spmd.OPTIONS[request.param])


def test_one_rank_computes_on_all_devices(spmd):
    found, _ = spmd
    assert (found["devices"], found["spmd"]) == (4, True)
    assert found["world"] == [0, 1, "xla:0"]


def test_batches_are_divided_and_the_rest_is_whole(spmd):
    x, y, loss, weight = spmd[0]["divided"]
    assert x == "{devices=[4,1]0,1,2,3}"
    assert y == "{devices=[4]0,1,2,3}"
    assert {loss, weight} <= {"", "{replicated}"}


def test_the_compiled_step_reduces_over_the_devices(spmd):
    steps = [text for text in spmd[1] if "all-reduce" in text]
    assert steps
    assert all("num_partitions=4" in text for text in steps)


def test_losses_and_weights_are_those_of_one_device(both):
    found, expected = both
    assert found["losses"].keys() == {str(n) for n in range(1, 13)}
    assert list(found["losses"].values()) == pytest.approx(list(expected["losses"].values()), abs=1e-5)
    assert found["steps"] == expected["steps"]
    for mine, theirs in zip(found["weights"], expected["weights"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert found["evaluated"] == pytest.approx(expected["evaluated"], abs=1e-5)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(spmd):
    whole, parts = spmd[0]["resumed"]["whole"], spmd[0]["resumed"]["parts"]
    assert len(whole["losses"]) == 18
    assert parts["losses"] == whole["losses"]
    assert parts["weights"] == whole["weights"]
