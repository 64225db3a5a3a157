"""Whatever fails: one block that names the first rank to fail, what it failed of, and shows where."""

from __future__ import annotations

import json
import socket

import pytest

from tests.launcher.faults.corpus import CASES, PROGRAM, Case
from tests.support.launching import launch

ALWAYS = ("value-error", "segmentation-fault", "leaves-early", "does-not-take-part")
"""The faults of every test run; the others are deep."""


def marked(case: Case, nproc: int):
    marks = () if nproc == 2 and case.name in ALWAYS else (pytest.mark.deep,)
    return pytest.param(case, nproc, id=f"{case.name}-{nproc}", marks=marks)


@pytest.mark.parametrize(("case", "nproc"), [marked(case, nproc) for case in CASES for nproc in (2, 4)])
def test_the_report_is_right(tmp_path, case, nproc):
    done = launch(
        *("--nproc", str(nproc), "--device", "cpu", "--run-dir", "run", "--grace", "5"),
        *(PROGRAM, case.name, case.struck(nproc)),
        cwd=tmp_path,
        deadline_s=90,
    )
    report = done.stderr[done.stderr.index("root cause: ") :]
    first = report.splitlines()[0]
    assert case.fits(first, case.struck(nproc)), report
    assert f" on {socket.gethostname()}: " in first
    assert done.returncode == case.exit_code, report

    record = json.loads((tmp_path / "run" / "failure.json").read_text())["root_cause"]
    assert first.endswith(f"{record['kind']}: {record['message']}")
    assert {"rank", "host", "kind", "exit_code", "traceback", "step"} <= record.keys()
    where = f"in {case.name.replace('-', '_')}"
    if case.is_python:
        assert f'File "{PROGRAM}"' in report, report
        assert where in report or "in __getitem__" in report, report
        assert record["traceback"]
    if case.is_crash:
        assert where in report or "in _die" in report, report
