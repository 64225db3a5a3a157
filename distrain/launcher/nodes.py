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
from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousStoreInfo, RendezvousTimeoutError

from distrain.errors import LaunchError
from distrain.launcher.agent_store import AgentStore
from distrain.launcher.apart import apart
from distrain.launcher.facts import Facts, in_order, spans
from distrain.launcher.inquiry import PLACED
from distrain.launcher.interface import gloo_variables
from distrain.launcher.meeting_place import SUPERVISORS, MeetingPlace, unshared_store
from distrain.launcher.rank_logs import RunDirLogs
from distrain.launcher.round_store import open_store, reachable_address
from distrain.rundir import ENV_LAUNCH_ID, ENV_RUN_DIR
from distrain.supervision.failure import Report, exit_code_of, to_json

__all__ = ["BACKEND", "NodesRendezvous", "RestartsSpentError"]

BACKEND = "distrain-c10d"

_ASK_S = 0.5
_PATIENCE_S = 8.0
_EXCHANGE = timedelta(seconds=30)
_SHUTDOWN_S = 3.0

T = TypeVar("T")


class RestartsSpentError(LaunchError):
    """Ranks of this node failed, and the run has been restarted as often as it may."""


class NodesRendezvous(RendezvousHandler):
    """Join the nodes of a run, round after round.

    Args:
        parameters: torch's.
        place: Where the nodes meet.
        logs: Told which attempt comes next.
        say: Tells the user; `elsewhere` marks the reason for a new attempt that is not this node's.
        began: Told which attempt begins, and the nodes in it.
    """

    def __init__(
        self,
        parameters: RendezvousParameters,
        *,
        place: MeetingPlace,
        logs: RunDirLogs,
        say: Callable[..., None],
        began: Callable[[int, list[Facts]], None],
    ) -> None:
        self._run_id = parameters.run_id
        self._place = place
        self._facts = place.facts
        self._membership = place.membership
        self._logs = logs
        self._say = say
        self._began = began
        self.failure: tuple[str, int] | None = None
        """What this node's ranks last failed of, and the exit code that follows from it."""
        self.report: Mapping[str, Any] | None = None
        """The supervisor's report of it, for the other nodes."""
        self._inner = place.handler(parameters)
        self._using_inner = threading.Lock()
        self._worker_store: TCPStore | None = None
        self._num_waiting = 0
        self._asked = False
        self._shut = threading.Event()
        threading.Thread(target=self._ask_who_waits, name="distrain-waiting", daemon=True).start()

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._run_id

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
            LaunchError: Not enough nodes came in time.
        """
        first = self._membership.round < 0
        failed = not first and not self._asked
        if failed and (self._facts.restarts >= self._facts.max_restarts or not self._membership.can_restart()):
            raise RestartsSpentError(f"ranks failed, after {self._facts.restarts} restarts")
        if not first:
            text = self.failure[0] if failed and self.failure is not None else ""
            self._place.watch.tell("restart", token=self._facts.token, round=self._membership.round, text=text)
        self._facts = replace(self._facts, failed=failed)
        return self._apart(self._join, self._say_who_is_awaited if first else None)

    def _say_who_is_awaited(self) -> None:
        self._say(self._place.awaited())

    def num_nodes_waiting(self) -> int:
        """Return more than 0 when a new round is to begin, which costs none of the restarts."""
        self._membership.check()
        if self._membership.changed():
            self._asked = True
            return 1
        if self._num_waiting > 0 and not self._asked:
            self._asked = True
            self._membership.newcomer()
            # at once: when this node's ranks are ended for it, those of the others fail, and must know why
            self._place.watch.tell("restart", token=self._facts.token, round=self._membership.round, newcomer=True)
        return self._num_waiting

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
        token, when_s = self._facts.token, self._place.now_s() - age_s
        self._place.watch.tell("failing", token=token, round=self._membership.round, when=when_s, standing=standing)
        end_and_listen(lambda: self._membership.is_collateral(token, standing, when_s))
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
        self._place.watch.tell(PLACED, token=self._facts.token, round=self._membership.round, ranks=ranks)

    def left(self) -> None:
        """Tell the others that all ranks of this node have ended well."""
        self._place.watch.tell("left", token=self._facts.token, round=self._membership.round)

    def left_elsewhere(self) -> dict[int, str]:
        """Return the ranks of the other nodes that have ended well, with their hosts."""
        return self._membership.left_elsewhere()

    def tell(self, attempt: int, word: Mapping[str, Any]) -> None:
        """Say something of the supervisor's to those of the other nodes, if it is of the present round."""
        if attempt == self._membership.round:
            self._place.watch.tell(SUPERVISORS, token=self._facts.token, round=attempt, word=word)

    def is_closed(self) -> bool:
        return self._apart(self._inner.is_closed)

    def set_closed(self) -> None:
        self._apart(self._inner.set_closed)

    def shutdown(self) -> bool:
        """Close the rendezvous, so that nobody waits for a next round; a store that is gone is not waited for."""
        self._shut.set()
        if self._membership.ending is None:
            closing = threading.Thread(target=self._close_inner, daemon=True)
            closing.start()
            closing.join(_SHUTDOWN_S)
        return True

    def _close_inner(self) -> None:
        with contextlib.suppress(RendezvousError, RuntimeError):
            self._inner.shutdown()

    def _apart(self, call: Callable[[], T], when_long: Callable[[], None] | None = None) -> T:
        """Make a call of torch's in another thread; raise when the run is to end meanwhile."""
        after = [] if when_long is None else [(_PATIENCE_S, when_long)]
        return apart(call, check=self._membership.check, after=after)

    def _ask_who_waits(self) -> None:
        """Keep the number of waiting nodes at hand, for `num_nodes_waiting` may not wait for a store."""
        while not self._shut.wait(_ASK_S):
            if self._membership.round < 0 or not self._using_inner.acquire(blocking=False):
                continue
            try:
                with contextlib.suppress(RendezvousError, RuntimeError):
                    self._num_waiting = self._inner.num_nodes_waiting()
            finally:
                self._using_inner.release()

    def _join(self) -> RendezvousInfo:
        while True:
            try:
                with self._using_inner, unshared_store():
                    info = self._inner.next_rendezvous()
                    self._num_waiting = 0
                return self._settle(PrefixStore("distrain", info.store), info)
            except RendezvousTimeoutError:  # noqa: PERF203 - each round takes seconds
                raise LaunchError(self._place.too_few()) from None
            except DistStoreError:
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
        os.environ[ENV_RUN_DIR] = self._place.run_dir(nodes[0].run_dir)
        os.environ[ENV_LAUNCH_ID] = self._place.launch_id(os.environ[ENV_LAUNCH_ID])
        if len(nodes) > 1:
            os.environ.update(gloo_variables(os.environ, reachable_address(self._facts, nodes)))
        attempt = max(node.attempt for node in nodes)
        restarts = max(node.restarts for node in nodes) + any(node.failed for node in nodes)
        self._facts = replace(self._facts, attempt=attempt + 1, restarts=restarts, failed=False)
        self._asked = False
        self._logs.attempt = attempt - 1
        self._membership.began(attempt, nodes)
        self._began(attempt, nodes)
        count = f"{len(nodes)} node{'s' * (len(nodes) != 1)}"
        self._say(f"{count} together · {spans(nodes)} · this is node {rank} · store at {address}:{port_text}")
        agents = AgentStore("agents", store, self._membership)
        agents.set_timeout(timedelta(seconds=60))
        return RendezvousInfo(agents, rank, len(nodes), RendezvousStoreInfo(address, int(port_text)))
