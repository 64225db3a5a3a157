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
from distrain.plan.cluster import Placement
from distrain.plan.meeting import Meeting, resolve_meeting
from distrain.plan.options import OPTIONS
from distrain.plan.program import Program
from distrain.plan.shown import Shown, resolve_shown
from distrain.plan.sources import Given, Setting, given, seconds, whole_number

__all__ = ["Plan", "interpreter_versions", "resolve"]

DEVICES = ("auto", "cpu", "cuda", "xla")
ENV_DEVICE = "DISTRAIN_DEVICE"
"""The environment variable that tells a worker which kind of device to take."""

SIGNALS = "SIGTERM,SIGINT,SIGHUP"
"""torchrun's, less SIGQUIT, at which the supervisor shows what every rank is doing."""

GRACE_S = 30

AS_THEY_ARE = ("start_method", "event_log_handler", "logs_specs", "numa_binding", "log_dir")
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
        virtual_local_rank: Whether every worker has local rank 0 and sees its own GPU only.
        placement: What a scheduler said about this process, or None.
        profile_env: Variables for the workers from a profile; those of this shell are stronger.
        passed: Options that go to torch as they are, by name; None where not given.
        settings: Every value above that a user can set, with its origin.
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
    virtual_local_rank: bool = False
    placement: Placement | None = None
    profile_env: Mapping[str, str] = field(default_factory=dict)
    passed: Mapping[str, str | None] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)


def resolve(
    program: Program, flags: Mapping[str, str] | None = None, *, environ: Mapping[str, str], cwd: Path | None = None
) -> Plan:
    """Turn what the command line says into a plan, with what the other sources say beside it.

    Args:
        program: What every rank runs.
        flags: Option name to the text of its value, `1` for a flag without one.
        environ: The environment the workers will inherit.
        cwd: The folder that relative paths start from; the current one by default.

    Raises:
        UsageError: A value is not valid, or two contradict each other.
    """
    flags = flags or {}
    cwd = cwd or Path.cwd()
    found = given(flags, environ, None)
    read = profile.read(found["profile"].text, cwd=cwd, environ=environ) if "profile" in found else None
    found = given(flags, environ, read)
    placement = None if "standalone" in found else cluster.find(environ)
    return _Resolution(program, found, environ, cwd, read, placement).plan()


class _Resolution:
    """The state of one `resolve`: what was given, and the settings as they become known."""

    def __init__(  # noqa: PLR0917  # made in one place
        self,
        program: Program,
        found: Mapping[str, Given],
        environ: Mapping[str, str],
        cwd: Path,
        read: profile.Profile | None,
        placement: Placement | None,
    ) -> None:
        self.program = program
        self.found = found
        self.environ = environ
        self.cwd = cwd
        self.profile = read
        self.placement = placement
        self.settings: dict[str, Setting] = {}

    def plan(self) -> Plan:
        gpus = detect.visible_gpus(self.environ)
        device = self._device(gpus)
        nproc = self._nproc(device, gpus)
        if device == "cuda" and nproc > gpus:
            raise UsageError(
                f"--nproc: got {nproc} ranks for {gpus} visible GPU{'s' * (gpus != 1)}; every rank needs a GPU of its "
                f"own. Use --nproc {gpus} or fewer, or --device cpu."
            )
        meeting = resolve_meeting(self.found, self.placement, self.settings)
        nnodes = 1 if meeting is None else meeting.max_nodes
        restarts = self._whole("max_restarts", "a whole number", least=0, default=0)
        shown = resolve_shown(self.found, self.settings, nproc=nproc, world=nproc * nnodes)
        warm = self._warm()
        threads = self._omp_num_threads(nproc)
        name = self._text("name", self.program.name)
        run_dir = self._text("run_dir", None)
        signals = self._signals()
        interval = self._seconds("monitor_interval", 0.1)
        grace = self._grace()
        hang_timeout = self._hang_timeout()
        retry = self._text("retry", "auto")
        role = self._text("role", "default")
        virtual = self._flag("virtual_local_rank")
        passed = {each: self._text(each, None) for each in AS_THEY_ARE}
        self._check_choices()
        for each in ("duplicate_stdout_filters", "duplicate_stderr_filters"):
            passed[each] = self._text(each, None)
        if passed["logs_specs"] is not None:
            for each in ("redirects", "tee", "local_ranks_filter"):
                passed[each] = self.found[each].text if each in self.found else None
        if passed["log_dir"] is not None:
            passed["log_dir"] = str((self.cwd / passed["log_dir"]).absolute())
        if passed["numa_binding"] is not None and device != "cuda":
            said = self.found["numa_binding"]
            raise UsageError(
                f"{said.where}: processes are bound to the CPUs near their GPU, and the device is {device}."
            )
        if self.profile is not None:
            files = " ← ".join(str(path) for path in self.profile.files)
            self.settings["profile"] = Setting(
                value=self.profile.name, origin=self.found["profile"].origin, detail=files
            )
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
            virtual_local_rank=virtual,
            placement=self.placement,
            profile_env=self._profile_env(),
            passed=passed,
            settings=self.settings,
        )

    # One setting each.

    def _device(self, gpus: int) -> str:
        said = self.found.get("device")
        if said is not None and said.text not in DEVICES:
            raise UsageError(
                f"{said.where}: got {said.text!r}; valid are {', '.join(DEVICES)}.{did_you_mean(said.text, DEVICES)}"
            )
        if said is None or said.text == "auto":
            device = "cuda" if gpus else "cpu"
            seen = f"{gpus} visible GPU{'s' * (gpus != 1)}"
            self.settings["device"] = Setting(value=device, origin="detected", detail=seen)
            return device
        if said.text == "cuda" and not gpus:
            raise UsageError(
                f"{said.where} cuda: no NVIDIA GPU is visible here (no /dev/nvidia0, or CUDA_VISIBLE_DEVICES hides "
                "it). Use --device cpu, or give the container its GPUs."
            )
        self._set("device", said, said.text)
        return said.text

    def _nproc(self, device: str, gpus: int) -> int:
        said = self.found.get("nproc")
        if self.placement is not None and self.placement.local_task is not None:
            if said is not None and said.text != "1":
                raise UsageError(
                    f"{said.where}: got {said.text!r}, and {self.placement.scheduler} starts a process for each rank "
                    f"already ({self.placement.detail}). Leave it out, or start one process a node."
                )
            self.settings["nproc"] = Setting(value=1, origin="detected", detail=self.placement.detail)
            return 1
        if device == "xla":
            return self._nproc_of_xla(said)
        if said is None:
            count = max(1, gpus) if device == "cuda" else 1
            why = f"one per visible GPU ({gpus})" if device == "cuda" else "one process where no accelerator is used"
            self.settings["nproc"] = Setting(value=count, origin="detected", detail=why)
            return count
        got = said.text
        if got == "cpu" or (got == "auto" and device != "cuda"):
            count = detect.visible_cpus()
            self._set("nproc", said, count, f"{said.where} {got}: one per visible CPU")
        elif got in ("auto", "gpu"):
            if not gpus:
                raise UsageError(f"{said.where} gpu: no NVIDIA GPU is visible here. Use --nproc cpu or a number.")
            count = gpus
            self._set("nproc", said, count, f"{said.where} {got}: one per visible GPU")
        elif re.fullmatch(r"[1-9]\d*", got):
            count = int(got)
            self._set("nproc", said, count)
        else:
            raise UsageError(
                f"{said.where}: got {got!r}; give a number of processes of at least 1, or auto, cpu or gpu."
            )
        return count

    def _nproc_of_xla(self, said: Given | None) -> int:
        """torch_xla starts the processes, and knows two ways: one for each chip, or one."""
        chips, seen = detect.visible_chips({**self.environ, **self._profile_env()})
        if said is None or said.text == "auto" or said.text == str(chips):
            origin = "detected" if said is None else said.origin
            self.settings["nproc"] = Setting(value=chips, origin=origin, detail=f"one per XLA device ({seen})")
            return chips
        if said.text != "1":
            raise UsageError(
                f"{said.where}: got {said.text!r} for device xla, where torch_xla starts one process for each of the "
                f"devices ({chips} here: {seen}) or a single one; valid are auto, {chips} and 1."
            )
        self._set("nproc", said, 1)
        return 1

    def _warm(self) -> bool:
        said = self.found.get("no_fork_server")
        why = "workers are forked warm"
        if self.settings["device"].value == "xla":
            why = "torch_xla starts the workers"
        elif self.program.kind == "command":
            why = "a command cannot be forked warm"
        elif self.program.interpreter != sys.executable:
            why = "PYTHON_EXEC is another interpreter"
        warm = said is None and why == "workers are forked warm"
        self.settings["fork_server"] = Setting(
            value=warm, origin="default" if said is None else said.origin, detail=why if said is None else said.where
        )
        return warm

    def _omp_num_threads(self, nproc: int) -> int:
        text = self.environ.get("OMP_NUM_THREADS") or self._profile_env().get("OMP_NUM_THREADS")
        if text is not None:
            first = text.split(",")[0].strip()
            if not re.fullmatch(r"[1-9]\d*", first):
                raise UsageError(f"OMP_NUM_THREADS: got {text!r}; give a whole number of at least 1, or unset it.")
            ours = "OMP_NUM_THREADS" in self.environ
            self.settings["omp_num_threads"] = Setting(
                value=int(first), origin="environment" if ours else "profile", detail="OMP_NUM_THREADS"
            )
            return int(first)
        cpus = detect.available_cpus()
        threads = max(1, cpus // nproc)
        self.settings["omp_num_threads"] = Setting(
            value=threads, origin="detected", detail=f"{cpus} available CPUs ÷ {nproc} local ranks"
        )
        return threads

    def _signals(self) -> tuple[str, ...]:
        import signal

        text = self._text("signals_to_handle", SIGNALS) or SIGNALS
        names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        valid = [each.name for each in signal.Signals]
        for name in names:
            if name not in valid or name in ("SIGKILL", "SIGSTOP"):
                said = self.found["signals_to_handle"]
                raise UsageError(
                    f"{said.where}: got {name!r}; give names of signals that can be handled, separated by commas, "
                    f"such as {SIGNALS}.{did_you_mean(name, valid)}"
                )
        return names

    def _grace(self) -> int:
        if "grace" not in self.found and (text := self.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")):
            said = Given(text=text, origin="environment", where="TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
            value = whole_number(said, "a whole number of seconds", least=0)
            self._set("grace", said, value)
            return value
        return self._whole("grace", "a whole number of seconds", least=0, default=GRACE_S)

    def _profile_env(self) -> dict[str, str]:
        if self.profile is None:
            return {}
        return {name: value.text for name, value in self.profile.env.items() if name not in self.environ}

    def _check_choices(self) -> None:
        for each in OPTIONS:
            said = self.found.get(each.name)
            if said is not None and each.choices and said.text not in each.choices:
                raise UsageError(
                    f"{said.where}: got {said.text!r}; valid are {', '.join(each.choices)}."
                    f"{did_you_mean(said.text, each.choices)}"
                )

    # How values come in.

    def _set(self, name: str, said: Given, value: str | float | bool | None, detail: str | None = None) -> None:  # noqa: FBT001  # one value
        self.settings[name] = Setting(value=value, origin=said.origin, detail=detail or said.where)

    def _default(self, name: str, value: str | float | bool | None) -> None:  # noqa: FBT001  # one value
        self.settings[name] = Setting(value=value, origin="default", detail="not given")

    def _text(self, name: str, default: str | None) -> str | None:
        said = self.found.get(name)
        if said is None:
            self._default(name, default)
            return default
        self._set(name, said, said.text)
        return said.text

    def _flag(self, name: str) -> bool:
        said = self.found.get(name)
        if said is None:
            self._default(name, value=False)
        else:
            self._set(name, said, value=True)
        return said is not None

    def _whole(self, name: str, what: str, *, least: int, default: int) -> int:
        said = self.found.get(name)
        if said is None:
            self._default(name, default)
            return default
        value = whole_number(said, what, least=least)
        self._set(name, said, value)
        return value

    def _hang_timeout(self) -> float | Literal["auto"] | None:
        said = self.found.get("hang_timeout")
        if said is None:
            self._default("hang_timeout", "auto")
            return "auto"
        if said.text in ("auto", "off"):
            self._set("hang_timeout", said, said.text)
            return "auto" if said.text == "auto" else None
        try:
            value = seconds(said)
        except UsageError:
            raise UsageError(
                f"{said.where}: got {said.text!r}; give auto, a number of seconds above 0, or off."
            ) from None
        self._set("hang_timeout", said, value)
        return value

    def _seconds(self, name: str, default: float) -> float:
        said = self.found.get(name)
        if said is None:
            self._default(name, default)
            return default
        value = seconds(said)
        self._set(name, said, value)
        return value


def interpreter_versions() -> dict[str, str]:
    """Return the versions a torch-free process can name, for run.json."""
    return {"python": sys.version.split()[0], "platform": sysconfig.get_platform()}
