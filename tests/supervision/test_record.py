"""Ownership of a run directory."""

from __future__ import annotations

import json
import os

import pytest

from distrain.errors import RunDirError
from distrain.rundir import RunDir
from distrain.supervision.record import RunRecord


def test_a_record_is_written_step_by_step(tmp_path):
    rundir = RunDir(root=tmp_path / "a" / "run")
    record = RunRecord(rundir)
    record.update(status="running")
    record.event("run_started", {"x": 1})
    record.update(status="succeeded")
    record.close()
    assert json.loads(rundir.run_json.read_text()) == {"status": "succeeded"}
    (event,) = map(json.loads, rundir.events.read_text().splitlines())
    assert event["event"] == "run_started"
    assert event["x"] == 1
    assert event["time"] > 1.7e9


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without room")
def test_a_disk_without_room_ends_no_run(tmp_path):
    rundir = RunDir(root=tmp_path)
    rundir.events.symlink_to("/dev/full")
    record = RunRecord(rundir)
    record.event("run_started", {})
    assert record.trouble == f"{rundir.events} could not be written: No space left on device"
    record.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without room")
def test_a_disk_that_is_full_from_the_start_is_refused(tmp_path):
    (tmp_path / ".lock").symlink_to("/dev/full")
    with pytest.raises(RunDirError, match=r"cannot be used: .*Give a folder you can write to with --run-dir"):
        RunRecord(RunDir(root=tmp_path))


def test_a_live_owner_is_named_and_keeps_the_directory(tmp_path):
    first = RunRecord(RunDir(root=tmp_path))
    try:
        with pytest.raises(RunDirError, match=r"belongs to a run that is still going \(pid \d+ on "):
            RunRecord(RunDir(root=tmp_path))
    finally:
        first.close()
    RunRecord(RunDir(root=tmp_path)).close()


def test_a_path_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"Not a directory.*--run-dir"):
        RunRecord(RunDir(root=tmp_path / "file" / "run"))


def test_attempts_are_numbered_on(tmp_path):
    rundir = RunDir(root=tmp_path)
    record = RunRecord(rundir)
    assert record.first_free_attempt() == 0
    rundir.rank_dir(0, 0).mkdir(parents=True)
    rundir.rank_dir(11, 3).mkdir(parents=True)
    (tmp_path / "attempt-x").mkdir()
    assert record.first_free_attempt() == 12
    record.close()


def test_a_later_incarnation_takes_over_and_the_earlier_one_records_no_more(tmp_path):
    rundir = RunDir(root=tmp_path)
    lost = RunRecord(rundir, run_id="slurm-17.0", incarnation=0)
    lost.update(status="running")
    try:
        for run_id, incarnation in (("slurm-17.0", 0), ("slurm-18.0", 1), ("", 1)):
            with pytest.raises(RunDirError, match=r"still going \(pid \d+ on .*, incarnation 0 of slurm-17.0\)"):
                RunRecord(rundir, run_id=run_id, incarnation=incarnation)
        later = RunRecord(rundir, run_id="slurm-17.0", incarnation=1)
        assert "incarnation 0 of slurm-17.0" in later.warning
        later.update(status="mine")
        later.event("later", {})
        lost.update(status="preempted")
        lost.event("lost", {})
        assert "was taken over" in lost.trouble
        assert json.loads(rundir.run_json.read_text()) == {"status": "mine"}
        assert [json.loads(line)["event"] for line in rundir.events.read_text().splitlines()] == ["later"]
        third = RunRecord(rundir, run_id="slurm-17.0", incarnation=2)
        third.close()
        later.close()
    finally:
        lost.close()
