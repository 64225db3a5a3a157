"""Who has which round of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distrain.launcher.rounds import Held, Rounds

HEAD = Held(token="a", name="node 0 (host h0)", address="10.0.0.1", port=29400, watch_port=40000)
OTHER = replace(HEAD, token="b", name="node 1 (host h1)", address="10.0.0.2")


@pytest.fixture
def rounds(tmp_path):
    return Rounds(tmp_path / "run" / ".rounds")


def test_a_number_can_be_taken_once_and_tells_by_whom(rounds):
    assert rounds.newest() is None
    assert rounds.begin(HEAD) == 1
    assert not rounds.take(1, OTHER)
    assert rounds.holder(1).token == "a"
    assert rounds.take(2, OTHER)
    assert rounds.begin(HEAD) == 3
    newest = rounds.newest()
    assert replace(newest, since="") == HEAD
    assert newest.since.startswith("20")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"token": "a"}'])
def test_what_is_not_whole_is_nobodys(rounds, tmp_path, content):
    rounds.begin(HEAD)
    (tmp_path / "run" / ".rounds" / "00000002.json").write_text(content)
    assert rounds.holder(2) is None


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match="run"):
        Rounds(tmp_path / "run" / ".rounds").begin(HEAD)
