"""How a run went: the exits of its workers, attempt by attempt, and what follows from them."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distrain.errors import EXIT_PREEMPTED
from distrain.launcher.inquiry import Found
from distrain.launcher.retry import Blow
from distrain.launcher.vigil import Vigil
from distrain.rundir import RunDir
from distrain.supervision.beat import Beat
from distrain.supervision.classify import classify, did_not_take_part, root_cause
from distrain.supervision.dumps import Thread, part_crash
from distrain.supervision.failure import Exit, Failure, Report, Standing, describe, frames_of, recorded_in
from distrain.supervision.frames import is_library
from distrain.supervision.hints import hints_for
from distrain.supervision.logs import tail_lines
from distrain.supervision.report import rank_names
from distrain.supervision.stacks import whereabouts

__all__ = ["EXIT_HANG", "Outcome"]

EXIT_HANG = 124
"""The launcher's exit code for a run that hung, as that of timeout(1)."""

_LOG_LINES = 200
_SHOWN_LINES = 20
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
_COLLECTED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """What another node told of a rank that may be to blame though nothing failed there.

    Args:
        host: Where it runs.
        has_left: Whether it has ended well, while ranks here still needed it.
        doing: Where it was, when it did not wait for others as ranks here did.
    """

    host: str
    has_left: bool
    doing: str = ""


class Outcome:
    """What is known of a run's workers.

    Args:
        rundir: The run directory, where the workers leave their records and logs.
        vigil: What else was seen of them; None for nothing.
    """

    def __init__(self, rundir: RunDir, vigil: Vigil | None = None) -> None:
        self._rundir = rundir
        self._vigil = vigil
        self._hang: Found | None = None
        self._elsewhere: dict[int, Elsewhere] = {}
        self._exits: list[Exit] = []
        self._beats: dict[int, Beat] = {}
        self._records: dict[int, bytes] = {}
        self.attempt = -1

    def worker_started(self, message: Mapping[str, Any]) -> None:
        """Note a worker of a new round, and forget the round before."""
        if message["attempt"] != self.attempt:
            self.attempt = message["attempt"]
            self._exits.clear()
            self._beats.clear()
            self._records.clear()
            self._hang = None
            self._elsewhere.clear()

    def worker_exited(self, message: Mapping[str, Any], beat: Beat | None = None, record: bytes = b"") -> None:
        """Note how a worker ended.

        Args:
            message: What the fork server says of it.
            beat: Its last heartbeat.
            record: The record of its exception that it left on the board; a full disk has none.
        """
        if beat is not None:
            self._beats[message["rank"]] = beat
        if record:
            self._records[message["rank"]] = record
        self._exits.append(
            Exit(
                rank=message["rank"],
                attempt=self.attempt,
                pid=message["pid"],
                exit_code=message["exit_code"],
                monotonic_ns=message["monotonic_ns"],
                was_asked=message.get("was_asked", self._is_probably_ours(message["exit_code"])),
            )
        )

    def _is_probably_ours(self, exit_code: int) -> bool:
        """Whether a worker was ended by us, where nobody has kept a record of that."""
        return exit_code in (-signal.SIGTERM, -signal.SIGKILL) and any(end.exit_code != 0 for end in self._exits)

    def is_preempted(self) -> bool:
        """Whether every worker of the present attempt was asked to end and has saved its state."""
        return bool(self._exits) and {end.exit_code for end in self._exits} == {EXIT_PREEMPTED}

    def hung(self, hang: Found) -> None:
        """Note that the present attempt is ended because it hangs."""
        self._hang = hang

    def left_elsewhere(self, hosts: Mapping[int, str]) -> None:
        """Note which ranks of other nodes have ended well, and where."""
        for rank, host in hosts.items():
            self._elsewhere[rank] = Elsewhere(host=host, has_left=True)

    def seen_elsewhere(self, host: str, word: Mapping[str, Any]) -> None:
        """Note what another node tells of its ranks, as `clues` returned it there."""
        for rank in word["left"]:
            self._elsewhere[rank] = Elsewhere(host=host, has_left=True)
        for rank, doing in word["absent"].items():
            self._elsewhere[int(rank)] = Elsewhere(host=host, has_left=False, doing=doing)

    def clues(self) -> dict[str, Any]:
        """Return what may explain to other nodes why ranks of theirs waited in vain or were cut off.

        Returns:
            `left`: the ranks that ended well; `absent`: those that wait for nobody, with where they are.
        """
        groups = [] if self._vigil is None else self._vigil.where_they_stood([end.rank for end in self._exits])
        failed = {end.rank for end in self._exits if end.exit_code != 0 and not end.was_asked}
        left = [end.rank for end in self._exits if end.exit_code == 0]
        absent = {
            rank: whereabouts(each.dump)
            for each in groups
            if each.dump is not None and not each.waits_for_others
            for rank in each.ranks
            if rank not in failed and rank not in left
        }
        return {"left": left, "absent": absent}

    def failure(self) -> Report | None:
        """Return why the present attempt failed; None when no worker of it ended badly."""
        failures = [self._failure(end) for end in self._exits if end.exit_code != 0]
        root = self._hanging(failures) or self._absent(failures) or root_cause(failures)
        if root is None:
            return None
        rest = [each for each in failures if each.rank != root.rank and each.standing != Standing.ENDED]
        return Report(
            root_cause=root,
            consequences=tuple(sorted(rest, key=lambda each: each.rank)),
            others=self._others({root.rank, *(each.rank for each in rest)}),
            hints=hints_for(root),
            memory=self._memory(root),
        )

    def blow(self, report: Report) -> Blow:
        """Return what another attempt is judged by.

        Args:
            report: Why the present attempt failed.
        """
        root = report.root_cause
        is_error = root.exit_code > 0 and root.standing == Standing.CAUSE and root.kind not in ("Hang", "Timeout")
        places = [f"{frame.file}:{frame.line}" for frame in root.frames if not is_library(frame.file)]
        return Blow(
            is_error=is_error,
            exit_code=root.exit_code,
            what=f"{root.kind}: {root.message}",
            place=places[-1] if places else "",
            step=root.step,
        )

    def _hanging(self, failures: Sequence[Failure]) -> Failure | None:
        """Return the rank that the others waited for as the cause, when the attempt was ended because it hung."""
        if self._hang is None:
            return None
        if (raised := self._not_ending(failures, self._hang)) is not None:
            return raised
        found, by_rank = self._hang, {each.rank: each for each in failures}
        silent = {each.beat.rank: each for each in found.hang.silent}
        rank = next((rank for rank in found.suspects if rank in by_rank or rank in found.elsewhere), None)
        if rank is None:
            return None
        silent_s = silent[rank].silent_s if rank in silent else found.hang.timeout_s
        where = found.doing.get(rank)
        why_not = self._vigil.why_no_stacks if self._vigil is not None and rank in by_rank else ""
        place = f"it stood {where}" if where else f"no Python stack: {why_not}" if why_not else ""
        message = f"no step for {silent_s:.0f} s{f'; {place}' if place else ''}"
        beat = silent[rank].beat if rank in silent else None
        known = by_rank.get(rank) or self._hanging_elsewhere(rank, found, beat)
        hung = replace(known, kind="Hang", message=message, exit_code=EXIT_HANG, standing=Standing.CAUSE, reason="")
        # One that was stopped goes on for a moment when it is asked for its stack.
        return hung if beat is None else replace(hung, step=beat.iteration or beat.steps)

    def _not_ending(self, failures: Sequence[Failure], found: Found) -> Failure | None:
        """Return the rank whose program had ended by an exception, while something kept its process alive: a thread."""
        killed = {end.rank for end in self._exits if end.exit_code == -signal.SIGKILL}
        raised = [each for each in failures if each.rank in killed and each.exit_code > 0]
        first = root_cause([each for each in raised if each.standing == Standing.CAUSE])
        if first is None:
            return None
        where = found.doing.get(first.rank, "")
        if "in _shutdown (threading.py)" in where:
            why = "its threads kept it from ending"
        else:
            why = "it did not end" + (f", it stood {where}" if where else "")
        return replace(first, message=f"{first.message}; {why}")

    def _hanging_elsewhere(self, rank: int, found: Found, beat: Beat | None) -> Failure:
        """Return what is known here of another node's rank, for the case that its own node reports no more."""
        return Failure(
            rank=rank,
            host=found.elsewhere[rank],
            kind="Hang",
            message="",
            exit_code=EXIT_HANG,
            pid=0 if beat is None else beat.pid,
            attempt=self.attempt,
            step=None if beat is None else beat.iteration or beat.steps,
        )

    def _absent(self, failures: Sequence[Failure]) -> Failure | None:
        """Return the rank that was missing, where the others only failed because it was.

        It left the run early with exit code 0, or it was elsewhere while they waited for it in a collective.
        """
        first = root_cause(failures)
        if first is None or first.standing not in (Standing.CUT_OFF, Standing.TIMED_OUT):
            return None
        # A process is collected a while after its connections are closed.
        left = [e for e in self._exits if e.exit_code == 0 and e.monotonic_ns < first.monotonic_ns + _COLLECTED_NS]
        if left:
            early = min(left, key=lambda end: end.monotonic_ns)
            message = "it ended while the others still needed it"
            return replace(self._failure(early), kind="exit code 0", message=message, exit_code=first.exit_code)
        if far := self._absent_elsewhere(first):
            return far
        absent = did_not_take_part(failures, [end.rank for end in self._exits])
        found = next((each for each in failures if each.rank in absent), None)
        if found is None:
            return None
        where = self._whereabouts([found.rank]).get(found.rank)
        message = f"did not take part in what rank {first.rank} waited for{f'; it was {where}' if where else ''}"
        return replace(
            found, kind="Timeout", message=message, exit_code=first.exit_code, standing=Standing.CAUSE, reason=""
        )

    def _absent_elsewhere(self, first: Failure) -> Failure | None:
        """Return the rank of another node that had left, or was elsewhere while ours waited for it."""
        left = [rank for rank, each in self._elsewhere.items() if each.has_left]
        absent = [rank for rank, each in self._elsewhere.items() if not each.has_left]
        if left:
            rank, kind, message = min(left), "exit code 0", "it ended while the others still needed it"
        elif absent and first.standing == Standing.TIMED_OUT:
            rank, kind = min(absent), "Timeout"
            where = self._elsewhere[rank].doing
            message = f"did not take part in what rank {first.rank} waited for; it was {where}"
        else:
            return None
        host = self._elsewhere[rank].host
        return Failure(
            rank=rank,
            host=host,
            kind=kind,
            message=message,
            exit_code=first.exit_code,
            pid=0,
            attempt=self.attempt,
        )

    def _others(self, told: Collection[int]) -> tuple[str, ...]:
        """Return where the ranks stood that did not fail themselves, a line for each place; in a hang on all nodes."""
        stood = dict(self._whereabouts([end.rank for end in self._exits]))
        stood.update(self._hang.doing if self._hang else {})
        places: dict[str, list[int]] = {}
        for rank in sorted(stood.keys() - set(told)):
            places.setdefault(stood[rank], []).append(rank)
        return tuple(f"{rank_names(ranks)}  {place}" for place, ranks in places.items())

    def _whereabouts(self, ranks: Sequence[int]) -> Mapping[int, str]:
        return {} if self._vigil is None else self._vigil.last_seen(ranks)

    def _failure(self, end: Exit) -> Failure:
        """Return what is known of one rank's bad end."""
        log = self._rundir.stderr(self.attempt, end.rank)
        tail = tail_lines(log, _LOG_LINES)
        record = self._exception(end)
        exit_code, was_asked = end.exit_code, end.was_asked
        if record is not None and exit_code in (-signal.SIGTERM, -signal.SIGKILL):
            # It was ending by itself when a peer's end had us end all.
            exit_code, was_asked = record["exit_code"], False
        if record is None and exit_code == 1:  # the interpreter's, after a traceback
            record = recorded_in(tail)
        said = record if exit_code > 0 else None
        verdict = classify(exit_code, record, tail, was_asked=was_asked)
        kind, message = describe(exit_code, said, stderr_tail=tail, memory=self._out_of_memory(end))
        has_raised = said is not None and said["type"] != "SystemExit"
        crashed, rest = self._crashed(end, tail) if said is None else (None, tail)
        return Failure(
            rank=end.rank,
            host=socket.gethostname(),
            kind=kind,
            message=message,
            exit_code=exit_code,
            pid=end.pid,
            attempt=self.attempt,
            monotonic_ns=end.monotonic_ns if record is None else record.get("monotonic_ns", end.monotonic_ns),
            standing=verdict.standing,
            reason=verdict.reason,
            step=self._step(end.rank),
            traceback=said["traceback"] if said is not None and has_raised else "",
            frames=crashed.frames if crashed is not None else frames_of(said or {}),
            thread="" if crashed is None or crashed.is_main else crashed.title,
            log_tail=rest[-_SHOWN_LINES:],
            log_path=str(log),
        )

    def _step(self, rank: int) -> int | None:
        """Return how far a rank was, in the trainer's iterations, else in optimizer steps; None where none counted."""
        beat = self._beats.get(rank)
        if beat is None:
            return None
        is_foreign = self._vigil is not None and bool(self._vigil.why_no_stacks)
        step = beat.iteration or beat.steps
        return None if step == 0 and (beat.beats or is_foreign) else step

    def _crashed(self, end: Exit, tail: list[str]) -> tuple[Thread | None, list[str]]:
        """Return the thread in which native code brought a rank down, and what is on standard error beside its stack.

        The stack is there, and not in the rank's file, when the program has enabled faulthandler for itself.
        """
        dump = None if self._vigil is None or end.exit_code >= 0 else self._vigil.last_words(end.rank)
        said, rest = part_crash(tail) if -end.exit_code in _CRASHES else (None, tail)
        found = dump if dump is not None and dump.fatal else said
        thread = found.crashed if found is not None else None
        return (thread, rest) if thread is not None and thread.frames else (None, tail)

    def _memory(self, root: Failure) -> str:
        """Return what the memory has to do with it, also where a DataLoader's process was killed and not the rank."""
        if root.kind == "OutOfMemory" or self._vigil is None:
            return root.message if root.kind == "OutOfMemory" else ""
        return (self._vigil.out_of_memory(root.rank) or "") if "killed by signal: Killed" in root.message else ""

    def _out_of_memory(self, end: Exit) -> str:
        if self._vigil is None or end.exit_code != -signal.SIGKILL or end.was_asked:
            return ""
        return self._vigil.out_of_memory(end.rank) or ""

    def _exception(self, end: Exit) -> dict[str, Any] | None:
        """Return the record of the exception that ended a rank, None when it left none."""
        try:
            data = self._records.get(end.rank) or self._rundir.exception(self.attempt, end.rank).read_bytes()
            record: dict[str, Any] = json.loads(data)
        except (OSError, ValueError):
            return None
        return record if record.get("pid") == end.pid else None  # else another process wrote it
