"""How a run ended, said in its last lines and by the exit code."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrain.errors import EXIT_PREEMPTED
from distrain.supervision.failure import Report, Standing, exit_code_of, from_json
from distrain.supervision.logs import tail_lines

__all__ = ["LAUNCHER_LOG_LINES", "Conclusion", "Ending", "conclude", "signal_elsewhere"]

LAUNCHER_LOG_LINES = 15
"""How much of the launcher's own log is shown when the launcher itself has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What is known once the last process has ended.

    Args:
        agent: The agent's last word, empty when it had none.
        broken: What failed in the launcher itself.
        failure: Why the ranks failed, if they did.
        not_retried: Why they were not started again although a restart was left.
        stopped_by: The signal that was sent to this launch.
        is_preempted: Whether every rank was asked to end and has saved its state.
        is_preempted_at_start: Whether the scheduler ended the run before there was anything to save.
        launcher_log: Where the launcher's own processes write.
    """

    agent: Mapping[str, Any]
    broken: Sequence[str]
    failure: Report | None
    not_retried: str | None
    stopped_by: int | None
    is_preempted: bool
    is_preempted_at_start: bool
    launcher_log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What came of a run.

    Args:
        status: One word for `run.json`.
        exit_code: The launcher's.
        told: What is shown, in this order: lines, and a failure as its report.
    """

    status: str
    exit_code: int
    told: tuple[str | Report, ...]


def signal_elsewhere(agent: Mapping[str, Any]) -> int | None:
    """Return the signal that ended the run on another node, if that ended it here.

    Args:
        agent: The agent's last word.
    """
    return agent.get("signal") if agent.get("outcome") == "ended" else None


def conclude(ending: Ending, *, took: str, where: str) -> Conclusion:
    """Return how a run ended.

    Args:
        ending: What is known.
        took: How long it took, in words.
        where: Where its traces are, in words.
    """
    outcome = ending.agent.get("outcome")
    if ending.is_preempted:
        saved = f"preempted after {took}, the state is saved; the same --run-dir goes on from there"
        return _told("preempted", EXIT_PREEMPTED, f"{saved} · exit code {EXIT_PREEMPTED} · {where}")
    if ending.is_preempted_at_start:
        why = f"{ending.agent['error']}; " if signal_elsewhere(ending.agent) else ""
        unsaved = f"{why}preempted after {took}, before the first step: nothing to save"
        return _told("preempted", EXIT_PREEMPTED, f"{unsaved} · exit code {EXIT_PREEMPTED} · {where}")
    if ending.stopped_by is not None:
        name, code = signal.Signals(ending.stopped_by).name, 128 + ending.stopped_by
        failed = [each for each in [ending.failure] if each is not None and _has_failed_at_the_end(each, code)]
        return _told("interrupted", code, *failed, f"ended by {name} after {took} · {where}")
    if ending.broken:
        log = (f"  {line}" for line in tail_lines(ending.launcher_log, LAUNCHER_LOG_LINES))
        return _told("broken", 1, "\n".join(ending.broken), *log, f"failed after {took} · {where}")
    if outcome == "ended":
        return _ended_elsewhere(ending.agent, took, where)
    if outcome == "succeeded":
        return _told("succeeded", 0, f"finished in {took} · {where}")
    assert ending.failure is not None, ending.agent
    code = exit_code_of(ending.failure)
    return _told("failed", code, *_failed(ending), f"failed after {took} · exit code {code} · {where}")


def _has_failed_at_the_end(failure: Report, code: int) -> bool:
    """Whether a rank that was asked to end has failed at it, with its checkpoint say.

    One whose trainer has stopped and saved raises as well, and ends with the signal's code, or as preempted.
    """
    cause = failure.root_cause
    has_raised = bool(cause.traceback) and cause.standing == Standing.CAUSE
    return has_raised and cause.exit_code not in (code, EXIT_PREEMPTED)


def _told(status: str, exit_code: int, *told: str | Report) -> Conclusion:
    return Conclusion(status=status, exit_code=exit_code, told=told)


def _ended_elsewhere(agent: Mapping[str, Any], took: str, where: str) -> Conclusion:
    """Conclude a run that ended for what another node says, or for the loss of one."""
    code: int = agent["code"]
    why = from_json(agent["report"]) if agent.get("report") else str(agent["error"])
    status, word = ("interrupted", "ended") if signal_elsewhere(agent) else ("failed", "failed")
    return _told(status, code, why, f"{word} after {took} · exit code {code} · {where}")


def _failed(ending: Ending) -> Iterator[str | Report]:
    assert ending.failure is not None
    yield ending.failure
    if ending.not_retried is not None:
        yield f"not started again: {ending.not_retried} (--retry always does)"
