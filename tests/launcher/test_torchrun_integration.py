"""torchrun's options, carried out: what each does to real workers."""

from __future__ import annotations

import json
import socket
import sys

import pytest

from tests.support.launching import launch
from tests.support.processes import free_port

HOST = socket.gethostname()

SPEAK = """
import json, os, sys
rank = os.environ["RANK"]
print(f"apple {rank}", f"pear {rank}", sep=chr(10))
print(f"plum {rank}", file=sys.stderr)
with open(f"{rank}.json", "w") as file:
    json.dump({"argv": sys.argv[1:], "role": os.environ["ROLE_NAME"], "local_rank": os.environ["LOCAL_RANK"],
               "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "restarts": os.environ["TORCHELASTIC_MAX_RESTARTS"],
               "name": __name__, "path": sys.path[0], "run_id": os.environ["TORCHELASTIC_RUN_ID"],
               "meet": f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"}, file)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "speak.py").write_text(SPEAK)
    return tmp_path


def run(folder, *options, script="speak.py", **options_of_launch):
    done = launch(
        "--nproc", "2", "--device", "cpu", "--run-dir", "run", *options, script, cwd=folder, **options_of_launch
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return done, said


def test_options_that_shape_the_workers_and_their_logs(folder):
    done, said = run(
        folder,
        *("--role", "trainer", "--max_restarts=2", "--monitor-interval", "0.05", "--start_method=fork"),
        *("--log-dir", "logs", "-r", "0:3,1:1", "-t", "0:1", "--duplicate-stdout-filters", "apple,zzz"),
        *("--virtual-local-rank", "--rdzv-id", "job/7", "--event-log-handler", "null"),
    )
    assert [each["role"] for each in said] == ["trainer"] * 2
    assert [each["restarts"] for each in said] == ["2"] * 2
    assert [(each["local_rank"], each["gpus"]) for each in said] == [("0", "0"), ("0", "1")]
    shown = done.stdout.splitlines()
    assert shown == [f"[{HOST}:0] apple 0", f"[{HOST}:0] pear 0"]
    assert "plum 1" in done.stderr
    assert "plum 0" not in done.stderr
    assert [each["run_id"] for each in said] == ["job/7"] * 2
    (mirror,) = (folder / "logs").iterdir()
    assert mirror.name.startswith("job-7_")
    assert (mirror / "attempt_0/0/stdout.log").read_text() == "apple 0\npear 0\n"
    assert (mirror / "attempt_0/1/stderr.log").read_text() == "plum 1\n"
    filtered = (folder / "run/attempt-0/filtered_stdout.log").read_text()
    assert filtered.count("apple") == 2
    assert "pear" not in filtered
    assert (mirror / "attempt_0/filtered_stdout.log").read_text() == filtered
    assert not (mirror / "attempt_0/filtered_stderr.log").exists()


@pytest.mark.deep
def test_the_ranks_may_meet_in_a_file(folder):
    _, said = run(
        folder, "--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-endpoint", folder / "store"
    )
    assert [each["meet"].partition(":")[0] for each in said] == ["127.0.0.1"] * 2


@pytest.mark.deep
def test_the_place_and_the_run_that_are_named_are_those_of_the_workers(folder):
    port = str(free_port())
    _, said = run(folder, "--master-port", port)
    assert [each["meet"] for each in said] == [f"127.0.0.1:{port}"] * 2
    _, said = run(folder, "--master-addr", "localhost", "--master-port", port)
    assert [each["meet"] for each in said] == [f"localhost:{port}"] * 2
    c10d = ("--rdzv-id", "j7", "--rdzv-backend", "c10d")
    _, said = run(folder, *c10d, "--rdzv-endpoint", f"127.0.0.1:{port}")
    assert [(each["meet"], each["run_id"]) for each in said] == [(f"127.0.0.1:{port}", "j7")] * 2
    _, said = run(folder, *c10d, "--rdzv-endpoint", "localhost:0")
    assert [each["run_id"] for each in said] == ["j7"] * 2


def test_macros_and_run_path(folder):
    script = str(folder / "speak.py")
    done = launch("--nproc", "2", "--device=cpu", "--run-path", script, "--x=${local_rank}", "$HOME", cwd=folder)
    assert done.returncode == 0, done.stderr
    said = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["argv"] for each in said] == [["--x=0", "$HOME"], ["--x=1", "$HOME"]]
    assert [each["name"] for each in said] == ["__main__"] * 2


def test_python_exec_is_another_interpreter(folder):
    other = folder / "python"
    other.write_text(f'#!/bin/sh\necho "started by $0" >&2\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    done, _ = run(folder, "--log-ranks", "all", env={"PYTHON_EXEC": str(other)})
    assert done.stderr.count(f"started by {other}") == 2


def test_only_some_local_ranks_are_shown(folder):
    done, _ = run(folder, "--local-ranks-filter=1")
    assert done.stdout.splitlines() == [f"[{HOST}:1] apple 1", f"[{HOST}:1] pear 1"]


def test_numa_binding_needs_gpus(folder):
    done = launch("--numa-binding", "node", "speak.py", cwd=folder, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert "--numa-binding: processes are bound to the CPUs near their GPU, and the device is cpu." in done.stderr
