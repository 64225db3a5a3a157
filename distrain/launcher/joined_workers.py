"""The worker group of one node among several: its failures may be the fault of another node."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrain.launcher.nodes import NodesRendezvous
from distrain.launcher.protocol import AgentJob, Channel
from distrain.launcher.rank_logs import RunDirLogs
from distrain.launcher.workers import WarmWorkers
from distrain.supervision.failure import describe

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.api import PContext, RunProcsResult

__all__ = ["JoinedWorkers", "joined_starter"]

_HEARSAY_S = 0.5
"""How long to listen for word of an earlier failure elsewhere."""

_TAKEN_APART_NS = 1_000_000_000


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
        self._ended_ns: dict[int, int] = {}
        self._is_judged = False
        self._is_collateral = False

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
        return None if self._is_collateral else super()._poll()

    def _judge(self) -> bool:
        """Tell the others of our failure; return whether theirs came first."""
        records = {rank: self._exception(rank) for rank in self._failures}
        since_ns = {
            rank: self._died_ns(rank) if record is None else record["monotonic_ns"] for rank, record in records.items()
        }
        root = min(since_ns, key=since_ns.__getitem__)
        code = self._failures[root].exitcode
        kind, message = describe(code, records[root])
        age_s = (time.monotonic_ns() - since_ns[root]) / 1e9
        text = f"rank {self.envs[root]['RANK']}: {kind}: {message}"
        return self._nodes.failing(text, code if code > 0 else 128 - code, age_s, self._end_and_listen)

    def _died_ns(self, local_rank: int) -> int:
        """Return when a rank that raised nothing died, at the earliest.

        Its sockets close while the kernel still takes it apart, so that ranks elsewhere raise before its exit is seen
        here. Aborts are left as they are: libraries end so when they were cut off.
        """
        aborted = self._failures[local_rank].exitcode == -signal.SIGABRT
        return self._ended_ns[local_rank] - (0 if aborted else _TAKEN_APART_NS)

    def _end_and_listen(self) -> None:
        self.close()
        time.sleep(_HEARSAY_S)

    def _exception(self, local_rank: int) -> dict[str, Any] | None:
        try:
            path = Path(self.error_files[local_rank]).with_name("exception.json")
            record: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        return record


def joined_starter(
    channel: Channel, job: AgentJob, logs: RunDirLogs, nodes: Callable[[], NodesRendezvous]
) -> Callable[..., PContext]:
    """Return what takes the place of torch's `start_processes` in the agent.

    Args:
        channel: The agent's channel to the fork server.
        job: The agent's job.
        logs: Where the output goes.
        nodes: Returns the rendezvous, which torch makes.
    """

    def start_processes(*, name: str, envs: dict[int, dict[str, str]], **_: object) -> PContext:
        workers = JoinedWorkers(channel, job, nodes=nodes(), logs=logs, name=name, envs=envs)
        workers.start()
        return workers

    return start_processes
