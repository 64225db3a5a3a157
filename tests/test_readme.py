"""The README is true: its quick start has two commands, its Python runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.processes import REPOSITORY, run
from tests.support.readme import python_blocks, quick_start

README = (REPOSITORY / "README.md").read_text()
ALL_BLOCKS = python_blocks(README)
TESTS = [block for block in ALL_BLOCKS if "def test_" in block]
BLOCKS = [block for block in ALL_BLOCKS if block not in TESTS]


def test_quick_start_has_exactly_two_commands() -> None:
    train, test = quick_start(README)
    assert "distrain launch --nproc 2 --device cpu launch/scripts/train-digits.py" in train
    assert test.endswith(".venv/bin/python -m pytest -n auto")


@pytest.mark.parametrize("command", quick_start(README), ids=["train", "test"])
def test_each_command_stands_alone_and_is_valid_shell(command: str) -> None:
    assert command.startswith("python3 -m venv .venv && ")
    assert "pip install" in command
    assert subprocess.run(["bash", "-n", "-c", command], check=False, capture_output=True).returncode == 0
    for word in shlex.split(command):
        if "/" in word and not word.startswith((".venv", "PIP_CONSTRAINT")):
            assert (REPOSITORY / word).is_file(), f"{word} is not in the repository"


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []


def test_no_figure_is_left_open() -> None:
    assert [line for line in README.splitlines() if line.startswith("|") and "…" in line] == []


@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
@pytest.mark.parametrize("ranks", [None, 2], ids=["python", "launch"])
def test_python_blocks_run(tmp_path: Path, block: str, ranks: int | None) -> None:
    script = tmp_path / "train.py"
    script.write_text(block)
    launch = ["-m", "distrain", "launch", "--nproc", str(ranks), "--device", "cpu", "--run-dir", str(tmp_path / "run")]
    run(
        [sys.executable, *(launch if ranks else []), os.fspath(script)],
        cwd=tmp_path,
        env={"OMP_NUM_THREADS": "1", "RANK": None, "WORLD_SIZE": None},
    ).check()


@pytest.mark.parametrize("block", TESTS, ids=[str(number) for number in range(len(TESTS))])
def test_blocks_of_tests_pass(tmp_path: Path, block: str) -> None:
    (tmp_path / "test_block.py").write_text(block)
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error"]
    finished = run(words, cwd=tmp_path, env={"CI": None, "PYTEST_XDIST_WORKER": None}).check()
    assert f"{block.count('def test_')} passed" in finished.stdout


def test_there_are_python_blocks() -> None:
    assert BLOCKS
    assert TESTS


def test_the_recording_of_several_nodes_is_the_golden_one():
    """`pytest -m netns` makes the golden text."""
    recording = (REPOSITORY / "tests/golden/nodes-cut.txt").read_text()
    assert textwrap.indent(recording, "    ") in README
