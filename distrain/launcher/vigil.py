"""What the supervisor sees of the workers while they run: their heartbeats, and where they stand when asked."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from distrain.rundir import RunDir
from distrain.supervision import flight, stacks
from distrain.supervision.beat import Beat
from distrain.supervision.capture import capture
from distrain.supervision.dumps import Dump, last_dump
from distrain.supervision.hangs import Hang, HangWatch, Silence
from distrain.supervision.heartbeat import Board
from distrain.supervision.memory import OomWatch
from distrain.supervision.process_state import ProcessState, native_stack

__all__ = ["Standstill", "Vigil"]

_LOOK_EVERY_NS = 500_000_000
_ANSWER_S = 2.0
_WOKEN_S = 1.0
_FLIGHT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standstill:
    """Where every rank of this node stood at one moment.

    Args:
        groups: The ranks by their main stacks.
        states: What each rank's process was doing before it was asked.
        doing: Rank to where its main thread was, in a line; for those that answered or were stopped.
        flights: Rank to the collective that it is at, by torch's flight recorder; for those that have one.
    """

    groups: Sequence[stacks.Group]
    states: Mapping[int, ProcessState | None]
    doing: Mapping[int, str]
    flights: Mapping[int, str]

    @property
    def odd(self) -> tuple[int, ...]:
        """The ranks that the others probably wait for; empty when that cannot be told."""
        return stacks.odd_ones_out(self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    slot: int
    pid: int


class Vigil:
    """The workers of the present attempt.

    Args:
        nproc: Local ranks.
        rundir: The run directory.
        timeout: As for `HangWatch`.
        foreign: As in `Program`: what gives no stacks, "" for workers that do.
    """

    def __init__(
        self, nproc: int, rundir: RunDir, timeout: float | Literal["auto"] | None, *, foreign: str = ""
    ) -> None:
        self._board: Board | None = None
        with contextlib.suppress(OSError):  # no memory left for it, or no room on the disk: the run does without
            self._board = Board.create(nproc, rundir.heartbeats)
        self._rundir = rundir
        self._timeout = timeout
        self.why_no_stacks = f"{foreign} gives none" if foreign else ""
        """Why the workers give no Python stacks, "" when they do."""
        self._attempt = -1
        self._workers: dict[int, _Watched] = {}
        self._watch = HangWatch(timeout)
        self._memory = OomWatch()
        self._looked_ns = 0
        self._has_begun = False
        self._hang: Hang | None = None

    @property
    def board(self) -> str:
        """Where the workers show their progress; "" where they cannot."""
        return "" if self._board is None else self._board.path

    def worker_started(self, message: Mapping[str, Any]) -> None:
        """Watch a worker, the first of a new attempt in place of those before it."""
        if message["attempt"] != self._attempt:
            self._has_begun = self.has_begun()
            self._attempt = message["attempt"]
            self._workers.clear()
            self._watch = HangWatch(self._timeout)
            self._hang = None
            self._memory.begin()
        self._workers[message["rank"]] = _Watched(slot=message["local_rank"], pid=message["pid"])

    def worker_exited(self, rank: int) -> tuple[Beat | None, bytes]:
        """Watch a worker no more; return its last heartbeat, if it had any, and the record that it left."""
        self._has_begun = self.has_begun()
        worker = self._workers.pop(rank, None)
        if worker is None or self._board is None:
            return None, b""
        beat = self._board.look(worker.slot, rank)
        return (beat, self._board.record(worker.slot)) if beat.pid == worker.pid else (None, b"")

    def has_begun(self) -> bool:
        """Whether a worker has shown progress in any attempt; where none can be seen, whether there was a worker."""
        if self._board is None:
            return self._attempt >= 0
        pids = {worker.pid for worker in self._workers.values()}
        beats = [self._board.look(worker.slot, rank) for rank, worker in self._workers.items()]
        return self._has_begun or any(beat.beats > 0 and beat.pid in pids for beat in beats)

    @property
    def timeout_s(self) -> float | None:
        """As that of `HangWatch`."""
        return self._watch.timeout_s

    def ranks(self) -> tuple[Silence, ...]:
        """Return how long each worker has been silent."""
        return self._watch.ranks(time.monotonic_ns())

    def look(self) -> Hang | None:
        """Take notes, twice a second at most; return the hang that was there then."""
        now_ns = time.monotonic_ns()
        if now_ns - self._looked_ns < _LOOK_EVERY_NS:
            return self._hang
        self._looked_ns = now_ns
        self._memory.sample(now_ns, {rank: worker.pid for rank, worker in self._workers.items()})
        if self._board is None:
            return None
        beats = [self._board.look(worker.slot, rank) for rank, worker in self._workers.items()]
        # A worker that has not come as far as its slot yet finds there the one of the attempt before.
        pids = {worker.pid for worker in self._workers.values()}
        self._hang = self._watch.look(now_ns, [beat for beat in beats if beat.pid in pids])
        return self._hang

    def where_they_stand(self, *, wake_stopped: bool = False) -> Standstill:
        """Have every worker write its stacks, and compare them.

        It takes two seconds at most, and where stopped ones are woken a second and a half more. Those come last: once
        they run, the others go on as well.

        Args:
            wake_stopped: As for `capture`; then torch's flight recorders are saved as well, but for theirs.
        """
        logs = {rank: (worker.pid, self._stacks(rank)) for rank, worker in self._workers.items()}
        captured = capture(logs, timeout_s=_ANSWER_S)
        states = {rank: each.state for rank, each in captured.items()}
        stopped = {rank: state.words for rank, state in states.items() if state is not None and state.is_stopped}
        flights: dict[int, str] = {}
        if wake_stopped:
            flights = self._flights([rank for rank in self._workers if rank not in stopped])
            woken = capture({rank: logs[rank] for rank in stopped}, timeout_s=_WOKEN_S, wake_stopped=True)
            captured.update({rank: replace(captured[rank], dump=each.dump) for rank, each in woken.items()})
        dumps = {rank: each.dump for rank, each in captured.items()}
        doing = _doing(dumps)
        for said in (flights, stopped):
            for rank, words in said.items():
                doing[rank] = f"{doing.get(rank, 'at an unknown place')}, {words}"
        return Standstill(groups=stacks.group(dumps, stopped), states=states, doing=doing, flights=flights)

    def _flights(self, asked: Iterable[int]) -> dict[int, str]:
        """Have ranks save torch's flight recorder; return which collective each is at, for those that answer."""
        if self._board is None:
            return {}
        workers = {rank: self._workers[rank] for rank in asked}
        ranks = {
            rank: (worker.pid, self._board.flight_fd(worker.slot), self._rundir.flight(self._attempt, rank))
            for rank, worker in workers.items()
        }
        positions = {rank: flight.position(record) for rank, record in flight.ask(ranks, timeout_s=_FLIGHT_S).items()}
        return {rank: words for rank, words in positions.items() if words}

    def where_they_stood(self, ended: Iterable[int]) -> list[stacks.Group]:
        """Return where all ranks of this attempt stand, those that have ended by the last stacks that they wrote.

        Args:
            ended: The ranks that have ended.
        """
        self.where_they_stand()
        return stacks.group({rank: self.last_words(rank) for rank in {*self._workers, *ended}})

    def describe(self, standstill: Standstill, odd: Collection[int]) -> str:
        """Return a standstill as text; of an odd rank of this node also the native stack, where that can be had.

        Args:
            standstill: Where the ranks of this node stand.
            odd: The odd ranks, also of other nodes.
        """
        text = stacks.render(standstill.groups, standstill.states, odd, why_none=self.why_no_stacks)
        by_position: dict[str, list[int]] = {}
        for rank, position in sorted(standstill.flights.items()):
            by_position.setdefault(position, []).append(rank)
        for position, ranks in by_position.items():
            text += f"\n{stacks.ranks_in_words(ranks)}, by torch's flight recorder: {position}"
        stopped = {rank for rank, state in standstill.states.items() if state is not None and state.is_stopped}
        running = [rank for rank in odd if rank in self._workers and rank not in stopped]
        for rank in running[:1]:
            native = native_stack(self._workers[rank].pid, timeout_s=_ANSWER_S)
            if native:
                text += f"\nnative stack of rank {rank}:\n{textwrap.indent(native.rstrip(), '  ')}"
        return text

    def last_seen(self, ranks: Iterable[int]) -> dict[int, str]:
        """Return where ranks stood when they last wrote their stacks in this attempt, those that have, in a line each.

        Args:
            ranks: The ranks.
        """
        return _doing({rank: last_dump(self._stacks(rank)) for rank in ranks})

    def last_words(self, rank: int) -> Dump | None:
        """Return the newest stacks that a rank has written in this attempt."""
        return last_dump(self._stacks(rank))

    def out_of_memory(self, rank: int) -> str | None:
        """Return why a rank's death by SIGKILL counts as out of memory; None when nothing speaks for it.

        Args:
            rank: The rank.
        """
        return self._memory.verdict(rank)

    def _stacks(self, rank: int) -> Path:
        return self._rundir.stacks(self._attempt, rank)


def _doing(dumps: Mapping[int, Dump | None]) -> dict[int, str]:
    return {rank: stacks.whereabouts(dump) for rank, dump in dumps.items() if dump is not None}
