"""The supervisor's own end."""

from __future__ import annotations

import json
import sys

from tests.support.processes import run

BROKEN = """
import os, sys
from pathlib import Path
from distrain.launcher.supervisor import Supervisor
from distrain.plan import Program, resolve
from distrain.rundir import RunDir
from distrain.supervision.record import RunRecord

def fail():
    raise RuntimeError("nobody thought of this")

plan = resolve(Program(kind="script", target="train.py"), {"nproc": "1", "device": "cpu"}, environ={})
root = Path(sys.argv[1])
supervisor = Supervisor(plan, RunRecord(RunDir(root=root)), {}, door=None, shared_run_dir=root, warnings=[])
supervisor._start = fail
supervisor.run()
"""


def test_what_nobody_thought_of_is_shown_and_recorded(tmp_path):
    done = run([sys.executable, "-c", BROKEN, str(tmp_path)]).check(1)
    assert "RuntimeError: nobody thought of this" in done.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("broken", 1)
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])["event"] == "run_ended"
