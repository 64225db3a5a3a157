"""The place of fork server and agent on XLA devices, where torch_xla's own multiprocessing starts the workers.

    supervisor ──control──► host ──► runner ──torch_xla.launch──► one process for each device
                              ▲───────────── a socket ─────────────────────────┘

To the supervisor it speaks as the fork server does. It imports neither torch nor torch_xla; the runner does, and each
rank tells the host by itself when it begins and how it ends. With one device the runner is the rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from distrain.launcher.protocol import AgentJob, Channel, agent_job
from distrain.supervision.reaping import adopt_orphans, die_with_parent, kill_descendants, outlive_parent

__all__ = ["main"]

RUNNER = """\
import sys
if sys.path[:1] == [""]: del sys.path[0]
sys.path.insert(0, sys.argv[2])
from distrain.launcher.xla_runner import main
del sys.path[0]
main(sys.argv[1])
"""

OTHERS_GRACE_S = 5.0
"""How long the other ranks may go on after one has failed; they may be waiting for it for ever."""


class _Host:
    """One run: its attempts, one after the other.

    Args:
        control: The channel to the supervisor.
        job: What to launch.
    """

    def __init__(self, control: Channel, job: AgentJob) -> None:
        self._control = control
        self._job = job
        self._folder = Path(tempfile.mkdtemp(prefix="xla-", dir=job.scratch or None))
        self._stopped_by = 0
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for name in job.signals:
            signal.signal(signal.Signals[name], self._on_signal)

    def run(self) -> None:
        """Run attempts until one ends well, none is left, or a signal has come; report it."""
        try:
            for attempt in range(self._job.first_attempt, self._job.first_attempt + self._job.max_restarts + 1):
                codes = self._attempt(attempt)
                if self._stopped_by:
                    self._report(outcome="signalled", signal=self._stopped_by)
                    return
                if codes and not any(codes.values()):
                    self._report(outcome="succeeded")
                    return
                if not codes:
                    error = "torch_xla could not start the ranks; the launcher's log has its words"
                    self._report(outcome="broken", error=error)
                    return
            first = next(rank for rank, code in codes.items() if code)
            self._report(outcome="failed", first=first)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _attempt(self, attempt: int) -> dict[int, int]:
        """Run one round of workers; return the exit code of each rank that has begun."""
        address = str(self._folder / f"{attempt}.sock")
        with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
            listener.bind(address)
            listener.listen(256)
            request = self._folder / f"{attempt}.json"
            request.write_text(json.dumps({"job": asdict(self._job), "attempt": attempt, "address": address}))
            for readable in (listener, self._wake_read, self._control):
                selector.register(readable, selectors.EVENT_READ)
            words = [sys.executable, "-u", "-c", RUNNER, str(request), str(Path(__file__).parents[2])]
            with subprocess.Popen(words, env=self._job.env, start_new_session=True) as runner:
                return self._watch(attempt, runner, listener, selector)

    def _watch(
        self,
        attempt: int,
        runner: subprocess.Popen[bytes],
        listener: socket.socket,
        selector: selectors.BaseSelector,
    ) -> dict[int, int]:
        ranks: dict[Channel, dict[str, Any]] = {}
        codes: dict[int, int] = {}
        deadline: float | None = None
        asked = False
        while True:
            for key, _ in selector.select(0.1):
                if key.fileobj is listener:
                    channel = Channel(listener.accept()[0])
                    selector.register(channel, selectors.EVENT_READ)
                elif key.fileobj is self._control:
                    self._obey(runner.pid)
                elif key.fd == self._wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                else:
                    assert isinstance(key.fileobj, Channel)
                    self._hear(key.fileobj, attempt, ranks, codes)
                    if key.fileobj.closed:
                        selector.unregister(key.fileobj)
            ended = runner.poll()
            if ended is not None and not selector.select(0):
                self._settle(ranks, codes, ended)
                return codes
            if self._stopped_by and not asked:
                asked, deadline = True, time.monotonic() + self._job.grace_s
                _signal_group(runner.pid, self._stopped_by)
            elif any(codes.values()) and deadline is None:
                deadline = time.monotonic() + OTHERS_GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                _signal_group(runner.pid, signal.SIGKILL)

    def _obey(self, runner_pid: int) -> None:
        """End the attempt when the supervisor says that it hangs, everything when the supervisor is gone."""
        if any(message["op"] == "hung" for message in self._control.receive()):
            _signal_group(runner_pid, signal.SIGKILL)
        if self._control.closed:
            _end_everything()

    def _tell(self, op: str, **fields: Any) -> None:
        try:
            self._control.send(op, **fields)
        except OSError:  # the supervisor is gone
            _end_everything()

    def _hear(
        self, channel: Channel, attempt: int, ranks: dict[Channel, dict[str, Any]], codes: dict[int, int]
    ) -> None:
        for message in channel.receive():
            op = message.pop("op")
            if op == "ready":
                self._tell("ready", **message)
            elif op == "started":
                ranks[channel] = message
                self._tell("worker_started", attempt=attempt, **message)
            else:
                assert op == "ended", op
                self._ended(ranks[channel], codes, message["exit_code"])

    def _settle(self, ranks: dict[Channel, dict[str, Any]], codes: dict[int, int], runner_code: int) -> None:
        """Note the ends of ranks that could not say how they end: killed, or the runner itself."""
        for rank in ranks.values():
            if rank["rank"] not in codes:
                alone = len(ranks) == 1
                self._ended(rank, codes, runner_code if alone else -signal.SIGKILL)

    def _ended(self, rank: dict[str, Any], codes: dict[int, int], code: int) -> None:
        codes[rank["rank"]] = code
        self._tell(
            "worker_exited", rank=rank["rank"], pid=rank["pid"], exit_code=code, monotonic_ns=time.monotonic_ns()
        )

    def _report(self, **fields: Any) -> None:
        self._tell("agent_report", **fields)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._stopped_by = self._stopped_by or number


def main(control_fd: int, supervisor_pid: int, blocked: Sequence[str]) -> None:
    """Be the host of one run.

    Args:
        control_fd: The open socket to the supervisor.
        supervisor_pid: The process to die with.
        blocked: The names of the signals that this process was started with blocked, until it can bear them.
    """
    die_with_parent(supervisor_pid)
    outlive_parent(supervisor_pid)
    adopt_orphans()
    control = Channel(socket.socket(fileno=control_fd))
    while not (messages := control.receive()):
        if control.closed:
            return
    job = agent_job(messages[0])
    control.send("agent_started", pid=os.getpid())
    host = _Host(control, job)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.Signals[name] for name in blocked if name])
    host.run()
    while not control.closed:  # the supervisor ends this process; its own end would look like an accident
        control.receive()


def _end_everything() -> NoReturn:
    kill_descendants()
    os._exit(128 + signal.SIGKILL)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
