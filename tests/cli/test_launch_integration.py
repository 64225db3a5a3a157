"""A launch from inside a worker of another."""

from __future__ import annotations

import sys

import pytest

from tests.support.launching import command, launch

OUTER = """
import os, subprocess, sys
assert os.environ["DISTRAIN_RUN_DIR"].endswith("outer")
sys.exit(subprocess.run(sys.argv[1:], check=False).returncode)
"""

INNER = """
import os
rank, world, run_dir = (os.environ[name] for name in ("RANK", "WORLD_SIZE", "DISTRAIN_RUN_DIR"))
open(f"inner-{os.path.basename(run_dir)}-{rank}-{world}", "w").close()
"""


@pytest.mark.deep
def test_each_worker_may_launch_a_run_of_its_own(tmp_path):
    (tmp_path / "outer.py").write_text(OUTER)
    (tmp_path / "inner.py").write_text(INNER)
    inner = command("--nproc", "1", "--name", "mine", "inner.py")
    done = launch("--nproc", "2", "--device", "cpu", "--run-dir", "outer", "outer.py", *inner, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = sorted(path.name for path in tmp_path.glob("inner-*"))
    assert len(found) == 2
    assert all("-mine-" in name and name.endswith("-0-1") for name in found)
    assert sys.executable in inner
