"""`distrain launch`: read the command line, make the plan, carry it out or print it."""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Sequence

from distrain.cli.parsing import Parser, add_launch_options, add_program, program_of, read
from distrain.cli.printing import tell
from distrain.errors import UsageError
from distrain.plan import Plan, check_program, current_folder, resolve
from distrain.plan.sources import given
from distrain.supervision.output import say

__all__ = ["main"]


def _parser() -> Parser:
    parser = Parser(
        prog="distrain launch",
        usage="distrain launch [options] script.py [args ...]\n       distrain launch [options] -m module [args ...]",
        description="Start one process per device of each node and run the script in each. Every option can be set by "
        "DISTRAIN_<NAME> too, torchrun's also by PET_<NAME>.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_launch_options(parser)
    add_program(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `distrain launch`.

    Args:
        argv: The arguments after `launch`.

    Returns:
        The exit code, as `distrain.launcher.run` has it.

    Raises:
        UsageError: The command line, the script or the run directory cannot be used.
    """
    flags, script, args = read(_parser(), argv)
    asked = given(flags, os.environ, None)
    dry_run = "dry_run" in asked
    if "json" in flags and not dry_run:
        raise UsageError("--json belongs to --dry-run: distrain launch --dry-run --json …")
    plan = resolve(program_of(flags, script, args), flags, environ=os.environ)
    try:
        if not (dry_run and plan.program.kind == "command"):  # which may be on the nodes only
            check_program(plan.program, cwd=current_folder())
    except SyntaxError as error:
        say("".join(traceback.format_exception_only(type(error), error)).rstrip("\n"))
        if not plan.program.target.endswith(".py"):
            say(f"{plan.program.target} does not read as Python. Use --no-python to run a command.")
        return 1
    if dry_run:
        tell(_shown(plan, json="json" in asked))
        return 0
    for warning in plan.warnings:
        say(f"distrain: warning: {warning}")

    from distrain.launcher.run import run

    return run(plan, environ=os.environ)


def _shown(plan: Plan, *, json: bool) -> str:
    import socket

    from distrain.plan import render
    from distrain.rundir import ENV_RUN_DIR

    data = render.as_data(plan, os.environ, host=socket.gethostname(), run_dir_variable=ENV_RUN_DIR)
    return render.as_json(data) if json else render.as_text(data)
