"""The rendezvous of several nodes: torch's own joins them, and around it stands what it leaves open.

torch's c10d rendezvous decides who is in a round. Then, through the round's store, the nodes tell each other their
facts, take their ranks in the order of the node ranks, and the first of them opens a fresh store for this round's
workers. torch itself keeps one store for the whole run, so restarted workers find the keys of the attempt before
(pytorch#135712, #167288), and it gives the workers a host name that the others may not reach.

torch's calls to a store can wait for many minutes on a link that was cut, and no signal handler runs meanwhile. They
are made in other threads, so that the agent's main thread can end the run when the watch says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed import DistStoreError, PrefixStore, TCPStore  # type: ignore[attr-defined]  # not in its __all__
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from distrain.errors import LaunchError
from distrain.launcher.agent_store import AgentStore
from distrain.launcher.apart import apart
from distrain.launcher.facts import Facts, in_order, spans
from distrain.launcher.inquiry import PLACED
from distrain.launcher.interface import gloo_variables
from distrain.launcher.meeting_place import SUPERVISORS, MeetingPlace, unshared_store
from distrain.launcher.membership import Membership
from distrain.launcher.rank_logs import RunDirLogs
from distrain.launcher.round_store import open_store, reachable_address
from distrain.launcher.succession import Succession
from distrain.rundir import ENV_LAUNCH_ID, ENV_RUN_DIR
from distrain.supervision.failure import Report, exit_code_of, to_json

__all__ = ["BACKEND", "NoPartError", "NodesRendezvous", "RestartsSpentError"]

BACKEND = "distrain-c10d"

_ASK_S = 0.5
_PATIENCE_S = 8.0
_EXCHANGE = timedelta(seconds=30)
_SHUTDOWN_S = 3.0
_WORD_S = 2.0
_LAST_WORD_S = 10.0
"""Who closes the rendezvous has so long to say why."""

T = TypeVar("T")


class _HeadLostError(Exception):
    """Where the nodes were to meet nobody is any more; who is left meets elsewhere."""


class RestartsSpentError(LaunchError):
    """Ranks of this node failed, and the run has been restarted as often as it may."""


class NoPartError(LaunchError):
    """The run has ended well before this node had ranks."""


class NodesRendezvous(RendezvousHandler):
    """Join the nodes of a run, round after round.

    Args:
        parameters: torch's.
        place: Where the nodes meet.
        succession: Who has the next round when that place is lost.
        logs: Told which attempt comes next.
        say: Tells the user; `elsewhere` marks the reason for a new attempt that is not this node's.
        began: Told which attempt begins, and the nodes in it.
    """

    def __init__(
        self,
        parameters: RendezvousParameters,
        *,
        place: MeetingPlace,
        succession: Succession,
        logs: RunDirLogs,
        say: Callable[..., None],
        began: Callable[[int, list[Facts]], None],
    ) -> None:
        self._parameters = parameters
        self.place = place
        """Where the nodes meet."""
        self._succession = succession
        self._facts = place.facts
        self._membership = place.membership
        self._logs = logs
        self._say = say
        self._began = began
        self.failure: tuple[str, int] | None = None
        """What this node's ranks last failed of, and the exit code that follows from it."""
        self.report: Mapping[str, Any] | None = None
        """The supervisor's report of it, for the other nodes."""
        self._inner = _Inner(place.handler(parameters), self._membership)
        self._worker_store: TCPStore | None = None
        self._asked = False

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._parameters.run_id

    @property
    def use_agent_store(self) -> bool:
        return True

    @property
    def restarts(self) -> int:
        """How many failures the run has restarted from, the same on every node."""
        return self._facts.restarts

    @property
    def holds_store(self) -> bool:
        """Whether the store of this round's workers is in this process."""
        return self._worker_store is not None

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round.

        Raises:
            EndedElsewhereError: Another node's fate ends the run.
            RestartsSpentError: This node's ranks failed once too often.
            NoPartError: The run has ended well, and this node has had no ranks in it.
            LaunchError: Not enough nodes came in time.
        """
        first = self._membership.round < 0
        failed = not first and not self._asked
        if failed:
            if self._facts.restarts >= self._facts.max_restarts:
                raise RestartsSpentError(f"ranks failed, after {self._facts.restarts} restarts")
            if obstacle := self._membership.obstacle():
                self._say(f"not started again: {obstacle}")
                raise RestartsSpentError(obstacle)
        if not first:
            text = self.failure[0] if failed and self.failure is not None else ""
            self.place.watch.tell("restart", token=self._facts.token, round=self._membership.round, text=text)
            self._apart(lambda: self._succession.lost_some(self.place))
        self._facts = replace(self._facts, failed=failed)
        while True:
            if self._membership.is_head_gone:
                self._apart(self._move)
            try:
                return self._joined(self._say_who_is_awaited if first else None)
            except (RendezvousClosedError, RendezvousGracefulExitError):
                has_ended_well = self._membership.have_others_ended(_LAST_WORD_S)
                if has_ended_well and first and not self._membership.full():
                    raise NoPartError("the run has ended well, and this node has had no ranks in it") from None
                if has_ended_well or not self._membership.is_head_gone:
                    raise LaunchError("the run has ended on the other nodes, so it ends on this one") from None
            except (RendezvousError, RuntimeError, _HeadLostError):
                self._membership.explain(_WORD_S)
                if not self._membership.is_head_gone:
                    raise

    def _joined(self, when_long: Callable[[], None] | None) -> RendezvousInfo:
        def check() -> None:
            self._membership.check()
            if self._membership.is_head_gone:
                raise _HeadLostError

        return apart(self._join, check=check, after=[] if when_long is None else [(_PATIENCE_S, when_long)])

    def _move(self) -> None:
        """Meet elsewhere, for the place is lost."""
        self.place = self._succession.find(self.place, self._facts)
        self._facts = self.place.facts
        self._inner.forget()
        self._inner = _Inner(self.place.handler(self._parameters), self._membership)

    def _say_who_is_awaited(self) -> None:
        self._say(self.place.awaited())

    def num_nodes_waiting(self) -> int:
        """Return more than 0 when a new round is to begin, which costs none of the restarts."""
        self._membership.check()
        if self._membership.changed():
            self._apart(lambda: self._succession.lost_some(self.place))
            self._asked = True
            return 1
        if self._inner.num_waiting > 0 and not self._asked:
            self._asked = True
            self._membership.newcomer()
            # at once: when this node's ranks are ended for it, those of the others fail, and must know why
            self.place.watch.tell("restart", token=self._facts.token, round=self._membership.round, newcomer=True)
        return self._inner.num_waiting

    def failing(
        self,
        text: str,
        exit_code: int,
        *,
        standing: int,
        age_s: float,
        end_and_listen: Callable[[Callable[[], bool]], None],
    ) -> bool:
        """Tell the others that ranks of this node failed; return whether the reason lies elsewhere.

        Args:
            text: Which rank, and of what.
            exit_code: The exit code that follows from it.
            standing: How strongly it is held to be the cause, as `supervision.failure.Standing` counts.
            age_s: How long ago it was.
            end_and_listen: Ends this node's other ranks, and leaves the others time to speak, until they have.
        """
        token, when_s = self._facts.token, self.place.now_s() - age_s
        self.place.watch.tell("failing", token=token, round=self._membership.round, when=when_s, standing=standing)

        def heard() -> bool:
            is_collateral = self._membership.is_collateral(token, standing, when_s)
            return is_collateral or self._membership.have_all_spoken(standing)

        end_and_listen(heard)
        if self._membership.is_collateral(token, standing, when_s):
            return True
        self.failure = (text, exit_code)
        return False

    def reported(self, report: Report) -> None:
        """Take in what the supervisor makes of this node's failure, which knows more than an exit code."""
        cause = report.root_cause
        self.failure = (f"rank {cause.rank}: {cause.kind}: {cause.message}", exit_code_of(report))
        self.report = to_json(report)

    def placed(self, ranks: list[int]) -> None:
        """Tell the others which ranks this node has, where it was not the rendezvous that gave them out."""
        self.place.watch.tell(PLACED, token=self._facts.token, round=self._membership.round, ranks=ranks)

    def left(self) -> None:
        """Tell the others that all ranks of this node have ended well."""
        self.place.watch.tell("left", token=self._facts.token, round=self._membership.round)

    def left_elsewhere(self) -> dict[int, str]:
        """Return the ranks of the other nodes that have ended well, with their hosts."""
        return self._membership.left_elsewhere()

    def tell(self, attempt: int, word: Mapping[str, Any]) -> None:
        """Say something of the supervisor's to those of the other nodes, if it is of the present round."""
        if attempt == self._membership.round:
            self.place.watch.tell(SUPERVISORS, token=self._facts.token, round=attempt, word=word)

    def is_closed(self) -> bool:
        return self._apart(self._inner.handler.is_closed)

    def set_closed(self) -> None:
        self._apart(self._inner.handler.set_closed)

    def shutdown(self) -> bool:
        """Close the rendezvous, so that nobody waits for a next round; a store that is gone is not waited for."""
        self._inner.forget()
        if self._membership.ending is None:
            closing = threading.Thread(target=self._inner.close, daemon=True)
            closing.start()
            closing.join(_SHUTDOWN_S)
        return True

    def _apart(self, call: Callable[[], T]) -> T:
        """Make a call that may wait in another thread; raise when the run is to end meanwhile."""
        return apart(call, check=self._membership.check)

    def _join(self) -> RendezvousInfo:
        inner = self._inner
        while True:
            try:
                info = inner.next_rendezvous()
                return self._settle(PrefixStore("distrain", info.store), info)
            except RendezvousTimeoutError:  # noqa: PERF203 - each round takes seconds
                raise LaunchError(self.place.too_few()) from None
            except DistStoreError:
                if self._membership.is_head_gone or inner is not self._inner:
                    raise
                self._say("a node went away while the nodes met; they meet again")

    def _settle(self, store: Any, info: RendezvousInfo) -> RendezvousInfo:
        """Exchange the facts of a round, order the ranks, open the round's store."""
        store.set_timeout(_EXCHANGE)
        store.set(f"facts/{info.rank}", json.dumps(self._facts.as_json()))
        told = [Facts.from_json(json.loads(store.get(f"facts/{i}"))) for i in range(info.world_size)]
        nodes = in_order(told)
        tokens = [node.token for node in nodes]
        rank = tokens.index(self._facts.token)
        if rank == 0:
            self._worker_store, address, port = open_store(self._facts, nodes)
            store.set("leader", f"{address} {port}")
        else:
            self._worker_store = None
        address, port_text = store.get("leader").decode().split()
        run_dir = os.environ[ENV_RUN_DIR] = self.place.run_dir(nodes[0].run_dir)
        os.environ[ENV_LAUNCH_ID] = self.place.launch_id(os.environ[ENV_LAUNCH_ID])
        reachable = reachable_address(self._facts, nodes)
        if len(nodes) > 1:
            os.environ.update(gloo_variables(os.environ, reachable))
        self._succession.settle(self.place, store, run_dir, reachable)
        attempt = max(node.attempt for node in nodes)
        restarts = max(node.restarts for node in nodes) + any(node.failed for node in nodes)
        self._facts = replace(self._facts, attempt=attempt + 1, restarts=restarts, failed=False, run_dir=run_dir)
        self._asked = False
        self._logs.attempt = attempt - 1
        self._membership.began(attempt, nodes)
        self._turn_away()
        self._began(attempt, nodes)
        count = f"{len(nodes)} node{'s' * (len(nodes) != 1)}"
        self._say(f"{count} together · {spans(nodes)} · this is node {rank} · store at {address}:{port_text}")
        agents = AgentStore("agents", store, self._membership)
        agents.set_timeout(timedelta(seconds=60))
        return RendezvousInfo(agents, rank, len(nodes), RendezvousStoreInfo(address, int(port_text)))

    def _turn_away(self) -> None:
        """Tell nodes that there is no place for them, where there will be none; torch would have them wait."""
        full, left_out = self._membership.full(), self._membership.superfluous()
        if self.place.is_head and full and left_out:
            for node in left_out:
                self._say(f"{node.name} was turned away: {full}")
            self.place.watch.tell("refused", text=full, but=self._membership.tokens())


class _Inner:
    """torch's rendezvous at one place. Its calls can wait for minutes once the place is lost.

    Args:
        handler: torch's.
        membership: Tells whether a round has begun.
    """

    def __init__(self, handler: RendezvousHandler, membership: Membership) -> None:
        self.handler = handler
        self._membership = membership
        self._in_use = threading.Lock()
        self._forgotten = threading.Event()
        self.num_waiting = 0
        """How many nodes wait for the next round, kept at hand: nobody may wait for a store to learn it."""
        threading.Thread(target=self._ask_who_waits, name="distrain-waiting", daemon=True).start()

    def next_rendezvous(self) -> RendezvousInfo:
        with self._in_use, unshared_store():
            info = self.handler.next_rendezvous()
            self.num_waiting = 0
            return info

    def forget(self) -> None:
        """Ask no more who waits."""
        self._forgotten.set()

    def close(self) -> None:
        with contextlib.suppress(RendezvousError, RuntimeError):
            self.handler.shutdown()

    def _ask_who_waits(self) -> None:
        while not self._forgotten.wait(_ASK_S):
            if self._membership.round < 0 or not self._in_use.acquire(blocking=False):
                continue
            try:
                with contextlib.suppress(RendezvousError, RuntimeError):
                    self.num_waiting = self.handler.num_nodes_waiting()
            finally:
                self._in_use.release()
