"""What the ends of all ranks make of a test: one outcome, one text in which equal ranks stand together.

The text is pytest's own kind of report, a chain of tracebacks with the rank's name above each, so that colours, the
short summary, junitxml and pytest-xdist work with it. The first failure stands last, next to the summary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from _pytest._code.code import (  # pytest has no public names for the parts of a report
    ExceptionChainRepr,
    ReprEntryNative,
    ReprExceptionInfo,
    ReprFileLocation,
    ReprTraceback,
)

from distrain.supervision.classify import classify
from distrain.supervision.failure import Standing
from distrain.supervision.stacks import ranks_in_words

if TYPE_CHECKING:
    import pytest

__all__ = ["RankEnd", "RanksEndedError", "Verdict", "judge", "without_addresses"]

_ADDRESS = re.compile(r"0x[0-9a-f]{4,}")
_STRICT = "[XPASS(strict)]"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How one rank ended a phase of the test.

    Args:
        rank: Its number.
        report: Its own pytest's report; None when it gave none.
        died: How the process ended instead, in words; "" when it did not.
        was_hit: Whether a fault that the test asked for hit it.
        order: The how many-th report or death it was.
        output: What it had printed, for a rank without a report: title and text.
    """

    rank: int
    report: pytest.TestReport | None = None
    died: str = ""
    was_hit: bool = False
    order: int = 0
    output: tuple[tuple[str, str], ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it makes the test fail; a rank that passed where a strict xfail stands waits for the others' word."""
        if self.report is None:
            return bool(self.died) and not self.was_hit
        return self.report.failed and not _is_strict_pass(self.report)

    @property
    def crash(self) -> str:
        """Type and message of what it failed with."""
        crash = getattr(self.report.longrepr, "reprcrash", None) if self.report else None
        return crash.message if crash is not None else str(self.report.longrepr if self.report else self.died)

    @property
    def victim_of(self) -> str:
        """What a failure is a case of that follows from another rank's; "" for one that may be the cause."""
        kind, _, message = self.crash.partition(": ")
        found = classify(1, {"type": kind, "message": message})
        return found.reason if found.standing < Standing.DOUBTFUL else ""

    @property
    def counts(self) -> bool:
        """Whether the rank had a say: one that a fault ended, or that was ended because of another, has none."""
        return self.report is not None or self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of a phase of a test.

    Args:
        outcome: As in pytest's reports.
        longrepr: Likewise.
        wasxfail: The reason of an expected failure; None when there was none.
        by_ranks: Whether the ranks' own pytest decided. What only this process saw (a death, a timeout) is left to its
            xfail marks.
        sections: Title and text of what the ranks printed.
        user_properties: What `record_property` was given.
        subtests: The reports of subtests, each of all ranks that had it.
    """

    outcome: Literal["passed", "failed", "skipped"]
    longrepr: Any = None
    wasxfail: str | None = None
    by_ranks: bool = True
    sections: tuple[tuple[str, str], ...] = ()
    user_properties: tuple[tuple[str, object], ...] = field(default=())
    subtests: tuple[pytest.TestReport, ...] = ()

    def write_into(self, report: pytest.TestReport) -> None:
        """Have `report`, of this process, say what the ranks came to."""
        report.sections.extend(self.sections)
        if not self.by_ranks:
            if report.failed:
                report.longrepr = self.longrepr
            return
        report.outcome = self.outcome
        report.longrepr = self.longrepr
        if self.wasxfail is not None:
            report.wasxfail = self.wasxfail
        elif hasattr(report, "wasxfail"):
            del report.wasxfail


class RanksEndedError(Exception):
    """Raised in pytest's process where the ranks did not pass; the report is written from its verdict.

    Args:
        verdict: What the ranks came to.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(str(verdict.longrepr))
        self.verdict = verdict


def judge(ends: Sequence[RankEnd], *, when: str, timeout_s: float | None = None, stacks: str = "") -> Verdict:
    """Return the outcome of a phase.

    Args:
        ends: Every rank's end.
        when: setup, call or teardown.
        timeout_s: The time that was over; None when the ranks ended in time.
        stacks: Where the ranks stood that were ended, as text.
    """
    shared: dict[str, Any] = {
        "sections": tuple(_sections(ends)),
        "user_properties": tuple(_unique(each for end in ends if end.report for each in end.report.user_properties)),
    }
    if timeout_s is not None:
        reports = [_text_block(f"Timeout: the ranks did not end their {when} within {timeout_s:g} s", stacks)]
        return Verdict(outcome="failed", longrepr=_chain([*_failures(ends), *reports]), by_ranks=False, **shared)
    said = sorted((end for end in ends if end.counts), key=lambda end: end.order)
    if not said:
        return Verdict(
            outcome="failed",
            longrepr=_chain([_text_block("Every rank was hit by a fault: none is left to pass", "")]),
            by_ranks=False,
            **shared,
        )
    real = [end for end in said if end.failed]
    expected = [end.report for end in said if end.report and _is_expected_failure(end.report)]
    skipped = [end for end in said if end.report and end.report.skipped and not _is_expected_failure(end.report)]
    if real:
        waiting = [_text_block("", stacks)] if stacks else []
        return Verdict(
            outcome="failed",
            longrepr=_chain([*waiting, *_failures(real)]),
            by_ranks=not any(end.died for end in real),
            **shared,
        )
    if expected:
        return Verdict(outcome="skipped", longrepr=expected[0].longrepr, wasxfail=expected[0].wasxfail, **shared)
    if skipped and len(skipped) < len(ends):
        ranks = {end.rank for end in skipped}
        others = _names(end.rank for end in ends if end.rank not in ranks)
        reason = skipped[0].report.longrepr if skipped[0].report else ""
        reason = reason[2] if isinstance(reason, tuple) else reason
        text = f"The ranks disagree: {_names(ranks)} skipped ({reason}), {others} did not"
        return Verdict(outcome="failed", longrepr=_chain([_text_block(text, stacks)]), by_ranks=False, **shared)
    first = next((end.report for end in said if end.report and end.report.failed), said[0].report)
    assert first is not None
    return Verdict(outcome=first.outcome, longrepr=first.longrepr, wasxfail=getattr(first, "wasxfail", None), **shared)


def _is_expected_failure(report: pytest.TestReport) -> bool:
    return report.skipped and hasattr(report, "wasxfail")


def _is_strict_pass(report: pytest.TestReport) -> bool:
    """Whether it is a failure because the rank passed, while another rank may have failed as expected."""
    return isinstance(report.longrepr, str) and report.longrepr.startswith(_STRICT)


_Block = tuple[ReprTraceback, ReprFileLocation | None, str]
"""A traceback, where it ended, and the line to stand above it."""


def _failures(ends: Iterable[RankEnd]) -> list[_Block]:
    """Return a block for each different failure: the first to happen last, those that followed from it in a line."""
    failed = sorted((end for end in ends if end.failed), key=lambda end: -end.order)
    causes = [end for end in failed if not end.victim_of] or failed
    victims = [end for end in failed if end not in causes]
    blocks: list[_Block] = [
        _text_block(f"{_names(end.rank for end in group)} {group[0].victim_of}: {group[0].crash}", "")
        for group in _grouped(victims, lambda end: end.victim_of)
    ]
    for group in _grouped(causes, _essence):
        ranks = _names(end.rank for end in group)
        first = min(group, key=lambda end: end.rank)
        if first.report is None:
            blocks.append(_text_block(f"{ranks} {first.died}", ""))
        else:
            blocks.extend(_blocks_of(first.report.longrepr, ranks))
    return blocks


def _blocks_of(longrepr: Any, ranks: str) -> list[_Block]:
    """Return one rank's report as blocks: one for each exception of its chain."""
    if isinstance(longrepr, ExceptionChainRepr):
        chain = list(longrepr.chain)
    elif isinstance(longrepr, ReprExceptionInfo):
        chain = [(longrepr.reprtraceback, longrepr.reprcrash, None)]
    else:
        return [_text_block(f"{ranks}: {str(longrepr).strip()}", "")]
    titles = [f"{ranks}:", *(each[2] or "" for each in chain[:-1])]
    blocks = [(trace, crash, title) for (trace, crash, _), title in zip(chain, titles, strict=True)]
    trace, crash, title = blocks[-1]
    if crash is not None:
        crash = ReprFileLocation(crash.path, crash.lineno, f"{ranks}: {crash.message}")
    return [*blocks[:-1], (trace, crash, title)]


def _text_block(message: str, text: str) -> _Block:
    lines = [line for line in (message, *text.splitlines()) if line]
    entry = ReprEntryNative([line + "\n" for line in lines])
    crash = ReprFileLocation("", 0, message) if message else None
    return ReprTraceback([entry], None, "native"), crash, ""


def _chain(blocks: Sequence[_Block]) -> ExceptionChainRepr:
    """Join blocks into one report; pytest prints a text below each traceback, which here names the next one."""
    below = [title or None for _, _, title in blocks[1:]]
    head = blocks[0][2]
    chain: list[tuple[ReprTraceback, ReprFileLocation | None, str | None]] = []
    if head:
        chain.append((ReprTraceback([], None, "native"), None, head))
    chain += [(trace, crash, title) for (trace, crash, _), title in zip(blocks, [*below, None], strict=True)]
    return ExceptionChainRepr(chain)


def _essence(end: RankEnd) -> Hashable:
    """Return what makes two failures the same: place and message, addresses in memory apart."""
    crash = getattr(end.report.longrepr, "reprcrash", None) if end.report else None
    place = None if crash is None else (crash.path, crash.lineno)
    return place, without_addresses(end.crash)


def without_addresses(text: str) -> str:
    """Return the text with no addresses in memory, which differ between ranks."""
    return _ADDRESS.sub("0x…", text)


def _sections(ends: Iterable[RankEnd]) -> Iterable[tuple[str, str]]:
    """Return what the ranks printed; ranks that printed the same stand together."""
    by_title: dict[str, list[tuple[int, str]]] = {}
    for end in ends:
        own = end.output if end.report is None else end.report.sections
        for title, text in own:
            by_title.setdefault(title, []).append((end.rank, text))
    for title, texts in by_title.items():
        for group in _grouped(texts, lambda each: each[1]):
            yield f"{title} ({_names(rank for rank, _ in group)})", group[0][1]


def _grouped(values: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Return the values with equal keys together, in the order of each group's first."""
    groups: dict[Hashable, list[T]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return list(groups.values())


def _unique(values: Iterable[T]) -> list[T]:
    return [group[0] for group in _grouped(values, repr)]


def _names(ranks: Iterable[int]) -> str:
    return ranks_in_words(sorted(ranks))
