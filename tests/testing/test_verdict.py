"""What ranks' ends make of a test, from reports of pytest's own kind."""

from __future__ import annotations

import pytest

from distrain.testing.verdict import RankEnd, judge


def report(outcome="passed", longrepr=None, **more):
    return pytest.TestReport(
        nodeid="test_x.py::test_x",
        location=("test_x.py", 0, "test_x"),
        keywords={},
        outcome=outcome,
        longrepr=longrepr,
        when="call",
        **more,
    )


def raised(message):
    try:
        raise RuntimeError(message)
    except RuntimeError:
        return pytest.ExceptionInfo.from_current().getrepr()


def ends(*reports):
    return [RankEnd(rank=rank, report=each, order=rank) for rank, each in enumerate(reports)]


def test_all_pass():
    verdict = judge(ends(report(), report()), when="call")
    assert (verdict.outcome, verdict.longrepr) == ("passed", None)


def test_equal_failures_stand_together_whatever_their_addresses():
    verdict = judge(ends(*(report("failed", raised(f"<Net at 0x7f00{rank}0>")) for rank in range(3))), when="call")
    assert verdict.outcome == "failed"
    text = str(verdict.longrepr)
    assert "ranks 0-2:" in text
    assert text.count("RuntimeError: <Net") == 1
    assert verdict.longrepr.reprcrash.message == "ranks 0-2: RuntimeError: <Net at 0x7f0000>"


def test_the_first_of_different_failures_stands_last():
    late, first = RankEnd(rank=0, report=report("failed", raised("late")), order=2), ends(report("failed", "first"))[0]
    text = str(judge([late, first], when="call").longrepr)
    assert text.index("late") < text.index("first")


def test_who_lost_its_peer_is_named_in_a_line_and_not_taken_for_the_cause():
    lost = RankEnd(rank=0, report=report("failed", raised("Connection closed by peer [127.0.0.1]:1")), order=1)
    dead = RankEnd(rank=1, died="died of SIGKILL", order=2)
    verdict = judge([lost, dead], when="call")
    assert str(verdict.longrepr).splitlines() == [
        "rank 0 lost the connection to a peer: RuntimeError: Connection closed by peer [127.0.0.1]:1",
        "rank 1 died of SIGKILL",
    ]
    assert not verdict.by_ranks


def test_a_rank_that_a_fault_hit_has_no_say():
    hit = RankEnd(rank=1, died="died of SIGKILL", was_hit=True, order=1)
    assert judge([*ends(report()), hit], when="call").outcome == "passed"
    alone = judge([hit], when="call")
    assert alone.outcome == "failed"
    assert "none is left to pass" in str(alone.longrepr)


def test_one_expected_failure_is_enough_and_a_strict_pass_beside_it_is_none():
    expected = report("skipped", raised("as expected"), wasxfail="it is broken")
    strict = report("failed", "[XPASS(strict)] it is broken")
    verdict = judge(ends(strict, expected), when="call")
    assert (verdict.outcome, verdict.wasxfail) == ("skipped", "it is broken")
    assert judge(ends(strict, strict), when="call").longrepr == "[XPASS(strict)] it is broken"


def test_ranks_skip_together_or_not_at_all():
    skipped = report("skipped", ("test_x.py", 3, "Skipped: no"))
    assert judge(ends(skipped, skipped), when="call").outcome == "skipped"
    verdict = judge(ends(report(), skipped), when="call")
    assert verdict.outcome == "failed"
    assert "rank 1 skipped (Skipped: no), rank 0 did not" in str(verdict.longrepr)


def test_output_is_shown_once_for_those_who_printed_the_same():
    texts = ["a", "b", "a"]
    verdict = judge(ends(*(report(sections=[("Captured stdout call", text)]) for text in texts)), when="call")
    assert verdict.sections == (
        ("Captured stdout call (ranks 0, 2)", "a"),
        ("Captured stdout call (rank 1)", "b"),
    )
