"""Who goes on when the node where all meet is lost. The places are fakes; the files are real."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from distrain.launcher.ended_elsewhere import EndedElsewhereError
from distrain.launcher.membership import Membership
from distrain.launcher.rounds import Held, Rounds
from distrain.launcher.succession import Succession
from tests.launcher.test_facts import NODE, OTHER
from tests.launcher.test_membership import THIRD

TIMEOUT_S = 0.4


class FakePlace:
    """A place to meet without a store: where the node `facts` meets the others."""

    def __init__(self, facts, membership, *, is_head=False, where=("127.0.0.1", 1)):
        self.facts, self.membership, self.is_head = facts, membership, is_head
        self._where = where

    def held(self, address):
        return Held(token=self.facts.token, name=self.facts.name, address=address, port=self._where[1], watch_port=1)

    def move_here(self, facts, address):
        self.membership.meets_at(facts, None)
        return FakePlace(facts, self.membership, is_head=True)

    def move_to(self, held, facts):
        return FakePlace(facts, self.membership, where=(held.address, held.port))

    def close(self):
        pass


class FakeStore(dict):
    def set(self, key, value):
        self[key] = value

    def get(self, key):
        return self[key].encode()


class FakeNode:
    """One node in the first round of a run of three."""

    def __init__(self, facts, run_dir: Path, store):
        self.facts, self.said = facts, []
        self.membership = Membership(facts, 1, lambda text, **_: None)
        self.membership.meets_at(facts, None if facts is NODE else NODE)
        self.succession = Succession(is_elastic=True, timeout_s=TIMEOUT_S, say=self.said.append)
        self.place = FakePlace(facts, self.membership, is_head=facts is NODE)
        self.succession.settle(self.place, store, str(run_dir), "127.0.0.1")
        self.membership.began(0, [NODE, OTHER, THIRD])

    def loses_head(self, **how):
        self.membership.take("head_gone", {"how": "has gone", **how})
        return self.succession.find(self.place, self.facts)


@pytest.fixture
def nodes(tmp_path):
    (tmp_path / "run").mkdir()
    store = FakeStore()
    return [FakeNode(facts, tmp_path / "run", store) for facts in (NODE, OTHER, THIRD)]


@pytest.fixture
def rounds(tmp_path):
    return Rounds(tmp_path / "run" / ".rounds")


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_first_of_those_left_opens_the_next_place(nodes, rounds):
    assert all(node.membership.can_move for node in nodes[1:])
    place = nodes[1].loses_head()
    assert place.is_head
    assert rounds.holder(2).name == "node 1 (host h1)"
    nodes[1].succession.settle(place, FakeStore(), str(rounds._folder.parent), "127.0.0.1")
    assert rounds.holder(3) is None, "it has the round already"


def test_the_others_come_to_whoever_has_the_round(nodes, rounds, listening):
    rounds.take(2, replace(nodes[1].place.held("127.0.0.1"), port=listening))
    place = nodes[2].loses_head()
    assert place._where == ("127.0.0.1", listening)
    assert nodes[2].said == ["the nodes meet at node 1 (host h1) now"]


def test_the_next_takes_its_turn_when_the_first_does_not_or_dies_of_it(nodes, rounds):
    assert nodes[2].loses_head().is_head
    assert rounds.holder(2).name == THIRD.name


def test_a_round_whose_holder_died_is_passed_over(nodes, rounds, monkeypatch):
    monkeypatch.setattr("distrain.launcher.succession._OPENS_S", 0.1)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        rounds.take(2, replace(nodes[1].place.held("127.0.0.1"), port=unheard.getsockname()[1]))
        assert nodes[2].loses_head().is_head
    assert rounds.holder(3).name == THIRD.name


def test_a_round_that_nobody_can_read_is_passed_over(nodes, rounds, monkeypatch):
    monkeypatch.setattr("distrain.launcher.succession._OPENS_S", 0.1)
    rounds._path(2).touch()
    place = nodes[1].loses_head()
    assert place.is_head
    assert rounds.holder(3).name == OTHER.name


def test_a_second_loss_before_the_next_round_is_survived(nodes, rounds, listening):
    """Node 2 has come to node 1's place under a new token when that is lost too."""
    second = nodes[1].facts.anew()
    rounds.take(2, replace(nodes[1].place.held("127.0.0.1"), token=second.token, port=listening))
    node = nodes[2]
    node.place = node.loses_head()
    node.facts = node.place.facts
    node.membership.meets_at(node.facts, second)
    assert node.loses_head().is_head
    assert rounds.holder(3).name == THIRD.name
    assert [each.name for each in node.membership.heirs()] == [THIRD.name]


def test_who_cannot_take_the_round_ends(nodes, rounds, tmp_path):
    folder = tmp_path / "run" / ".rounds"
    folder.rename(tmp_path / "gone")
    folder.write_text("")
    with pytest.raises(EndedElsewhereError, match=r"cannot be written \(not a directory\), so this node cannot take"):
        nodes[1].loses_head()


def test_who_does_not_reach_the_one_who_has_the_round_ends(nodes, rounds, monkeypatch):
    rounds.take(2, nodes[0].place.held("127.0.0.1"))
    monkeypatch.setattr("distrain.launcher.succession._trouble", lambda *_: "no route to host")
    with pytest.raises(EndedElsewhereError, match=r"node 0 \(host h0\) has the run since .* \(no route to host\), so"):
        nodes[1].loses_head(silent=True)


@pytest.mark.parametrize("lost", ["b", "bc"])
def test_a_head_that_has_lost_others_takes_the_next_round_or_ends(nodes, rounds, lost):
    head = nodes[0]
    for token in lost:
        head.membership.take("gone", {"token": token, "how": "is silent", "silent": True})
    head.succession.lost_some(head.place)
    head.succession.lost_some(head.place)
    assert rounds.holder(2).token == "a"
    assert rounds.holder(3) is None
    rounds.take(3, nodes[1].place.held("127.0.0.1"))
    head.succession.settle(head.place, FakeStore(), str(rounds._folder.parent), "127.0.0.1")
    with pytest.raises(EndedElsewhereError, match=r"go on without it, led by node 1 \(host h1\) since 20"):
        head.succession.lost_some(head.place)


def test_nodes_that_do_not_share_the_run_directory_are_told(tmp_path):
    store = FakeStore()
    FakeNode(NODE, tmp_path / "here", store)
    other = FakeNode(OTHER, tmp_path / "there", store)
    assert not other.membership.can_move
    assert "is not seen here; without it the run ends here" in other.said[0]


def test_where_nothing_can_be_written_nobody_can_take_over_and_the_head_says_so(tmp_path):
    (tmp_path / "run").write_text("")
    store = FakeStore()
    head, other = (FakeNode(facts, tmp_path / "run", store) for facts in (NODE, OTHER))
    assert "cannot be written (not a directory): the others need this node to go on" in head.said[0]
    assert other.said == []
    assert not other.membership.can_move
    head.succession.lost_some(head.place)


def test_a_run_of_a_fixed_number_of_nodes_takes_no_rounds(tmp_path):
    succession = Succession(is_elastic=False, timeout_s=TIMEOUT_S, say=print)
    store = FakeStore()
    membership = Membership(NODE, 1, print)
    succession.settle(FakePlace(NODE, membership, is_head=True), store, str(tmp_path), "127.0.0.1")
    assert not store
    assert not list(tmp_path.iterdir())
