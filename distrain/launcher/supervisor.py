"""The supervisor: the process the user started, above the fork server, the agent and the workers.

It never imports torch. It owns the run directory, the terminal and the signals; it learns from the fork
server what every process does, tells the user how the run ended, and leaves no process behind. All that it hears is
answered in one loop, which is why it is long.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import distrain
from distrain.launcher import precheck
from distrain.launcher.conclusion import LAUNCHER_LOG_LINES, Ending, conclude, signal_elsewhere
from distrain.launcher.incoming_signals import IncomingSignals
from distrain.launcher.outcome import Outcome
from distrain.launcher.retry import Blow, why_not_again
from distrain.launcher.scheduler_signals import SchedulerSignals
from distrain.launcher.smoke import SmokeTest
from distrain.launcher.standstills import Standstills
from distrain.launcher.starting import agent_job, start_server
from distrain.launcher.vigil import Vigil
from distrain.plan.environment import shared_variables
from distrain.plan.plan import Plan, interpreter_versions
from distrain.plan.render import headline
from distrain.rundir import ENV_LAUNCH_ID, ENV_RUN_DIR, as_typed, write_atomic
from distrain.supervision import report
from distrain.supervision.failure import Report, to_json
from distrain.supervision.logs import Console, PseudoTerminal, tail_lines
from distrain.supervision.output import standard_outputs
from distrain.supervision.reaping import adopt_orphans, descendants, kill_descendants, reap
from distrain.supervision.record import RunRecord
from distrain.supervision.scratch import Scratch
from distrain.supervision.terminal_mode import kept_terminal_mode

__all__ = ["Supervisor"]

_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
"""Signals that are always ours, because they would end this process; the plan may name more."""

_SHOW_EVERY_S = 0.05
_LOOK_EVERY_S = 0.5

_READERS_S = 10.0
"""How long a reader of our streams may take nothing, once the run is over; a tenth of it after a signal."""

_AGENT_ENDS_S = 10.0
"""How long the agent may take to end after a signal, beside what the ranks may take."""


class Supervisor:
    """One run, from the first process to the last."""

    def __init__(
        self,
        plan: Plan,
        record: RunRecord,
        environ: Mapping[str, str],
        *,
        door: precheck.Door | None,
        shared_run_dir: Path,
        warnings: list[str],
    ) -> None:
        self._plan = plan
        self._warnings = warnings
        self._door = door
        self._shared_run_dir = shared_run_dir
        self._record = record
        self._rundir = record.rundir
        self._environ = environ
        self._began_s = time.monotonic()
        stdout, stderr = standard_outputs()
        self._console = Console(prefixed=plan.shown.only is None, stdout=stdout, stderr=stderr)
        self._terminal: PseudoTerminal | None = None
        self._vigil = Vigil(plan.nproc, record.rundir, plan.hang_timeout, foreign=plan.program.foreign)
        self._host = socket.gethostname()
        self._outcome = Outcome(record.rundir, self._vigil)
        self._smoke = SmokeTest(record.rundir, plan.nproc, plan.program.target) if plan.smoke else None
        self._report: Report | None = None
        self._ends_at_sigquit = "SIGQUIT" in plan.signals and plan.settings["signals_to_handle"].origin != "default"
        self._standstills = Standstills(
            self._vigil,
            self._outcome,
            record,
            say=self._console.say,
            send=self._send,
            slack_s=2 * plan.monitor_interval_s,  # both agents take words in when they look at their workers
        )
        self._blow: Blow | None = None
        self._not_retried: str | None = None
        self._server_pid = 0
        self._agent_pid = 0
        self._spare: frozenset[int] = frozenset()
        self._agent_report: dict[str, Any] = {}
        self._scratch = Scratch()
        self._signals = IncomingSignals({*_ENDING, *plan.signals, "SIGWINCH"})
        self._stopped_by: int | None = None
        self._scheduler = SchedulerSignals(plan)
        self._end_by_s = math.inf
        self._broken: list[str] = []
        self._began_elsewhere = False
        self._stuck: list[int] = []
        self._over = False

    def run(self) -> int:
        """Start, watch, end, and tell."""
        try:
            return self._run()
        except Exception:
            self._ended("broken", 1)
            raise

    def _run(self) -> int:
        self._spare = frozenset(descendants(os.getpid()))
        adopt_orphans()
        with kept_terminal_mode(), self._signals.taken_over() as wake_fd:
            try:
                self._announce()
                self._start()
                self._watch(wake_fd)
                if self._smoke:
                    self._smoke.note_left(self._ours())
            finally:
                self._stuck = kill_descendants(spare=self._spare)
                self._scratch.remove()
            self._control.close()
            self._guard.poll()  # it has ended, and was reaped as everybody is
            if self._terminal:
                self._terminal.close()
            code = self._conclude()
            self._finish_console()
        return code

    def _ours(self) -> set[int]:
        """Return the processes below this one that are not the ranks' or of their making."""
        return {*self._spare, self._guard.pid, self._server_pid, self._agent_pid}

    def _announce(self) -> None:
        plan = self._plan
        self._rundir.put_away_failure()
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
        kept = "smoke test" if self._smoke else f"run directory {as_typed(self._rundir.root)}"
        self._say(f"{headline(plan)} · {kept}")
        for text in filter(None, [*self._warnings, self._record.warning]):
            self._say(f"warning: {text}")

    def _start(self) -> None:
        """Start the fork server and hand it the agent's job, which waits there until torch is imported."""
        plan = self._plan
        env = {**self._environ, **shared_variables(plan, self._rundir.root, ENV_RUN_DIR)}
        env[ENV_LAUNCH_ID] = secrets.token_hex(8)
        terminals = {}
        if not self._console.prefixed and self._console.is_on_terminal:
            self._terminal = PseudoTerminal(self._console)
            terminals[str(plan.shown.only)] = self._terminal.names
        door = None if self._door is None else self._door.tcp.fileno()
        self._guard, self._control = start_server(plan, env=env, log=self._rundir.launcher_log, door=door)
        if self._door is not None:
            self._door.tcp.close()
        attempt = self._record.first_free_attempt()
        board = self._vigil.board
        scratch = self._scratch.path
        job = agent_job(plan, env, self._rundir, self._shared_run_dir, attempt, terminals, board, scratch, door)
        self._control.send("start_agent", job=job)

    def _watch(self, wake_fd: int) -> None:
        """Take in events until the agent has ended, the fork server is gone, or we are told to end at once."""
        with selectors.DefaultSelector() as selector:
            for fd in (wake_fd, self._control.fileno(), *(self._terminal.fds() if self._terminal else ())):
                selector.register(fd, selectors.EVENT_READ)
            has_more = False
            while not self._over:
                hurried = self._terminal is None or self._end_by_s < math.inf
                ready = self._wait(selector, 0 if has_more else _SHOW_EVERY_S if hurried else _LOOK_EVERY_S)
                if wake_fd in ready:
                    os.read(wake_fd, 4096)
                self._obey_signals()
                if time.monotonic() > self._end_by_s and not self._over:
                    self._say("the agent does not end by itself; ending it and all ranks now")
                    self._over = True
                if self._terminal:
                    self._terminal.drain()
                has_more = self._console.show()
                if self._control.fileno() in ready:
                    self._listen()
                if not self._over:
                    self._standstills.look()
                for _ in reap():  # what was handed to us: as the first process of a container we get every orphan
                    pass

    def _wait(self, selector: selectors.BaseSelector, timeout_s: float) -> set[int]:
        """Wait for something to take in, and for the readers of our streams where they are behind."""
        awaited = self._console.awaited()
        for fd in awaited:
            selector.register(fd, selectors.EVENT_WRITE)
        ready = {key.fd for key, _ in selector.select(timeout_s)}
        for fd in awaited:
            selector.unregister(fd)
        return ready

    def _listen(self) -> None:
        for message in self._control.receive():
            op = message.pop("op")
            if op != "agent_word":  # all nodes say one, again and again while one is busy alone
                self._record.event(op, message)
            getattr(self, f"_on_{op}")(message)
        if self._control.closed and not self._over:
            self._broken.append("the fork server ended unexpectedly, and every worker with it")
            self._over = True

    # What the fork server tells, one method for each message.

    def _on_ready(self, message: dict[str, Any]) -> None:
        self._server_pid = message["pid"]
        self._record.update(versions={**interpreter_versions(), "torch": message["torch"]})
        if message["threads"] > 1 and self._plan.warm:
            why = "something imported at start-up (a .pth file, sitecustomize) began one"
            if self._smoke:  # they would run the whole script, and nobody would look
                self._broken.append(f"the fork server has {message['threads']} threads, so workers start cold; {why}")
                self._over = True
                return
            self._say(f"warning: the fork server has {message['threads']} threads, so workers start cold; {why}")

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
        self._vigil.worker_started(message)
        streams = self._plan.shown.streams(rank, message["local_rank"])
        paths = {"stdout": self._rundir.stdout(attempt, rank), "stderr": self._rundir.stderr(attempt, rank)}
        if self._terminal and streams:
            self._terminal.record_to(paths["stdout"], paths["stderr"])
            streams = tuple(paths)
        for stream in streams:
            self._console.follow(rank=rank, host=self._host, stream=stream, path=paths[stream])

    def _on_worker_exited(self, message: dict[str, Any]) -> None:
        beat, record = self._vigil.worker_exited(message["rank"])
        self._outcome.worker_exited(message, beat, record)

    def _on_agent_failed(self, message: dict[str, Any]) -> None:
        """The attempt has failed, and all its workers have ended: say whether another one makes sense."""
        if self._smoke and self._smoke.begins_again():
            self._smoke.note_left(self._ours())
            self._say(f"starting all ranks again from the checkpoint after iteration {self._smoke.saved_at()}")
            self._control.send("verdict", retry=True, report=None)
            return
        self._standstills.settle()
        self._outcome.left_elsewhere({int(rank): host for rank, host in message["left"].items()})
        self._report = self._outcome.failure()
        assert self._report is not None
        blow = self._outcome.blow(self._report)
        if self._smoke:
            self._not_retried = "a smoke test has failed"
        elif self._plan.max_restarts > 0 and self._plan.retry != "always":
            self._not_retried = why_not_again(blow, self._blow)
        self._blow = blow
        self._control.send("verdict", retry=self._not_retried is None, report=to_json(self._report))

    def _on_agent_round(self, message: dict[str, Any]) -> None:
        self._standstills.round_began(message)

    def _on_agent_word(self, message: dict[str, Any]) -> None:
        self._standstills.heard(message)

    def _on_agent_note(self, message: dict[str, Any]) -> None:
        self._began_elsewhere |= message["elsewhere"]
        self._say(message["text"])

    def _on_agent_report(self, message: dict[str, Any]) -> None:
        """The agent's last word. What it would still do is tear an interpreter with torch down, which takes a while."""
        self._agent_report = message
        if message["outcome"] == "broken":
            self._broken.append(f"the agent failed: {message['error']}")
        self._over = True

    def _on_agent_exited(self, message: dict[str, Any]) -> None:
        if self._agent_report:
            return
        self._broken.append(f"the agent ended unexpectedly (exit code {message['exit_code']})")
        self._over = True

    def _tell_restart(self) -> None:
        failure, self._report = self._report or self._outcome.failure(), None
        elsewhere, self._began_elsewhere = self._began_elsewhere, False
        if failure is not None and not elsewhere and not self._smoke:
            self._say(f"attempt {failure.root_cause.attempt} failed, starting the next · {report.summary(failure)}")

    # Signals.

    def _obey_signals(self) -> None:
        """Pass the first signal on to the workers, by way of the agent; at the next one, end everything.

        An agent can be stuck, so its time to end is limited here as well.
        """
        for number in self._signals:
            name = number.name
            if number == signal.SIGWINCH:
                if self._terminal:
                    self._terminal.resize()
                continue
            self._record.event("signal", {"signal": name})
            if number in (signal.SIGINT, signal.SIGQUIT):
                self._console.break_line()  # a terminal has just echoed ^C
            if number == signal.SIGQUIT and not self._ends_at_sigquit:
                self._standstills.show()
                continue
            if self._scheduler.came(number) and self._stopped_by is not None:
                continue
            if self._stopped_by is not None or self._agent_pid == 0:
                self._over = True
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._agent_pid, number)
                grace = f"{self._plan.grace_s} s"
                self._say(f"{name}: passed on to the ranks, which have {grace} to end; once more to end them now")
                ranks_s = self._plan.grace_s if self._outcome.attempt >= 0 else 0
                self._end_by_s = time.monotonic() + ranks_s + _AGENT_ENDS_S
            self._stopped_by = self._stopped_by or number

    # The end.

    def _conclude(self) -> int:
        """Say how the run ended, write it down and return the exit code."""
        if self._smoke and self._stopped_by is None:
            self._finish_output()
            return self._conclude_smoke_test(self._smoke)
        stopped_by = self._stopped_by or signal_elsewhere(self._agent_report)
        ending = Ending(
            agent=self._agent_report,
            broken=self._broken,
            failure=self._report or self._outcome.failure(),
            not_retried=self._not_retried,
            stopped_by=self._stopped_by,
            is_preempted=self._outcome.is_preempted(),
            is_preempted_at_start=self._scheduler.ended_at_start(stopped_by, has_begun=self._vigil.has_begun()),
            launcher_log=self._rundir.launcher_log,
        )
        took = f"{time.monotonic() - self._began_s:.1f} s"
        end = conclude(ending, took=took, where=f"run directory {as_typed(self._rundir.root)}")
        self._ended(end.status, end.exit_code)
        self._finish_output()
        for each in end.told:
            if isinstance(each, Report):
                self._show(each)
            else:
                self._say(each)
        return end.exit_code

    def _ended(self, status: str, exit_code: int) -> None:
        self._record.event("run_ended", {"status": status, "exit_code": exit_code})
        self._record.update(status=status, exit_code=exit_code, ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"))

    def _finish_output(self) -> None:
        """Show the rest of what the ranks printed, and say what of it and of the run's record was lost."""
        self._finish_console()
        for trouble in (self._record.trouble, self._terminal and self._terminal.trouble, self._console.trouble):
            if trouble:
                self._say(f"warning: {trouble}")
        if self._stuck:
            self._say(f"these processes do not end, the kernel holds them: {', '.join(map(str, self._stuck))}")

    def _finish_console(self) -> None:
        """Give the readers of our streams time to take what is left; another signal ends that."""
        self._console.finish(
            patience_s=_READERS_S if self._stopped_by is None else _READERS_S / 10,
            is_urgent=lambda: any(number != signal.SIGWINCH for number in self._signals),
        )

    def _conclude_smoke_test(self, smoke: SmokeTest) -> int:
        """Say what came of a smoke test, and return the exit code."""
        failure = self._report or self._outcome.failure()
        trouble = self._agent_report.get("outcome", "")
        if self._broken:
            trouble = self._broken[0].splitlines()[0]
            self._say("\n".join([*self._broken, *tail_lines(self._rundir.launcher_log, LAUNCHER_LOG_LINES)]))
        elif trouble == "succeeded":
            trouble = ""
        elif failure is not None and not self._outcome.is_preempted():
            trouble = report.summary(failure)
            self._show(failure)
        code = smoke.conclude(trouble)
        self._say(smoke.text(time.monotonic() - self._began_s))
        if code:
            self._say(f"exit code {code} · logs and findings: {self._rundir.root}")
        return code

    def _show(self, failure: Report) -> None:
        """Show why the run failed, and write it down."""
        try:
            write_atomic(self._rundir.failure, json.dumps(to_json(failure), indent=2) + "\n")
        except OSError as error:
            self._say(f"warning: {as_typed(self._rundir.failure)} could not be written: {error.strerror}")
        self._console.say(report.render(failure))

    def _send(self, op: str, **fields: Any) -> None:
        self._control.send(op, **fields)

    def _say(self, text: str) -> None:
        self._console.say(f"distrain: {text}")
