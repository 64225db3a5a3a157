import json
from dataclasses import replace

import pytest

from distrain.rundir import RunDir, newest_checkpoint
from distrain.schedulers.slurm.requeueing import (
    Asked,
    NoProgressError,
    NotQueuedError,
    asked_again,
    id_of,
    queue_again,
    read_asked,
)
from distrain.schedulers.slurm.state import JobState, parse


def saved(folder, step, number):
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "meta.json").write_text(json.dumps({"number": number}))


def test_it_may_ask_as_often_as_it_gets_on():
    asked = Asked()
    for number in range(1, 20):
        asked = asked_again(asked, (f"step-{number:08d}", number), job="17", budget=1)
    assert asked == Asked(times=19, checkpoint="step-00000019", number=19, job="17")


def test_without_progress_it_stops_asking_when_the_budget_is_spent():
    newest = ("step-00000007", 3)
    asked = asked_again(Asked(), newest, job="17", budget=2)
    for _ in range(2):
        asked = asked_again(asked, newest, job="17", budget=2)
    assert (asked.times, asked.without_progress) == (3, 2)
    with pytest.raises(
        NoProgressError, match=r"2 times in a row without getting on \(step-00000007 is still the newest"
    ):
        asked_again(asked, newest, job="17", budget=2)
    assert asked_again(asked, ("step-00000008", 4), job="17", budget=2).without_progress == 0


def test_a_run_without_checkpoints_makes_no_progress():
    asked = asked_again(Asked(), None, job="17", budget=1)
    with pytest.raises(NoProgressError, match="there is no checkpoint yet"):
        asked_again(asked, None, job="17", budget=1)


def test_the_newest_checkpoint_goes_by_its_number(tmp_path):
    assert newest_checkpoint(tmp_path / "none") is None
    saved(tmp_path, 100, 1)
    saved(tmp_path, 50, 2)  # another world size, whose steps are fewer
    (tmp_path / ".draft-step-00000200-1-a").mkdir()
    (tmp_path / "step-00000300").mkdir()  # damaged
    assert newest_checkpoint(tmp_path) == ("step-00000050", 2)


def test_counting_alone_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    saved(tmp_path / "run" / "checkpoints", 7, 1)
    environ = {"SLURM_JOB_ID": "17"}
    line = queue_again(tmp_path / "run", environ, budget=1, only_count=True)
    assert line == "job 17 may be queued again, after step-00000007"
    assert queue_again(tmp_path / "run", environ, budget=1, only_count=True) == line
    with pytest.raises(NoProgressError):
        queue_again(tmp_path / "run", environ, budget=1, only_count=True)
    assert read_asked(RunDir(root=tmp_path / "run")).times == 2


def test_where_nobody_can_be_asked_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "run").mkdir()
    said = "scontrol requeue: not on PATH here; and sbatch is not on PATH here. In a container, call"
    with pytest.raises(NotQueuedError, match=said):
        queue_again(tmp_path / "run", {"SLURM_JOB_ID": "17"}, budget=1, script="job.sbatch")


def test_a_broken_record_counts_as_none(tmp_path):
    rundir = RunDir(root=tmp_path)
    for text in ("", "[]", '{"else": 1}'):
        rundir.requeue.write_text(text)
        assert read_asked(rundir) == Asked()


def test_a_task_of_an_array_is_not_the_array():
    assert id_of({"SLURM_JOB_ID": "17"}) == "17"
    assert id_of({"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}) == "17_3"


TOLD = "JobId=17 JobName=a b UserId=root(0) JobState={} Reason={} Dependency=(null) Restarts=0 ExitCode={} RunTime=0"


def test_what_slurm_says_of_a_job():
    running = parse(TOLD.format("RUNNING", "None", "0:0"))
    assert running == JobState(state="RUNNING", code=0, signal=0)
    assert not running.is_over
    assert parse(TOLD.format("PENDING", "BeginTime", "0:0")).reason == "BeginTime"
    assert parse("slurm_load_jobs error: Invalid job id specified") is None


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ("COMPLETED", "0:0", 0),
        ("FAILED", "75:0", 75),
        ("CANCELLED", "0:15", 143),
        ("TIMEOUT", "0:0", 1),
        ("NODE_FAIL", "0:0", 1),
    ],
)
def test_the_exit_code_of_a_job(state, code, expected):
    found = parse(TOLD.format(state, "None", code))
    assert found.is_over
    assert found.exit_code == expected
    assert replace(found, state="COMPLETED", signal=0).exit_code == found.code
