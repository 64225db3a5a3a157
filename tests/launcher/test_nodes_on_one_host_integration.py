"""Two launches on one host that make one run. With hosts of their own: test_nodes_integration."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.support.launching import command, environment
from tests.support.processes import run

pytestmark = pytest.mark.deep

RANK_0_ENDS_FIRST = """
import os, pathlib, time
if os.environ["RANK"] == "0":
    pathlib.Path("first").touch()
else:
    while not pathlib.Path("first").exists():
        time.sleep(0.05)
    time.sleep(3)
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_the_node_where_all_meet_may_finish_first(tmp_path):
    (tmp_path / "train.py").write_text(RANK_0_ENDS_FIRST)
    meet = ["--nnodes", "2", "--device", "cpu", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--run-dir", "run"]
    both = f"""
import subprocess, sys
nodes = [subprocess.Popen([*{command(*meet)!r}, "--node-rank", str(rank), "train.py"]) for rank in (0, 1)]
sys.exit(max(node.wait() for node in nodes))
"""
    done = run([sys.executable, "-c", both], cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, deadline_s=100)
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / "run" / path).read_text() for path in ("launcher.log", "node-1/launcher.log")]
    assert not [log for log in logs if "Traceback" in log]
