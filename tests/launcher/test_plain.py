"""The command line that a worker of a plain interpreter begins with."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from distrain.launcher.plain import command
from distrain.launcher.protocol import WorkerJob


def job(kind="script", *, interpreter=sys.executable, args=("--lr", "1e-3"), **changes):
    words = ["sh", *args] if kind == "command" else [interpreter, "-u", "train.py", *args]
    fields = {
        "rank": 3,
        "local_rank": 1,
        "attempt": 2,
        "kind": kind,
        "target": "train.py",
        "args": list(args),
        "command": words,
        "warm": False,
        "env": {"SECRET": "1"},
        "stdout": "",
        "stderr": "",
        "error_file": "exception.json",
    }
    return WorkerJob(**{**fields, **changes})


def test_the_programs_own_arguments_are_the_last_and_the_environment_is_not_told():
    words = command(job())
    assert words[:3] == [sys.executable, "-u", "-c"]
    assert words[-2:] == ["--lr", "1e-3"]
    told = json.loads(words[-3])
    assert (told["rank"], told["command"], told["args"]) == (3, [sys.executable, "-u", "train.py"], [])
    assert "SECRET" not in "".join(words)


def test_without_arguments_nothing_of_the_command_is_lost():
    words = command(job(args=()))
    assert json.loads(words[-1])["command"] == [sys.executable, "-u", "train.py"]


@pytest.mark.parametrize(
    "given", [job("command"), job(interpreter="/usr/bin/another-python")], ids=lambda job: job.kind
)
def test_another_program_begins_as_it_is(given):
    assert command(given) == given.command


FORKS = """\
import os, sys
if os.fork() == 0:
    {end}
print(os.waitstatus_to_exitcode(os.wait()[1]), end="")
"""


@pytest.mark.parametrize("end", ["raise RuntimeError('of the child')", "sys.exit(1)"])
def test_what_the_program_forks_leaves_no_record_of_the_rank(tmp_path, end):
    (tmp_path / "train.py").write_text(FORKS.format(end=end))
    words = command(job(args=(), stacks_file="stacks.log"))
    done = subprocess.run(words, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout == "1"
    assert ("of the child" in done.stderr) == ("of the child" in end)
    assert not (tmp_path / "exception.json").exists()
