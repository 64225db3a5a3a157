"""An agent among several: its settings for torch, and its last word to the others."""

from __future__ import annotations

import os
import platform
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry

import distrain
from distrain.launcher.ended_elsewhere import EndedElsewhereError
from distrain.launcher.facts import Facts
from distrain.launcher.joined_workers import JoinedWorkers, joined_starter
from distrain.launcher.meeting_place import MeetingPlace
from distrain.launcher.membership import Membership
from distrain.launcher.moved import moved
from distrain.launcher.nodes import BACKEND, NodesRendezvous
from distrain.launcher.precheck import await_answer
from distrain.launcher.protocol import AgentJob, Channel
from distrain.launcher.rank_logs import RunDirLogs
from distrain.launcher.succession import Succession
from distrain.plan.meeting import Meeting

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

__all__ = ["Joining", "is_ours"]

_STUCK_S = 3.0
_WORD_S = 2.0


class _MovedError(Exception):
    """The nodes meet elsewhere."""

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting


def is_ours(meeting: Mapping[str, Any] | None) -> bool:
    """Whether the nodes meet in torch's c10d rendezvous over TCP, which is the one that we stand around."""
    return (
        meeting is not None
        and meeting["backend"] == "c10d"
        and meeting["max_nodes"] > 1
        and meeting["conf"].get("store_type", "tcp") == "tcp"
    )


class Joining:
    """What the agent of one node among several does beside torch's.

    Args:
        job: What to launch.
        channel: The agent's channel to the fork server.
        logs: Where the output goes.
    """

    def __init__(self, job: AgentJob, channel: Channel, logs: RunDirLogs) -> None:
        assert job.meeting is not None
        self._job = job
        self._channel = channel
        self._logs = logs
        self._meeting = Meeting(**job.meeting)
        self._nodes: NodesRendezvous | None = None
        self._membership: Membership | None = None
        self._workers: JoinedWorkers | None = None
        rendezvous_handler_registry.register(BACKEND, self._make_handler)

    def settings(self) -> dict[str, Any]:
        """Return the fields of torch's `LaunchConfig` that differ from a single node's."""
        meeting = self._meeting
        return {
            "min_nodes": meeting.min_nodes,
            "max_nodes": meeting.max_nodes,
            "run_id": meeting.run_id,
            "rdzv_backend": BACKEND,
            "rdzv_endpoint": meeting.endpoint,
            "rdzv_configs": dict(meeting.conf),
            "local_addr": meeting.local_addr,
        }

    def starter(self) -> Callable[..., JoinedWorkers]:
        """Return what takes the place of torch's `start_processes`."""

        def nodes() -> NodesRendezvous:
            assert self._nodes is not None
            return self._nodes

        start = joined_starter(self._channel, self._job, self._logs, nodes)

        def start_processes(**how: Any) -> JoinedWorkers:
            self._workers = start(**how)
            return self._workers

        return start_processes

    @property
    def is_preempted(self) -> bool:
        """Whether all ranks of this node were asked to end and have saved their state."""
        return self._workers is not None and self._workers.is_preempted

    def _make_handler(self, parameters: RendezvousParameters) -> RendezvousHandler:
        meeting = self._meeting if self._job.door is not None else self._where_all_meet()
        place = MeetingPlace(meeting, self._facts(), door=self._job.door, say=self.say, hear=self._hear)
        membership = self._membership = place.membership
        threading.Thread(target=self._end_if_stuck, args=[membership], name="distrain-backstop", daemon=True).start()
        succession = Succession(
            is_elastic=meeting.min_nodes < meeting.max_nodes, timeout_s=place.timeout_s, say=self.say
        )
        self._nodes = NodesRendezvous(
            parameters,
            place=place,
            succession=succession,
            say=self.say,
            logs=self._logs,
            began=self._round_began,
        )
        return self._nodes

    def _where_all_meet(self) -> Meeting:
        """Return where somebody answers: a node that waits for one that was lost goes where the others went."""

        def look() -> None:
            elsewhere = moved(self._meeting, Path(self._job.facts["shared_run_dir"]))
            if elsewhere is not None:
                self.say(f"the nodes meet at {elsewhere.endpoint} now")
                raise _MovedError(elsewhere)

        try:
            await_answer(self._meeting, self.say, look)
        except _MovedError as found:
            return found.meeting
        return self._meeting

    def _facts(self) -> Facts:
        meeting, job = self._meeting, self._job
        low, high = meeting.min_nodes, meeting.max_nodes
        return Facts(
            token=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            host=socket.gethostname(),
            address="",
            head_address="",
            node_rank=meeting.node_rank,
            nproc=job.nproc,
            torch=torch.__version__,
            distrain=distrain.__version__,
            python=platform.python_version(),
            device=job.facts["device"],
            nnodes=str(low) if low == high else f"{low}:{high}",
            run_id=meeting.run_id,
            profile=job.facts["profile"],
            profile_says=job.facts["profile_says"],
            retry=job.facts["retry"],
            max_restarts=job.max_restarts,
            run_dir=job.facts["shared_run_dir"],
            attempt=job.first_attempt,
        )

    def say(self, text: str, *, elsewhere: bool = False) -> None:
        """Tell the user; `elsewhere` marks the reason for a new attempt that is not this node's."""
        self._channel.send("note", text=text, elsewhere=elsewhere)

    def _hear(self, message: Mapping[str, Any]) -> None:
        """Pass on what another node's supervisor says."""
        self._channel.send("word", attempt=message["round"], token=message["token"], word=message["word"])

    def _round_began(self, attempt: int, nodes: list[Facts]) -> None:
        assert self._place is not None
        told = [{"token": node.token, "host": node.host, "nproc": node.nproc} for node in nodes]
        self._channel.send("round", attempt=attempt, mine=self._place.facts.token, nodes=told)

    @property
    def _place(self) -> MeetingPlace | None:
        return None if self._nodes is None else self._nodes.place

    def _end_if_stuck(self, membership: Membership) -> None:
        """End the run when the main thread does not take notice: it waits in a call of torch's for a link cut off."""
        membership.ended.wait()
        if not membership.seen.wait(_STUCK_S) and membership.ending is not None:
            self._channel.send("report", **membership.ending.as_report())

    def explain(self) -> None:
        """Find out whether an error is the end of another node.

        Raises:
            EndedElsewhereError: It is.
        """
        if self._membership is not None:
            self._membership.explain(_WORD_S)

    # The last word to the others.

    def succeeded(self) -> None:
        """This node's ranks have ended well, or have saved their state.

        The head stays until those of the others have too, and so does the node that holds the store of the ranks: they
        may still need it.

        Raises:
            EndedElsewhereError: They have not.
        """
        if self._place is None:
            return
        self._place.membership.finished()
        self._place.watch.tell("done", token=self._place.facts.token)
        self._place.watch.drain()
        if self._place.is_head:
            self._place.wait_for_others()
        elif self._nodes is not None and self._nodes.holds_store:
            self._place.membership.await_others()
        self._place.membership.check()

    def failed(self) -> None:
        """This node's ranks failed, and the run with them."""
        failure = None if self._nodes is None else self._nodes.failure
        if self._place is not None and failure is not None:
            token = self._place.facts.token
            report = None if self._nodes is None else self._nodes.report
            self._place.watch.tell("failed", token=token, text=failure[0], exit_code=failure[1], report=report)
            self._place.watch.tell("leave", how="has left")
            self._place.watch.drain()

    def left(self, why: int | Exception) -> None:
        """This node ends for a reason of its own: a signal, or an error. The head tells of any other, too.

        The nodes of the round know that one, but not those that wait for a place.
        """
        is_ours = not isinstance(why, EndedElsewhereError)
        if self._place is None or not (is_ours or self._place.is_head):
            return
        number = why if isinstance(why, int) else getattr(why, "signal", None)
        how = f"was ended by {signal.Signals(why).name}" if isinstance(why, int) else f"has ended: {why}"
        self._place.watch.tell("head_gone" if self._place.is_head else "leave", how=how, signal=number)
        self._place.watch.drain()
