"""The one report that all ranks' reports of a subtest make together."""

from __future__ import annotations

from _pytest.subtests import SubtestContext, SubtestReport

from distrain.testing.subtests import merge, received, to_be_sent
from distrain.testing.verdict import RankEnd
from tests.testing.test_verdict import report


def subtest(outcome="passed", longrepr=None, msg="sub", **values):
    return SubtestReport._new(report(outcome, longrepr), SubtestContext(msg=msg, kwargs=values), None, None)


def ends(*ranks):
    return [RankEnd(rank=rank, report=each, order=rank) for rank, subtests in enumerate(ranks) for each in subtests]


def merged(*ranks):
    return [(each.outcome, str(each.longrepr)) for each in merge(ends(*ranks), when="call")]


def test_ranks_that_fail_alike_stand_together_and_others_are_told_apart():
    failure = ("failed", "no")
    assert merged([subtest(*failure, n=1), subtest(n=2)], [subtest(*failure, n=1), subtest(*failure, n=2)]) == [
        ("failed", "ranks 0-1: no"),
        ("failed", "rank 1: no"),
    ]


def test_equal_names_are_told_apart_by_their_order():
    assert merged([subtest(), subtest("failed", "no")], [subtest(), subtest()]) == [
        ("passed", "None"),
        ("failed", "rank 0: no"),
    ]


def test_a_subtest_of_one_rank_is_its_own():
    assert merged([subtest()], [subtest("failed", "no", msg="mine")]) == [("passed", "None"), ("failed", "rank 1: no")]


def test_ranks_skip_a_subtest_together_or_not_at_all():
    skip = ("skipped", ("test_x.py", 3, "Skipped: no"))
    assert merged([subtest(*skip)], [subtest(*skip)]) == [("skipped", str(skip[1]))]
    assert merged([subtest()], [subtest(*skip)]) == [
        ("failed", "The ranks disagree: rank 1 skipped (Skipped: no), rank 0 did not")
    ]


def test_values_arrive_as_they_were_sent():
    sent = to_be_sent(subtest(name="text", number=1))
    data = sent._to_json()
    assert received(SubtestReport._from_json(data), data).context == sent.context
