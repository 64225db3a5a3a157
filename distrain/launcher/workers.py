"""The worker group as torch's elastic agent sees it, carried out by the fork server.

The agent starts, polls and closes its workers through a `PContext`. Torch's own contexts start a fresh
interpreter or a multiprocessing child for each rank; this one asks the fork server, which is the workers'
parent: it alone can tell their exit codes, and signal them without hitting a later owner of a pid.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import PContext, RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.utils.api import macros

from distrain.errors import EXIT_PREEMPTED, LaunchError, PreemptedError
from distrain.launcher.held_signals import HeldSignals
from distrain.launcher.protocol import AgentJob, Channel, WorkerJob
from distrain.launcher.rank_logs import RunDirLogs
from distrain.launcher.torch_releases import show_nothing
from distrain.plan.environment import consistent_with_scheduler
from distrain.rundir import RunDir
from distrain.supervision.heartbeat import ENV_HEARTBEAT

__all__ = ["NotRetriedError", "WarmWorkers", "duplicate_filters", "starter"]

_KILLED_DEADLINE_S = 10.0


class NotRetriedError(LaunchError):
    """The workers failed in a way that another attempt would not change."""


class WarmWorkers(PContext):
    """One round of workers, started by the fork server.

    Args:
        channel: The agent's channel to the fork server.
        job: The agent's job.
        logs: Where the output goes, and which attempt this is.
        name: The role's name.
        envs: Local rank to the variables torch sets for it.
    """

    def __init__(
        self, channel: Channel, job: AgentJob, *, logs: RunDirLogs, name: str, envs: dict[int, dict[str, str]]
    ) -> None:
        filters = {name: words for name, words in duplicate_filters(job).items() if words}
        super().__init__(name, job.target, dict.fromkeys(envs, ()), envs, logs, None, **filters)
        show_nothing(self)
        self._channel = channel
        self._job = job
        self._attempt = logs.attempt
        self._pids: dict[int, int] = {}
        self._ranks = {local_rank: int(env["RANK"]) for local_rank, env in envs.items()}
        self._exit_codes: dict[int, int] = {}
        self._failures: dict[int, ProcessFailure] = {}
        self._stopping_s: float | None = None
        self._verdict: dict[str, Any] | None = None

    def _start(self) -> None:
        self._held_signals = HeldSignals(self._job.signals)
        try:
            self._spawn()
        except BaseException:
            self._held_signals.release()
            raise

    def _spawn(self) -> None:
        job, rundir = self._job, RunDir(root=Path(self._job.run_dir))
        for local_rank, env in self.envs.items():
            if job.local_task is not None:  # the scheduler started a process for each rank: this one's place is there
                env.update(LOCAL_RANK=str(job.local_task[0]), LOCAL_WORLD_SIZE=str(job.local_task[1]))
            if job.board:
                env[ENV_HEARTBEAT] = f"{job.board}:{local_rank}"
            rank = int(env["RANK"])
            worker = WorkerJob(
                rank=rank,
                local_rank=local_rank,
                attempt=self._attempt,
                kind=job.kind,
                target=job.target,
                args=macros.substitute(job.args, str(local_rank)),
                command=macros.substitute(job.command, str(local_rank)),
                warm=job.warm,
                env={**os.environ, **env, **consistent_with_scheduler(os.environ, env)},
                stdout=self.stdouts[local_rank],
                stderr=self.stderrs[local_rank],
                error_file=str(rundir.exception(self._attempt, rank)),
                stacks_file=str(rundir.stacks(self._attempt, rank)),
                scratch=f"{job.scratch}/{self._attempt}-{rank}" if job.scratch else "",
                numa_binding=job.passed.get("numa_binding") or "",
            )
            self._channel.send("spawn", job=worker)
        while len(self._pids) < self.nprocs:
            self._listen(None)

    def _listen(self, timeout_s: float | None) -> None:
        """Take in what the fork server has to say, waiting at most `timeout_s` for it (None: as long as it takes)."""
        if not select.select([self._channel], [], [], timeout_s)[0]:
            return
        for message in self._channel.receive():
            if message["op"] == "spawned":
                if message["attempt"] == self._attempt:
                    self._pids[message["local_rank"]] = message["pid"]
                continue
            if message["op"] == "placed":
                self._placed(message)
                continue
            if message["op"] == "verdict":
                self._verdict = message
                continue
            if message["op"] == "hung":
                if message["attempt"] == self._attempt:
                    self._hung(message)
                continue
            if message["op"] == "tell_nodes":
                self._tell_nodes(message["attempt"], message["word"])
                continue
            assert message["op"] == "exited", message
            local_rank = self._local_rank(message["pid"])
            if local_rank is not None:
                self._exited(local_rank, message)
        if self._channel.closed:
            raise LaunchError("the fork server is gone, and the workers with it")

    def _local_rank(self, pid: int) -> int | None:
        """Return which worker of this round has a pid; None for one of the round before."""
        return next((rank for rank, known in self._pids.items() if known == pid), None)

    def _placed(self, message: Mapping[str, Any]) -> None:
        """Note which rank a worker is, where it is not the agent who says so."""
        local_rank = self._local_rank(message["pid"])
        if local_rank is not None:
            self._ranks[local_rank] = message["rank"]

    def _hung(self, _message: Mapping[str, Any]) -> None:
        """End workers that hang; they answer to nothing else."""
        self._kill(signal.SIGKILL)

    def _tell_nodes(self, attempt: int, word: Mapping[str, Any]) -> None:
        """Say something of the supervisor's to the other nodes; on one node there are none."""

    def _exited(self, local_rank: int, message: dict[str, Any]) -> None:
        code = self._exit_codes[local_rank] = message["exit_code"]
        if code != 0:
            self._failures[local_rank] = ProcessFailure(
                local_rank=local_rank, pid=message["pid"], exitcode=code, error_file=self.error_files[local_rank]
            )

    @property
    def is_preempted(self) -> bool:
        """Whether all workers were asked to end and have saved their state."""
        return len(self._exit_codes) == self.nprocs and set(self._exit_codes.values()) == {EXIT_PREEMPTED}

    def _are_stopping(self) -> bool:
        """Whether those workers that have ended had saved their state, so that the others will end by themselves.

        Raises:
            PreemptedError: All have ended so.
        """
        if set(self._exit_codes.values()) != {EXIT_PREEMPTED}:
            return False
        if self.is_preempted:
            raise PreemptedError("all ranks were asked to end and have saved their state")
        self._stopping_s = self._stopping_s or time.monotonic()
        return time.monotonic() - self._stopping_s < self._job.grace_s

    def _poll(self) -> RunProcsResult | None:
        self._listen(0)
        if self._are_stopping():
            return None
        if len(self._exit_codes) < self.nprocs and not self._failures:
            return None
        self.close()
        if self._failures:
            self._ask_whether_to_retry()
        result = RunProcsResult(failures=self._failures, stdouts=self.stdouts, stderrs=self.stderrs)
        if not result.is_failed():
            result.return_values = dict.fromkeys(range(self.nprocs))
        return result

    def _ask_whether_to_retry(self) -> None:
        """Have the supervisor, which knows how every rank ended, say whether another attempt makes sense.

        Raises:
            NotRetriedError: It does not.
        """
        self._channel.send("failed", attempt=self._attempt, left=self._left_elsewhere())
        while self._verdict is None:
            self._listen(None)
        self._told(self._verdict)
        if not self._verdict["retry"]:
            raise NotRetriedError("this failure would only repeat itself")

    def _left_elsewhere(self) -> dict[int, str]:
        """Return the ranks of other nodes that have ended well, with their hosts; on one node there are none."""
        return {}

    def _told(self, verdict: Mapping[str, Any]) -> None:
        """Take in what the supervisor makes of the failure; on one node nobody else needs it."""

    def pids(self) -> dict[int, int]:
        """Return the pid of each local rank. Torch asks as soon as it could end them."""
        self._held_signals.release()
        return dict(self._pids)

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:
        """End the workers that still run: `death_sig`, the job's grace period, SIGKILL.

        Torch passes its own 30 seconds in places the user's choice does not reach; the job's value holds.
        """
        del timeout
        for sig, wait_s in ((death_sig, float(self._job.grace_s)), (signal.SIGKILL, _KILLED_DEADLINE_S)):
            self._kill(sig)
            deadline = time.monotonic() + wait_s
            while len(self._exit_codes) < len(self._pids) and (left_s := deadline - time.monotonic()) > 0:
                self._listen(left_s)

    def _kill(self, sig: signal.Signals) -> None:
        for rank, pid in self._pids.items():
            if rank not in self._exit_codes:
                self._channel.send("kill", pid=pid, signal=int(sig))


def duplicate_filters(job: AgentJob) -> dict[str, list[str] | None]:
    """Return torch's settings for lines of the output to be copied.

    Args:
        job: The agent's job.
    """
    names = ("duplicate_stdout_filters", "duplicate_stderr_filters")
    return {name: _words(job.passed.get(name)) for name in names}


def _words(text: str | None) -> list[str] | None:
    """Read torchrun's list: separated by commas, a doubled comma stands for one."""
    return None if text is None else [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",") if word]


def starter(channel: Channel, job: AgentJob, logs: RunDirLogs) -> Callable[..., PContext]:
    """Return what takes the place of torch's `start_processes` in the agent.

    Args:
        channel: The agent's channel to the fork server.
        job: The agent's job.
        logs: Where the output goes.
    """

    def start_processes(*, name: str, envs: dict[int, dict[str, str]], **_: object) -> PContext:
        workers = WarmWorkers(channel, job, logs=logs, name=name, envs=envs)
        workers.start()
        return workers

    return start_processes
