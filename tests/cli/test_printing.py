"""Commands whose standard streams take nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.launching import environment


def answer(redirection: str, *args: str) -> tuple[int, str]:
    """Return the exit code of `distrain` below a shell's redirection, and what it said on standard error."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "distrain", *args],
        env={key: value for key, value in {**os.environ, **environment()}.items() if value is not None},
        check=False,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.fixture(autouse=True)
def in_a_folder_of_our_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")


COMMANDS = [("--help",), ("launch", "--help"), ("launch", "--dry-run", "--device", "cpu", "train.py")]


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_a_reader_that_has_gone_is_told_nothing(args):
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    env = {key: value for key, value in {**os.environ, **environment()}.items() if value is not None}
    words = [sys.executable, "-m", "distrain", *args]
    done = subprocess.run(words, env=env, check=False, stdout=write_fd, stderr=subprocess.PIPE)
    os.close(write_fd)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without room")
@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_a_result_that_cannot_be_written_is_said_in_a_line(args):
    said = "distrain: standard output cannot be written: No space left on device\n"
    assert answer(">/dev/full", *args) == (1, said)


def test_a_result_for_a_closed_stream_is_said_in_a_line():
    assert answer(">&-", "--version") == (1, "distrain: standard output is closed\n")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_mistake_that_cannot_be_said_keeps_its_exit_code(redirection):
    assert answer(redirection, "lanch") == (2, "")
