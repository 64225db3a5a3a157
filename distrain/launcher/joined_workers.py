"""The worker group of one node among several: its failures may be the fault of another node."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrain.launcher.nodes import NodesRendezvous
from distrain.launcher.protocol import AgentJob, Channel
from distrain.launcher.rank_logs import RunDirLogs
from distrain.launcher.workers import WarmWorkers
from distrain.rundir import RunDir
from distrain.supervision.classify import classify
from distrain.supervision.failure import Standing, describe, from_json
from distrain.supervision.logs import tail_lines

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.api import RunProcsResult

__all__ = ["JoinedWorkers", "joined_starter"]

_HEARSAY_S = 0.5
"""How long to listen for word of an earlier failure elsewhere."""

_VICTIMS_HEARSAY_S = 10.0
"""The same for a failure that must have its cause elsewhere, such as a lost connection, unless all have spoken: a rank
that failed over there may take its time to end."""

_LISTEN_S = 0.05
_TAIL_LINES = 50

_TAKEN_APART_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    standing: Standing
    since_ns: int
    record: dict[str, Any] | None


class JoinedWorkers(WarmWorkers):
    """One round of this node's workers.

    When ranks of one node fail, those of the others fall with them, cut off. Only the node whose rank failed first
    counts a restart or ends the run; on the others it is a change of the group, for which torch starts anew.

    Args:
        channel: As in `WarmWorkers`.
        job: As in `WarmWorkers`.
        nodes: The rendezvous.
        logs: As in `WarmWorkers`.
        name: As in `WarmWorkers`.
        envs: As in `WarmWorkers`.
    """

    def __init__(
        self,
        channel: Channel,
        job: AgentJob,
        *,
        nodes: NodesRendezvous,
        logs: RunDirLogs,
        name: str,
        envs: dict[int, dict[str, str]],
    ) -> None:
        for env in envs.values():  # torch counts the restarts of this node only
            env["TORCHELASTIC_RESTART_COUNT"] = str(nodes.restarts)
        super().__init__(channel, job, logs=logs, name=name, envs=envs)
        self._nodes = nodes
        self._rundir = RunDir(root=Path(job.run_dir))
        self._num_placed = 0
        self._ended_ns: dict[int, int] = {}
        self._is_judged = False
        self._is_collateral = False
        self._hangs_elsewhere = False

    def _hung(self, message: Mapping[str, Any]) -> None:
        self._hangs_elsewhere = message["elsewhere"]
        super()._hung(message)

    def _placed(self, message: Mapping[str, Any]) -> None:
        super()._placed(message)
        self._num_placed += 1
        if self._num_placed == self.nprocs:
            self._nodes.placed(sorted(self._ranks.values()))

    def _tell_nodes(self, attempt: int, word: Mapping[str, Any]) -> None:
        self._nodes.tell(attempt, word)

    def _exited(self, local_rank: int, message: dict[str, Any]) -> None:
        super()._exited(local_rank, message)
        self._ended_ns[local_rank] = message["monotonic_ns"]

    def _poll(self) -> RunProcsResult | None:
        self._listen(0)
        if self._are_stopping():
            return None
        if self._failures and not self._is_judged:
            self._is_judged = True
            self._is_collateral = self._judge()
        result = None if self._is_collateral else super()._poll()
        if result is not None and not result.is_failed():
            self._nodes.left()  # torch waits for the other agents before it says so
        return result

    def _left_elsewhere(self) -> dict[int, str]:
        return self._nodes.left_elsewhere()

    def _judge(self) -> bool:
        """Tell the others of our failure; return whether theirs brought ours down."""
        codes = {rank: failure.exitcode for rank, failure in self._failures.items()}
        # Others may have failed as well and not ended yet: the one that began it, and takes itself apart.
        codes |= {rank: 1 for rank in range(self.nprocs) if rank not in codes and self._exception(rank)}
        failures = {rank: self._failure(rank, code) for rank, code in codes.items()}
        root = min(failures, key=lambda rank: (-failures[rank].standing, failures[rank].since_ns))
        failure, code = failures[root], codes[root]
        kind, message = describe(code, failure.record)
        age_s = (time.monotonic_ns() - failure.since_ns) / 1e9
        text = f"rank {self._ranks[root]}: {kind}: {message}"
        exit_code = code if code > 0 else 128 - code
        patience_s = _HEARSAY_S if failure.standing == Standing.CAUSE else _VICTIMS_HEARSAY_S

        def end_and_listen(heard: Callable[[], bool]) -> None:
            self.close()
            deadline = time.monotonic() + patience_s
            while time.monotonic() < deadline and not heard():
                self._listen(_LISTEN_S)

        return self._nodes.failing(
            text, exit_code, standing=failure.standing, age_s=age_s, end_and_listen=end_and_listen
        )

    def _failure(self, local_rank: int, code: int) -> _Failed:
        """Return when a rank failed, and whether it may be the cause.

        The sockets of a rank that died without raising close while the kernel still takes it apart, so that ranks
        elsewhere raise before its exit is seen here: its death counts from the earliest moment possible. Aborts are
        left as they are: libraries end so when they were cut off.
        """
        record = self._exception(local_rank)
        was_asked = self._hangs_elsewhere
        tail = tail_lines(self._stderr(local_rank), _TAIL_LINES)
        standing = classify(code, record, tail, was_asked=was_asked).standing
        if record is not None:
            return _Failed(standing=standing, since_ns=record["monotonic_ns"], record=record)
        aborted = code == -signal.SIGABRT
        died_ns = self._ended_ns[local_rank] - (0 if aborted else _TAKEN_APART_NS)
        return _Failed(standing=standing, since_ns=died_ns, record=None)

    def _told(self, verdict: Mapping[str, Any]) -> None:
        self._nodes.reported(from_json(verdict["report"]))

    def _stderr(self, local_rank: int) -> Path:
        return self._rundir.stderr(self._attempt, self._ranks[local_rank])

    def _exception(self, local_rank: int) -> dict[str, Any] | None:
        try:
            path = self._rundir.exception(self._attempt, self._ranks[local_rank])
            record: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        return record


def joined_starter(
    channel: Channel, job: AgentJob, logs: RunDirLogs, nodes: Callable[[], NodesRendezvous]
) -> Callable[..., JoinedWorkers]:
    """Return what takes the place of torch's `start_processes` in the agent.

    Args:
        channel: The agent's channel to the fork server.
        job: The agent's job.
        logs: Where the output goes.
        nodes: Returns the rendezvous, which torch makes.
    """

    def start_processes(*, name: str, envs: dict[int, dict[str, str]], **_: object) -> JoinedWorkers:
        workers = JoinedWorkers(channel, job, nodes=nodes(), logs=logs, name=name, envs=envs)
        workers.start()
        return workers

    return start_processes
