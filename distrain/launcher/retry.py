"""Whether another attempt makes sense: an error that strikes where it struck before would only strike again."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Blow", "why_not_again"]

SUPERSEDED = "distrain.errors.SupersededError: "
"""How the blow of a launch reads whose checkpoints another one has taken over."""

USAGE_ERROR = 2
"""The exit code of argparse, click and `distrain` itself for a command line that is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """What a failed attempt is judged by.

    Args:
        is_error: Whether the program ended itself, by an exception or an exit code. Otherwise it was ended: by a
            signal, for a hang, or cut off by a peer.
        exit_code: The rank's exit code.
        what: The exception with its message, or how the rank ended.
        place: Where in the user's program, "" when that is not known.
        step: Where in the run: the trainer's iteration, else the number of optimizer steps; None where nobody counted.
    """

    is_error: bool
    exit_code: int
    what: str
    place: str
    step: int | None


def why_not_again(blow: Blow, before: Blow | None) -> str | None:
    """Return why another attempt would make no sense; None where it may.

    A worker that died, a hang and a lost node are worth another attempt always.

    Args:
        blow: What ended this attempt.
        before: What ended the attempt before it, if there was one.
    """
    if not blow.is_error:
        return None
    if blow.what.startswith(SUPERSEDED):
        return "another launch trains in the same run directory since"
    if blow.exit_code == USAGE_ERROR and not blow.place:
        return "a usage error (exit code 2) does not go away"
    if blow.step == 0:
        return "the error struck before the first step, so it would strike again"
    if before is not None and before.is_error and blow.step is not None:
        same = (_lasting(before.what), before.place, before.step) == (_lasting(blow.what), blow.place, blow.step)
        if same:
            return f"the same error struck at step {blow.step} twice"
    return None


def _lasting(what: str) -> str:
    """Return a message without what changes from attempt to attempt: addresses, process ids, ranks, times."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", what)
