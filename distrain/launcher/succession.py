"""The node where all meet is lost, and who is left goes on: they meet at the first of them.

    head ── takes round 4 ──►  the head is lost  ──►  the first of those left takes round 5 and opens the place there;
                                                      the others read where, and come

The head may be alive and cut off. It takes round 5 too, once it notices that it has lost the others, and only one of
the two succeeds (`rounds`): the other side ends. The side with more nodes has the first try, as far as a side can know:
the head where no more than half are lost, else the others. Each waits for its turn, in parts of the time after which a
node is lost:

    0.25  the head with half of the nodes or more, when it has noticed all that are lost
    0.75  the first of the others; the next ones each 1 later
    1.25  the head with fewer

Only an elastic run goes on without a node. It takes a run directory that the nodes share, as the checkpoints do from
which they go on.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distrain.launcher.ended_elsewhere import EndedElsewhereError
from distrain.launcher.facts import Facts
from distrain.launcher.meeting_place import MeetingPlace
from distrain.launcher.rounds import Held, Rounds
from distrain.rundir import RunDir, as_typed

__all__ = ["Succession"]

_HEAD, _OTHERS, _LONELY_HEAD = 0.25, 0.75, 1.25
_LOOK_S = 0.2
_OPENS_S = 5.0
"""Who has taken a round has so long to open the place."""

_CONNECT_S = 5.0


class Succession:
    """Which rounds this node's run has, and who has the next.

    Args:
        is_elastic: Whether the run could go on without a node.
        timeout_s: After so much silence a node is lost.
        say: Tells the user.
    """

    def __init__(self, *, is_elastic: bool, timeout_s: float, say: Callable[..., None]) -> None:
        self._is_elastic = is_elastic
        self._timeout_s = timeout_s
        self._say = say
        self._rounds: Rounds | None = None
        self._folder = Path()
        self._number = 0
        self._has_next = False
        self._address = ""
        self._is_warned = False

    def settle(self, place: MeetingPlace, store: Any, run_dir: str, address: str) -> None:
        """Take the number of the round that is about to begin, on the head; see, on the others, that it is taken.

        Args:
            place: Where the nodes meet.
            store: The round's store.
            run_dir: The run directory that the ranks share.
            address: The address under which the others reach this node.

        Raises:
            EndedElsewhereError: Other nodes have the run.
        """
        if not self._is_elastic:
            return
        self._folder = RunDir(root=Path(run_dir)).rounds
        self._rounds = Rounds(self._folder)
        self._address = address
        if place.is_head:
            self._number = self._taken(place)
            self._has_next = False
            store.set("round", str(self._number))
        else:
            self._number = int(store.get("round"))
            held = self._rounds.holder(self._number) if self._number else None
            can_move = held is not None and held.token == place.membership.head_token
            if self._number and not can_move and not self._is_warned:
                self._is_warned = True
                self._say(
                    f"warning: {run_dir} of the node where all meet is not seen here; without it the run ends here"
                )
            place.membership.can_move = can_move

    def lost_some(self, place: MeetingPlace) -> None:
        """Take the next round, on the head, when its turn has come and others may want it.

        Raises:
            EndedElsewhereError: Those who do not hear of this node any more have taken it.
        """
        if not place.is_head or self._number == 0 or self._has_next or not place.membership.num_silent():
            return
        self._wait(_HEAD)
        if place.membership.num_silent() > len(place.membership.heirs()):
            self._wait(_LONELY_HEAD - _HEAD)
        self._number = self._taken(place)
        self._has_next = True

    def _wait(self, part: float) -> None:
        """Wait for a turn, or until another node has had its own."""
        assert self._rounds is not None
        end_s = time.monotonic() + part * self._timeout_s
        while time.monotonic() < end_s and self._rounds.holder(self._number + 1) is None:
            time.sleep(_LOOK_S)

    def _taken(self, place: MeetingPlace) -> int:
        """Return the number that this node has taken; 0 where none can be: then nobody else can either."""
        assert self._rounds is not None
        if self._has_next:
            return self._number
        mine, number = place.held(self._address), self._number + 1
        try:
            if self._number == 0:
                return self._rounds.begin(mine)
            is_ours = self._rounds.take(number, mine)
        except OSError as error:
            trouble = f"{as_typed(self._folder)} cannot be written ({_reason(error)})"
            if place.membership.num_silent():
                raise EndedElsewhereError(f"{trouble}, so the nodes that this one has lost may have the run") from None
            self._say(f"warning: {trouble}: the others need this node to go on")
            return 0
        held = self._rounds.holder(number)
        if is_ours or (held is not None and held.token == mine.token):
            return number
        who = f"{held.name} since {held.since}" if held else "another node"
        raise EndedElsewhereError(f"the nodes that this one has lost go on without it, led by {who}")

    def find(self, place: MeetingPlace, facts: Facts) -> MeetingPlace:
        """Return the place where those meet who are left of a place that is lost: opened here, or elsewhere.

        Args:
            place: The lost one.
            facts: This node's.

        Raises:
            EndedElsewhereError: The run goes on, and this node does not reach it.
            LaunchError: It does not fit the others.
        """
        assert self._rounds is not None
        membership = place.membership
        heirs = [node.agent for node in membership.heirs()]
        self._number += 1
        first = _OTHERS if membership.may_head_live else 0
        turn_s = time.monotonic() + self._timeout_s * (first + heirs.index(facts.agent))
        unreadable_by_s = math.inf
        while True:
            held = self._rounds.holder(self._number)
            if held is not None:
                if self._is_open(held):
                    self._say(f"the nodes meet at {held.name} now")
                    return place.move_to(held, facts.anew())
                self._number, unreadable_by_s = self._number + 1, math.inf
            elif time.monotonic() > unreadable_by_s:  # whoever took it has ended before it had told
                self._number, unreadable_by_s = self._number + 1, math.inf
            elif unreadable_by_s == math.inf and time.monotonic() >= turn_s:
                here = self._open(place, facts)
                if here is not None:
                    return here
                unreadable_by_s = time.monotonic() + _OPENS_S
            else:
                time.sleep(_LOOK_S)

    def _open(self, place: MeetingPlace, facts: Facts) -> MeetingPlace | None:
        """Return a new place on this node, and take the round; None where another node has it.

        Raises:
            EndedElsewhereError: It cannot be taken.
        """
        assert self._rounds is not None
        here = place.move_here(facts.anew(), self._address)
        try:
            is_ours = self._rounds.take(self._number, here.held(self._address))
        except OSError as error:
            here.close()
            raise EndedElsewhereError(
                f"{as_typed(self._folder)} cannot be written ({_reason(error)}), so this node cannot take the run"
            ) from None
        if not is_ours:
            here.close()
            return None
        self._say("the nodes meet at this one now")
        self._has_next = True
        return here

    def _is_open(self, held: Held) -> bool:
        """Whether the place is open; False where whoever took the round has ended before it was.

        Raises:
            EndedElsewhereError: Nothing can be heard from there, so that the run may go on there.
        """
        end_s = time.monotonic() + _OPENS_S
        while True:
            trouble = _trouble(held.address, held.port)
            if trouble is None:
                return True
            if trouble:
                raise EndedElsewhereError(
                    f"{held.name} has the run since {held.since}, and is not reached from here at "
                    f"{held.address}:{held.port} ({trouble}), so it ends on this node"
                )
            if time.monotonic() > end_s:
                return False
            time.sleep(_LOOK_S)


def _trouble(address: str, port: int) -> str | None:
    """Return why nothing answers there, "" where it is certain that nobody listens; None where somebody does."""
    try:
        socket.create_connection((address, port), _CONNECT_S).close()
    except ConnectionRefusedError:
        return ""
    except OSError as error:
        return _reason(error)
    return None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
