"""Two launches that both believe the checkpoint directory is theirs: the one that began last is right."""

import json
import os

import pytest
import torch

import distrain
from distrain.errors import CheckpointError, SupersededError
from distrain.rundir import newest_checkpoint
from distrain.training import checkpoint_files, incarnations
from tests.training.test_checkpoint import names, setting


@pytest.fixture
def launch(monkeypatch):
    def be(name):
        monkeypatch.setenv("DISTRAIN_LAUNCH_ID", name)

    return be


def test_once_another_launch_trains_there_the_lost_one_writes_no_more(tmp_path, launch, monkeypatch):
    launch("lost")
    _, loader, trainer, _ = setting(tmp_path, every=1)

    @trainer.on(distrain.Events.ITERATION_STARTED)
    def another_one_begins():
        if trainer.state.iteration == 4:
            launch("next")
            monkeypatch.setenv("SLURM_JOB_ID", "17")
            monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
            _, other_loader, other, checkpointer = setting(tmp_path, every=100)
            assert checkpointer.resumed_from.name == "step-00000003"
            assert other.run(other_loader, max_epochs=1).iteration == 5
            launch("lost")

    said = rf"Another launch trains in .* since \d.*\(pid {os.getpid()} on .*, Slurm job 17, queued again 1 time\)"
    with pytest.raises(SupersededError, match=said) as caught:
        trainer.run(loader, max_epochs=2)
    assert isinstance(caught.value, CheckpointError)
    assert trainer.state.iteration == 4
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000005"]  # no draft, no fourth
    with pytest.raises(SupersededError):  # nor does it come back by starting its ranks again
        setting(tmp_path)[2].run(loader, max_epochs=3)
    launch("next")
    assert setting(tmp_path)[2].run(loader, max_epochs=3).iteration == 15


def test_who_only_reads_takes_nothing_over(tmp_path, launch):
    launch("one")
    _, loader, trainer, _ = setting(tmp_path, every=1)
    launch("reader")
    setting(tmp_path)
    launch("one")
    assert trainer.run(loader, max_epochs=1).iteration == 5


@pytest.fixture
def in_the_middle_of_a_write(monkeypatch):
    """Return what has something happen once the first file of the next checkpoint is written."""

    def happens(call):
        real = os.fsync

        def fsync(descriptor):
            monkeypatch.setattr(os, "fsync", real)
            real(descriptor)
            call()

        monkeypatch.setattr(os, "fsync", fsync)

    return happens


def test_who_only_reads_leaves_a_checkpoint_in_the_making_alone(tmp_path, launch, in_the_middle_of_a_write):
    launch("one")
    _, loader, trainer, _ = setting(tmp_path, every=1, keep=1)
    resumed = []

    def read():
        launch("reader")
        resumed.append(setting(tmp_path)[3].resumed_from)
        launch("one")

    in_the_middle_of_a_write(read)
    assert trainer.run(loader, max_epochs=1).iteration == 5
    assert resumed == [None]
    assert names(tmp_path) == ["step-00000005"]


def test_a_lost_launch_whose_draft_was_removed_is_told_why(tmp_path, launch, in_the_middle_of_a_write):
    launch("lost")
    _, loader, trainer, _ = setting(tmp_path, every=1)

    def another_one_begins():
        launch("next")
        _, other_loader, other, _ = setting(tmp_path)
        other.run(other_loader, max_epochs=1)
        launch("lost")

    in_the_middle_of_a_write(another_one_begins)
    with pytest.raises(SupersededError, match="Another launch trains in"):
        trainer.run(loader, max_epochs=1)
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]


def test_what_stopped_writers_left_goes_when_the_next_ranks_train(tmp_path, launch):
    launch("one")
    incarnations.claim(tmp_path)
    drafts = [f".draft-{number}-step-00000002-abc" for number in (0, 1, 2)]
    for name in drafts:
        (tmp_path / name).mkdir()
    setting(tmp_path)
    assert names(tmp_path) == drafts  # it may as well be a script that only reads
    _, loader, trainer, _ = setting(tmp_path, keep=1)
    trainer.run(loader, max_epochs=1)
    assert names(tmp_path) == [drafts[2], "step-00000005"]
    launch("two")
    setting(tmp_path)[2].run(loader, max_epochs=1)
    assert names(tmp_path) == ["step-00000005"]


def test_a_checkpoint_that_a_living_run_removes_is_not_taken_for_damaged(tmp_path, monkeypatch):
    setting(tmp_path, every=None)[2].run([(torch.ones(1, 3), torch.ones(1, 1))] * 2, max_epochs=1)
    real = checkpoint_files.problem_of

    def while_the_run_goes_on(path):
        monkeypatch.setattr(checkpoint_files, "problem_of", real)
        path.rename(path.with_name("step-00000007"))
        return real(path)

    monkeypatch.setattr(checkpoint_files, "problem_of", while_the_run_goes_on)
    assert setting(tmp_path)[3].resumed_from.name == "step-00000007"


def test_of_a_checkpoint_that_is_removed_before_it_is_read_the_next_is_taken(tmp_path, monkeypatch):
    setting(tmp_path, every=None)[2].run([(torch.ones(1, 3), torch.ones(1, 1))] * 2, max_epochs=1)
    real = checkpoint_files.read

    def while_the_run_goes_on(path):
        monkeypatch.setattr(checkpoint_files, "read", real)
        path.rename(path.with_name("step-00000007"))
        return real(path)

    monkeypatch.setattr(checkpoint_files, "read", while_the_run_goes_on)
    assert setting(tmp_path)[3].resumed_from.name == "step-00000007"


def test_attempts_of_a_launch_share_a_number_and_launches_do_not(tmp_path, launch):
    launch("one")
    assert [incarnations.claim(tmp_path), incarnations.claim(tmp_path)] == [1, 1]
    launch("two")
    assert incarnations.claim(tmp_path) == 2
    launch("one")
    with pytest.raises(SupersededError):
        incarnations.claim(tmp_path)


def test_without_a_launch_whoever_trains_last_is_right(tmp_path, monkeypatch, launch):
    monkeypatch.delenv("DISTRAIN_LAUNCH_ID", raising=False)
    assert [incarnations.claim(tmp_path), incarnations.claim(tmp_path)] == [1, 1]
    launch("one")
    assert incarnations.claim(tmp_path) == 2
    monkeypatch.delenv("DISTRAIN_LAUNCH_ID")
    assert incarnations.claim(tmp_path) == 3


def test_what_slips_in_late_is_older_than_all_that_the_next_writes(tmp_path):
    for step, incarnation, number in ((100, 1, 1), (200, 2, 2), (900, 1, 2)):
        path = tmp_path / f"step-{step:08d}"
        path.mkdir()
        (path / "meta.json").write_text(json.dumps({"incarnation": incarnation, "number": number}))
    assert newest_checkpoint(tmp_path) == ("step-00000200", 2)


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory, so neither can checkpoints"):
        incarnations.claim(tmp_path / "file")
