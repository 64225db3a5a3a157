"""What the nodes of a round tell each other when one of them sees a hang, so that all see the same and name one rank.

    a node's ranks are silent      it asks, and every node tells how long each of its ranks has been silent
    all have told, or time is up   each judges all ranks by the rules for those of one node: one that is busy elsewhere
                                   may be what they wait for, then it is asked again later
    it is a hang                   each writes down where its ranks stand and tells that, as does who hears it told
    all have told, or time is up   each names the odd rank, out of the same words

Pure: clock, heartbeats and words come from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from distrain.supervision.beat import Beat
from distrain.supervision.hangs import Hang, Silence, judge
from distrain.supervision.places import Place, merged, odd_ones_out

__all__ = ["CLUES", "PLACED", "SILENT", "STAND", "VICTIM", "Found", "Inquiry", "Node"]

SILENT, STAND = "silent", "stand"
"""What a node says: how long its ranks have been silent; where they stand."""

VICTIM, CLUES = "victim", "clues"
"""What a supervisor hears when ranks of another node failed through no fault of theirs; what it says to that."""

PLACED = "placed"
"""What a supervisor hears when another node knows which ranks it has, where it was not the agents who gave them out."""

_ANSWER_S = 1.0
_STACKS_S = 4.0
"""A node that first hears of a hang when another tells where its ranks stand takes up to 3.5 s to find its own."""

_PAUSE_S = 1.0
_MOST_PAUSE_S = 5.0
"""How long until the next question, when ranks elsewhere were busy; each is answered by all to all."""

_AFTER_OWNER_S = 0.5
_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a round.

    Args:
        token: Names its agent among all there ever were.
        host: Its host name.
        ranks: Its global ranks.
    """

    token: str
    host: str
    ranks: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A hang, and what is known of where the ranks stand.

    Args:
        hang: The standstill.
        odd: The ranks that the others probably wait for, by where all stand; empty when that cannot be told.
        doing: Rank to where its main thread was, in a line; for those that answered.
        elsewhere: Rank to the host's name, for those of other nodes.
    """

    hang: Hang
    odd: tuple[int, ...]
    doing: Mapping[int, str]
    elsewhere: Mapping[int, str] = field(default_factory=dict)

    @property
    def suspects(self) -> tuple[int, ...]:
        """The ranks that may be the cause, the likeliest first."""
        return tuple(dict.fromkeys((*self.odd, *self.hang.suspects, *(each.beat.rank for each in self.hang.silent))))


class Inquiry:
    """One node's part in the talk of one round.

    Args:
        nodes: All nodes of the round.
        mine: The token of this one.
        tell: Says something to all others.
        ranks: Returns how long each rank of this node has been silent.
        timeout_s: Returns the timeout that holds on this node; None when it looks for no hangs.
        slack_s: By how much words may be late on their way, beside what they take anyhow.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        mine: str,
        tell: Callable[[Mapping[str, Any]], None],
        ranks: Callable[[], Sequence[Silence]],
        timeout_s: Callable[[], float | None],
        slack_s: float = 0.0,
    ) -> None:
        self._mine = mine
        self._others = {node.token for node in nodes if node.token != mine}
        self._nodes = {node.token: node for node in nodes}
        self._tell = tell
        self._ranks = ranks
        self._timeout_s = timeout_s
        self._slack_s = slack_s
        self._asked_ns: int | None = None
        self._not_before_ns = 0
        self._pause_s = _PAUSE_S
        self._silent: dict[str, tuple[float | None, list[Silence]]] = {}
        self._stand: dict[str, dict[str, Any]] = {}
        self._stood_ns: int | None = None
        self.hang: Hang | None = None
        """The hang, once the nodes agree that it is one."""

    def placed(self, token: str, ranks: Sequence[int]) -> None:
        """Take note of which ranks another node has, in place of those that it was thought to have."""
        self._nodes[token] = replace(self._nodes[token], ranks=ranks)

    @property
    def _elsewhere(self) -> dict[int, str]:
        others = [node for token, node in self._nodes.items() if token != self._mine]
        return {rank: node.host for node in others for rank in node.ranks}

    @property
    def has_told(self) -> bool:
        """Whether this node has told where its ranks stand."""
        return self._stood_ns is not None

    def consider(self, now_ns: int, hang: Hang | None) -> None:
        """Ask when this node's ranks hang, judge when the answers are there.

        Args:
            now_ns: CLOCK_MONOTONIC in nanoseconds.
            hang: The hang that this node's ranks alone make, None when there is none.
        """
        if self.hang is not None:
            return
        if self._asked_ns is None:
            if hang is not None and now_ns >= self._not_before_ns:
                self._begin(now_ns)
                self._tell_silent(is_question=True)
        elif self._others <= self._silent.keys() or now_ns - self._asked_ns > self._patience_ns(_ANSWER_S):
            self._asked_ns = None
            self._judge(now_ns)

    def heard(self, now_ns: int, token: str, word: Mapping[str, Any]) -> None:
        """Take in what another node says.

        Args:
            now_ns: CLOCK_MONOTONIC in nanoseconds.
            token: Who.
            word: What, as it was given to `tell` there.
        """
        if token not in self._others:
            return
        if word["word"] == STAND:
            self._stand[token] = dict(word)
            self.hang = self.hang or _hang_from(word["hang"])
            return
        if word["is_question"] and self._asked_ns is None:
            self._begin(now_ns)  # its answers come to all
        self._silent[token] = (word["timeout_s"], [_silence_from(each) for each in word["ranks"]])
        if word["is_question"]:
            self._tell_silent(is_question=False)

    def stand(self, now_ns: int, places: Sequence[Place], doing: Mapping[int, str]) -> None:
        """Tell where the ranks of this node stand.

        Args:
            now_ns: CLOCK_MONOTONIC in nanoseconds.
            places: Which stand together.
            doing: As in `Found`.
        """
        assert self.hang is not None
        self._stood_ns = now_ns
        word = {
            "word": STAND,
            "hang": asdict(self.hang),
            "places": [asdict(each) for each in places],
            "doing": {str(rank): text for rank, text in doing.items()},
        }
        self._stand[self._mine] = word
        self._tell(word)

    def found(self, now_ns: int) -> Found | None:
        """Return the hang once all have told where their ranks stand, or none is waited for any longer.

        Args:
            now_ns: CLOCK_MONOTONIC in nanoseconds.
        """
        if self._stood_ns is None:
            return None
        if not self._others <= self._stand.keys() and now_ns - self._stood_ns < self._patience_ns(_STACKS_S):
            return None
        return self.known()

    def known(self) -> Found:
        """Return the hang by what has been told so far; this node must have told."""
        words = [self._stand[token] for token in sorted(self._stand)]
        places = [Place(**{**each, "ranks": tuple(each["ranks"])}) for word in words for each in word["places"]]
        return Found(
            hang=_hang_from(words[0]["hang"]),  # everybody's first, so that all have the same
            odd=odd_ones_out(merged(places)),
            doing={int(rank): text for word in words for rank, text in word["doing"].items()},
            elsewhere=self._elsewhere,
        )

    def ends_after_s(self, found: Found) -> float:
        """Return how long to wait before this node's ranks are ended.

        The node of the suspect comes first: it reports, and what the others see then follows from its end.
        """
        return _AFTER_OWNER_S if self.is_elsewhere(found) else 0.0

    def is_elsewhere(self, found: Found) -> bool:
        """Whether another node has the rank that is to blame."""
        return found.suspects[:1] != () and found.suspects[0] in self._elsewhere

    def _begin(self, now_ns: int) -> None:
        self._asked_ns = now_ns
        self._silent.clear()

    def _tell_silent(self, *, is_question: bool) -> None:
        ranks = [asdict(each) for each in self._ranks()]
        self._tell({"word": SILENT, "is_question": is_question, "timeout_s": self._timeout_s(), "ranks": ranks})

    def _judge(self, now_ns: int) -> None:
        told = [(self._timeout_s(), self._ranks()), *self._silent.values()]
        timeouts_s = [timeout_s for timeout_s, _ in told if timeout_s is not None]
        ranks = [each for _, ranks in told for each in ranks]
        if not timeouts_s:
            return
        timeout_s = max(timeouts_s)
        self.hang = judge(now_ns, ranks, timeout_s)
        if self.hang is None:
            # One that stopped a little later than the others is busy until its own time is up.
            left_s = (timeout_s - each.silent_s for each in ranks if each.beat.state == "going")
            soon_s = min((each_s for each_s in left_s if each_s > 0), default=self._pause_s)
            self._not_before_ns = now_ns + int(min(soon_s, self._pause_s) * _S)
            self._pause_s = min(2 * self._pause_s, _MOST_PAUSE_S)

    def _patience_ns(self, at_least_s: float) -> int:
        return int((at_least_s + self._slack_s) * _S)


def _silence_from(data: Mapping[str, Any]) -> Silence:
    return Silence(beat=Beat(**data["beat"]), silent_s=data["silent_s"])


def _hang_from(data: Mapping[str, Any]) -> Hang:
    silent = tuple(_silence_from(each) for each in data["silent"])
    return Hang(**{**data, "silent": silent, "suspects": tuple(data["suspects"])})
