"""A dry run beside the run itself."""

from __future__ import annotations

import json
import os
import sys

from tests.support.launching import environment, launch
from tests.support.processes import run

DUMP = """
import json, os, sys
with open(f"{sys.argv[1]}/{os.environ['RANK']}.json", "w") as file:
    json.dump(dict(os.environ), file)
"""


def test_the_shown_environment_is_the_one_that_workers_get(tmp_path):
    (tmp_path / "dump.py").write_text(DUMP)
    words = ["--nproc", "2", "--device", "cpu", "--max-restarts", "1", "dump.py", tmp_path]
    shown = json.loads(launch("--dry-run", "--json", *words, cwd=tmp_path).stdout)
    assert launch(*words, cwd=tmp_path).returncode == 0
    before = {name for name, value in {**os.environ, **environment()}.items() if value is not None}
    for rank in shown["ranks"]:
        expected = {**shown["environment"], **rank["environment"]}
        got = json.loads((tmp_path / f"{rank['rank']}.json").read_text())
        assert set(got) - before - {"TORCHINDUCTOR_CACHE_DIR"} == set(expected) - before
        for name, value in expected.items():
            assert got[name] == value or value.startswith("(chosen"), name


def test_a_dry_run_imports_no_torch_and_starts_nothing(tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit(3)")
    code = "import sys; from distrain.cli import main; main(sys.argv[1:]); print(*sorted(sys.modules), file=sys.stderr)"
    done = run([sys.executable, "-c", code, "launch", "--dry-run", "train.py"], cwd=tmp_path, env=environment())
    assert done.returncode == 0
    heavy = {"torch", "numpy", "asyncio", "subprocess", "distrain.launcher"}
    assert not heavy & set(done.stderr.split())
    assert not (tmp_path / "runs").exists()
