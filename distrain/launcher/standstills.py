"""What the supervisor does about ranks that stand still: find a hang, with the other nodes, show it, and end it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from distrain.launcher.inquiry import CLUES, PLACED, VICTIM, Found, Inquiry, Node
from distrain.launcher.outcome import Outcome
from distrain.launcher.vigil import Standstill, Vigil
from distrain.rundir import as_typed, write_atomic
from distrain.supervision.hangs import Hang
from distrain.supervision.record import RunRecord

__all__ = ["Standstills"]


class Standstills:
    """The hangs of a run; each attempt has one at most.

    Args:
        vigil: Sees the ranks of this node.
        outcome: Told of the hang.
        record: The run directory.
        say: Shows a text to the user.
        send: Sends the agent a message.
        slack_s: As for `Inquiry`.
    """

    def __init__(
        self,
        vigil: Vigil,
        outcome: Outcome,
        record: RunRecord,
        *,
        say: Callable[[str], None],
        send: Callable[..., None],
        slack_s: float,
    ) -> None:
        self._vigil = vigil
        self._outcome = outcome
        self._record = record
        self._say = say
        self._send = send
        self._slack_s = slack_s
        self._round = -1
        self._hosts: dict[str, str] = {}
        self._has_answered = False
        self._inquiry: Inquiry | None = None
        self._standstill: Standstill | None = None
        self._found: Found | None = None
        self._end_at_s = math.inf
        self._hung_attempt = -1

    def round_began(self, message: Mapping[str, Any]) -> None:
        """Take note of who is in a round: among several nodes none can tell a hang by its own ranks alone."""
        nodes, first = [], 0
        for each in message["nodes"]:
            nodes.append(Node(token=each["token"], host=each["host"], ranks=range(first, first + each["nproc"])))
            first += each["nproc"]
        attempt = self._round = message["attempt"]
        self._inquiry = self._standstill = self._found = None
        self._hosts = {node.token: node.host for node in nodes}
        self._has_answered = False
        if len(nodes) > 1:
            self._inquiry = Inquiry(
                nodes,
                mine=message["mine"],
                tell=lambda word: self._send("tell_nodes", attempt=attempt, word=word),
                ranks=self._vigil.ranks,
                timeout_s=lambda: self._vigil.timeout_s,
                slack_s=self._slack_s,
            )

    def heard(self, message: Mapping[str, Any]) -> None:
        """Take in what another node's supervisor says."""
        if self._inquiry is None or message["attempt"] != self._round or message["token"] not in self._hosts:
            return
        word = message["word"]
        if word["word"] == VICTIM:
            if not self._has_answered:
                self._has_answered = True
                self._send("tell_nodes", attempt=self._round, word={"word": CLUES, **self._outcome.clues()})
        elif word["word"] == PLACED:
            self._inquiry.placed(message["token"], word["ranks"])
        elif word["word"] == CLUES:
            self._outcome.seen_elsewhere(self._hosts[message["token"]], word)
        else:
            self._inquiry.heard(time.monotonic_ns(), message["token"], word)

    def look(self) -> None:
        """Look for a hang; end the attempt when there is one, once it is written down where every rank stands."""
        hang = self._vigil.look()
        if self._hung_attempt == self._outcome.attempt:
            return
        if self._inquiry is not None:
            self._look_with_others(self._inquiry, hang)
        elif hang is not None:
            self._announce(hang)
            standstill = self._vigil.where_they_stand(wake_stopped=True)
            self._show(standstill, standstill.odd)
            self._end(Found(hang=hang, odd=standstill.odd, doing=standstill.doing))

    def settle(self) -> None:
        """Name the rank to blame by what is known: another node ended its ranks before the last word came here."""
        inquiry = self._inquiry
        if inquiry is not None and inquiry.has_told and self._hung_attempt != self._outcome.attempt:
            self._end(self._found or inquiry.known())

    def show(self) -> None:
        """Show where the ranks of this node stand; they go on."""
        standstill = self._vigil.where_they_stand()
        self._show(standstill, standstill.odd)

    def _look_with_others(self, inquiry: Inquiry, hang: Hang | None) -> None:
        now_ns = time.monotonic_ns()
        inquiry.consider(now_ns, hang)
        if inquiry.hang is None:
            return
        if self._standstill is None:
            self._announce(inquiry.hang)
            self._standstill = self._vigil.where_they_stand(wake_stopped=True)
            places = [each.place for each in self._standstill.groups]
            inquiry.stand(time.monotonic_ns(), places, self._standstill.doing)
        if self._found is None:
            self._found = inquiry.found(time.monotonic_ns())
            if self._found is None:
                return
            self._show(self._standstill, self._found.odd, self._found.elsewhere)
            self._end_at_s = time.monotonic() + inquiry.ends_after_s(self._found)
        if time.monotonic() >= self._end_at_s:
            self._end(self._found)

    def _announce(self, hang: Hang) -> None:
        silent_s = min((each.silent_s for each in hang.silent), default=hang.timeout_s)
        self._record.event("hang", {"timeout_s": hang.timeout_s, "silent_s": round(silent_s, 3)})
        self._say(f"distrain: no progress for {hang.timeout_s:g} s; asking every rank where it stands")

    def _show(self, standstill: Standstill, odd: Collection[int], elsewhere: Mapping[int, str] | None = None) -> None:
        """Show where the ranks of this node stand, and which rank of another node is odd."""
        text = self._vigil.describe(standstill, odd)
        text += "".join(
            f"\nrank {rank}, on {host}, is the odd one out" for rank, host in (elsewhere or {}).items() if rank in odd
        )
        path = self._record.rundir.all_stacks(self._outcome.attempt)
        kept = ""
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text + "\n")
            kept = f" (also in {as_typed(path)})"
        self._say(f"distrain: where the ranks stand{kept}\n{text}")
        self._record.event("stacks", {"odd": list(odd)})

    def _end(self, found: Found) -> None:
        self._hung_attempt = self._outcome.attempt
        self._outcome.hung(found)
        elsewhere = self._inquiry is not None and self._inquiry.is_elsewhere(found)
        self._send("hung", attempt=self._hung_attempt, elsewhere=elsewhere)
