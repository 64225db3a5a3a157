"""What a launch was asked to do, checked once: raw options in, a plan with the origin of every value out."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distrain.errors import UsageError, did_you_mean
from distrain.plan import detect

__all__ = ["Plan", "Program", "Setting", "resolve"]

DEVICES = ("auto", "cpu", "cuda", "xla")
ENV_DEVICE = "DISTRAIN_DEVICE"
"""The environment variable that tells a worker which kind of device to take."""

Origin = Literal["flag", "environment", "detected", "default"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value of the plan and the source it came from.

    Args:
        value: The value, ready to be written as JSON.
        origin: The kind of source.
        detail: What the source said, for a reader: the flag, the variable, what was found.
    """

    value: str | int | bool | None
    origin: Origin
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What every rank runs.

    Args:
        kind: `script` (a file, or a folder or archive with a `__main__.py`), `module` (as `python -m`) or
            `command` (any executable, started as it is).
        target: The path, the module's name or the executable.
        args: What follows it on the command line.
    """

    kind: Literal["script", "module", "command"]
    target: str
    args: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The command line a fresh process would be started with, interpreter included, as torchrun has it."""
        if self.kind == "command":
            return [self.target, *self.args]
        return [sys.executable, "-u", *(["-m"] if self.kind == "module" else []), self.target, *self.args]

    @property
    def name(self) -> str:
        """A short name: the file's stem or the module's last part."""
        if self.kind == "module":
            return self.target.rpartition(".")[2]
        return Path(self.target).name.removesuffix(".py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A launch on one node, ready to be carried out.

    Args:
        program: What every rank runs.
        nproc: Number of ranks, at least 1.
        device: `cpu`, `cuda` or `xla`.
        max_restarts: How often a failed group of workers is started again.
        log_ranks: The ranks shown on the terminal; None shows all.
        warm: Whether workers are forked from the warm fork server, rather than started cold.
        omp_num_threads: Threads a worker's OpenMP libraries may use.
        name: The run's name.
        run_dir: The run directory as asked for; None makes a new one.
        settings: Every value above that a user can set, with its origin.
    """

    program: Program
    nproc: int
    device: str
    max_restarts: int
    log_ranks: frozenset[int] | None
    warm: bool
    omp_num_threads: int
    name: str
    run_dir: Path | None
    settings: Mapping[str, Setting] = field(default_factory=dict)


def resolve(
    program: Program,
    *,
    nproc: str | None = None,
    device: str | None = None,
    max_restarts: str | None = None,
    log_ranks: str | None = None,
    fork_server: bool = True,
    name: str | None = None,
    run_dir: str | None = None,
    environ: Mapping[str, str],
) -> Plan:
    """Turn raw options, as the command line gives them, into a plan.

    Args:
        program: What every rank runs.
        nproc: A count, `auto`, `cpu` or `gpu` (torchrun's meanings); None takes one per visible accelerator,
            one without.
        device: One of `auto`, `cpu`, `cuda`, `xla`; None is `auto`: CUDA where a GPU is visible, else the CPU.
        max_restarts: A count of 0 or more.
        log_ranks: `all`, or ranks separated by commas.
        fork_server: False starts plain interpreters.
        name: The run's name; None takes the program's.
        run_dir: The run directory; None makes a new one.
        environ: The environment the workers will inherit.

    Raises:
        UsageError: A value is not valid, or two contradict each other.
    """
    settings: dict[str, Setting] = {}
    gpus = detect.visible_gpus(environ)

    settings["device"] = _device(device, gpus)
    chosen_device = str(settings["device"].value)

    settings["nproc"] = _nproc(nproc, chosen_device, gpus)
    count = settings["nproc"].value
    assert isinstance(count, int)
    if chosen_device == "cuda" and count > gpus:
        raise UsageError(
            f"--nproc: got {count} ranks for {gpus} visible GPU{'s' * (gpus != 1)}; every rank needs a GPU of its own. "
            f"Use --nproc {gpus} or fewer, or --device cpu."
        )

    settings["max_restarts"] = _count("max-restarts", max_restarts, default=0)
    restarts = settings["max_restarts"].value
    assert isinstance(restarts, int)

    shown = _log_ranks(log_ranks, count)
    settings["log_ranks"] = _flag_or("log-ranks", log_ranks, "0")

    warm = fork_server and program.kind != "command"
    settings["fork_server"] = Setting(
        value=warm,
        origin="default" if fork_server else "flag",
        detail="--no-fork-server"
        if not fork_server
        else ("workers are forked warm" if warm else "a command cannot be forked warm"),
    )
    settings["omp_num_threads"] = _omp_num_threads(environ, count)
    threads = settings["omp_num_threads"].value
    assert isinstance(threads, int)

    settings["name"] = _flag_or("name", name, program.name)
    settings["run_dir"] = _flag_or("run-dir", run_dir, None)
    return Plan(
        program=program,
        nproc=count,
        device=chosen_device,
        max_restarts=restarts,
        log_ranks=shown,
        warm=warm,
        omp_num_threads=threads,
        name=name or program.name,
        run_dir=Path(run_dir).absolute() if run_dir else None,
        settings=settings,
    )


def _flag_or(flag: str, got: str | None, default: str | None) -> Setting:
    if got is None:
        return Setting(value=default, origin="default", detail="not given")
    return Setting(value=got, origin="flag", detail=f"--{flag}")


def _device(got: str | None, gpus: int) -> Setting:
    if got not in (None, *DEVICES):
        raise UsageError(f"--device: got {got!r}; valid are {', '.join(DEVICES)}.{did_you_mean(got, DEVICES)}")
    if got == "xla":
        raise UsageError(
            "--device xla: this version cannot launch on XLA devices yet; valid now are auto, cpu, cuda. "
            "Start the script itself where one device is enough: PJRT_DEVICE=TPU python train.py"
        )
    if got in (None, "auto"):
        found = f"{gpus} visible GPU{'s' * (gpus != 1)}"
        return Setting(value="cuda" if gpus else "cpu", origin="detected", detail=found)
    if got == "cuda" and not gpus:
        raise UsageError(
            "--device cuda: no NVIDIA GPU is visible here (no /dev/nvidia0, or CUDA_VISIBLE_DEVICES hides it). "
            "Use --device cpu, or give the container its GPUs."
        )
    return Setting(value=got, origin="flag", detail="--device")


def _nproc(got: str | None, device: str, gpus: int) -> Setting:
    if got is None:
        return Setting(
            value=max(1, gpus) if device == "cuda" else 1,
            origin="detected",
            detail=f"one per visible GPU ({gpus})" if device == "cuda" else "one process where no accelerator is used",
        )
    if got == "cpu" or (got == "auto" and device != "cuda"):
        return Setting(value=detect.visible_cpus(), origin="flag", detail=f"--nproc {got}: one per visible CPU")
    if got in ("auto", "gpu"):
        if not gpus:
            raise UsageError("--nproc gpu: no NVIDIA GPU is visible here. Use --nproc cpu or a number.")
        return Setting(value=gpus, origin="flag", detail=f"--nproc {got}: one per visible GPU")
    if not re.fullmatch(r"[1-9]\d*", got):
        raise UsageError(f"--nproc: got {got!r}; give a number of processes of at least 1, or auto, cpu or gpu.")
    return Setting(value=int(got), origin="flag", detail="--nproc")


def _count(flag: str, got: str | None, *, default: int) -> Setting:
    if got is None:
        return Setting(value=default, origin="default", detail="not given")
    if not re.fullmatch(r"\d+", got):
        raise UsageError(f"--{flag}: got {got!r}; give a whole number of at least 0.")
    return Setting(value=int(got), origin="flag", detail=f"--{flag}")


def _log_ranks(got: str | None, nproc: int) -> frozenset[int] | None:
    if got == "all":
        return None
    text = "0" if got is None else got
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UsageError(f"--log-ranks: got {text!r}; give all, or ranks separated by commas, such as 0,3.")
    ranks = frozenset(int(part) for part in text.split(","))
    if max(ranks) >= nproc:
        raise UsageError(f"--log-ranks: there is no rank {max(ranks)} among {nproc}; valid are 0 to {nproc - 1}.")
    return ranks


def _omp_num_threads(environ: Mapping[str, str], nproc: int) -> Setting:
    given = environ.get("OMP_NUM_THREADS")
    if given is not None:
        first = given.split(",")[0].strip()
        if not re.fullmatch(r"[1-9]\d*", first):
            raise UsageError(f"OMP_NUM_THREADS: got {given!r}; give a whole number of at least 1, or unset it.")
        return Setting(value=int(first), origin="environment", detail="OMP_NUM_THREADS")
    cpus = detect.available_cpus()
    return Setting(
        value=max(1, cpus // nproc), origin="detected", detail=f"{cpus} available CPUs ÷ {nproc} local ranks"
    )


def check_program(program: Program, *, cwd: Path) -> None:
    """Refuse a program that no rank could run, before anything is started.

    Args:
        program: What every rank would run.
        cwd: The directory relative paths start from.

    Raises:
        UsageError: The file is missing or unreadable, is no Python, or the executable is not on the PATH.
        SyntaxError: The script is Python that does not parse.
    """
    if program.kind == "module":
        return
    if program.kind == "command":
        _check_command(program.target)
        return
    path = cwd / program.target
    if path.is_dir():
        if not (path / "__main__.py").is_file():
            raise UsageError(f"{program.target} is a folder without a __main__.py; give a script, or -m with a module.")
        return
    if not path.exists():
        siblings = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        raise UsageError(f"script {program.target!r} does not exist (looked in {path.parent}).{hint}")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(f"script {program.target!r} cannot be read: {error.strerror}.") from None
    if source[:4] == b"PK\x03\x04" or path.suffix == ".pyc":
        return
    first_line = source.split(b"\n", 1)[0]
    foreign = first_line.startswith(b"#!") and b"python" not in first_line
    if foreign or b"\0" in source:
        what = first_line.decode(errors="replace").strip() if foreign else "a binary file"
        raise UsageError(f"{program.target!r} is not a Python script ({what}). Use --no-python to run it as a command.")
    compile(source, str(path), "exec", dont_inherit=True)


def _check_command(target: str) -> None:
    import shutil

    if shutil.which(target) is None:
        exists = os.path.exists(target)
        what = "is not executable (chmod +x it)" if exists else "is not an executable on the PATH"
        raise UsageError(f"--no-python: {target!r} {what}.")


def interpreter_versions() -> dict[str, str]:
    """Return the versions a torch-free process can name, for run.json."""
    return {"python": sys.version.split()[0], "platform": sysconfig.get_platform()}
