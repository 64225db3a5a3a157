"""`distrain launch`: read the command line, make the plan, carry it out."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from distrain.errors import UsageError, did_you_mean
from distrain.plan import Program, resolve
from distrain.plan.options import check_program

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is raised as ours, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. distrain launch --help lists the options.")


def _parser() -> tuple[_Parser, list[str]]:
    """Return the parser and the options it knows."""
    parser = _Parser(
        prog="distrain launch",
        usage="distrain launch [options] script.py [args ...]\n       distrain launch [options] -m module [args ...]",
        description="Start one process per device of this machine and run the script in each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags: list[str] = []

    def add(*names: str, aliases: tuple[str, ...] = (), **options: Any) -> None:
        flags.extend(name for name in names if name.startswith("--"))
        action = parser.add_argument(*names, **options)
        if aliases:  # torchrun's spellings, which the help need not repeat
            parser.add_argument(*aliases, dest=action.dest, **{**options, "help": argparse.SUPPRESS})

    add(
        "--nproc",
        metavar="N|auto|cpu|gpu",
        aliases=("--nproc-per-node", "--nproc_per_node"),
        help="processes to start; default: one per visible accelerator, one without",
    )
    add("--device", metavar="auto|cpu|cuda|xla", help="what the processes compute on; default: auto")
    add("--run-dir", metavar="DIR", help="where logs and checkpoints go; used again, the run goes on there")
    add("--name", metavar="NAME", help="the run's name, part of a new run directory's; default: the script's")
    add(
        "--max-restarts",
        metavar="N",
        aliases=("--max_restarts",),
        help="how often a failed group of processes is started again; default: 0",
    )
    add("--log-ranks", metavar="0|all|0,3", help="ranks whose output is shown; all is on disk; default: 0")
    add(
        "--no-fork-server",
        dest="fork_server",
        action="store_false",
        help="start a plain interpreter for each rank, for programs that cannot be forked",
    )
    add("-m", "--module", action="store_true", help="the script is a module's name, as for python -m")
    add(
        "--no-python",
        action="store_true",
        aliases=("--no_python",),
        help="the script is any command, started as it is",
    )
    add("script", nargs="?", help=argparse.SUPPRESS)
    add("args", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser, flags


def main(argv: Sequence[str]) -> int:
    """Run `distrain launch`.

    Args:
        argv: The arguments after `launch`.

    Returns:
        The exit code, as `supervisor.run` has it.

    Raises:
        UsageError: The command line, the script or the run directory cannot be used.
    """
    parser, flags = _parser()
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        hint = did_you_mean(flag, flags) or " distrain launch --help lists the options."
        raise UsageError(f"unknown option {flag}.{hint}")
    if options.script is None:
        what = "module" if options.module else "command" if options.no_python else "script"
        raise UsageError(f"no {what} given. Usage: distrain launch [options] script.py [args ...]")
    if options.module and options.no_python:
        raise UsageError("-m and --no-python exclude each other; a command is no module.")
    program = Program(
        kind="module" if options.module else "command" if options.no_python else "script",
        target=options.script,
        args=tuple(options.args),
    )
    plan = resolve(
        program,
        nproc=options.nproc,
        device=options.device,
        max_restarts=options.max_restarts,
        log_ranks=options.log_ranks,
        fork_server=options.fork_server,
        name=options.name,
        run_dir=options.run_dir,
        environ=os.environ,
    )
    try:
        check_program(program, cwd=Path.cwd())
    except SyntaxError as error:
        sys.stderr.write("".join(traceback.format_exception_only(type(error), error)))
        if not program.target.endswith(".py"):
            print(f"{program.target} does not read as Python. Use --no-python to run a command.", file=sys.stderr)
        return 1

    from distrain.launcher import supervisor

    return supervisor.run(plan, environ=os.environ)
