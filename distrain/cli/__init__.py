"""The `distrain` command: one module a subcommand; each parses, calls one function and returns an exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from distrain.cli.first_process import end_at_signals, is_first_process
from distrain.cli.printing import tell
from distrain.errors import DistrainError, UsageError, did_you_mean
from distrain.supervision.output import open_standard_descriptors, say

__all__ = ["main"]

_COMMANDS = {
    "launch": "start a program on every device of this machine",
    "submit": "have a scheduler start it: distrain submit slurm",
    "requeue": "have the scheduler start it again, inside its job",
}

_USAGE = """\
usage: distrain COMMAND ...

Launch one PyTorch training process per device, from one warm import.

commands:
{commands}

options:
  -h, --help     show this help, or a command's: distrain COMMAND --help
  --version      show the version
"""

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after `distrain`; None takes the process's own.

    Returns:
        The exit code; 2 for wrong use, which is said in one line on standard error.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    open_standard_descriptors()
    if is_first_process():
        end_at_signals()
    if not args or args[0] in ("-h", "--help"):
        tell(_USAGE.format(commands="\n".join(f"  {name:<13}{what}" for name, what in _COMMANDS.items())))
        return 0 if args else EXIT_USAGE
    if args[0] == "--version":
        from distrain import __version__

        tell(f"distrain {__version__}\n")
        return 0
    name = args[0]
    if name not in _COMMANDS:
        what = "option" if name.startswith("-") else "command"
        say(f"distrain: unknown {what} {name!r}; valid commands are {', '.join(_COMMANDS)}.{_hint(name)}")
        return EXIT_USAGE
    command = importlib.import_module(f"distrain.cli.{name}")
    try:
        code: int = command.main(args[1:])
    except UsageError as error:
        say(f"distrain {name}: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:  # before the command took the signals over
        return EXIT_INTERRUPTED
    except DistrainError as error:
        say(f"distrain {name}: {error}")
        return 1
    return code


def _hint(name: str) -> str:
    if name.endswith(".py"):
        return f" Did you mean distrain launch {name}?"
    from distrain.plan.options import OPTIONS

    if name.partition("=")[0] in (word for each in OPTIONS for word in each.spellings):
        return f" Options come behind the command: distrain launch {name} …"
    return did_you_mean(name, _COMMANDS)
