import os
import sys

import pytest

from tests.support import faults
from tests.support.faults import Fault
from tests.support.processes import run

SCRIPT = """
import torch
weight = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.SGD([weight], lr=0.1)
for step in range(1, 4):
    weight.grad = torch.ones(1)
    optimizer.step()
    print("finished", step, flush=True)
"""


def test_text_round_trip() -> None:
    fault = Fault(kind="exit", rank=3, step=17, attempt=None, code=4)
    assert Fault.from_text(fault.to_text()) == fault


def test_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown fault 'explode'; there are exception, exit"):
        Fault(kind="explode")


def test_it_is_due_at_its_rank_step_and_attempt_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault(kind="exit", rank=1, step=2, attempt=1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert fault.is_due(2)
    assert not fault.is_due(1)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not fault.is_due(2)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("RANK", "0")
    assert not fault.is_due(2)


@pytest.mark.parametrize(
    ("fault", "returncode", "last"),
    [
        (Fault(kind="exit", step=2, code=7), 7, "finished 1"),
        (Fault(kind="signal", step=3, code=9), -9, "finished 2"),
        pytest.param(Fault(kind="exception", step=1), 1, "", marks=pytest.mark.deep),
        pytest.param(Fault(kind="exit", step=2, code=7, rank=1), 0, "finished 3", marks=pytest.mark.deep),
    ],
)
def test_a_script_fails_at_the_wanted_optimizer_step(tmp_path, fault: Fault, returncode: int, last: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    finished = run([sys.executable, faults.__file__, os.fspath(script)], env=faults.environment(fault))
    finished.check(returncode)
    assert finished.stdout.strip().rpartition("\n")[2] == last
