"""What the run directory's helpers promise."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from distrain.rundir import RunDir, as_typed, write_once


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_is_made_once(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    with ThreadPoolExecutor(8) as pool:
        took = list(pool.map(lambda i: write_once(tmp_path / "7.json", str(i)), range(32)))
    assert took.count(True) == 1
    assert os.listdir(tmp_path) == ["7.json"]
    assert (tmp_path / "7.json").read_text() == str(took.index(True))


def test_who_has_made_it_is_told_so_also_when_the_file_server_was_asked_twice(tmp_path, monkeypatch):
    link = os.link

    def twice(*paths):
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", twice)
    assert write_once(tmp_path / "7.json", "mine")
    monkeypatch.setattr(os, "link", link)
    assert not write_once(tmp_path / "7.json", "another's")


def test_a_disk_that_is_full_leaves_no_empty_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        write_once(tmp_path / "7.json", "mine")
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_written_that_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_once(tmp_path / "missing" / "7.json", "")


def test_a_path_is_shown_whole_where_the_current_folder_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert as_typed(tmp_path / "run") == str(tmp_path / "run")


@pytest.mark.parametrize("content", ['{"root_cause": {"attempt": 2}}', "{", '{"root_cause": {"attempt": 7}}'])
def test_the_report_of_an_earlier_launch_goes_to_its_attempt(tmp_path, content):
    rundir = RunDir(root=tmp_path)
    rundir.put_away_failure()
    rundir.attempt_dir(2).mkdir()
    rundir.failure.write_text(content)
    rundir.put_away_failure()
    assert not rundir.failure.exists()
    assert (rundir.attempt_dir(2) / "failure.json").exists() is ("2" in content)
