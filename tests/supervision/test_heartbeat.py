"""The board: what a worker shows, the supervisor reads."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from distrain.supervision import heartbeat
from distrain.supervision.heartbeat import ENV_HEARTBEAT, RECORD_NBYTES, Board


@pytest.fixture
def board(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "_slot", None)
    monkeypatch.setattr(heartbeat, "_is_looked_for", False)
    made = Board.create(3, tmp_path / "heartbeats")
    yield made
    heartbeat._forget()
    made.close()


def test_a_worker_that_has_done_nothing_has_not_begun(board):
    heartbeat.open_slot(board.variable(1))
    beat = board.look(1, rank=5)
    assert (beat.rank, beat.pid, beat.state, beat.beats, beat.last_ns) == (5, os.getpid(), "not begun", 0, 0)
    assert board.look(0, rank=4).pid == 0


def test_steps_iterations_and_heartbeats_are_seen(board):
    heartbeat.open_slot(board.variable(2))
    stepped, moved = heartbeat.optimizer_stamp(lambda: 0), heartbeat.engine_stamp()
    stepped()
    stepped("optimizer", (), {})
    moved(41)
    heartbeat.heartbeat()
    beat = board.look(2, rank=2)
    assert (beat.steps, beat.beats, beat.iteration, beat.state) == (2, 4, 41, "going")
    assert 0 <= time.monotonic_ns() - beat.last_ns < 5e9


def test_the_slowest_gap_is_kept_and_a_pause_is_none(board, monkeypatch):
    now = 1_000
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    heartbeat.open_slot(board.variable(0))
    for gap in (0, 700, 200):
        now += gap
        heartbeat.heartbeat()
        board.look(0, rank=0)
    with heartbeat.paused():
        assert board.look(0, rank=0).state == "paused"
        now += 9_000
    board.look(0, rank=0)
    now += 300
    heartbeat.heartbeat()
    beat = board.look(0, rank=0)
    assert (beat.slowest_ns, beat.last_ns, beat.state) == (700, now, "going")


def test_a_pause_within_a_pause_does_not_end_it(board):
    heartbeat.open_slot(board.variable(0))
    heartbeat.heartbeat()
    with heartbeat.paused():
        with heartbeat.paused():
            pass
        assert board.look(0, rank=0).state == "paused"
    assert board.look(0, rank=0).state == "going"


def test_a_pause_before_the_first_step_is_not_a_beginning(board):
    heartbeat.open_slot(board.variable(0))
    with heartbeat.paused():
        pass
    assert board.look(0, rank=0).state == "not begun"


def test_the_next_owner_of_a_slot_begins_anew(board):
    heartbeat.open_slot(board.variable(0))
    heartbeat.heartbeat()
    heartbeat.leave_record(b"{}")
    heartbeat.open_slot(board.variable(0))
    beat = board.look(0, rank=0)
    assert (beat.beats, beat.steps, beat.state, board.record(0)) == (0, 0, "not begun", b"")


def test_a_record_is_kept_whole_or_not_at_all(board):
    heartbeat.open_slot(board.variable(1))
    record = bytes(range(256)) * (RECORD_NBYTES // 256)
    heartbeat.leave_record(record)
    assert board.record(1) == record
    assert board.record(0) == board.record(2) == b""
    heartbeat.open_slot(board.variable(1))
    heartbeat.leave_record(record + b"x")
    assert board.record(1) == b""


@pytest.mark.parametrize("variable", ["", "nowhere", "/nowhere/at/all:0", "/dev/null:0"])
def test_without_a_board_nothing_happens(board, monkeypatch, variable):
    monkeypatch.setenv(ENV_HEARTBEAT, variable)
    heartbeat.heartbeat()
    with heartbeat.paused():
        heartbeat.leave_record(b"{}")
    assert heartbeat.engine_stamp() is heartbeat.optimizer_stamp(lambda: 0) is None


COLD = """\
import os, sys
from distrain.supervision import heartbeat
if sys.argv[1] == "become":
    heartbeat.open_slot(os.environ[heartbeat.ENV_HEARTBEAT])
    os.execv(sys.executable, [sys.executable, *sys.argv[:1], "go"])
heartbeat.heartbeat()
if sys.argv[1] == "go":
    import subprocess
    subprocess.run([sys.executable, *sys.argv[:1], "child"], check=True)
    if os.fork() == 0:
        heartbeat.heartbeat()
        os._exit(0)
    os.wait()
"""


def test_a_program_in_the_ranks_place_finds_its_slot_and_its_children_do_not(board, tmp_path):
    path = tmp_path / "cold.py"
    path.write_text(COLD)
    env = {**os.environ, ENV_HEARTBEAT: board.variable(1), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, path, "become"], env=env, check=True)
    beat = board.look(1, rank=1)
    assert (beat.beats, beat.state) == (1, "going")


FORKING = """\
import os, sys
from distrain.supervision import heartbeat
heartbeat.open_slot(os.environ[heartbeat.ENV_HEARTBEAT])
stepped, moved = heartbeat.optimizer_stamp(lambda: 0), heartbeat.engine_stamp()
with heartbeat.paused():
    stepped()
    moved(3)
with heartbeat.paused():
    if os.fork() == 0:
        stepped()
        moved(4)
        heartbeat.leave_record(b"{}")
        sys.exit()
    assert os.wait()[1] == 0
    os._exit(0)
"""


def test_what_a_rank_forks_stamps_nothing_of_the_ranks(board, tmp_path):
    path = tmp_path / "forking.py"
    path.write_text(FORKING)
    env = {**os.environ, ENV_HEARTBEAT: board.variable(1), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, path], env=env, check=True)
    beat = board.look(1, rank=1)
    assert (beat.steps, beat.beats, beat.iteration, beat.state, board.record(1)) == (1, 2, 3, "paused", b"")


def test_where_the_system_has_no_memory_files_a_file_of_the_run_directory_is_the_board(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(heartbeat, "_slot", None)
    board = Board.create(2, tmp_path / "heartbeats")
    heartbeat.open_slot(board.variable(1))
    heartbeat.optimizer_stamp(lambda: 0)()
    assert board.path == str(tmp_path / "heartbeats")
    assert board.look(1, rank=1).steps == 1
    heartbeat._forget()
    board.close()
