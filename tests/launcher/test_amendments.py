"""What is different of torch and of pdb in a rank, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from distrain.supervision.heartbeat import ENV_HEARTBEAT, Board

DEBUGGED = """\
import os, sys
from distrain.launcher.amendments import amend_torch
from distrain.supervision import heartbeat
amend_torch()
heartbeat.open_slot(os.environ[heartbeat.ENV_HEARTBEAT])
heartbeat.heartbeat()
breakpoint()
print("went on")
input()
"""


def test_at_the_prompt_of_pdb_the_heartbeat_pauses(tmp_path):
    board = Board.create(1, tmp_path / "board")
    env = {**os.environ, ENV_HEARTBEAT: board.variable(0), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", DEBUGGED], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("p 'at the prompt'\n")
        process.stdin.flush()
        assert any("at the prompt" in line for line in process.stdout)
        assert board.look(0, rank=0).state == "paused"
        process.stdin.write("c\n")
        process.stdin.flush()
        assert any("went on" in line for line in process.stdout)
        assert board.look(0, rank=0).state == "going"
        process.stdin.write("\n")
    assert process.returncode == 0
