"""The ranks of one test as pytest's process sees them: started together, led from phase to phase, ended together."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import time
import warnings
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

from distrain.supervision.capture import capture
from distrain.supervision.dumps import Dump, parse
from distrain.supervision.failure import signal_name
from distrain.supervision.frames import Frame
from distrain.supervision.stacks import group, render
from distrain.testing.mark import Mark
from distrain.testing.subtests import contains_failed, merge, received
from distrain.testing.verdict import RankEnd, Verdict, judge
from distrain.testing.warm_server import ServerError, WarmServer

__all__ = ["RankGroup"]

GRACE_S = 0.5
"""How long the others have, after the latest rank that has failed, to fail in the same way before they are ended."""

STACKS_S = 1.0


@dataclass(kw_only=True)
class _Rank:
    """What is known of one rank."""

    number: int
    pid: int
    connection: Connection
    files: tuple[int, ...] = ()
    report: pytest.TestReport | None = None
    subtests: list[RankEnd] = field(default_factory=list)
    order: int = 0
    died: str = ""
    hit: str = ""
    is_over: bool = False
    warnings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_awaited(self) -> bool:
        """Whether something is still to come from it; nothing comes from a rank that hangs on demand."""
        return not self.is_over and self.hit != "hang"


class RankGroup:
    """The ranks of a test.

    Args:
        server: Where they are forked.
        item: The test.
        mark: Its mark.
        shared: The shared fixtures' values.
    """

    def __init__(self, server: WarmServer, item: pytest.Function, mark: Mark, shared: dict[str, Any]) -> None:
        self._server = server
        self._item = item
        self._mark = mark
        self._ranks: list[_Rank] = []
        self._num_ends = 0
        self._all_passed = True
        self._stacks = ""
        try:
            server.collect(str(item.path), item.nodeid)
            started = server.start_ranks(item.nodeid, mark.nproc, self._job(shared))
        except ServerError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        self._ranks = [
            _Rank(number=number, pid=each.pid, connection=each.connection) for number, each in enumerate(started)
        ]
        self._deadline = time.monotonic() + mark.timeout_s

    def _job(self, shared: dict[str, Any]) -> dict[str, Any]:
        env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        return {
            "env": env,
            "directory": os.getcwd(),
            "shared": {name: _pickled(name, value) for name, value in shared.items()},
            "folder": shared["tmp_path"],
        }

    def run(self, when: str) -> Verdict:
        """Have all ranks do a phase, and return what came of it.

        A rank that does not pass ends the phase for all; the others are ended after `GRACE_S`.

        Args:
            when: setup, call or teardown.
        """
        living = [rank for rank in self._ranks if not rank.is_over]
        if when == "teardown" and not living:
            return Verdict(outcome="passed")
        for rank in self._ranks:
            rank.report = None
            rank.subtests = []
        if when != "setup":
            for rank in living:
                with contextlib.suppress(OSError):
                    rank.connection.send((when, self._all_passed))
        is_late = not self._wait(when)
        if is_late:
            self._end_late(when)
        ends = [self._end_of(rank) for rank in self._ranks if when != "teardown" or rank in living]
        timed_out = is_late and not any(end.failed or (end.report and end.report.skipped) for end in ends)
        timeout_s = self._mark.timeout_s if timed_out else None
        verdict = judge(ends, when=when, timeout_s=timeout_s, stacks=self._stacks)
        subtests = [each for rank in self._ranks for each in rank.subtests]
        verdict = _with_subtests(verdict, merge(subtests, when=when), when)
        self._all_passed &= verdict.outcome == "passed" and not any(rank.hit for rank in self._ranks)
        if when == "teardown":
            self._pass_warnings_on()
        return verdict

    def _wait(self, when: str) -> bool:
        """Wait until every rank has reported; return False where some had to be given up."""
        limit = self._deadline if when != "teardown" else time.monotonic() + self._mark.timeout_s
        if when == "teardown" and not self._all_passed:
            limit = min(limit, time.monotonic() + 10 * GRACE_S)
        deadline = limit
        while pending := [rank for rank in self._ranks if rank.is_awaited and not self._has_ended(rank, when)]:
            ready = wait([rank.connection for rank in pending], max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            for rank in pending:
                if rank.connection in ready and not self._hear(rank):
                    deadline = min(limit, time.monotonic() + GRACE_S)
        return True

    @staticmethod
    def _has_ended(rank: _Rank, when: str) -> bool:
        return rank.report is not None and when != "teardown"

    def _hear(self, rank: _Rank) -> bool:
        """Take one message; return False for one that ends the test for all."""
        try:
            word, *content = rank.connection.recv()
        except (EOFError, OSError):
            rank.is_over = True
            return self._has_passed_away(rank)
        if word == "ready":
            rank.files = self._receive_files(rank, content[0])
        elif word == "hit":
            rank.hit = content[0]
        elif word == "warning":
            rank.warnings.append(content[0])
        elif word == "done":
            rank.is_over = True
        elif word == "broken":
            rank.died = f"could not run the test:\n{content[0]}"
        elif word == "subtest":
            report = received(self._report(content[0]), content[0])
            rank.subtests.append(RankEnd(rank=rank.number, report=report, order=self._next()))
        else:
            rank.report, rank.order = self._report(content[0]), self._next()
            return bool(rank.report.passed)
        return True

    def _report(self, data: dict[str, Any]) -> pytest.TestReport:
        config = self._item.config
        report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=data)
        return report

    def _has_passed_away(self, rank: _Rank) -> bool:
        if rank.died:
            return False
        code = self._server.how_it_ended(rank.pid)
        rank.order = self._next()
        if code is None:
            rank.died = "closed its connection to pytest"
        elif code < 0:
            rank.died = f"died of {signal_name(-code)}"
        else:
            rank.died = f"ended with exit code {code} in the middle of the test (os._exit)"
        return bool(rank.hit)

    @staticmethod
    def _receive_files(rank: _Rank, num_files: int) -> tuple[int, ...]:
        import socket

        with socket.socket(fileno=os.dup(rank.connection.fileno())) as sock:
            _, files, _, _ = socket.recv_fds(sock, 1, num_files)
        return tuple(files)

    def _next(self) -> int:
        self._num_ends += 1
        return self._num_ends

    def _end_late(self, when: str) -> None:
        late = [rank for rank in self._ranks if rank.is_awaited and not self._has_ended(rank, when)]
        self._stacks = self._ask_for_stacks(late)
        self._server.end_ranks()
        for rank in self._ranks:
            rank.is_over = True

    def _end_of(self, rank: _Rank) -> RankEnd:
        is_lost = rank.report is None
        return RankEnd(
            rank=rank.number,
            report=rank.report,
            died=rank.died,
            was_hit=bool(rank.hit) and is_lost,
            order=rank.order,
            output=self._printed(rank) if is_lost else (),
        )

    def _printed(self, rank: _Rank) -> tuple[tuple[str, str], ...]:
        """Return what a rank that gave no report had printed in the phase, and its stacks when it crashed."""
        named = zip(("Captured stdout", "Captured stderr"), rank.files[:-1], strict=False)
        sections = [(title, _content(file)) for title, file in named]
        if rank.died and rank.files:
            dumps = parse(_content(rank.files[-1]))
            if dumps:
                sections.append(("Stack of the crash", render(group({rank.number: _of_the_test(dumps[-1])}), {})))
        return tuple((title, text) for title, text in sections if text)

    @staticmethod
    def _ask_for_stacks(ranks: list[_Rank]) -> str:
        """Return where these ranks, which are about to be ended, stand, as text."""
        logs = {rank.number: (rank.pid, Path(f"/dev/fd/{rank.files[-1]}")) for rank in ranks if rank.files}
        found = capture(logs, timeout_s=STACKS_S, wake_stopped=True)
        dumps: dict[int, Dump | None] = {rank.number: None for rank in ranks}
        dumps |= {number: each.dump and _of_the_test(each.dump) for number, each in found.items()}
        return render(group(dumps), {number: each.state for number, each in found.items()})

    def interrupt(self) -> str:
        """End the ranks because of something in this process; return where they stood."""
        text = self._ask_for_stacks([rank for rank in self._ranks if rank.is_awaited]) if self._server.is_usable else ""
        self.close()
        return text

    def close(self) -> None:
        """End what is left of the ranks, and of what they started."""
        for rank in self._ranks:
            rank.is_over = True
            rank.connection.close()
            for file in rank.files:
                os.close(file)
            rank.files = ()
        if self._server.is_usable:
            self._server.end_ranks()

    def _pass_warnings_on(self) -> None:
        """Have this pytest's summary show the ranks' warnings, once where several ranks had the same."""
        for content in {repr(each): each for rank in self._ranks for each in rank.warnings}.values():
            module, _, name = content["category"].partition(":")
            category: Any = UserWarning
            with contextlib.suppress(ImportError, AttributeError):
                category = getattr(importlib.import_module(module), name)
            message = warnings.WarningMessage(
                category(content["text"]), category, content["filename"], content["lineno"]
            )
            self._item.config.hook.pytest_warning_recorded.call_historic(
                kwargs={
                    "warning_message": message,
                    "when": content["when"],
                    "nodeid": content["nodeid"],
                    "location": content["location"],
                }
            )


def _with_subtests(verdict: Verdict, subtests: tuple[pytest.TestReport, ...], when: str) -> Verdict:
    """Have a verdict tell of the subtests; ranks that pass, but disagree on one, have not passed."""
    verdict = replace(verdict, subtests=subtests)
    num_failed = sum(each.failed for each in subtests)
    if when == "call" and verdict.outcome == "passed" and num_failed:
        return replace(verdict, outcome="failed", longrepr=contains_failed(num_failed))
    return verdict


def _pickled(name: str, value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - pickling calls the value's own code
        raise pytest.fail.Exception(
            f"The shared fixture {name!r} returned {type(value).__name__}, which cannot be copied to the ranks "
            f"({error}). Return what can be pickled, such as an address, or leave the name out of shared=: the fixture "
            "then runs in each rank.",
            pytrace=False,
        ) from None


def _content(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")


def _of_the_test(dump: Dump) -> Dump:
    """Leave out the frames below the test, which are pytest's and ours."""
    return replace(dump, threads=tuple(replace(thread, frames=_above_pytest(thread.frames)) for thread in dump.threads))


def _above_pytest(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    last = max(
        (n for n, frame in enumerate(frames) if "/_pytest/" in frame.file or "/pluggy/" in frame.file), default=-1
    )
    return frames[last + 1 :] or frames
