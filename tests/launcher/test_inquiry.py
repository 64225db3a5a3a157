"""The nodes' talk about a hang, by a fake clock and with words that arrive at once, late or never."""

from __future__ import annotations

import itertools
import json

import pytest

from distrain.launcher.inquiry import Found, Inquiry, Node
from distrain.supervision.beat import Beat
from distrain.supervision.hangs import Silence, judge
from distrain.supervision.places import Place

S = 1_000_000_000
NODES = [Node(token=f"t{n}", host=f"h{n}", ranks=range(2 * n, 2 * n + 2)) for n in range(3)]


def silence(rank, silent_s, steps=7, state="going"):
    beat = Beat(rank=rank, pid=100 + rank, beats=steps, steps=steps, last_ns=1, slowest_ns=0, state=state)
    return Silence(beat=beat, silent_s=silent_s)


def place(*ranks, waits=True, mark="m"):
    return Place(ranks=ranks, is_stopped=False, is_known=True, waits_for_others=waits, mark=mark)


class Net:
    """Three nodes of two ranks each; a word goes through JSON to every other node that is not deaf."""

    def __init__(self, silent_s=10.0, timeout_s=10.0):
        self.ranks = {rank: silence(rank, silent_s) for rank in range(6)}
        self.timeouts_s = dict.fromkeys(range(3), timeout_s)
        self.words, self.deaf = [], set()
        self.nodes = [
            Inquiry(
                NODES,
                mine=node.token,
                tell=lambda word, n=n: self.words.append((n, json.dumps(word))),
                ranks=lambda node=node: [self.ranks[rank] for rank in node.ranks],
                timeout_s=lambda n=n: self.timeouts_s[n],
            )
            for n, node in enumerate(NODES)
        ]

    def deliver(self, now_s):
        count = len(self.words)
        while self.words:
            source, text = self.words.pop(0)
            for n, node in enumerate(self.nodes):
                if n != source and not {n, source} & self.deaf:
                    node.heard(int(now_s * S), f"t{source}", json.loads(text))
        return count

    def consider(self, now_s, asker=0):
        """Node `asker` sees its ranks hang; all hear, answer and judge."""
        for n, node in enumerate(self.nodes):
            ranks = [self.ranks[rank] for rank in NODES[n].ranks]
            node.consider(int(now_s * S), judge(int(now_s * S), ranks, 10.0) if n == asker else None)
        self.deliver(now_s)
        for node in self.nodes:
            node.consider(int(now_s * S), None)


def test_all_nodes_judge_all_ranks_and_name_the_same_one():
    net = Net()
    net.ranks[3] = silence(3, 9.5, steps=6)  # behind the others, and a little later than they
    net.consider(49)
    assert [node.hang for node in net.nodes] == [None] * 3
    net.ranks = {rank: silence(rank, 10.5 - (rank == 3) / 2, steps=7 - (rank == 3)) for rank in range(6)}
    net.consider(49.5)
    assert [node.hang.suspects for node in net.nodes] == [(3,)] * 3
    assert all({each.beat.rank for each in node.hang.silent} == set(range(6)) for node in net.nodes)
    waiting = {0: [place(0, 1)], 1: [place(2), place(3, waits=False, mark="x")], 2: [place(4, 5)]}
    for n, node in enumerate(net.nodes):
        assert node.found(50 * S) is None
        node.stand(50 * S, waiting[n], {rank: f"at {rank}" for rank in NODES[n].ranks})
    net.deliver(50)
    found = [node.found(50 * S) for node in net.nodes]
    assert [each.suspects for each in found] == [(3, 0, 1, 2, 4, 5)] * 3
    assert [node.is_elsewhere(each) for node, each in zip(net.nodes, found, strict=True)] == [True, False, True]
    assert found[0].elsewhere == {2: "h1", 3: "h1", 4: "h2", 5: "h2"}
    assert found[2].doing == {rank: f"at {rank}" for rank in range(6)}
    assert net.nodes[1].ends_after_s(found[1]) == 0 < net.nodes[0].ends_after_s(found[0])


@pytest.mark.parametrize(
    "busy", [silence(4, 1.0), silence(4, 3000.0, state="paused"), silence(4, 10.5, steps=6)], ids=str
)
def test_a_rank_that_is_busy_elsewhere_is_waited_for_and_asked_for_less_and_less_often(busy):
    net = Net()
    net.timeouts_s[2] = 12.0 if busy.silent_s == 10.5 else 10.0  # its slowest step was longer than any of the others
    net.ranks[4] = busy
    asked = []
    for now_s in range(100, 130):
        for n, node in enumerate(net.nodes):
            ranks = [net.ranks[rank] for rank in NODES[n].ranks]
            node.consider(now_s * S, judge(now_s * S, ranks, 10.0) if n < 2 else None)
        if any(json.loads(text)["is_question"] for _, text in net.words):
            asked.append(now_s)
        net.deliver(now_s)
        assert all(node.hang is None for node in net.nodes)
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert gaps[0] <= 2
    assert max(gaps) <= 7
    assert len(asked) <= (12 if busy.silent_s == 10.5 else 8), "who is nearly due is asked for sooner"
    net.ranks[4] = silence(4, 20.0)
    for now_s in range(130, 140):
        net.consider(now_s)
    assert all(node.hang is not None for node in net.nodes)


def test_a_node_that_looks_for_no_hangs_answers_all_the_same():
    net = Net()
    net.timeouts_s[1] = None
    net.consider(50)
    assert all(node.hang is not None for node in net.nodes)
    net = Net(timeout_s=None)
    net.consider(50)
    assert all(node.hang is None for node in net.nodes)


def test_a_node_that_does_not_answer_is_not_waited_for_long():
    net = Net()
    net.deaf = {2}
    net.consider(50)
    assert net.nodes[0].hang is None
    net.consider(52)
    assert [node.hang is None for node in net.nodes] == [False, False, True]
    for node in net.nodes[:2]:
        node.stand(52 * S, [place(0, 1)], {})
    net.deliver(52)
    assert net.nodes[0].found(53 * S) is None
    assert net.nodes[0].found(57 * S).suspects == (0, 1, 2, 3)
    assert net.nodes[0].known() == net.nodes[0].found(57 * S)


def test_a_node_that_hears_where_others_stand_looks_at_its_own_ranks():
    net = Net()
    net.deaf = {2}
    for now_s in (50, 52):
        net.consider(now_s)
    net.deaf = set()
    net.nodes[0].stand(52 * S, [place(0, 1)], {})
    net.deliver(52)
    assert net.nodes[2].hang == net.nodes[0].hang
    assert not net.nodes[2].has_told


def test_strangers_are_not_listened_to():
    net = Net()
    net.nodes[0].heard(50 * S, "t9", {"word": "stand", "hang": {}, "places": [], "doing": {}})
    assert net.nodes[0].hang is None


def test_a_node_that_says_which_ranks_it_has_is_known_by_those():
    first = Net().nodes[0]
    hang = judge(50 * S, [silence(2, 10.5), silence(3, 10.5)], 10.0)
    assert first.is_elsewhere(Found(hang=hang, odd=(2,), doing={}))
    first.placed("t1", [0, 7])
    assert first.is_elsewhere(Found(hang=hang, odd=(7,), doing={}))
    assert not first.is_elsewhere(Found(hang=hang, odd=(2,), doing={}))
