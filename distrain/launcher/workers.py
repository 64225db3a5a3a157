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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, PContext, RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from distrain.errors import LaunchError
from distrain.launcher.protocol import AgentJob, Channel, WorkerJob
from distrain.rundir import RunDir

__all__ = ["RunDirLogs", "WarmWorkers", "starter"]

_KILLED_DEADLINE_S = 10.0


class RunDirLogs(LogsSpecs):
    """Send each rank's output to the run directory, or to the terminal devices the supervisor opened for it.

    Torch counts restarts; an attempt is every round of workers, also one after a change of membership, which
    torch does not count and for which it would overwrite the logs.

    Args:
        job: The agent's job.
    """

    def __init__(self, job: AgentJob) -> None:
        super().__init__(log_dir=job.run_dir)
        self._rundir = RunDir(root=Path(job.run_dir))
        self._terminals = job.terminals
        self.attempt = job.first_attempt - 1

    @property
    def root_log_dir(self) -> str:
        return str(self._root_log_dir)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Make the folders of the next attempt and tell where each local rank's output goes."""
        self.attempt += 1
        stdouts, stderrs, error_files = {}, {}, {}
        for local_rank, env in envs.items():
            rank = int(env["RANK"])
            folder = self._rundir.rank_dir(self.attempt, rank)
            folder.mkdir(parents=True, exist_ok=True)
            streams = self._terminals.get(str(rank))
            stdouts[local_rank] = streams[0] if streams else str(self._rundir.stdout(self.attempt, rank))
            stderrs[local_rank] = streams[1] if streams else str(self._rundir.stderr(self.attempt, rank))
            error_files[local_rank] = env["TORCHELASTIC_ERROR_FILE"] = str(folder / "error.json")
        return LogsDest(stdouts, stderrs, {}, {}, error_files)


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
        super().__init__(name, job.target, dict.fromkeys(envs, ()), envs, logs)
        self._channel = channel
        self._job = job
        self._attempt = logs.attempt
        self._pids: dict[int, int] = {}
        self._exit_codes: dict[int, int] = {}
        self._failures: dict[int, ProcessFailure] = {}

    def _start(self) -> None:
        job = self._job
        for local_rank, env in self.envs.items():
            worker = WorkerJob(
                rank=int(env["RANK"]),
                local_rank=local_rank,
                attempt=self._attempt,
                kind=job.kind,
                target=job.target,
                args=job.args,
                command=job.command,
                warm=job.warm,
                env={**os.environ, **env},
                stdout=self.stdouts[local_rank],
                stderr=self.stderrs[local_rank],
                error_file=str(Path(self.error_files[local_rank]).with_name("exception.json")),
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
            assert message["op"] == "exited", message
            local_rank = next((rank for rank, pid in self._pids.items() if pid == message["pid"]), None)
            if local_rank is not None:
                self._exited(local_rank, message)
        if self._channel.closed:
            raise LaunchError("the fork server is gone, and the workers with it")

    def _exited(self, local_rank: int, message: dict[str, Any]) -> None:
        code = self._exit_codes[local_rank] = message["exit_code"]
        if code != 0:
            self._failures[local_rank] = ProcessFailure(
                local_rank=local_rank, pid=message["pid"], exitcode=code, error_file=self.error_files[local_rank]
            )

    def _poll(self) -> RunProcsResult | None:
        self._listen(0)
        if len(self._exit_codes) < self.nprocs and not self._failures:
            return None
        self.close()
        result = RunProcsResult(failures=self._failures, stdouts=self.stdouts, stderrs=self.stderrs)
        if not result.is_failed():
            result.return_values = dict.fromkeys(range(self.nprocs))
        return result

    def pids(self) -> dict[int, int]:
        """Return the pid of each local rank."""
        return dict(self._pids)

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:
        """End the workers that still run: `death_sig`, the job's grace period, SIGKILL.

        Torch passes its own 30 seconds in places the user's choice does not reach; the job's value holds.
        """
        del timeout
        for sig, wait_s in ((death_sig, float(self._job.grace_s)), (signal.SIGKILL, _KILLED_DEADLINE_S)):
            running = [pid for rank, pid in self._pids.items() if rank not in self._exit_codes]
            for pid in running:
                self._channel.send("kill", pid=pid, signal=int(sig))
            deadline = time.monotonic() + wait_s
            while len(self._exit_codes) < len(self._pids) and (left_s := deadline - time.monotonic()) > 0:
                self._listen(left_s)


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
