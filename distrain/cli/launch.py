"""`distrain launch`: read the command line, make the plan, carry it out or print it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from distrain.errors import UsageError, did_you_mean
from distrain.plan import Plan, Program, check_program, resolve
from distrain.plan.options import GROUPS, OPTIONS, Option
from distrain.plan.sources import given

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is raised as ours, in one line, and torchrun's abbreviations stay unambiguous."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. distrain launch --help lists the options.")

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Return the option that a word abbreviates: torchrun's, where only one of them is torchrun's.

        An ambiguous word abbreviates nothing. argparse asks for the script's own arguments too (before Python 3.12),
        which may be called anything; ahead of the script it is an unknown option.
        """
        matches: list[Any] = super()._get_option_tuples(option_string)
        torchruns = {each.name for each in OPTIONS if each.is_torchruns}
        named = [match for match in matches if match[0].dest in torchruns] or matches
        return named[:1] if len({match[0].dest for match in named}) == 1 else []


def _parser() -> _Parser:
    parser = _Parser(
        prog="distrain launch",
        usage="distrain launch [options] script.py [args ...]\n       distrain launch [options] -m module [args ...]",
        description="Start one process per device of each node and run the script in each. Every option can be set by "
        "DISTRAIN_<NAME> too, torchrun's also by PET_<NAME>.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for each in OPTIONS:
        _add(groups[each.group], each)
    parser.add_argument("script", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("args", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _add(group: argparse._ArgumentGroup, each: Option) -> None:
    """Add an option: its short and its first long spelling are shown, the others are understood."""
    short = [word for word in each.spellings if not word.startswith("--")]
    action = "store_const" if each.kind == "flag" else "store"
    value = {"const": "1"} if each.kind == "flag" else {"metavar": each.metavar}
    shown = [*short, each.flag]
    group.add_argument(*shown, dest=each.name, action=action, help=each.help, **value)  # type: ignore[arg-type]
    others = [word for word in each.spellings if word not in shown]
    if others:
        group.add_argument(*others, dest=each.name, action=action, help=argparse.SUPPRESS, **value)  # type: ignore[arg-type]


def main(argv: Sequence[str]) -> int:
    """Run `distrain launch`.

    Args:
        argv: The arguments after `launch`.

    Returns:
        The exit code, as `supervisor.run` has it.

    Raises:
        UsageError: The command line, the script or the run directory cannot be used.
    """
    flags, script, args = _read(argv)
    plan = resolve(_program(flags, script, args), flags, environ=os.environ)
    dry_run = "dry_run" in flags
    try:
        if not (dry_run and plan.program.kind == "command"):  # which may be on the nodes only
            check_program(plan.program, cwd=Path.cwd())
    except SyntaxError as error:
        sys.stderr.write("".join(traceback.format_exception_only(type(error), error)))
        if not plan.program.target.endswith(".py"):
            print(f"{plan.program.target} does not read as Python. Use --no-python to run a command.", file=sys.stderr)
        return 1
    if dry_run:
        sys.stdout.write(_shown(plan, json="json" in flags))
        return 0
    for warning in plan.warnings:
        print(f"distrain: warning: {warning}", file=sys.stderr)

    from distrain.launcher import supervisor

    return supervisor.run(plan, environ=os.environ)


def _read(argv: Sequence[str]) -> tuple[dict[str, str], str | None, list[str]]:
    options, unknown = _parser().parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        known = [word for each in OPTIONS for word in each.spellings if "_" not in word]
        hint = did_you_mean(flag, known) or " distrain launch --help lists the options."
        raise UsageError(f"unknown option {flag}.{hint}")
    flags = {name: value for name, value in vars(options).items() if value is not None}
    flags.pop("args")
    script = flags.pop("script", None)
    if "json" in flags and "dry_run" not in flags:
        raise UsageError("--json belongs to --dry-run: distrain launch --dry-run --json …")
    return flags, script, options.args


def _program(flags: Mapping[str, str], script: str | None, args: list[str]) -> Program:
    found = given(flags, os.environ, None)
    kinds = [name for name in ("module", "no_python", "run_path") if name in found]
    if {"module", "no_python"} <= set(kinds):
        raise UsageError("-m and --no-python exclude each other; a command is no module.")
    kind = "path" if "run_path" in kinds else {"module": "module", "no_python": "command"}.get("".join(kinds), "script")
    if script is None:
        what = "script" if kind == "path" else kind
        raise UsageError(f"no {what} given. Usage: distrain launch [options] script.py [args ...]")
    return Program(
        kind=kind,  # type: ignore[arg-type]  # one of the four above
        target=script,
        args=tuple(args),
        interpreter=os.environ.get("PYTHON_EXEC") or sys.executable,
    )


def _shown(plan: Plan, *, json: bool) -> str:
    import socket

    from distrain.plan import render
    from distrain.rundir import ENV_RUN_DIR

    data = render.as_data(plan, os.environ, host=socket.gethostname(), run_dir_variable=ENV_RUN_DIR)
    return render.as_json(data) if json else render.as_text(data)
