"""What one node makes of what happens to the others: go on without them, start anew with them, or end.

The watch's thread tells what happened (`take`), the agent's main thread asks what follows (`check`, `changed`,
`is_collateral`). Nothing here needs torch or a network.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from distrain.errors import LaunchError
from distrain.launcher.facts import Facts, clock_warning, misfit, warnings

__all__ = ["EndedElsewhereError", "Membership"]

_LOOK_S = 0.05


class EndedElsewhereError(LaunchError):
    """The run ends here because of what happened to another node.

    Args:
        text: What happened.
        exit_code: The exit code that this node's launcher ends with.
        report: The failure report of the node whose rank brought the run down, as in failure.json; None without one.
    """

    def __init__(self, text: str, exit_code: int = 1, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.report = report


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
        self._done: set[str] = set()
        self._left: set[str] = set()
        self._placed: dict[str, list[int]] = {}
        self._failing: dict[str, tuple[int, float]] = {}
        self._ending: EndedElsewhereError | None = None
        self._changed = False
        self._newcomer_is_said = False
        self._finished = False
        self._is_head_gone = False
        self.head_name = "the node where all meet"
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

    def changed(self) -> bool:
        """Whether a new round is to be begun with who is left, or because another node asked for it."""
        return self._changed

    def began(self, number: int, members: list[Facts]) -> None:
        """Note which round has just begun, and who is in it."""
        with self._lock:
            self.round = number
            self._members = {each.token: each for each in members}
            self._failing.clear()
            self._left.clear()
            self._placed.clear()
            self._changed = False
            self._newcomer_is_said = False
            missing = [token for token in self._members if token in self._gone]
        for token in missing:
            self._lost(token, "has gone")

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

    def can_restart(self) -> bool:
        """Whether enough nodes are left that have not finished: a node whose ranks ended well does not come again."""
        with self._lock:
            return len(self._members.keys() - self._gone - self._done) >= self._min_nodes

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
        while self._members.keys() - self._gone - self._done - {self._mine.token} and not self._is_head_gone:
            self.check()
            time.sleep(_LOOK_S)
        self.check()

    def finished(self) -> None:
        """Note that this node's ranks have ended well: what becomes of the head is no longer its business."""
        self._finished = True

    # The watch's thread.

    def take(self, op: str, message: Mapping[str, Any]) -> None:
        """Take in what the watch tells."""
        if op == "gone":
            with self._lock:
                self._gone.add(message["token"])
            self._lost(message["token"], message["how"])
        elif op == "head_gone":
            self._is_head_gone = True
            if not self._finished:
                self._end(f"{self.head_name} {message['how']}; the nodes meet there, so the run ends on this one")
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
        elif op == "refused":
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
        self._admitted[other.token] = other
        for line in (
            *warnings(self._mine, other),
            clock_warning(self._mine, other, float(message.get("time", now_s)) - now_s),
        ):
            if line is not None:
                self._say(f"warning: {line}")
        return None

    def _twin_of(self, other: Facts) -> Facts | None:
        """Return the node that has the node rank of one that comes; those that were lost or are done have none."""
        present = [node for token, node in self._admitted.items() if token not in self._gone | self._done]
        taken = (node for node in (self._mine, *present) if node.node_rank == other.node_rank)
        return None if other.node_rank is None else next(taken, None)

    def _lost(self, token: str, how: str) -> None:
        if self._finished:
            return
        if token not in self._members:
            if token in self._admitted:
                self._say(f"{self._name(token)} {how}; it had no ranks yet")
            return
        left = len([each for each in self._members if each not in self._gone])
        what = f"{self._name(token)} {how}"
        nodes = f"{left} node{'s' * (left != 1)}"
        if left < self._min_nodes:
            self._end(f"{what}; {nodes} left and the run needs {self._min_nodes}")
        else:
            with self._lock:
                self._changed = True
            self._say(f"{what}; going on with {nodes}", elsewhere=True)

    def _restart(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._changed = True
        if message.get("newcomer"):
            self.newcomer()
        elif message.get("text"):
            self._say(f"{self._name(message['token'])}: {message['text']}; all ranks start anew", elsewhere=True)

    def _end(self, text: str, exit_code: int = 1, report: Mapping[str, Any] | None = None) -> None:
        with self._lock:
            if self._ending is None:
                self._ending = EndedElsewhereError(text, exit_code, report)
        self.ended.set()

    def _name(self, token: str) -> str:
        node = self._members.get(token) or self._admitted.get(token)
        return "another node" if node is None else node.name
