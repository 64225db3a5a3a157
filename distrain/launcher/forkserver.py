"""The fork server: import torch once, then fork the agent and every worker from it.

It is started as `python -u -c "…"`, so that a forked worker has the interpreter flags torchrun gives. A child
leaves `serve` by returning from it: it goes on to run its program and then ends as any interpreter does,
with the threads joined, the exit functions run and the modules torn down.

The rules a process must keep to be forked safely: one thread (checked), no CUDA context, nothing of the
multiprocessing module started. What is imported here is in every worker for free; what would be different in
each fresh process is made different again in `bootstrap.become`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from distrain.launcher.protocol import AgentJob, Channel, agent_job, worker_job
from distrain.supervision.dumps import STACKS_SIGNAL
from distrain.supervision.guard import guarded
from distrain.supervision.process_state import catches, num_threads
from distrain.supervision.reaping import (
    adopt_orphans,
    descendants,
    die_with_parent,
    kill_descendants,
    outlive_parent,
    reap,
)

__all__ = ["AGENT_PRELOAD", "WORKER_PRELOAD", "ForkServer", "main"]

AGENT_PRELOAD = ("torch", "torch.distributed")
"""What the agent needs before it is forked; it imports the rest of torch elastic by itself, meanwhile."""

WORKER_PRELOAD = (
    "torch.nn.parallel",
    "torch.optim",
    "torch.utils.data",
    "torch._dynamo",  # the first optimizer imports it: half a second in every worker otherwise
    "pdb",  # so that a worker need not look out for it (`amendments`)
)

FROM_AGENT = ("failed", "note", "report", "round", "word")
"""What the agent says to the supervisor, by way of this process."""

Next = Callable[[], None]
"""What a forked child does once it has left the server."""


class ForkServer:
    """The server's state: its channels, and which child belongs to whom.

    Args:
        control: The channel to the supervisor.
        blocked: The signals that it was started with blocked and keeps so: a scheduler sends them to every process of
            a job, and the supervisor alone says what follows. The children hear them again, the agent once it can
            bear them.
    """

    def __init__(self, control: Channel, blocked: Sequence[str]) -> None:
        self._control = control
        self._blocked = [signal.Signals[name] for name in blocked]
        self._job: AgentJob | None = None
        self._agent: Channel | None = None
        self._agent_pid = 0
        self._workers: dict[int, int] = {}
        self._asked: set[int] = set()
        self._attempt: int | None = None
        self._single_threaded = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._selector.register(control, selectors.EVENT_READ)

    def preload(self, modules: tuple[str, ...]) -> None:
        """Import `modules`; a failure is told to the supervisor, which ends the run when torch itself is missing."""
        for name in modules:
            try:
                importlib.import_module(name)
            except BaseException as error:  # noqa: BLE001, PERF203 - an import may raise anything, and is slow anyway
                self._tell_supervisor(
                    "preload_failed",
                    module=name,
                    missing=getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None,
                    error=f"{type(error).__name__}: {error}",
                    traceback=traceback.format_exc(),
                )
                if name in AGENT_PRELOAD:
                    raise SystemExit(1) from None

    def serve(self, parent_pid: int) -> Next:
        """Answer requests until the supervisor goes away; return in each forked child, with its work.

        What a killed supervisor leaves behind, the workers and what they have started, ends here or in the guard. The
        run goes on without a guard.

        Args:
            parent_pid: This process's parent until now.
        """
        outlive_parent(parent_pid)
        adopt_orphans()
        gc.collect()
        gc.freeze()  # the workers' garbage collector leaves it alone, so the memory stays shared
        gc.enable()
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._wake_read:
                    self._collect()
                    continue
                if key.data is not None:
                    key.data()
                    continue
                channel = self._control if key.fd == self._control.fileno() else self._agent
                assert channel is not None
                for message in channel.receive():
                    child = self._answer(message)
                    if child is not None:
                        return child
                if channel.closed:
                    if channel is self._control:
                        self._end_with_supervisor()
                    self._selector.unregister(channel)
                    channel.close()

    def await_job(self) -> AgentJob:
        """Return the supervisor's agent job, once it has come."""
        while self._job is None:
            for message in self._control.receive():
                self._job = agent_job(message)
            if self._control.closed:
                raise SystemExit(0)
        return self._job

    def start_agent(self) -> Next | None:
        """Wait for the supervisor's agent job and fork the agent; return its work in the child."""
        job = self.await_job()
        ours, theirs = socket.socketpair()
        server_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._close()
            die_with_parent(server_pid)

            def run_agent() -> None:
                gc.enable()
                from distrain.launcher import agent

                agent.main(job, Channel(theirs), self._blocked)

            return run_agent
        theirs.close()
        if job.door is not None:
            os.close(job.door)
        self._agent_pid = pid
        self._agent = Channel(ours)
        self._selector.register(self._agent, selectors.EVENT_READ)
        self._tell_supervisor("agent_started", pid=pid)
        return None

    def ready(self) -> None:
        """Tell the supervisor what was imported and whether a child may go on without `exec`."""
        import torch

        threads = num_threads()
        self._single_threaded = threads == 1
        self._tell_supervisor("ready", pid=os.getpid(), threads=threads, torch=torch.__version__)

    def _answer(self, message: dict[str, Any]) -> Next | None:
        op = message["op"]
        if op == "spawn":
            return self._spawn(message)
        if op == "kill":
            self._kill(message["pid"], message["signal"])
        elif op in FROM_AGENT:
            self._tell_supervisor(f"agent_{op}", **{key: value for key, value in message.items() if key != "op"})
        elif op in ("hung", "tell_nodes", "verdict"):
            self._tell_agent(**message)
        else:
            raise AssertionError(f"unknown request {op!r}")
        return None

    def _spawn(self, message: dict[str, Any]) -> Next | None:
        job = worker_job(message)
        job = replace(job, warm=job.warm and self._single_threaded)
        if self._attempt not in (None, job.attempt):
            self._end_what_is_left()
        self._attempt = job.attempt
        server_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._close()
            die_with_parent(server_pid)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._blocked)

            def run_worker() -> None:
                from distrain.launcher import bootstrap

                bootstrap.become(job)
                bootstrap.run(job)

            return run_worker
        self._workers[pid] = job.rank
        started = {"rank": job.rank, "local_rank": job.local_rank, "attempt": job.attempt, "pid": pid}
        self._tell_agent("spawned", **started)
        self._tell_supervisor(
            "worker_started", **started, stdout=job.stdout, stderr=job.stderr, error_file=job.error_file
        )
        return None

    def _end_what_is_left(self) -> None:
        """End what the workers of a round have started, before those of the next one want its ports and memory.

        No signal to the session of a rank reaches what it has put into another one, or what outlives it.
        """
        agents = frozenset({self._agent_pid, *descendants(self._agent_pid)})
        kill_descendants(spare=agents, tell=self._ended)

    def _kill(self, pid: int, sig: int) -> None:
        """Signal a worker and its session. Only its parent can do so without hitting a later owner of the pid."""
        if pid not in self._workers:
            return
        self._asked.add(pid)
        try:
            os.killpg(pid, sig)
        except ProcessLookupError:
            os.kill(pid, sig)

    def _collect(self) -> None:
        while True:
            try:
                if not os.read(self._wake_read, 4096):
                    break
            except BlockingIOError:
                break
        for pid, code in reap():
            self._ended(pid, code)

    def _ended(self, pid: int, exit_code: int) -> None:
        ended = {"pid": pid, "exit_code": exit_code, "monotonic_ns": time.monotonic_ns()}
        if pid == self._agent_pid:
            self._hear_agent_out()
            self._tell_supervisor("agent_exited", **ended)
        elif pid in self._workers:
            self._worker_ended(**ended)
        else:
            self._other_ended(pid)

    def _worker_ended(self, *, pid: int, exit_code: int, monotonic_ns: int) -> None:
        rank = self._workers.pop(pid)
        ended = {"rank": rank, "pid": pid, "exit_code": exit_code, "monotonic_ns": monotonic_ns}
        ended["was_asked"] = pid in self._asked
        self._asked.discard(pid)
        if exit_code != 0:
            self._ask_for_stacks()  # at once: the others are about to be ended
        self._tell_supervisor("worker_exited", **ended)
        self._tell_agent("exited", **ended)

    def _other_ended(self, pid: int) -> None:
        """Take note of the end of a process that is neither agent nor worker; here it is an orphan's."""

    def _tell_supervisor(self, op: str, **fields: Any) -> None:
        try:
            self._control.send(op, **fields)
        except OSError:
            self._end_with_supervisor()

    def _end_with_supervisor(self) -> NoReturn:
        """End what a supervisor that is gone leaves behind; a read shows it, or a write, whichever comes first."""
        kill_descendants()
        os._exit(128 + signal.SIGKILL)

    def _tell_agent(self, op: str, **fields: Any) -> None:
        """Tell the agent, if it lives; what it said before its end is still to be read."""
        if self._agent is not None and not self._agent.closed:
            with contextlib.suppress(OSError):
                self._agent.send(op, **fields)

    def _ask_for_stacks(self) -> None:
        """Have every worker that can write down where it stands; one that cannot would die of the signal."""
        for pid in self._workers:
            if catches(pid, STACKS_SIGNAL):
                os.kill(pid, STACKS_SIGNAL)

    def _hear_agent_out(self) -> None:
        """Pass on what the agent has said before it ended."""
        while self._agent is not None and not self._agent.closed and select.select([self._agent], [], [], 0)[0]:
            for message in self._agent.receive():
                if message["op"] in FROM_AGENT:
                    self._answer(message)

    def _close(self) -> None:
        """In a child: let go of everything that is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._selector.close()
        self._control.close()
        if self._agent is not None:
            self._agent.close()


def main(control_fd: int, supervisor_pid: int, blocked: Sequence[str]) -> None:
    """Be the fork server; in a forked child, be that child.

    Args:
        control_fd: The open socket to the supervisor.
        supervisor_pid: The process that has started this one, and whose end is this one's.
        blocked: The names of the signals that this process was started with blocked.
    """
    parent_pid = guarded(supervisor_pid)
    gc.disable()  # what is imported stays, and looking for garbage in it costs a tenth of the time
    _prepare_libraries()
    server = ForkServer(Channel(socket.socket(fileno=control_fd)), [name for name in blocked if name])
    server.preload(AGENT_PRELOAD)
    child = server.start_agent()
    if child is None:
        server.preload(WORKER_PRELOAD)
        server.ready()
        child = server.serve(parent_pid)
    del server
    child()


def _prepare_libraries() -> None:
    """Do here what would leave its mark on a worker's environment, which is yet to be put in place.

    setproctitle looks for the command line's memory beside the environment, and renames the thread on the way;
    threadpoolctl sets a variable.
    """
    import setproctitle
    import threadpoolctl  # noqa: F401

    name = setproctitle.getthreadtitle()
    setproctitle.getproctitle()
    setproctitle.setthreadtitle(name)
