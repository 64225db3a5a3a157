"""What a node makes of the fate of the others."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from distrain.launcher.ended_elsewhere import EndedElsewhereError
from distrain.launcher.membership import Membership
from tests.launcher.test_facts import NODE, OTHER

THIRD = replace(NODE, token="c", host="h2", node_rank=2)


@pytest.fixture
def said():
    return []


def make(said, min_nodes=1, members=(NODE, OTHER, THIRD)) -> Membership:
    membership = Membership(NODE, min_nodes, lambda text, **_: said.append(text))
    if members:
        membership.began(0, list(members))
    return membership


def hello(node):
    return {"facts": node.as_json(), "time": 0.0}


def test_with_enough_nodes_left_a_new_round_begins_and_its_beginning_forgets(said):
    membership = make(said, min_nodes=2)
    membership.take("gone", {"token": "c", "how": "has gone"})
    assert said == ["node 2 (host h2) has gone; going on with 2 nodes"]
    membership.check()
    assert membership.changed()
    membership.began(1, [NODE, OTHER])
    assert not membership.changed()
    membership.take("gone", {"token": "c", "how": "has gone"})
    assert len(said) == 1


def test_with_too_few_left_the_run_ends(said):
    membership = make(said, min_nodes=3)
    membership.take("gone", {"token": "b", "how": "has gone"})
    assert membership.ended.is_set()
    assert not membership.seen.is_set()
    with pytest.raises(EndedElsewhereError, match=r"node 1 \(host h1\) has gone; 2 nodes left and the run needs 3"):
        membership.check()
    assert membership.seen.is_set()


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_run_that_ends_because_a_node_was_stopped_ends_with_its_code(said, is_settled):
    membership = make(said, min_nodes=3, members=(NODE, OTHER, THIRD) if is_settled else ())
    membership.take("gone", {"token": "b", "how": "was ended by SIGTERM", "signal": 15})
    membership.began(0, [NODE, OTHER, THIRD])
    with pytest.raises(EndedElsewhereError, match=r"node 1 \(host h1\) was ended by SIGTERM; 2 nodes left") as caught:
        membership.check()
    assert (caught.value.exit_code, caught.value.signal) == (143, 15)


def test_a_head_that_was_stopped_gives_its_code_to_all(said):
    membership = make(said)
    membership.take("head_gone", {"how": "was ended by SIGINT", "signal": 2})
    with pytest.raises(EndedElsewhereError) as caught:
        membership.check()
    assert caught.value.exit_code == 130


def test_a_node_that_went_while_the_round_was_being_settled_counts(said):
    membership = make(said, members=())
    membership.take("gone", {"token": "b", "how": "has gone"})
    assert said == []
    membership.began(0, [NODE, OTHER])
    assert membership.changed()


def test_the_head_takes_the_run_with_it_unless_the_ranks_have_finished(said):
    membership = make(said)
    membership.finished()
    membership.take("head_gone", {"how": "has gone"})
    membership.check()
    membership = make(said)
    membership.take("head_gone", {"how": "has gone"})
    with pytest.raises(EndedElsewhereError, match="has gone; the nodes meet there"):
        membership.check()


def led_by_another(said, **options) -> Membership:
    """Return what node 1 makes of it, which meets the others at node 0 and could meet them elsewhere."""
    membership = Membership(OTHER, options.get("min_nodes", 1), lambda text, **_: said.append(text))
    membership.meets_at(OTHER, NODE)
    membership.can_move = True
    if options.get("has_begun", True):
        membership.began(0, [NODE, OTHER, THIRD])
    return membership


def test_who_is_left_of_an_elastic_run_goes_on_without_the_head(said):
    membership = led_by_another(said)
    assert membership.head_token == "a"
    membership.take("head_gone", {"how": "has gone"})
    membership.check()
    assert membership.changed()
    assert membership.is_head_gone
    assert not membership.may_head_live
    assert membership.heirs() == [OTHER, THIRD]
    assert said == ["node 0 (host h0) has gone; going on with 2 nodes"]
    membership.meets_at(OTHER, THIRD)
    assert not membership.is_head_gone


def test_a_head_that_is_not_heard_of_may_live(said):
    membership = led_by_another(said)
    membership.take("head_gone", {"how": "is silent", "silent": True})
    assert membership.may_head_live
    assert said == ["node 0 (host h0) is silent; going on with 2 nodes, unless it has the run"]


@pytest.mark.parametrize("lacking", [{"min_nodes": 3}, {"has_begun": False}])
def test_without_enough_nodes_or_before_the_first_round_the_head_takes_the_run_with_it(said, lacking):
    membership = led_by_another(said, **lacking)
    membership.take("head_gone", {"how": "has gone"})
    with pytest.raises(EndedElsewhereError, match=r"node 0 \(host h0\) has gone; "):
        membership.check()


def test_a_node_that_was_cut_off_comes_back_as_another_and_to_one_that_it_knew_as_gone(said):
    head, member, again = make(said), led_by_another(said), OTHER.anew()
    head.take("gone", {"token": "b", "how": "is silent", "silent": True})
    assert head.num_silent() == 1
    assert head.heirs() == [NODE, THIRD]
    assert head.admit(hello(again), 0.0) is None
    member.take("head_gone", {"how": "is silent", "silent": True})
    member.meets_at(again, NODE)
    for each in (head, member):
        each.began(1, [NODE, again, THIRD])
        assert not each.changed()
        assert each.num_silent() == 0


def test_the_first_to_fail_is_no_collateral(said):
    membership = make(said)
    assert not membership.is_collateral("a", 5, 5.0)
    membership.take("failing", {"token": "b", "round": 0, "when": 4.0, "standing": 5})
    assert membership.is_collateral("a", 5, 5.0)
    assert not membership.is_collateral("a", 5, 3.0)
    membership.take("failing", {"token": "c", "round": 7, "when": 1.0, "standing": 5})
    assert not membership.is_collateral("a", 5, 3.0)


def test_who_was_cut_off_is_no_cause_however_early(said):
    membership = make(said)
    membership.take("failing", {"token": "b", "round": 0, "when": 4.0, "standing": 2})
    assert not membership.is_collateral("a", 5, 5.0)
    membership.take("failing", {"token": "c", "round": 0, "when": 6.0, "standing": 5})
    assert membership.is_collateral("b", 2, 4.0)


@pytest.mark.parametrize(
    "last", [("failing", {"token": "c", "round": 0, "when": 4.0, "standing": 2}), ("gone", {"token": "c", "how": "x"})]
)
def test_nobody_is_waited_for_once_all_have_spoken(said, last):
    membership = make(said)
    membership.take("failing", {"token": "b", "round": 0, "when": 4.0, "standing": 2})
    assert not membership.have_all_spoken(5)
    membership.take(*last)
    assert membership.have_all_spoken(5)


def test_a_victim_waits_until_who_knows_no_cause_either_has_looked_where_its_ranks_are(said):
    membership = make(said)
    membership.take("failing", {"token": "b", "round": 0, "when": 4.0, "standing": 3})
    membership.take("failing", {"token": "c", "round": 0, "when": 4.0, "standing": 5})
    assert not membership.have_all_spoken(3)
    membership.has_looked("b")
    assert membership.have_all_spoken(3)


def test_word_of_a_restart_counts_in_its_own_round_only(said):
    membership = make(said)
    membership.take("restart", {"token": "b", "round": 3, "text": "rank 1: SIGKILL"})
    assert not membership.changed()
    membership.take("restart", {"token": "b", "round": 0, "text": "rank 1: SIGKILL"})
    assert membership.changed()
    assert said == ["node 1 (host h1): rank 1: SIGKILL; all ranks start anew"]


def test_a_failure_elsewhere_ends_the_run_with_its_exit_code(said):
    membership = make(said)
    membership.take("failed", {"token": "b", "text": "rank 1: exit code 7", "exit_code": 7})
    with pytest.raises(EndedElsewhereError, match=r"node 1 \(host h1\) failed: rank 1: exit code 7") as caught:
        membership.check()
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("word", [{"op": "left", "round": 0}, {"op": "done"}])
def test_where_the_ranks_of_a_node_have_ended_well_there_is_no_other_round(said, word):
    """Neither where fewer nodes would do: the node has closed the rendezvous, or is about to."""
    membership = make(said, min_nodes=1)
    assert membership.obstacle() == ""
    membership.take(word["op"], {"token": "b", **word})
    assert membership.obstacle() == "the ranks of node 1 (host h1) have ended"
    membership.take("gone", {"token": "b", "how": "has left"})
    assert membership.obstacle() == "the ranks of node 1 (host h1) have ended"


def test_who_leaves_a_run_that_ends_is_not_said_to_be_lost(said):
    membership = make(said)
    membership.take("failed", {"token": "b", "text": "rank 1: exit code 7", "exit_code": 7})
    membership.take("gone", {"token": "b", "how": "has left"})
    assert said == []
    assert not membership.changed()


def test_without_enough_nodes_there_is_no_other_round(said):
    membership = make(said, min_nodes=3)
    assert membership.obstacle() == ""
    membership.take("gone", {"token": "b", "how": "was lost"})
    assert membership.obstacle() == "2 nodes left and the run needs 3"


def test_a_misfit_ends_a_run_that_has_not_begun_and_is_turned_away_from_one_that_has(said):
    misfit = hello(replace(OTHER, torch="1"))
    begun = make(said)
    assert "cannot work together" in begun.admit(misfit, 0.0)
    assert begun.ending is None
    assert "was turned away: torch is" in said[0]
    waiting = make(said, members=())
    assert waiting.admit(misfit, 0.0) == str(waiting.ending)


def test_clocks_apart_are_said(said):
    assert make(said).admit({"facts": OTHER.as_json(), "time": 100.0}, 0.0) is None
    assert "100 s ahead" in said[0]


def test_a_node_rank_that_is_taken_is_refused_until_its_node_is_lost_or_done(said):
    membership = make(said, members=())
    assert membership.admit(hello(OTHER), 0.0) is None
    second = replace(OTHER, token="d", host="h3")
    taken = "node rank 1 is that of node 1 (host h1) already; give each node one of its own"
    assert membership.admit(hello(second), 0.0) == taken
    assert said == [f"node 1 (host h3) was turned away: {taken}"]
    assert membership.ending is None, "the others are still waited for"
    membership.take("gone", {"token": "b", "how": "has gone"})
    assert membership.admit(hello(second), 0.0) is None
    membership.take("done", {"token": "d"})
    assert membership.admit(hello(replace(OTHER, token="e")), 0.0) is None
    unranked = [replace(OTHER, token=token, node_rank=None) for token in "fg"]
    assert [membership.admit(hello(node), 0.0) for node in unranked] == [None, None]


def test_the_head_has_a_node_rank_too(said):
    second = replace(NODE, token="d", host="h3")
    assert "node rank 0 is that of node 0 (host h0)" in make(said, members=()).admit(hello(second), 0.0)


def test_a_node_lost_before_the_first_round_is_named(said):
    membership = make(said, members=())
    membership.admit(hello(OTHER), 0.0)
    membership.take("gone", {"token": "b", "how": "has not been heard of for 10 s"})
    assert said == ["node 1 (host h1) has not been heard of for 10 s; it had no ranks yet"]


def test_a_node_that_comes_in_is_said_once_a_round_whoever_notices_it(said):
    text = "another node comes in; all ranks start anew"
    membership = make(said)
    membership.take("restart", {"token": "b", "round": 0, "newcomer": True})
    assert membership.changed()
    membership.newcomer()
    assert said == [text]
    membership.began(1, [NODE, OTHER, THIRD])
    membership.newcomer()
    membership.take("restart", {"token": "b", "round": 1, "newcomer": True})
    assert said == [text] * 2


def test_a_watch_that_failed_ends_the_run_here(said):
    membership = make(said)
    membership.take("broken", {"error": "KeyError: 'when'"})
    with pytest.raises(EndedElsewhereError, match="the watch over the other nodes failed"):
        membership.check()


@pytest.mark.parametrize(
    "last", [("done", {"token": "c"}), ("gone", {"token": "c", "how": "x"}), ("head_gone", {"how": "x"})]
)
def test_who_holds_the_store_of_the_ranks_stays_until_all_others_are_done_or_gone(said, last):
    membership = make(said)
    membership.finished()
    waiting = threading.Thread(target=membership.await_others)
    membership.take("done", {"token": "b"})
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    membership.take(*last)
    waiting.join(5)
    assert not waiting.is_alive()


def test_who_waits_for_the_others_hears_of_their_failure(said):
    membership = make(said)
    membership.finished()
    membership.take("failed", {"token": "b", "text": "rank 1: KeyError", "exit_code": 3})
    with pytest.raises(EndedElsewhereError, match="failed: rank 1: KeyError"):
        membership.await_others()


def test_whose_ranks_have_ended_well_is_known_by_rank_and_host_until_the_next_round(said):
    membership = make(said)
    ranks = NODE.nproc
    membership.take("left", {"token": "b", "round": 7})
    assert membership.left_elsewhere() == {}
    membership.take("left", {"token": "b", "round": 0})
    assert membership.left_elsewhere() == dict.fromkeys(range(ranks, ranks + OTHER.nproc), OTHER.host)
    membership.take("done", {"token": "c"})
    assert membership.left_elsewhere()[ranks + OTHER.nproc] == "h2"
    membership.take("placed", {"token": "b", "round": 0, "ranks": [0, 7]})
    assert membership.left_elsewhere().items() >= {0: OTHER.host, 7: OTHER.host}.items()
    assert ranks not in membership.left_elsewhere()
    membership.began(1, [NODE, OTHER])
    assert membership.left_elsewhere() == {}


def test_a_node_that_waits_for_a_place_hears_how_the_run_has_ended(said):
    membership = make(said, members=())
    assert not membership.have_others_ended(0)
    membership.take("done", {"token": "b"})
    assert membership.have_others_ended(60)
    membership.take("failed", {"token": "c", "text": "rank 1: KeyError", "exit_code": 3})
    with pytest.raises(EndedElsewhereError, match="failed: rank 1: KeyError"):
        membership.have_others_ended(60)


def test_a_node_too_many_is_turned_away_once_a_run_of_so_many_nodes_has_begun(said):
    membership = make(said, min_nodes=2, members=())
    assert membership.admit(hello(OTHER), 0.0) is None
    assert membership.admit(hello(THIRD), 0.0) is None
    membership.began(0, [NODE, OTHER])
    assert membership.superfluous() == [THIRD]
    refusal = membership.admit(hello(replace(THIRD, token="d", host="h3", node_rank=3)), 0.0)
    assert refusal == (
        "it is a node too many: --nnodes is 2, and the run has begun with node 0 (host h0), node 1 (host h1)"
    )
    assert said == [f"node 3 (host h3) was turned away: {refusal}"]
    membership.check()


def test_an_elastic_run_has_a_node_too_many_wait_for_a_place(said):
    membership = make(said, members=())
    assert membership.admit(hello(OTHER), 0.0) is None
    membership.began(0, [NODE, OTHER])
    assert membership.admit(hello(THIRD), 0.0) is None
    assert not membership.full()


@pytest.mark.parametrize("token", [NODE.token, OTHER.token])
def test_who_has_no_place_ends_when_the_others_have_begun(said, token):
    membership = Membership(replace(NODE, token=token), 2, lambda text, **_: said.append(text))
    membership.take("refused", {"text": "it is a node too many", "but": [NODE.token]})
    assert (membership.ending is None) == (token == NODE.token)
