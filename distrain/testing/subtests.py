"""Subtests: what a rank reports beside its phases, and the one report that all ranks' make together.

pytest has them built in since 9.0, pytest-subtests before; both report each at its end, and neither is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from _pytest._io.saferepr import saferepr  # what pytest shows a subtest's values with

from distrain.testing.verdict import RankEnd, judge, without_addresses

if TYPE_CHECKING:
    import pytest

__all__ = ["contains_failed", "merge", "received", "to_be_sent"]

_PLAIN = (str, int, float, bool, type(None))


def contains_failed(num_failed: int) -> str:
    """Return what a test fails with that passed apart from its subtests, in pytest's words."""
    return f"contains {num_failed} failed subtest{'s' if num_failed > 1 else ''}"


def to_be_sent(report: pytest.TestReport) -> pytest.TestReport:
    """Return the report with values that every process can have: those of a subtest may be tensors, or locks."""
    context = getattr(report, "context", None)
    if context is not None:
        plain = {name: each if type(each) in _PLAIN else saferepr(each) for name, each in context.kwargs.items()}
        object.__setattr__(context, "kwargs", plain)
    return report


def received(report: pytest.TestReport, data: dict[str, Any]) -> pytest.TestReport:
    """Return the report with the subtest's values as they were sent: pytest 9.2 quotes them anew where it reads them.

    Args:
        report: As pytest has read it.
        data: What it was read from.
    """
    context = getattr(report, "context", None)
    if context is not None:
        object.__setattr__(context, "kwargs", data["_subtest.context"]["kwargs"])
    return report


def merge(ends: Iterable[RankEnd], *, when: str) -> tuple[pytest.TestReport, ...]:
    """Return a report for each subtest, of all ranks that had it.

    The how many-th of its name and its values is the same subtest on every rank.

    Args:
        ends: The ranks' subtests, each rank's in their order.
        when: The phase in which they were.
    """
    subtests: dict[tuple[str, int], list[RankEnd]] = {}
    counts: dict[tuple[str, int], int] = {}
    for end in ends:
        name = without_addresses(repr(getattr(end.report, "context", None)))
        counts[name, end.rank] = count = counts.get((name, end.rank), 0) + 1
        subtests.setdefault((name, count), []).append(end)
    return tuple(_of_all(each, when) for each in subtests.values())


def _of_all(ends: list[RankEnd], when: str) -> pytest.TestReport:
    verdict = judge(ends, when=when)
    report = ends[0].report
    assert report is not None
    report.outcome = verdict.outcome
    report.longrepr = verdict.longrepr
    report.sections = list(verdict.sections)
    report.user_properties = list(verdict.user_properties)
    if verdict.wasxfail is not None:
        report.wasxfail = verdict.wasxfail
    elif hasattr(report, "wasxfail"):
        del report.wasxfail
    return report
