"""When a run hangs: no heartbeat where there should be one. Pure: clock and heartbeats come from the caller."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from distrain.supervision.beat import Beat

__all__ = ["Hang", "HangWatch", "Silence", "judge"]

_S = 1_000_000_000
AUTO_LEAST_S = 600.0
AUTO_FACTOR = 20.0
# A pause between two looks that is longer was none of the ranks': the supervisor itself did not run, as when the
# whole job is suspended by its scheduler or by Ctrl-Z. Nobody can have been silent meanwhile.
BLIND_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """One rank that shows no progress.

    Args:
        beat: Its last heartbeat: rank, process, steps.
        silent_s: How long it has shown none since, in seconds.
    """

    beat: Beat
    silent_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """A standstill that is longer than the timeout.

    Args:
        since_ns: The last progress of the ranks that hang, on the clock of `look`.
        timeout_s: The timeout that passed, in seconds.
        silent: The ranks that stand still, in the order of ranks: those that hang, and those that wait with them,
            also when their own timeout is a little later.
        suspects: The ranks the others probably wait for: a minority left behind by the others, else all of `silent`
            (their stacks decide).
    """

    since_ns: int
    timeout_s: float
    silent: tuple[Silence, ...]
    suspects: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The last heartbeat seen of a rank, since when it is silent, and its longest gap as the looks saw it."""

    beat: Beat
    since_ns: int
    gap_ns: int


class HangWatch:
    """Looks at the heartbeats of one attempt's ranks and tells when they hang.

    A rank is silent while it is `going` and does not beat. A silent rank hangs when its timeout has passed and there
    is no rank it may be waiting for: none that has done fewer steps and is busy; none that is as far and busy while
    most are silent (rank 0 evaluates with heartbeats, the others wait for it); and none still starting up, if it did
    no step itself. Busy is who beat within the timeout or is paused: who writes a checkpoint is, and who waits for the
    writer is not.

    Args:
        timeout: Seconds; `auto` for the longer of ten minutes and twenty times the slowest beat of any rank of this
            attempt; None never tells a hang.
    """

    def __init__(self, timeout: float | Literal["auto"] | None = "auto") -> None:
        self._timeout = timeout
        self._looked_ns: int | None = None
        self._seen: dict[int, _Seen] = {}
        self._slowest_ns = 0.0

    @property
    def timeout_s(self) -> float | None:
        """The timeout that holds now, in seconds; None when hangs are not looked for."""
        if self._timeout == "auto":
            return max(AUTO_LEAST_S, AUTO_FACTOR * self._slowest_ns / _S)
        return self._timeout

    def look(self, now_ns: int, beats: Sequence[Beat]) -> Hang | None:
        """Take in the heartbeats of this moment.

        Args:
            now_ns: CLOCK_MONOTONIC in nanoseconds; every half second or so.
            beats: One for each rank whose process has not ended, also of other nodes: only changes count, their
                clocks do not.

        Returns:
            The hang, at every look as long as it lasts; None when there is none.
        """
        elapsed_ns = 0 if self._looked_ns is None else now_ns - self._looked_ns
        lost_ns = elapsed_ns if elapsed_ns > BLIND_S * _S else 0
        self._seen = {beat.rank: self._take(beat, now_ns, lost_ns) for beat in beats}
        self._looked_ns = now_ns
        # A gap that held a time nobody ran is no slow step, though the rank's own clock took it for one.
        gaps = (min(seen.beat.slowest_ns, seen.gap_ns + BLIND_S * _S) for seen in self._seen.values())
        self._slowest_ns = max([self._slowest_ns, *gaps])
        timeout_s = self.timeout_s
        return None if timeout_s is None else judge(now_ns, self.ranks(now_ns), timeout_s)

    def ranks(self, now_ns: int) -> tuple[Silence, ...]:
        """Return how long each rank that was looked at has been silent.

        Args:
            now_ns: CLOCK_MONOTONIC in nanoseconds.
        """
        return tuple(Silence(beat=seen.beat, silent_s=(now_ns - seen.since_ns) / _S) for seen in self._seen.values())

    def _take(self, beat: Beat, now_ns: int, lost_ns: int) -> _Seen:
        seen = self._seen.get(beat.rank)
        if seen is None or seen.beat.pid != beat.pid or self._looked_ns is None:
            return _Seen(beat=beat, since_ns=now_ns, gap_ns=beat.slowest_ns)
        if beat.state != "going":
            return replace(seen, beat=beat, since_ns=now_ns)
        if beat.beats == seen.beat.beats:
            return replace(seen, beat=beat, since_ns=seen.since_ns + lost_ns)
        beat_ns = beat.last_ns if self._looked_ns < beat.last_ns <= now_ns and not lost_ns else now_ns
        gap_ns = max(seen.gap_ns, beat_ns - seen.since_ns - lost_ns)
        return _Seen(beat=beat, since_ns=beat_ns, gap_ns=gap_ns)


def judge(now_ns: int, ranks: Sequence[Silence], timeout_s: float) -> Hang | None:
    """Return the hang there is among ranks, by the rules of `HangWatch`.

    Args:
        now_ns: CLOCK_MONOTONIC in nanoseconds.
        ranks: One for each rank whose process has not ended, on all nodes that are known of.
        timeout_s: After so much silence a rank counts, in seconds.
    """
    going = [each for each in ranks if each.beat.state == "going"]
    silent = [each for each in going if each.silent_s >= timeout_s]
    beating = [each.beat for each in going if each.silent_s < timeout_s]
    paused = [each.beat for each in ranks if each.beat.state == "paused"]
    starting = len(ranks) > len(going) + len(paused)
    level = paused + (beating if len(silent) >= len(beating) else [])
    fewest = min((beat.steps for beat in beating + paused), default=sys.maxsize)
    hanging = [
        each
        for each in silent
        if not (starting and each.beat.steps == 0)
        and each.beat.steps <= fewest
        and not any(other.steps == each.beat.steps for other in level)
    ]
    if not hanging:
        return None
    # All stop within one step of each other; to name only those whose timeout came first would be chance.
    still = sorted((each for each in going if each.silent_s >= timeout_s / 2), key=lambda each: each.beat.rank)
    return Hang(
        since_ns=now_ns - round(min(each.silent_s for each in hanging) * _S),
        timeout_s=timeout_s,
        silent=tuple(still),
        suspects=_suspects([each.beat for each in still], [each.beat for each in going] + paused),
    )


def _suspects(still: Sequence[Beat], begun: Sequence[Beat]) -> tuple[int, ...]:
    """Name those at the lowest count of steps, else of beats, when they are few among those that have begun.

    Half are few enough by steps. By beats they are not: of two ranks the one with more beats may be the one that
    works alone, while the other waits for it.
    """
    fewest_steps = min(beat.steps for beat in begun)
    fewest_beats = min(beat.beats for beat in begun)
    if any(beat.steps != fewest_steps for beat in begun):
        behind, enough = [beat.rank for beat in still if beat.steps == fewest_steps], len(begun) / 2
    else:
        behind, enough = [beat.rank for beat in still if beat.beats == fewest_beats], (len(begun) - 1) / 2
    if behind and len(behind) <= enough:
        return tuple(sorted(behind))
    return tuple(sorted(beat.rank for beat in still))
