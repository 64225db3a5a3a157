"""`distrain submit slurm`: render the batch script of a launch, show it or hand it over, follow the job."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from distrain.cli.parsing import Parser, add_launch_options, add_program, program_of, read
from distrain.cli.printing import tell
from distrain.errors import UsageError, did_you_mean
from distrain.plan import Program, check_program, current_folder
from distrain.plan.options import OPTIONS
from distrain.plan.plan import GRACE_S
from distrain.plan.sources import given
from distrain.rundir import DEFAULT_PARENT, as_typed
from distrain.schedulers.slurm.foresight import foresee, nodes_asked
from distrain.schedulers.slurm.options import check_options, gives, value_of
from distrain.schedulers.slurm.script import BatchJob, render, seconds_of
from distrain.supervision.output import say

__all__ = ["main"]

SCHEDULERS = ("slurm",)

SPARE_S = 15
"""How much of the signal's lead is left to end everything once the ranks have had their time."""

EXIT_NO_SCHEDULER = 1
EXIT_INTERRUPTED = 130

OF_SBATCH = {
    "nodes": ("N", "nodes, on each of which one launch is started; default: the most that --nnodes asks for, or 1"),
    "gpus_per_node": ("N", "GPUs of each node"),
    "cpus_per_task": ("N", "CPUs for the launch of each node, its ranks and their DataLoaders"),
    "mem": ("SIZE", "memory of each node"),
    "time": ("LIMIT", "time limit, as sbatch takes it: minutes, hours:minutes:seconds, days-hours, …"),
    "partition": ("NAME", "partition"),
    "account": ("NAME", "account"),
    "array": ("INDICES", "an array of jobs, each with a run directory of its own"),
}
"""Options of sbatch that have one of their own, under the same name."""

OF_SUBMIT = ("signal_lead", "budget", "setup", "container", "sbatch", "wait")


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        if message == "argument --sbatch: expected one argument":  # argparse takes no value that begins with a dash
            message += ", behind an equals sign: --sbatch='--qos=high --exclude=node7'"
        super().error(message)


def _parser() -> Parser:
    parser = _Parser(
        prog="distrain submit slurm",
        usage="distrain submit slurm [options] [launch options] script.py [args ...]",
        description="Submit a batch script that runs distrain launch with these options on every node, and queues the "
        "job again when it was asked to end and has saved its state.",
        epilog="Launch options are those of distrain launch --help.",
    )
    job = parser.add_argument_group("the job")
    for name, (metavar, text) in OF_SBATCH.items():
        job.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar=metavar, help=text)
    job.add_argument(
        "--sbatch",
        metavar="OPTIONS",
        action="append",
        help="any other options of sbatch, as it takes them; may be repeated: --sbatch='--qos=high --exclude=node7'",
    )
    job.add_argument("--setup", metavar="LINE", action="append", help="a line of shell to run first; may be repeated")
    job.add_argument(
        "--container", metavar="COMMAND", help="start the launches in a container: 'apptainer exec --nv image.sif'"
    )
    end = parser.add_argument_group("the end, and what follows")
    end.add_argument(
        "--signal-lead",
        metavar="SECONDS",
        help="how long before the time limit the ranks stop and save their state; 0 for never; default: 120",
    )
    end.add_argument(
        "--budget",
        metavar="N",
        help="how often in a row the job is queued again without a newer checkpoint; default: 3",
    )
    end.add_argument("--wait", action="store_const", const="1", help="show the log and end with the job's exit code")
    shown = ("dry_run", "run_dir", "name")
    add_launch_options(parser, hidden=lambda each: each.name not in shown)
    add_program(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `distrain submit`.

    Args:
        argv: The arguments after `submit`.

    Returns:
        0 once the job is submitted or shown; with `--wait` the job's exit code; 1 where Slurm is not there or refuses.

    Raises:
        UsageError: The command line or the script cannot be used.
    """
    if not argv or argv[0] not in SCHEDULERS:
        if argv and argv[0] in ("-h", "--help"):
            _parser().print_help()
            return 0
        got = f"unknown scheduler {argv[0]!r}" if argv else "no scheduler given"
        hint = did_you_mean(argv[0], SCHEDULERS) if argv else ""
        raise UsageError(f"{got}; valid are {', '.join(SCHEDULERS)}: distrain submit slurm [options] script.py.{hint}")
    known = [f"--{name.replace('_', '-')}" for name in (*OF_SBATCH, *OF_SUBMIT)]
    flags, script, args = read(_parser(), argv[1:], more=known)
    if "json" in flags:
        raise UsageError("--json is for distrain launch --dry-run; a batch script is text.")
    program = program_of(_launch_flags(flags), script, args, command="distrain submit slurm")
    cwd = current_folder()
    try:
        if program.kind != "command":  # which may be on the nodes only
            check_program(program, cwd=cwd)
    except SyntaxError as error:
        raise UsageError(f"{program.target} does not read as Python: {error}") from None
    if "nodes" not in flags:
        flags["nodes"] = nodes_asked(_launch_flags(flags), os.environ, _passed(flags))
    job = _job(flags, program)
    text = render(job)
    plan = foresee(program, _launch_flags(flags), os.environ, options=_options(flags), passed=job.passed)
    for warning in plan.warnings:
        _say(f"warning: {warning}")
    if "dry_run" in given(_launch_flags(flags), os.environ, None):
        tell(text.encode(errors="surrogateescape"))
        return 0
    if shutil.which("sbatch") is None:
        tell(text.encode(errors="surrogateescape"))
        say(
            "distrain submit: sbatch is not on PATH, so nothing is submitted: this is no host of a Slurm cluster, or "
            "its commands are not installed. Submit the script above where they are: sbatch FILE."
        )
        return EXIT_NO_SCHEDULER
    return _submit(job, text, wait="wait" in flags)


def _submit(job: BatchJob, text: str, *, wait: bool) -> int:
    from distrain.schedulers.slurm import submission

    _warn_of_time_limit(job)
    number, cluster = submission.submit(text, folder=Path(job.folder))
    there = f"--clusters={shlex.quote(cluster)} " if cluster else ""
    each = f"{number}_N" if job.is_array else number
    log, run_dir = (as_typed(Path(path)) for path in (job.log_of(each), job.run_dir_of(each)))
    tell(f"job {number} · log {log} · run directory {run_dir}\n")
    if not wait:
        follow = f"tail -F {shlex.quote(log)}" if not job.is_array else f"squeue {there}--job={number}"
        tell(f"follow it: {follow}\nend it:    scancel {there}{number}\n")
        return 0
    try:
        return submission.follow(number, job, cluster=cluster, show=tell, say=_say)
    except KeyboardInterrupt:
        _say(f"job {number} goes on; scancel {there}{number} ends it, tail -F {shlex.quote(log)} follows it")
        return EXIT_INTERRUPTED


def _warn_of_time_limit(job: BatchJob) -> None:
    """Warn of a time limit that no partition allows; an administrator may let some jobs exceed it all the same."""
    from distrain.schedulers.slurm import partitions

    if any(gives(word, "clusters", "M") for word in job.passed):  # whose partitions are others
        return
    options = dict(job.options)
    time = value_of(job.passed, "time", "t") or options.get("time")
    where = value_of(job.passed, "partition", "p") or options.get("partition", "")
    warning = partitions.too_long(time, where, partitions.ask()) if time else None
    if warning:
        _say(f"warning: {warning}")


def _say(text: str) -> None:
    say(f"distrain: {text}")


def _launch_flags(flags: Mapping[str, Any]) -> dict[str, str]:
    names = {each.name for each in OPTIONS}
    return {name: value for name, value in flags.items() if name in names}


def _options(flags: Mapping[str, Any]) -> dict[str, str]:
    return {name: flags[name] for name in OF_SBATCH if name in flags}


def _job(flags: Mapping[str, Any], program: Program) -> BatchJob:
    check_options(_options(flags))
    lead_s = _whole(flags, "signal_lead", least=0, default=120)
    limit_s = seconds_of(flags["time"]) if "time" in flags else None
    if limit_s and lead_s >= limit_s:  # 0 is none
        raise UsageError(
            f"--time {flags['time']} is {limit_s} s, and --signal-lead {lead_s} s before it the job would be asked to "
            "end as soon as it begins. Give a longer --time or a shorter --signal-lead (0 for no signal)."
        )
    options = [(name.replace("_", "-"), text) for name, text in _options(flags).items()]
    passed = _passed(flags)
    if passed and not passed[0].startswith("-"):
        raise UsageError(f"--sbatch: got {passed[0]!r}; give options of sbatch, such as --sbatch=--qos=high.")
    for word in passed:
        if gives(word, "wait", "W"):
            raise UsageError(f"--sbatch: got {word!r}, with which sbatch does not tell the job's number; give --wait.")
        if gives(word, "output", "o"):
            raise UsageError(
                f"--sbatch: got {word!r}; the log goes where distrain looks for it, "
                f"{DEFAULT_PARENT}/slurm-<job>-<name>.log (--name)."
            )
    is_array = "array" in flags or any(gives(word, "array", "a") for word in passed)
    if is_array and "wait" in flags:
        raise UsageError("--wait follows one job, and an array has many. Submit it without, and see squeue.")
    name = str(flags.get("name") or program.name)
    if "/" in name or name in (".", ".."):
        raise UsageError(f"--name: got {name!r}; the log and the run directory are named so: leave the / out.")
    run_dir = given(_launch_flags(flags), os.environ, None).get("run_dir")
    container = _words("--container", flags.get("container", ""))
    return BatchJob(
        name=name,
        folder=str(Path(DEFAULT_PARENT).absolute()),
        launch=[*(["distrain"] if container else _distrain()), "launch", *_launch_words(flags, program, lead_s)],
        requeue=[*_distrain(), "requeue"],
        options=options,
        passed=passed,
        container=container,
        setup=flags.get("setup", ()),
        signal_lead_s=lead_s,
        budget=_whole(flags, "budget", least=1, default=3),
        run_dir=os.path.abspath(run_dir.text) if run_dir is not None else "",
        is_array=is_array,
    )


def _whole(flags: Mapping[str, Any], name: str, *, least: int, default: int) -> int:
    text = flags.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise UsageError(f"--{name.replace('_', '-')}: got {text!r}; give a whole number of at least {least}.")
    return int(text)


def _passed(flags: Mapping[str, Any]) -> list[str]:
    return [word for text in flags.get("sbatch", ()) for word in _words("--sbatch", text)]


def _words(option: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{option}: got {text!r}; it does not read as words of a shell: {error}.") from None


def _distrain() -> list[str]:
    """Return the words that start this very distrain, on a node that has the same file system."""
    path = Path(os.path.abspath(sys.argv[0]))
    is_command = path.name == "distrain" and os.access(path, os.X_OK) and path.is_file()
    return [str(path)] if is_command else [sys.executable, "-m", "distrain"]


def _launch_words(flags: Mapping[str, Any], program: Program, lead_s: int) -> list[str]:
    """Return the words behind `distrain launch`; unless it is said, the ranks have all the lead to save their state."""
    if "grace" not in given(_launch_flags(flags), os.environ, None) and lead_s - SPARE_S > GRACE_S:
        flags = {**flags, "grace": str(lead_s - SPARE_S)}
    words = [
        each.flag if each.kind == "flag" else f"{each.flag}={flags[each.name]}"
        for each in OPTIONS
        if each.name in flags and each.name not in ("dry_run", "json", "run_dir")
    ]
    return [*words, program.target, *program.args]
