"""How commands that start a launch read their words: the options of `distrain launch`, the script, its arguments."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from distrain.cli.printing import tell
from distrain.errors import UsageError, did_you_mean
from distrain.plan import Program
from distrain.plan.options import GROUPS, OPTIONS, Option
from distrain.plan.sources import given

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["Parser", "add_launch_options", "add_program", "program_of", "read"]


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is raised as ours, in one line, and torchrun's abbreviations stay unambiguous."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. {self.prog} --help lists the options.")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is sys.stdout:
            tell(message)
        else:
            super()._print_message(message, file)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Return the option that a word abbreviates: torchrun's, where only one of them is torchrun's.

        An ambiguous word abbreviates nothing. argparse asks for the script's own arguments too (before Python 3.12),
        which may be called anything; ahead of the script it is an unknown option.
        """
        matches: list[Any] = super()._get_option_tuples(option_string)
        torchruns = {each.name for each in OPTIONS if each.is_torchruns}
        named = [match for match in matches if match[0].dest in torchruns] or matches
        return named[:1] if len({match[0].dest for match in named}) == 1 else []


def add_launch_options(parser: argparse.ArgumentParser, *, hidden: Callable[[Option], bool] = lambda _: False) -> None:
    """Add the options of `distrain launch`.

    Args:
        parser: Where.
        hidden: Which of them the help leaves out.
    """
    shown = [each for each in OPTIONS if not hidden(each)]
    groups = {
        name: parser.add_argument_group(title)
        for name, title in GROUPS.items()
        if any(each.group == name for each in shown)
    }
    for each in OPTIONS:
        _add(groups.get(each.group, parser), each, is_hidden=each not in shown)


def _add(group: argparse._ActionsContainer, each: Option, *, is_hidden: bool) -> None:
    """Add an option: its short and its first long spelling are shown, the others are understood."""
    short = [word for word in each.spellings if not word.startswith("--")]
    action = "store_const" if each.kind == "flag" else "store"
    value = {"const": "1"} if each.kind == "flag" else {"metavar": each.metavar}
    shown = [*short, each.flag]
    text = argparse.SUPPRESS if is_hidden else each.help
    group.add_argument(*shown, dest=each.name, action=action, help=text, **value)  # type: ignore[arg-type]
    others = [word for word in each.spellings if word not in shown]
    if others:
        group.add_argument(*others, dest=each.name, action=action, help=argparse.SUPPRESS, **value)  # type: ignore[arg-type]


def add_program(parser: argparse.ArgumentParser) -> None:
    """Add the script and its arguments, which take all that follows.

    Args:
        parser: Where.
    """
    parser.add_argument("script", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("args", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def read(
    parser: Parser, argv: Sequence[str], *, more: Iterable[str] = ()
) -> tuple[dict[str, Any], str | None, list[str]]:
    """Return what a command line gives: options by name, the script, its arguments.

    Args:
        parser: The command's parser.
        argv: The words.
        more: Spellings of options beside those of `distrain launch`, for a hint.

    Raises:
        UsageError: An option is unknown, or lacks its value.
    """
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        known = [word for each in OPTIONS for word in each.spellings if "_" not in word]
        if flag.replace("_", "-") == "--use-env":  # of torch.distributed.launch, where it is what torchrun always does
            raise UsageError(f"{flag} is not needed: every rank finds its place in RANK and LOCAL_RANK. Leave it out.")
        hint = did_you_mean(flag, [*known, *more]) or f" {parser.prog} --help lists the options."
        raise UsageError(f"unknown option {flag}.{hint}")
    flags = {name: value for name, value in vars(options).items() if value is not None}
    flags.pop("args")
    return flags, flags.pop("script", None), options.args


def program_of(
    flags: Mapping[str, str], script: str | None, args: list[str], *, command: str = "distrain launch"
) -> Program:
    """Return what every rank runs.

    Args:
        flags: The options by name.
        script: The script, the module's name or the executable.
        args: What follows it.
        command: The command, for the message.

    Raises:
        UsageError: There is no script, or two options contradict each other.
    """
    found = given(flags, os.environ, None)
    if "run_path" in found:  # it takes precedence over the two others, as it does in torchrun
        kind = "path"
    elif {"module", "no_python"} <= found.keys():
        raise UsageError("-m and --no-python exclude each other; a command is no module.")
    else:
        kind = "module" if "module" in found else "command" if "no_python" in found else "script"
    if not script:
        what = "script" if kind == "path" else kind
        got = "" if script is None else ", but an empty word (a shell variable that is not set?)"
        raise UsageError(f"no {what} given{got}. Usage: {command} [options] script.py [args ...]")
    return Program(
        kind=kind,  # type: ignore[arg-type]  # one of the four above
        target=script,
        args=tuple(args),
        interpreter=os.environ.get("PYTHON_EXEC") or sys.executable,
    )
