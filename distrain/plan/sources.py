"""Who set what: flags, environment, profile. The first of them that names an option wins."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from distrain.errors import UsageError
from distrain.plan.options import OFF, ON, OPTIONS, Option
from distrain.plan.profile import Profile

__all__ = [
    "Given",
    "Origin",
    "Setting",
    "as_number",
    "given",
    "is_stronger",
    "is_worker",
    "misspelt",
    "seconds",
    "whole_number",
]

Origin = Literal["flag", "environment", "profile", "detected", "default"]

STRENGTH = ("profile", "environment", "flag")

PREFIX = "DISTRAIN_"

OURS = ("DISTRAIN_HEARTBEAT", "DISTRAIN_LAUNCH_ID", "DISTRAIN_SMOKE_TEST")
"""What distrain itself sets that is no option's name."""

UNSET_WHEN_EMPTY = ("rdzv_endpoint", "rdzv_conf")
"""Options whose default in torchrun is the empty text: a batch script may well give them an empty variable."""

FOR_WORKERS = ("DISTRAIN_RUN_DIR", "DISTRAIN_DEVICE", "DISTRAIN_XLA_SPMD")
"""What a worker is told, under names that are options elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value of the plan and the source it came from.

    Args:
        value: The value, ready to be written as JSON.
        origin: The kind of source.
        detail: What the source said, for a reader: the flag, the variable, what was found.
    """

    value: str | int | float | bool | None
    origin: Origin
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What somebody asked for, not checked yet.

    Args:
        text: The value as text; `1` for a flag that was given.
        origin: The kind of source.
        where: How a message names the source: `--nproc`, `PET_NNODES`, `gpu-8.toml, line 3: nproc`.
    """

    text: str
    origin: Origin
    where: str


def given(flags: Mapping[str, str], environ: Mapping[str, str], profile: Profile | None) -> dict[str, Given]:
    """Return, for each option that somebody set, the strongest word on it.

    Args:
        flags: Option name to what the command line says, `1` for a flag without a value.
        environ: The environment; `DISTRAIN_<NAME>` is stronger than torchrun's `PET_<NAME>`.
        profile: The profile, or None.

    Raises:
        UsageError: A variable of a flag is neither true nor false.
    """
    if is_worker(environ):
        environ = {name: text for name, text in environ.items() if name not in FOR_WORKERS}
    found: dict[str, Given] = {}
    for each in OPTIONS:
        if each.name in flags and (flags[each.name] or each.name not in UNSET_WHEN_EMPTY):
            found[each.name] = Given(text=flags[each.name], origin="flag", where=each.flag)
        elif (said := _from_environment(each, environ)) is not None:
            found[each.name] = said
        elif profile is not None and each.name in profile.values:
            value = profile.values[each.name]
            found[each.name] = Given(text=value.text, origin="profile", where=value.where)
    # A flag that is switched off counts as not given.
    return {name: said for name, said in found.items() if not (_is_flag(name) and said.text in OFF)}


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that was probably to be one of ours: its name is near, and sets nothing.

    Args:
        environ: The environment.
    """
    known = {name.removeprefix(PREFIX) for each in OPTIONS for name in each.variables if name.startswith(PREFIX)}
    others = sorted(name for name in environ if name.startswith(PREFIX) and name not in OURS)
    unknown = [name for name in others if name.removeprefix(PREFIX) not in known]
    nearest = {name: difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1) for name in unknown}
    return [f"{name} sets nothing. Did you mean {PREFIX}{near[0]}?" for name, near in nearest.items() if near]


def is_worker(environ: Mapping[str, str]) -> bool:
    """Whether this process is a worker of a launch, ours or torchrun's: what it launches is a run of its own."""
    return "RANK" in environ and "TORCHELASTIC_RUN_ID" in environ


def is_stronger(one: Given, other: Given) -> bool:
    """Whether the source of `one` counts more than that of `other`."""
    return STRENGTH.index(one.origin) > STRENGTH.index(other.origin)


def _from_environment(each: Option, environ: Mapping[str, str]) -> Given | None:
    for variable in each.variables:
        text = environ.get(variable)
        if text is None or (not text and each.kind == "text"):
            continue
        if each.kind == "flag":
            if text.lower() not in (*ON, *OFF):
                raise UsageError(f"{variable}: got {text!r}; give 1 or 0.")
            text = "1" if text.lower() in ON else "0"
        return Given(text=text, origin="environment", where=variable)
    return None


def _is_flag(name: str) -> bool:
    return any(each.name == name and each.kind == "flag" for each in OPTIONS)


def as_number(text: str) -> int | None:
    """Return a whole number as torchrun reads it, ` 02` and `+2` too; None where it is none.

    Args:
        text: What was given.
    """
    try:
        return int(text)
    except ValueError:
        return None


def whole_number(said: Given, what: str, *, least: int) -> int:
    """Return a whole number.

    Args:
        said: What was asked for.
        what: What it counts, for the message.
        least: The smallest that is valid.

    Raises:
        UsageError: It is none, or less.
    """
    value = as_number(said.text)
    if value is None or value < least:
        raise UsageError(f"{said.where}: got {said.text!r}; give {what} of at least {least}.")
    return value


def seconds(said: Given, *, least: float = 0.0) -> float:
    """Return a number of seconds.

    Args:
        said: What was asked for.
        least: It must be more than that.

    Raises:
        UsageError: It is none.
    """
    try:
        value = float(said.text)
    except ValueError:
        value = -1.0
    if not least < value < float("inf"):
        raise UsageError(f"{said.where}: got {said.text!r}; give a number of seconds above {least:g}.")
    return value
