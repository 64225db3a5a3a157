"""A node that comes when the others meet elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distrain.launcher.moved import moved
from distrain.launcher.rounds import Held, Rounds
from distrain.launcher.watch import Head
from distrain.plan.meeting import Meeting
from distrain.rundir import RunDir

MEETING = Meeting(min_nodes=1, max_nodes=3, node_rank=0, backend="c10d", host="127.0.0.1", port=29400, run_id="none")


@pytest.fixture
def held(tmp_path):
    head = Head(on_word=lambda op, message: None, timeout_s=10, admit=lambda message: None, token="b")
    held = Held(token="b", name="node 1", address="127.0.0.1", port=29411, watch_port=head.port)
    Rounds(RunDir(root=tmp_path).rounds).begin(held)
    yield held
    head.close()


def test_it_finds_where_they_meet_now(tmp_path, held):
    assert moved(MEETING, tmp_path) == replace(MEETING, port=29411)


def test_where_the_head_is_the_one_that_the_user_named_nothing_has_moved(tmp_path, held):
    assert moved(replace(MEETING, port=29411), tmp_path) is None


def test_a_run_that_is_over_is_not_joined(tmp_path, held):
    Rounds(RunDir(root=tmp_path).rounds).begin(replace(held, token="of another run, whose port is in use again"))
    assert moved(MEETING, tmp_path) is None


@pytest.mark.parametrize("change", [{"min_nodes": 3}, {"backend": "etcd"}])
def test_only_an_elastic_run_around_a_store_of_its_own_moves(tmp_path, held, change):
    assert moved(replace(MEETING, **change), tmp_path) is None


def test_in_a_new_run_directory_nobody_has_met(tmp_path):
    assert moved(MEETING, tmp_path) is None
