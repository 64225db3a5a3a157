"""The fork server's place on XLA devices, where torch_xla's own multiprocessing starts the workers.

    supervisor ──control──► host ──► agent             the agent asks for workers, as of a fork server
                              ▲
                              └──── runner ──torch_xla.launch──► one process for each device

Towards supervisor and agent it is a fork server. What the agent asks for is handed to the runner, all ranks of a round
at once; torch_xla decides which process is which rank, and each of them tells by itself, over a socket, which one it is
and how it ends. With one device on one host the runner is the rank.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distrain.launcher.forkserver import AGENT_PRELOAD, ForkServer, Next
from distrain.launcher.protocol import Channel, WorkerJob, worker_job
from distrain.rundir import RunDir
from distrain.supervision.guard import guarded

__all__ = ["main"]

RUNNER = """\
import sys
if sys.path[:1] == [""]: del sys.path[0]
sys.path.insert(0, sys.argv[2])
from distrain.launcher.xla_runner import main
del sys.path[0]
main(sys.argv[1], int(sys.argv[3]))
"""

_CREDENTIALS = struct.Struct("3i")


@dataclass(slots=True, kw_only=True)
class _Rank:
    """The process of one rank.

    Args:
        channel: The connection to it.
        job: What the agent has asked for, as if it knew which rank this will be.
        rank: Which one it is, once torch_xla has said so.
        exit_code: What its program has ended with, while that is not told yet.
    """

    channel: Channel
    job: WorkerJob
    rank: int | None = None
    exit_code: int | None = None


class XlaHost(ForkServer):
    """The server's state beside that of a fork server.

    Args:
        control: As in `ForkServer`.
        blocked: As in `ForkServer`.
    """

    def __init__(self, control: Channel, blocked: Sequence[str]) -> None:
        super().__init__(control, blocked)
        self._address = f"distrain-xla-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{self._address}")
        self._listener.listen(256)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._channels: set[Channel] = set()
        self._runner: subprocess.Popen[bytes] | None = None
        self._runners_channel: Channel | None = None
        self._wanted: list[WorkerJob] = []
        self._jobs: list[WorkerJob] = []
        self._ranks: dict[int, _Rank] = {}

    def start_runner(self) -> None:
        """Start the next round's runner, which imports torch_xla while the agent still finds the other nodes."""
        package = str(Path(__file__).parents[2])
        words = [sys.executable, "-u", "-c", RUNNER, self._address, package, str(os.getpid())]
        self._runner = subprocess.Popen(words, env=self.await_job().env, start_new_session=True)

    # What the agent asks for.

    def _spawn(self, message: dict[str, Any]) -> Next | None:
        self._wanted.append(worker_job(message))
        self._begin_round()
        return None

    def _begin_round(self) -> None:
        """Give a runner what is wanted, all ranks of a round at once.

        The runner of the round before has to end first, with all its ranks and what these have started: they hold the
        devices, and a child that was forked holds its rank's connection as well.
        """
        job = self.await_job()
        if len(self._wanted) < job.nproc:
            return
        if self._jobs:
            if self._runner is not None:
                _kill_group(self._runner.pid)
            for pid in self._ranks:
                self._signal(pid, signal.SIGKILL)
            if self._runner is not None:
                return
            self._end_what_is_left()
            if self._channels:
                return
            self._jobs, self._ranks = [], {}
            self.start_runner()
        if self._runners_channel is None:
            return
        self._jobs, self._wanted = self._wanted, []
        several = job.meeting is not None and job.meeting["max_nodes"] > 1
        self._runners_channel.send(
            "launch",
            jobs=[asdict(each) for each in self._jobs],
            is_alone=job.nproc == 1 and not several,
            signals=job.signals,
            run_dir=job.run_dir,
            terminals=job.terminals,
            board=job.board,
        )

    def _kill(self, pid: int, sig: int) -> None:
        if pid in self._workers:
            self._asked.add(pid)
            self._signal(pid, sig)

    def _signal(self, pid: int, sig: int) -> None:
        """Signal a rank and its session. It is no child of ours: while its socket is open, the pid is still its own."""
        if self._ranks[pid].channel.is_open():
            _kill_group(pid, sig)

    # What runner and ranks say.

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != os.getuid():  # an address without a file has no permissions
            sock.close()
            return
        channel = Channel(sock)
        self._channels.add(channel)
        self._selector.register(channel, selectors.EVENT_READ, lambda: self._hear(channel))

    def _hear(self, channel: Channel) -> None:
        if channel not in self._channels:  # it was heard out a moment ago
            return
        for message in channel.receive():
            op = message.pop("op")
            if op == "runner":
                self._runners_channel = channel
                self._begin_round()
            elif op == "begun":
                self._begun(channel, message["pid"])
            elif op == "placed":
                self._placed(**message)
            else:
                assert op in ("ended", "died"), op
                self._rank_ended(**message, has_died=op == "died")
        if channel.closed:
            self._selector.unregister(channel)
            self._channels.remove(channel)
            channel.close()
            if channel is self._runners_channel:
                self._runners_channel = None
            self._begin_round()

    def _begun(self, channel: Channel, pid: int) -> None:
        """Note the process of a rank. Which rank is known when the processes of all hosts have found each other."""
        if len(self._ranks) == len(self._jobs):
            self._give_up(len(self._ranks) + 1)
            return
        job = self._jobs[len(self._ranks)]
        self._ranks[pid] = _Rank(channel=channel, job=job)
        self._workers[pid] = job.rank
        self._tell_agent("spawned", rank=job.rank, local_rank=job.local_rank, attempt=job.attempt, pid=pid)

    def _placed(self, pid: int, rank: int, local_rank: int, **files: str) -> None:
        self._ranks[pid].rank = self._workers[pid] = rank
        attempt = self._ranks[pid].job.attempt
        self._tell_agent("placed", pid=pid, rank=rank, attempt=attempt)
        self._tell_supervisor("worker_started", rank=rank, local_rank=local_rank, attempt=attempt, pid=pid, **files)
        if all(each.rank is not None for each in self._ranks.values()):
            self._remove_unused_folders()

    def _remove_unused_folders(self) -> None:
        """Remove the folders that the agent has made for the ranks that it expected here."""
        rundir = RunDir(root=Path(self.await_job().run_dir))
        here = {each.rank for each in self._ranks.values()}
        for job in (each for each in self._jobs if each.rank not in here):
            with contextlib.suppress(OSError):
                rundir.rank_dir(job.attempt, job.rank).rmdir()

    # How they end.

    def _rank_ended(self, pid: int, exit_code: int, *, has_died: bool) -> None:
        """Note how a rank has ended.

        One whose program has ended in order stays as a process until those of the others have, and runs its exit
        functions then. What is told of the last one ends all processes, so it is told when the runner has ended.
        """
        if pid not in self._workers:
            return
        rank = self._ranks[pid]
        if self._runner is not None:
            if not has_died and len(self._workers) == 1:
                rank.exit_code = exit_code
            if rank.exit_code is not None:
                return
        if has_died and exit_code != 0:  # the pool of processes in torch_xla's launch ends the others then
            self._asked.update(other for other in self._workers if other != pid)
        code = exit_code if rank.exit_code is None else rank.exit_code
        self._worker_ended(pid=pid, exit_code=code, monotonic_ns=time.monotonic_ns())

    def _place_by_guess(self, pid: int) -> None:
        """Give a rank that ended before it knew its number one that none has here: it has to be called something."""
        job = self._ranks[pid].job
        taken = {each.rank for each in self._ranks.values()}
        rank = next(each for each in (job.rank, *(other.rank for other in self._jobs)) if each not in taken)
        rundir = RunDir(root=Path(self.await_job().run_dir))
        files = {"stdout": rundir.stdout(job.attempt, rank), "stderr": rundir.stderr(job.attempt, rank)}
        files["error_file"] = rundir.exception(job.attempt, rank)
        self._placed(pid, rank, job.local_rank, **{name: str(path) for name, path in files.items()})

    def _worker_ended(self, *, pid: int, exit_code: int, monotonic_ns: int) -> None:
        is_runner = self._runner is not None and pid == self._runner.pid
        if is_runner:
            self._hear_out()
        if self._ranks[pid].rank is None:
            self._place_by_guess(pid)
        super()._worker_ended(pid=pid, exit_code=exit_code, monotonic_ns=monotonic_ns)
        if is_runner:
            self._other_ended(pid)

    def _other_ended(self, pid: int) -> None:
        if self._runner is None or pid != self._runner.pid:
            return
        self._hear_out()
        self._runner = None
        for left in list(self._workers):
            self._rank_ended(left, -signal.SIGKILL, has_died=True)
        if not self._ranks:
            self._give_up(0)
        for number in range(len(self._ranks), len(self._jobs)):  # the first one's end came before these had begun
            nobody = Channel(socket.socket(socket.AF_UNIX))
            nobody.close()
            self._begun(nobody, pid=-1 - number)
            self._asked.add(-1 - number)
            self._rank_ended(-1 - number, -signal.SIGTERM, has_died=True)
        self._begin_round()

    def _hear_out(self) -> None:
        """Take in what was said before the runner's end."""
        while readable := select.select(list(self._channels), [], [], 0)[0]:
            for channel in readable:
                self._hear(channel)

    def _give_up(self, found: int) -> None:
        """Tell the supervisor that torch_xla does not start the ranks that were asked for."""
        error = "torch_xla could not start the ranks"
        if found:
            error = f"torch_xla starts {found} processes here and {self.await_job().nproc} were asked for"
        error += "; the launcher's log has its words"
        self._tell_supervisor("agent_report", outcome="broken", error=error)

    def _close(self) -> None:
        super()._close()
        self._listener.close()


def main(control_fd: int, supervisor_pid: int, blocked: Sequence[str]) -> None:
    """Be the host of one run; in the forked child, be its agent.

    Args:
        control_fd: The open socket to the supervisor.
        supervisor_pid: The process that has started this one, and whose end is this one's.
        blocked: The names of the signals that this process was started with blocked.
    """
    parent_pid = guarded(supervisor_pid)
    host = XlaHost(Channel(socket.socket(fileno=control_fd)), [name for name in blocked if name])
    host.start_runner()
    host.preload(AGENT_PRELOAD)
    child = host.start_agent()
    if child is None:
        host.ready()
        child = host.serve(parent_pid)
    del host
    child()


def _kill_group(pid: int, sig: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, sig)
