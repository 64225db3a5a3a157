"""What one node makes of what happens to the others: go on without them, start anew with them, or end.

The watch's thread tells what happened (`take`), the agent's main thread asks what follows (`check`, `changed`,
`is_collateral`). Nothing here needs torch or a network.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from distrain.launcher.ended_elsewhere import EndedElsewhereError
from distrain.launcher.facts import Facts, clock_warning, misfit, warnings
from distrain.supervision.failure import Standing

__all__ = ["Membership"]

_LOOK_S = 0.05


class Membership:
    """The nodes of the present round, and what became of them.

    Args:
        mine: This node's facts.
        min_nodes: With fewer the run cannot go on.
        say: Tells the user; `elsewhere` marks the reason for a new attempt that is not this node's.
    """

    def __init__(self, mine: Facts, min_nodes: int, say: Callable[..., None]) -> None:
        self._mine = mine
        self._min_nodes = min_nodes
        self._say = say
        self._lock = threading.Lock()
        self._members: dict[str, Facts] = {}
        self._admitted: dict[str, Facts] = {}
        self._gone: set[str] = set()
        self._silent: set[str] = set()
        self._how: dict[str, tuple[str, int | None]] = {}
        self._done: set[str] = set()
        self._left: set[str] = set()
        self._placed: dict[str, list[int]] = {}
        self._failing: dict[str, tuple[int, float]] = {}
        self._have_looked: set[str] = set()
        self._ending: EndedElsewhereError | None = None
        self._changed = False
        self._newcomer_is_said = False
        self._finished = False
        self._head: Facts | None = None
        self._head_gone: Mapping[str, Any] | None = None
        self.can_move = False
        """Whether those who are left could meet elsewhere, were the node where all meet lost."""
        self.round = -1
        self.ended = threading.Event()
        """Set once the run is to end here."""
        self.seen = threading.Event()
        """Set once the main thread knows it."""

    # The agent's main thread.

    def check(self) -> None:
        """Raise when the run is to end here.

        Raises:
            EndedElsewhereError: It is, because of another node.
        """
        if self._ending is not None:
            self.seen.set()
            raise self._ending

    @property
    def ending(self) -> EndedElsewhereError | None:
        """Why the run is to end here, when it is."""
        return self._ending

    def explain(self, patience_s: float) -> None:
        """Wait a moment for what became of another node: torch's calls may fail of it before the watch has told.

        Args:
            patience_s: How long at most.

        Raises:
            EndedElsewhereError: The run is to end here.
        """
        self._wait_while(lambda: True, patience_s)

    def have_others_ended(self, patience_s: float) -> bool:
        """Wait a moment for the word of how the run has ended; return whether ranks elsewhere have ended well.

        Args:
            patience_s: How long at most.

        Raises:
            EndedElsewhereError: They have failed.
        """
        self._wait_while(lambda: not self._done, patience_s)
        return bool(self._done)

    def _wait_while(self, is_open: Callable[[], bool], patience_s: float = math.inf) -> None:
        """Wait until something is settled, the head is gone or the patience over; raise as `check` does."""
        end_s = time.monotonic() + patience_s
        while is_open() and not self.is_head_gone and time.monotonic() < end_s:
            self.check()
            time.sleep(_LOOK_S)
        self.check()

    def changed(self) -> bool:
        """Whether a new round is to be begun with who is left, or because another node asked for it."""
        return self._changed

    @property
    def is_head_gone(self) -> bool:
        """Whether the node where all meet is lost, so that who is left has to meet elsewhere."""
        return self._head_gone is not None

    @property
    def may_head_live(self) -> bool:
        """Whether the node where all meet is only not heard of."""
        return self._head_gone is not None and bool(self._head_gone.get("silent"))

    @property
    def head_token(self) -> str:
        """The agent of the node where all meet, where that is another one."""
        return self._head.token if self._head else ""

    def meets_at(self, mine: Facts, head: Facts | None) -> None:
        """Note which other node is the head now; None where this one is.

        Args:
            mine: This node's facts.
            head: The head's. It may be the one that was lost, if this node was cut off.
        """
        with self._lock:
            self._mine, self._head, self._head_gone = mine, head, None
            self._gone.discard(self.head_token)

    def num_silent(self) -> int:
        """Return how many nodes of the round are lost and may be alive."""
        with self._lock:
            return len(self._silent & self._members.keys())

    def heirs(self) -> list[Facts]:
        """Return the nodes of the round that are left, in the order of their ranks."""
        with self._lock:
            return [node for token, node in self._members.items() if token not in self._gone | self._done]

    def began(self, number: int, members: list[Facts]) -> None:
        """Note which round has just begun, and who is in it."""
        with self._lock:
            self.round = number
            self._members = {each.token: each for each in members}
            self._failing.clear()
            self._have_looked.clear()
            self._left.clear()
            self._placed.clear()
            self._changed = False
            self._newcomer_is_said = False
            missing = [token for token in self._members if token in self._gone]
        for token in missing:
            self._lost(token, *self._how.get(token, ("has gone", None)))

    def is_collateral(self, token: str, standing: int, since_s: float) -> bool:
        """Whether ranks of another node brought ours down: they have the better claim, or a node was lost.

        Args:
            token: This node.
            standing: How strongly our failure is held to be the cause, as `supervision.failure.Standing` counts.
            since_s: When it was, on the head's clock.
        """
        with self._lock:
            ours = (-standing, since_s, token)
            stronger = any((-theirs, when_s, other) < ours for other, (theirs, when_s) in self._failing.items())
            return stronger or self._changed or self._ending is not None

    def have_all_spoken(self, standing: int) -> bool:
        """Whether every other node of the round has told of a failure, or of its end, or is gone.

        A failure of ours that follows from another one may follow from a rank that shows none: a node whose failures
        explain ours no better has spoken once it has looked where its ranks are.

        Args:
            standing: As for `is_collateral`.
        """
        with self._lock:
            told = {
                token
                for token, (theirs, _) in self._failing.items()
                if standing >= Standing.CAUSE or theirs >= Standing.CAUSE or token in self._have_looked
            }
            return self._members.keys() - self._gone - self._done - self._left - told <= {self._mine.token}

    def has_looked(self, token: str) -> None:
        """Note that a node has told where its ranks are, or that they are where they should be."""
        with self._lock:
            self._have_looked.add(token)

    def left_elsewhere(self) -> dict[int, str]:
        """Return the ranks of other nodes of this round that have ended well, with their hosts."""
        with self._lock:
            found, first = {}, 0
            for token, node in self._members.items():
                if token in self._left | self._done:
                    ranks = self._placed.get(token, range(first, first + node.nproc))
                    found.update(dict.fromkeys(ranks, node.host))
                first += node.nproc
            return found

    def obstacle(self) -> str:
        """Say why there can be no other round, "" when there can: who has ended well closes the rendezvous for all."""
        with self._lock:
            ended = [self._name(token) for token in self._members if token in self._left | self._done]
            num_left = len(self._members.keys() - self._gone)
        if ended:
            return f"the ranks of {', '.join(ended)} have ended"
        return "" if num_left >= self._min_nodes else f"{num_left} nodes left and the run needs {self._min_nodes}"

    def newcomer(self) -> None:
        """Say once a round, whoever notices it first, that the next one begins because another node comes."""
        with self._lock:
            is_said, self._newcomer_is_said = self._newcomer_is_said, True
        if not is_said:
            self._say("another node comes in; all ranks start anew", elsewhere=True)

    def await_others(self) -> None:
        """Wait until the ranks of every other node of the round have ended well, or the node is gone.

        Raises:
            EndedElsewhereError: They have failed.
        """
        self._wait_while(lambda: bool(self._members.keys() - self._gone - self._done - {self._mine.token}))

    def finished(self) -> None:
        """Note that this node's ranks have ended well: what becomes of the head is no longer its business."""
        self._finished = True

    # The watch's thread.

    def take(self, op: str, message: Mapping[str, Any]) -> None:
        """Take in what the watch tells."""
        if op == "gone":
            self._mark_gone(message["token"])
            with self._lock:
                self._how[message["token"]] = message["how"], message.get("signal")
                if message.get("silent"):
                    self._silent.add(message["token"])
            self._lost(message["token"], message["how"], message.get("signal"))
        elif op == "head_gone":
            self._lost_head(message)
        elif op == "failing" and message["round"] == self.round:
            with self._lock:
                self._failing[message["token"]] = (message["standing"], message["when"])
        elif op == "restart" and message["round"] == self.round:
            self._restart(message)
        elif op == "failed":
            text = f"{self._name(message['token'])} failed: {message['text']}"
            self._end(text, message["exit_code"], message.get("report"))
        elif op == "placed" and message["round"] == self.round:
            with self._lock:
                self._placed[message["token"]] = message["ranks"]
        elif op == "left" and message["round"] == self.round:
            with self._lock:
                self._left.add(message["token"])
        elif op == "done":
            with self._lock:
                self._done.add(message["token"])
        elif op == "refused" and self._mine.token not in message.get("but", ()):
            self._end(message["text"])
        elif op == "broken":
            self._end(f"the watch over the other nodes failed ({message['error']}), so the run ends on this one")

    def admit(self, message: Mapping[str, Any], now_s: float) -> str | None:
        """Return why a node that comes does not fit this one, and end the run when it has not begun yet.

        Args:
            message: What it told, with its `facts` and the `time` on its clock.
            now_s: The time on this node's clock.
        """
        other = Facts.from_json(message["facts"])
        reason = misfit(self._mine, other)
        if reason is not None:
            text = f"these nodes cannot work together: {reason}"
            if self._members:
                self._say(f"{other.name} was turned away: {reason}")
            else:
                self._end(text)
            return text
        twin = self._twin_of(other)
        if twin is not None:
            text = f"node rank {other.node_rank} is that of {twin.name} already; give each node one of its own"
            self._say(f"{other.name} was turned away: {text}")
            return text
        if self._members and (full := self.full()):
            self._say(f"{other.name} was turned away: {full}")
            return full
        self._admitted[other.token] = other
        for line in (
            *warnings(self._mine, other),
            clock_warning(self._mine, other, float(message.get("time", now_s)) - now_s),
        ):
            if line is not None:
                self._say(f"warning: {line}")
        return None

    def full(self) -> str:
        """Say that no other node ever comes in, "" where one may: only elastic runs go on without a node."""
        if self._mine.nnodes != str(self._min_nodes):
            return ""
        names = ", ".join(node.name for node in self._members.values())
        return f"it is a node too many: --nnodes is {self._mine.nnodes}, and the run has begun with {names}"

    def superfluous(self) -> list[Facts]:
        """Return the nodes that are here and have no place in the round."""
        with self._lock:
            out = self._members.keys() | self._gone | self._done
            return [node for token, node in self._admitted.items() if token not in out]

    def tokens(self) -> list[str]:
        """Return the tokens of the nodes of the round."""
        with self._lock:
            return list(self._members)

    def _twin_of(self, other: Facts) -> Facts | None:
        """Return the node that has the node rank of one that comes; those that were lost or are done have none."""
        present = [node for token, node in self._admitted.items() if token not in self._gone | self._done]
        taken = (node for node in (self._mine, *present) if node.node_rank == other.node_rank)
        return None if other.node_rank is None else next(taken, None)

    def _lost_head(self, message: Mapping[str, Any]) -> None:
        self._head_gone = message
        name = self._head.name if self._head else "the node where all meet"
        if self._finished or self._ending is not None:
            return
        if self.round < 0 or self._head is None or not self.can_move:
            text = f"{name} {message['how']}; the nodes meet there, so the run ends on this one"
            self._end(text, signal=message.get("signal"))
            return
        self._mark_gone(self._head.token)
        unless = ", unless it has the run" if self.may_head_live else ""
        self._go_on_without(f"{name} {message['how']}", unless=unless, signal=message.get("signal"))

    def _mark_gone(self, token: str) -> None:
        """Note that a node is gone, also under the token that it had in the round, if it has come anew since."""
        known = self._admitted.get(token) or (self._head if token == self.head_token else None)
        with self._lock:
            self._gone.add(token)
            self._gone |= {each for each, node in self._members.items() if known and node.agent == known.agent}

    def _lost(self, token: str, how: str, signal: int | None = None) -> None:
        if self._finished or self._ending is not None:
            return
        known = self._admitted.get(token)
        if token in self._members or (known and known.agent in [node.agent for node in self._members.values()]):
            self._go_on_without(f"{self._name(token)} {how}", signal=signal)
        elif token in self._admitted:
            self._say(f"{self._name(token)} {how}; it had no ranks yet")

    def _go_on_without(self, what: str, unless: str = "", signal: int | None = None) -> None:
        left = len([each for each in self._members if each not in self._gone])
        nodes = f"{left} node{'s' * (left != 1)}"
        if left < self._min_nodes:
            self._end(f"{what}; {nodes} left and the run needs {self._min_nodes}", signal=signal)
        else:
            with self._lock:
                self._changed = True
            self._say(f"{what}; going on with {nodes}{unless}", elsewhere=True)

    def _restart(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._changed = True
        if message.get("newcomer"):
            self.newcomer()
        elif message.get("text"):
            self._say(f"{self._name(message['token'])}: {message['text']}; all ranks start anew", elsewhere=True)

    def _end(
        self, text: str, exit_code: int = 1, report: Mapping[str, Any] | None = None, signal: int | None = None
    ) -> None:
        with self._lock:
            if self._ending is None:
                self._ending = EndedElsewhereError(text, exit_code, report, signal)
        self.ended.set()

    def _name(self, token: str) -> str:
        node = self._members.get(token) or self._admitted.get(token)
        return "another node" if node is None else node.name
