"""What nodes tell each other of their profiles, and which differences between them matter for the run.

Options that matter are compared as the plans have them, wherever they come from (`facts`). What is left is the
variables that a profile gives to the ranks: libraries and scripts read them, so they count, but for those of which is
known that they only name a device of this host, a place on its disks, or what is printed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from distrain.plan.plan import Plan

__all__ = ["differing_keys", "differing_variables", "profile_says"]

ENV = "env."
OF_THE_SHELL = "set in the shell"
"""What stands for a variable that the shell has set: whoever did that on one node meant it."""

HIDDEN = "sha256:"
_SHOWN = re.compile(r"(NCCL|RCCL|TORCH|TORCHINDUCTOR|PYTORCH|GLOO|TP|UCX|CUDA|PJRT|XLA|OMP|MKL|DISTRAIN|PET)_.*")
_HARMLESS = re.compile(
    r"(?!TORCH_DISTRIBUTED_DEBUG)"  # DETAIL adds collectives, which all ranks have to call
    r"(.*_)?(DEBUG|VERBOSE|LOG|LOGS|IFNAME|HCA|THREADS|DIR|PATH|HOME|CACHE|DEVICES|KEY|TOKEN|SECRET|PASSWORD)(_.*)?"
)


def profile_says(plan: Plan) -> dict[str, str]:
    """Return what a plan has from its profile: option, or `env.` and a variable, to its value.

    The value of a variable may be secret: it is told where the name is that of a known library, else a digest of it.

    Args:
        plan: The plan.
    """
    options = {name: str(each.value) for name, each in plan.settings.items() if each.origin == "profile"}
    variables = {f"{ENV}{name}": _told(name, text) for name, text in plan.profile_env.items()}
    overruled = {f"{ENV}{name}": OF_THE_SHELL for name in plan.overruled_env}
    return {**options, **variables, **overruled}


def _told(name: str, text: str) -> str:
    is_shown = _SHOWN.fullmatch(name) is not None and not re.search("KEY|TOKEN|SECRET|PASSWORD", name)
    return text if is_shown else HIDDEN + hashlib.sha256(text.encode()).hexdigest()[:16]


def differing_keys(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return in what two profiles differ.

    Args:
        one: What `profile_says` returned on one node.
        other: The same of another.
    """
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def differing_variables(
    one: Mapping[str, str], other: Mapping[str, str], name_of_one: str, name_of_other: str
) -> list[str]:
    """Return the variables that differ and may matter for the run, each with what it is on both nodes.

    Args:
        one: What `profile_says` returned on one node.
        other: The same of another.
        name_of_one: How a message calls that node.
        name_of_other: The same.
    """
    lines = []
    for key in differing_keys(one, other):
        name, here, there = key.removeprefix(ENV), one.get(key), other.get(key)
        if not key.startswith(ENV) or OF_THE_SHELL in (here, there) or _HARMLESS.fullmatch(name):
            continue
        if here is not None and there is not None and here.startswith(HIDDEN):
            lines.append(f"{name} in the profile has one value on {name_of_one} and another on {name_of_other}")
        else:
            lines.append(
                f"{name} in the profile is {_shown(here)} on {name_of_one} and {_shown(there)} on {name_of_other}"
            )
    return lines


def _shown(text: str | None) -> str:
    return "not set" if text is None else "set" if text.startswith(HIDDEN) else text
