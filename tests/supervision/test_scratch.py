"""The folder that goes with its run."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from distrain.supervision.scratch import Scratch
from tests.support.processes import REPOSITORY


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as name:  # pytest's own are too long for sockets below
        yield Path(name)


def test_it_is_the_users_own_and_goes(folder):
    scratch = Scratch(folder)
    assert os.path.dirname(scratch.path) == str(folder)
    assert os.stat(scratch.path).st_mode & 0o777 == 0o700
    os.mkdir(f"{scratch.path}/0-1")
    scratch.remove()
    assert os.listdir(folder) == []
    scratch.remove()


def test_what_a_killed_run_has_left_goes_with_the_next_and_what_lives_stays(folder):
    text = "import os, sys, pathlib; from distrain.supervision.scratch import Scratch; " + (
        "path = Scratch(pathlib.Path(sys.argv[1])).path; os.mkdir(path + '/0-1'); print(path, flush=True); "
        "sys.stdin.read(); os._exit(9)"
    )
    words = [sys.executable, "-c", text, str(folder)]
    with subprocess.Popen(words, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        theirs = other.stdout.readline().strip()
        mine = Scratch(folder)
        assert sorted(os.listdir(folder)) == sorted(map(os.path.basename, (theirs, mine.path)))
        other.stdin.close()
        assert other.wait(20) == 9
    next_one = Scratch(folder)
    assert sorted(os.listdir(folder)) == sorted(map(os.path.basename, (mine.path, next_one.path)))
    for each in (mine, next_one):
        each.remove()


def test_what_others_keep_there_stays(folder):
    first = Scratch(folder)
    prefix = first.path[:-8]
    first.remove()
    (folder / "elsewhere").mkdir()
    os.symlink(folder / "elsewhere", f"{prefix}a")
    (folder / "distrain-smoke-train-x").mkdir()
    before = sorted(os.listdir(folder))
    Scratch(folder).remove()
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("parent", ["missing", "x" * 80])
def test_where_none_can_be_made_there_is_none(tmp_path, parent):
    folder = tmp_path / parent
    if parent != "missing":
        folder.mkdir()
    scratch = Scratch(folder)
    assert scratch.path == ""
    scratch.remove()
    assert not folder.exists() or os.listdir(folder) == []
