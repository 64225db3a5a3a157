"""The supervisor: the process the user started, above the fork server, the agent and the workers.

It never imports torch. It owns the run directory, the terminal and the signals; it learns from the fork
server what every process does, tells the user how the run ended, and leaves no process behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import distrain
from distrain.launcher.outcome import Outcome, exit_code_of
from distrain.launcher.protocol import AgentJob, Channel
from distrain.plan.options import ENV_DEVICE, Plan, interpreter_versions
from distrain.rundir import DEFAULT_PARENT, ENV_RUN_DIR, RunDir, new_run_name, write_atomic
from distrain.supervision import failure as report
from distrain.supervision.logs import Console, PseudoTerminal, tail_lines
from distrain.supervision.reaping import adopt_orphans, descendants, kill_descendants
from distrain.supervision.record import RunRecord

__all__ = ["run"]

FORK_SERVER = """\
import sys
if sys.path[:1] == [""]: del sys.path[0]
sys.path.insert(0, sys.argv[3])
from distrain.launcher.forkserver import main
del sys.path[0]
main(int(sys.argv[1]), int(sys.argv[2]))
"""
"""The fork server's program. `python -c` puts the current folder first on the path, which a rank's program may
not see; what remains afterwards is the path of a plain interpreter."""

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_SHOW_EVERY_S = 0.05
_GRACE_S = 30
_LAUNCHER_LOG_LINES = 15


def run(plan: Plan, *, environ: Mapping[str, str]) -> int:
    """Carry out a plan in this process, which is the supervisor from then on.

    Args:
        plan: What to launch.
        environ: The environment to launch it with.

    Returns:
        The exit code: 0 all workers ended well · N the root-cause worker's own · 128+S it died of signal S ·
        130 interrupted · 1 the launcher itself failed.

    Raises:
        RunDirError: The run directory cannot be used.
    """
    root = plan.run_dir or Path(DEFAULT_PARENT).absolute() / new_run_name(plan.name)
    record = RunRecord(RunDir(root=root))
    try:
        return _Supervisor(plan, record, environ).run()
    finally:
        record.close()


class _Supervisor:
    """One run, from the first process to the last."""

    def __init__(self, plan: Plan, record: RunRecord, environ: Mapping[str, str]) -> None:
        self._plan = plan
        self._record = record
        self._rundir = record.rundir
        self._environ = environ
        self._began_s = time.monotonic()
        self._console = Console(prefixed=plan.log_ranks is None or len(plan.log_ranks) > 1)
        self._terminal: PseudoTerminal | None = None
        self._outcome = Outcome(record.rundir)
        self._agent_pid = 0
        self._agent_report: dict[str, Any] = {}
        self._pending_signals: deque[int] = deque()
        self._stopped_by: int | None = None
        self._broken: list[str] = []
        self._over = False

    def run(self) -> int:
        """Start, watch, end, and tell."""
        spare = frozenset(descendants(os.getpid()))
        adopt_orphans()
        with self._signals() as wake_fd:
            self._announce()
            try:
                self._start()
                self._watch(wake_fd)
            finally:
                stuck = kill_descendants(spare=spare)
        if self._terminal:
            self._terminal.close()
        self._console.finish()
        for trouble in (self._record.trouble, self._terminal.trouble if self._terminal else ""):
            if trouble:
                self._say(f"warning: {trouble}")
        if stuck:
            self._say(f"these processes do not end, the kernel holds them: {', '.join(map(str, stuck))}")
        return self._conclude()

    def _announce(self) -> None:
        plan = self._plan
        self._record.update(
            distrain=distrain.__version__,
            command=plan.program.command,
            cwd=os.getcwd(),
            host=socket.gethostname(),
            supervisor_pid=os.getpid(),
            plan={name: asdict(setting) for name, setting in plan.settings.items()},
            versions=interpreter_versions(),
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            status="running",
        )
        self._record.event("run_started", {"run_dir": str(self._rundir.root)})
        ranks = f"{plan.nproc} rank{'s' * (plan.nproc != 1)} on {plan.device}"
        threads = f"OMP_NUM_THREADS={plan.omp_num_threads} ({plan.settings['omp_num_threads'].detail})"
        self._say(f"{ranks} · {threads} · run directory {_shown(self._rundir.root)}")

    def _start(self) -> None:
        """Start the fork server and hand it the agent's job, which waits there until torch is imported."""
        plan = self._plan
        env = {
            **self._environ,
            "OMP_NUM_THREADS": str(plan.omp_num_threads),
            ENV_RUN_DIR: str(self._rundir.root),
            ENV_DEVICE: plan.device,
        }
        terminals = {}
        if not self._console.prefixed and sys.stdout.isatty() and sys.stderr.isatty():
            assert plan.log_ranks is not None
            (shown,) = plan.log_ranks
            self._terminal = PseudoTerminal(self._console)
            terminals[str(shown)] = self._terminal.names
        ours, theirs = socket.socketpair()
        with open(self._rundir.launcher_log, "ab") as log:
            self._server = subprocess.Popen(
                [
                    *(sys.executable, "-u", "-c", FORK_SERVER),
                    *(str(theirs.fileno()), str(os.getpid()), str(Path(distrain.__file__).parent.parent)),
                ],
                env=_fork_server_environ(env),
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        theirs.close()
        self._control = Channel(ours)
        self._control.send(
            "start_agent",
            job=AgentJob(
                nproc=plan.nproc,
                max_restarts=plan.max_restarts,
                run_id=self._rundir.root.name,
                run_dir=str(self._rundir.root),
                first_attempt=self._record.first_free_attempt(),
                grace_s=_GRACE_S,
                kind=plan.program.kind,
                target=plan.program.target,
                args=list(plan.program.args),
                command=plan.program.command,
                warm=plan.warm,
                env=env,
                terminals=terminals,
            ),
        )

    def _watch(self, wake_fd: int) -> None:
        """Take in events until the agent has ended, the fork server is gone, or we are told to end at once."""
        with selectors.DefaultSelector() as selector:
            for fd in (wake_fd, self._control.fileno(), *(self._terminal.fds() if self._terminal else ())):
                selector.register(fd, selectors.EVENT_READ)
            while not self._over:
                ready = {key.fd for key, _ in selector.select(None if self._terminal else _SHOW_EVERY_S)}
                if wake_fd in ready:
                    os.read(wake_fd, 4096)
                self._obey_signals()
                if self._terminal:
                    self._terminal.drain()
                self._console.show()
                if self._control.fileno() in ready:
                    self._listen()

    def _listen(self) -> None:
        for message in self._control.receive():
            op = message.pop("op")
            self._record.event(op, message)
            getattr(self, f"_on_{op}")(message)
        if self._control.closed and not self._over:
            self._broken.append("the fork server ended unexpectedly, and every worker with it")
            self._over = True

    # What the fork server tells, one method for each message.

    def _on_ready(self, message: dict[str, Any]) -> None:
        self._record.update(versions={**interpreter_versions(), "torch": message["torch"]})
        if message["threads"] > 1 and self._plan.warm:
            self._say(
                f"warning: the fork server has {message['threads']} threads, so workers start cold; something "
                "imported at start-up (a .pth file, sitecustomize) began one"
            )

    def _on_preload_failed(self, message: dict[str, Any]) -> None:
        if message["module"] != "torch":
            self._say(f"warning: {message['module']} could not be imported ahead of time: {message['error']}")
        elif message["missing"] == "torch":
            self._broken.append(f"torch is not installed for {sys.executable}. Install it: pip install torch")
            self._over = True
        else:
            self._broken.append(f"torch cannot be imported: {message['error']}\n{message['traceback'].rstrip()}")
            self._over = True

    def _on_agent_started(self, message: dict[str, Any]) -> None:
        self._agent_pid = message["pid"]

    def _on_worker_started(self, message: dict[str, Any]) -> None:
        attempt, rank = message["attempt"], message["rank"]
        if self._outcome.attempt not in (-1, attempt):
            self._tell_restart()
        self._outcome.worker_started(message)
        if self._plan.log_ranks is not None and rank not in self._plan.log_ranks:
            return
        stdout, stderr = self._rundir.stdout(attempt, rank), self._rundir.stderr(attempt, rank)
        if self._terminal:
            self._terminal.record_to(stdout, stderr)
        else:
            self._console.follow(rank=rank, stream="stdout", path=stdout)
            self._console.follow(rank=rank, stream="stderr", path=stderr)

    def _on_worker_exited(self, message: dict[str, Any]) -> None:
        self._outcome.worker_exited(message)

    def _on_agent_report(self, message: dict[str, Any]) -> None:
        """The agent's last word. What it would still do is tear an interpreter with torch down, which takes a while."""
        self._agent_report = message
        if message["outcome"] == "broken":
            self._broken.append(f"the agent failed: {message['error']}")
        self._over = True

    def _on_agent_exited(self, message: dict[str, Any]) -> None:
        self._broken.append(f"the agent ended unexpectedly (exit code {message['exit_code']})")
        self._over = True

    def _tell_restart(self) -> None:
        failure = self._outcome.failure()
        if failure is not None:
            self._say(f"attempt {failure.attempt} failed, starting the next · {report.summary(failure)}")

    # Signals.

    @contextlib.contextmanager
    def _signals(self) -> Iterator[int]:
        """Take the signals over; yield a descriptor that becomes readable when one has come."""
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        ours = [sig for sig in (*_FORWARDED, signal.SIGWINCH) if signal.getsignal(sig) != signal.SIG_IGN]  # nohup
        before = {sig: signal.signal(sig, self._on_signal) for sig in ours}
        previous_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        try:
            yield read_fd
        finally:
            signal.set_wakeup_fd(previous_fd)
            for sig, handler in before.items():
                signal.signal(sig, handler)
            os.close(read_fd)
            os.close(write_fd)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGWINCH:
            self._pending_signals.append(number)
        elif self._terminal:
            self._terminal.resize()

    def _obey_signals(self) -> None:
        """Pass the first signal on to the workers, by way of the agent; at the next one, end everything."""
        while self._pending_signals:
            number = self._pending_signals.popleft()
            name = signal.Signals(number).name
            self._record.event("signal", {"signal": name})
            if number == signal.SIGINT and sys.stderr.isatty():
                self._console.break_line()  # the terminal has just echoed ^C
            if self._stopped_by is not None or self._agent_pid == 0:
                self._over = True
            else:
                self._say(f"{name}: passed on to the ranks, which have {_GRACE_S} s to end; once more to end them now")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._agent_pid, number)
            self._stopped_by = self._stopped_by or number

    # The end.

    def _conclude(self) -> int:
        """Say how the run ended, write it down and return the exit code."""
        where = f"run directory {_shown(self._rundir.root)}"
        took = f"{time.monotonic() - self._began_s:.1f} s"
        failure = self._outcome.failure()
        if self._stopped_by is not None:
            status, code = "interrupted", 128 + self._stopped_by
            self._say(f"ended by {signal.Signals(self._stopped_by).name} after {took} · {where}")
        elif self._broken:
            status, code = "broken", 1
            self._say("\n".join(self._broken))
            for line in tail_lines(self._rundir.launcher_log, _LAUNCHER_LOG_LINES):
                self._say(f"  {line}")
            self._say(f"failed after {took} · {where}")
        elif self._agent_report.get("outcome") == "succeeded":
            status, code = "succeeded", 0
            self._say(f"finished in {took} · {where}")
        else:
            assert failure is not None, self._agent_report
            status, code = "failed", exit_code_of(failure)
            with contextlib.suppress(OSError):
                write_atomic(self._rundir.failure, json.dumps(report.to_json(failure), indent=2) + "\n")
            self._console.say(report.render(failure))
            self._say(f"failed after {took} · exit code {code} · {where}")
        self._record.event("run_ended", {"status": status, "exit_code": code})
        self._record.update(status=status, exit_code=code, ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        return code

    def _say(self, text: str) -> None:
        self._console.say(f"distrain: {text}")


def _shown(path: Path) -> str:
    """Return `path` as a user would type it: relative when it is below the current folder."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _fork_server_environ(env: Mapping[str, str]) -> dict[str, str]:
    """Return the fork server's own environment.

    OpenBLAS starts its threads when it is loaded, and a process with threads cannot be forked safely; the
    workers get theirs back. Asking NVML keeps torch's checks for a GPU from creating a CUDA context here.
    """
    return {**env, "OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
