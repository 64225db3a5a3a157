"""The plan: every setting checked once, with its origin, from whichever source it came."""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distrain.errors import UsageError, did_you_mean
from distrain.plan import cluster, detect, profile
from distrain.plan.ahead import Ahead
from distrain.plan.cluster import Placement, tpu
from distrain.plan.draft import Draft
from distrain.plan.meeting import Meeting, resolve_meeting
from distrain.plan.options import OPTIONS
from distrain.plan.program import Program, current_folder
from distrain.plan.ranks import resolve_ranks
from distrain.plan.related import without_overruled
from distrain.plan.shown import Shown, resolve_shown
from distrain.plan.slices import check_slice
from distrain.plan.smoke import without_what_a_smoke_test_has_not
from distrain.plan.sources import Setting, given, is_worker, misspelt

__all__ = ["Plan", "interpreter_versions", "resolve"]

ENV_DEVICE = "DISTRAIN_DEVICE"
"""The environment variable that tells a worker which kind of device to take."""

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"

IN_SLURM = f"{SIGNALS},SIGUSR2"
"""With the one that a job asks Slurm for, ahead of its limit: it reaches every process of a step."""

GRACE_S = 30

AS_THEY_ARE = (
    *("start_method", "event_log_handler", "logs_specs", "numa_binding", "log_dir"),
    *("duplicate_stdout_filters", "duplicate_stderr_filters"),
)
"""Options whose text goes to torch as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A launch, ready to be carried out on this node.

    Args:
        program: What every rank runs.
        nproc: Number of ranks on this node, at least 1.
        device: `cpu`, `cuda` or `xla`.
        max_restarts: How often a failed group of workers is started again.
        shown: Which streams of which ranks go to the terminal.
        warm: Whether workers are forked from the warm fork server, rather than started cold.
        omp_num_threads: Threads a worker's OpenMP libraries may use.
        name: The run's name.
        run_dir: The run directory as asked for; None makes a new one.
        meeting: How the nodes find each other; None on a single node, where there is nothing to find.
        grace_s: Seconds between the first signal to a worker and SIGKILL.
        signals: Names of the signals that are passed on to the workers.
        hang_timeout: Seconds without a step after which a worker counts as hung; `auto` goes by the slowest step seen,
            None never does.
        retry: `auto` starts no failure again that would only repeat itself, `always` does.
        monitor_interval_s: How often the agent looks at its workers.
        role: The workers' role in torch elastic.
        xla_spmd: Whether one process computes on all XLA devices.
        smoke: Whether it is a smoke test: a few iterations, checks, and nothing is kept.
        virtual_local_rank: Whether every worker has local rank 0 and sees its own GPU only.
        placement: What a scheduler said about this process, or None.
        profile_env: Variables for the workers from a profile; those of this shell are stronger.
        overruled_env: The names of those that are.
        slice_env: Variables by which torch_xla uses one host of a TPU slice alone; they are stronger than the shell's.
        passed: Options that go to torch as they are, by name; None where not given.
        settings: Every value above that a user can set, with its origin.
        warnings: What was asked for and is not done, a line each.
    """

    program: Program
    nproc: int
    device: str
    max_restarts: int
    shown: Shown
    warm: bool
    omp_num_threads: int
    name: str
    run_dir: Path | None
    meeting: Meeting | None = None
    grace_s: int = GRACE_S
    signals: tuple[str, ...] = tuple(SIGNALS.split(","))
    hang_timeout: float | Literal["auto"] | None = "auto"
    retry: str = "auto"
    monitor_interval_s: float = 0.1
    role: str = "default"
    xla_spmd: bool = False
    smoke: bool = False
    virtual_local_rank: bool = False
    placement: Placement | None = None
    profile_env: Mapping[str, str] = field(default_factory=dict)
    slice_env: Mapping[str, str] = field(default_factory=dict)
    overruled_env: tuple[str, ...] = ()
    passed: Mapping[str, str | None] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def resolve(
    program: Program,
    flags: Mapping[str, str] | None = None,
    *,
    environ: Mapping[str, str],
    cwd: Path | None = None,
    ahead: Ahead | None = None,
) -> Plan:
    """Turn what the command line says into a plan, with what the other sources say beside it.

    Args:
        program: What every rank runs.
        flags: Option name to the text of its value, `1` for a flag without one.
        environ: The environment the workers will inherit.
        cwd: The folder that relative paths start from; the current one by default.
        ahead: What is known of the nodes, for a launch that begins later and elsewhere. Then no accelerator is
            looked for on this machine; a device that only the node knows is `auto`, a number of ranks 0.

    Raises:
        UsageError: A value is not valid, or two contradict each other.
    """
    flags = flags or {}
    cwd = cwd or current_folder()
    named = given(flags, environ, None).get("profile")
    read = None if named is None else profile.read(named.text, cwd=cwd, environ=environ, where=named.where)
    found, warnings = without_overruled(given(flags, environ, read))
    warnings += misspelt(environ)
    if "smoke" in found:
        found = without_what_a_smoke_test_has_not(found, program, warnings)
    # A launch inside a worker is a run of its own: the worker has the scheduler's place already.
    placed = "standalone" not in found and not is_worker(environ)
    profile_env = {} if read is None else {name: each.text for name, each in read.env.items() if name not in environ}
    here = cluster.find if ahead is None else lambda _: ahead.placement
    environ_of_workers = {**environ, **profile_env}
    draft = Draft(
        found,
        environ=environ_of_workers,
        placement=here(environ) if placed else None,
        gpus=detect.visible_gpus(environ_of_workers) if ahead is None else ahead.gpus,
        is_ahead=ahead is not None,
        warnings=warnings,
    )
    return _Resolution(program, draft, cwd, read, profile_env).plan()


class _Resolution:
    """The state of one `resolve`."""

    def __init__(
        self,
        program: Program,
        draft: Draft,
        cwd: Path,
        read: profile.Profile | None,
        profile_env: Mapping[str, str],
    ) -> None:
        self.program = program
        self.draft = draft
        self.found = draft.found
        self.cwd = cwd
        self.profile = read
        self.profile_env = profile_env

    def plan(self) -> Plan:
        draft = self.draft
        device, nproc = resolve_ranks(draft)
        self._check_for_xla(device)
        meeting = resolve_meeting(draft)
        nnodes = 1 if meeting is None else meeting.max_nodes
        if device == "xla" and meeting is not None and nnodes > 1:
            check_slice(draft, meeting, nproc)
        alone = tpu.this_host_alone(draft.environ) if device == "xla" and "standalone" in self.found else {}
        restarts = draft.whole("max_restarts", "a whole number", least=0, default=0)
        shown = resolve_shown(draft, nproc=nproc, world=nproc * nnodes)
        warm = self._warm(device)
        threads = self._omp_num_threads(nproc)
        name = draft.text("name", self.program.name)
        run_dir = draft.text("run_dir", None)
        signals = self._signals()
        interval = draft.seconds("monitor_interval", 0.1)
        grace = draft.whole("grace", "a whole number of seconds", least=0, default=GRACE_S)
        hang_timeout = self._hang_timeout()
        if "hang_timeout" in self.found and hang_timeout is not None and self.program.foreign:
            said = self.found["hang_timeout"]
            draft.warnings.append(
                f"{said.where} ({said.text}): {self.program.foreign} shows progress only through distrain's own "
                "trainer and distrain.heartbeat()"
            )
        retry = draft.text("retry", "auto")
        role = draft.text("role", "default")
        smoke = "smoke" in self.found and draft.flag("smoke")  # a plain launch does not speak of it
        virtual = draft.flag("virtual_local_rank")
        passed = self._passed(device)
        if self.profile is not None:
            draft.given("profile", self.profile.name, " ← ".join(str(path) for path in self.profile.files))
        return Plan(
            program=self.program,
            nproc=nproc,
            device=device,
            max_restarts=restarts,
            shown=shown,
            warm=warm,
            omp_num_threads=threads,
            name=name or self.program.name,
            run_dir=(self.cwd / run_dir).absolute() if run_dir else None,
            meeting=meeting,
            grace_s=grace,
            signals=signals,
            hang_timeout=hang_timeout,
            retry=retry or "auto",
            monitor_interval_s=interval,
            role=role or "default",
            xla_spmd="xla_spmd" in self.found,
            smoke=smoke,
            virtual_local_rank=virtual,
            placement=draft.placement,
            profile_env=self.profile_env,
            slice_env=alone,
            overruled_env=() if self.profile is None else tuple(sorted(self.profile.env.keys() - self.profile_env)),
            passed=passed,
            settings=draft.settings,
            warnings=tuple(draft.warnings),
        )

    def _check_for_xla(self, device: str) -> None:
        """Refuse or warn of a program that torch_xla's processes, which are Python's as this one, do not run."""
        if device != "xla":
            return
        if self.program.kind == "command":
            raise UsageError(
                f"--no-python: torch_xla starts the processes of device xla, and runs Python in them; it cannot start "
                f"{self.program.target!r}. Give a script or -m with a module, or another device."
            )
        if self.program.foreign:
            self.draft.warnings.append(
                f"PYTHON_EXEC ({self.program.interpreter}) is ignored: torch_xla starts the processes, with "
                f"{sys.executable}"
            )

    def _warm(self, device: str) -> bool:
        said = self.found.get("no_fork_server")
        why = "workers are forked warm"
        if device == "xla":
            why = "torch_xla starts the workers"
        elif self.program.kind == "command":
            why = "a command cannot be forked warm"
        elif self.program.foreign:
            why = "PYTHON_EXEC is another interpreter"
        warm = said is None and why == "workers are forked warm"
        if said is None:
            self.draft.note("fork_server", warm, "default", why)
        else:
            self.draft.note("fork_server", warm, said.origin, said.where)
        return warm

    def _omp_num_threads(self, nproc: int) -> int:
        text = self.draft.environ.get("OMP_NUM_THREADS")
        if text:
            ours = "OMP_NUM_THREADS" in self.profile_env
            where = self.profile.env["OMP_NUM_THREADS"].where if ours and self.profile else "OMP_NUM_THREADS"
            first = text.split(",")[0].strip()
            if not re.fullmatch(r"[1-9]\d*", first):
                raise UsageError(f"{where}: got {text!r}; give a whole number of at least 1, or unset it.")
            self.draft.note("omp_num_threads", int(first), "profile" if ours else "environment", where)
            return int(first)
        cpus = detect.available_cpus()
        threads = max(1, cpus // max(1, nproc))
        self.draft.note("omp_num_threads", threads, "detected", f"{cpus} available CPUs ÷ {nproc} local ranks")
        return threads

    def _signals(self) -> tuple[str, ...]:
        import signal

        placement = self.draft.placement
        if placement is not None and placement.scheduler == "Slurm" and "signals_to_handle" not in self.found:
            self.draft.note("signals_to_handle", IN_SLURM, "detected", placement.detail)
            return tuple(IN_SLURM.split(","))
        text = self.draft.text("signals_to_handle", SIGNALS) or SIGNALS
        names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        never = ("SIGKILL", "SIGSTOP")
        valid = [each.name for each in signal.Signals if each.name not in never]
        for name in names:
            if name not in valid:
                said = self.found["signals_to_handle"]
                raise UsageError(
                    f"{said.where}: got {name!r}; give names of signals that can be handled, separated by commas, "
                    f"such as {SIGNALS}.{'' if name in never else did_you_mean(name, valid)}"
                )
        return names

    def _hang_timeout(self) -> float | Literal["auto"] | None:
        said = self.found.get("hang_timeout")
        if said is None or said.text in ("auto", "off"):
            return "auto" if self.draft.text("hang_timeout", "auto") == "auto" else None
        try:
            return self.draft.seconds("hang_timeout", 0.0)
        except UsageError:
            raise UsageError(
                f"{said.where}: got {said.text!r}; give auto, a number of seconds above 0, or off."
            ) from None

    def _passed(self, device: str) -> dict[str, str | None]:
        """Return the options that go to torch as they are."""
        for each in OPTIONS:
            said = self.found.get(each.name)
            if said is not None and each.choices and said.text not in each.choices:
                raise UsageError(
                    f"{said.where}: got {said.text!r}; valid are {', '.join(each.choices)}."
                    f"{did_you_mean(said.text, each.choices)}"
                )
        passed = {each: self.draft.text(each, None) for each in AS_THEY_ARE}
        if passed["logs_specs"] is not None:
            for name in ("redirects", "tee", "local_ranks_filter"):
                passed[name] = self.found[name].text if name in self.found else None
        if passed["log_dir"] is not None:
            passed["log_dir"] = str((self.cwd / passed["log_dir"]).absolute())
        if passed["numa_binding"] is not None and device not in ("cuda", "auto"):
            where = self.found["numa_binding"].where
            raise UsageError(f"{where}: processes are bound to the CPUs near their GPU, and the device is {device}.")
        return passed


def interpreter_versions() -> dict[str, str]:
    """Return the versions a torch-free process can name, for run.json."""
    return {"python": sys.version.split()[0], "platform": sysconfig.get_platform()}
