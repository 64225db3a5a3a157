"""Profiles: launch settings in a TOML file.

    extends = "gpu-8"        # another profile, whose settings are weaker
    nproc = 4                # torchrun's names are understood too: nproc_per_node
    max_restarts = 3
    [env]                    # variables for the workers; what this shell has set is stronger
    NCCL_DEBUG = "WARN"

A name is looked for as `launch/profiles/<name>.toml` below the current folder, then in `~/.config/distrain/profiles`,
then among those that come with distrain. With a slash or `.toml` it is a path.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrain.errors import UsageError, did_you_mean
from distrain.plan.options import OFF, ON, OPTIONS, Option

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Profile", "ProfileValue", "folders", "read"]

EXTENDS, ENV = "extends", "env"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileValue:
    """One value of a profile.

    Args:
        text: The value as the command line would have it.
        where: File and line, for a message.
    """

    text: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile with everything that it extends.

    Args:
        name: As it was asked for.
        files: The files, the strongest first.
        values: Option name to its value.
        env: Variable to its value.
    """

    name: str
    files: tuple[Path, ...]
    values: Mapping[str, ProfileValue] = field(default_factory=dict)
    env: Mapping[str, ProfileValue] = field(default_factory=dict)


def folders(cwd: Path, environ: Mapping[str, str]) -> list[Path]:
    """Return where profiles are looked for by name, in order.

    Args:
        cwd: The current folder.
        environ: The environment.
    """
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", "~"), ".config")
    package = Path(__file__).parent.parent
    return [
        cwd / "launch/profiles",
        Path(config).expanduser() / "distrain/profiles",
        package / "profiles",  # in an installed package; in a checkout they are beside it
        package.parent / "launch/profiles",
    ]


def read(name: str, *, cwd: Path, environ: Mapping[str, str], where: str = "--profile") -> Profile:
    """Read a profile and what it extends.

    Args:
        name: Its name, or a path.
        cwd: The folder that relative paths start from.
        environ: The environment, for the folders.
        where: Who asks for it, for a message.

    Raises:
        UsageError: There is none of that name, it is no TOML, it has an unknown key or a value that cannot be, or
            profiles extend each other in a circle.
    """
    places = folders(cwd, environ)
    values: dict[str, ProfileValue] = {}
    env: dict[str, ProfileValue] = {}
    files: list[Path] = []
    path = _find(name, cwd, places, where)
    while True:
        if path in files:
            chain = " → ".join(each.name for each in [*files, path])
            raise UsageError(f"{where}: profiles extend each other in a circle: {chain}.")
        files.append(path)
        content, text = _parse(path, where)
        parent = content.pop(EXTENDS, None)
        table = content.pop(ENV, {})
        values = {**_options(content, path, text), **values}
        env = {**_variables(table, path, text), **env}
        if parent is None:
            return Profile(name=name, files=tuple(files), values=values, env=env)
        where = f"{path.name}, line {_line_of(text, EXTENDS)}: {EXTENDS}"
        if not isinstance(parent, str):
            raise UsageError(f"{where} takes a profile's name or path; got {_as_toml(parent)}.")
        path = _find(parent, path.parent, [path.parent, *places], where)


def _find(name: str, cwd: Path, places: list[Path], where: str) -> Path:
    if "/" in name or name.endswith(".toml"):
        path = (cwd / name).absolute()
        if not path.exists() or path.is_dir():  # a pipe will do
            raise UsageError(f"{where}: there is no file {path}.")
        return path
    for place in places:
        path = (place / f"{name}.toml").absolute()
        if path.is_file():
            return path
    known = sorted({each.stem for place in places if place.is_dir() for each in place.glob("*.toml")})
    raise UsageError(
        f"{where}: there is no profile {name!r}; known here are {', '.join(known) or 'none'}."
        f"{did_you_mean(name, known)}"
    )


def _parse(path: Path, where: str) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except OSError as error:
        raise UsageError(f"{where}: {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: {path} is no valid TOML: {error}.") from None


def _options(content: Mapping[str, Any], path: Path, text: str) -> dict[str, ProfileValue]:
    """Return the options that a file sets, by name."""
    values: dict[str, ProfileValue] = {}
    for key, value in content.items():
        line = f"{path.name}, line {_line_of(text, key)}"
        option = _option(key, line)
        if option.name in values:
            raise UsageError(f"{line}: {key} sets the same as {values[option.name].where}; keep one of them.")
        where = f"{line}: {key}"
        given = _switch(value, where) if option.kind == "flag" else _text(value, where)
        values[option.name] = ProfileValue(text=given, where=where)
    return values


def _variables(table: Any, path: Path, text: str) -> dict[str, ProfileValue]:
    """Return the variables of a file's [env]."""
    if not isinstance(table, dict):
        where = f"{path.name}, line {_line_of(text, ENV)}"
        raise UsageError(f"{where}: [env] is a table of variables; got {_as_toml(table)}.")
    found = {}
    for name, value in table.items():
        line = f"{path.name}, line {_line_of(text, name, ENV)}"
        if not name or set(name) & {"=", "\0"}:
            raise UsageError(f"{line}: got {name!r}; no variable can have that name.")
        where = f"{line}: {name}"
        found[name] = ProfileValue(text=_text(value, where), where=where)
    return found


def _option(key: str, line: str) -> Option:
    name = key.replace("-", "_")
    option = next((each for each in OPTIONS if name in each.keys), None)
    if option is not None and option.in_profile:
        return option
    if option is not None:
        raise UsageError(f"{line}: {key!r} cannot be set in a profile, only on the command line.")
    valid = [*(each.name for each in OPTIONS if each.in_profile), ENV, EXTENDS]
    known = [*(word for each in OPTIONS if each.in_profile for word in each.keys), ENV, EXTENDS]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    hint = did_you_mean(name, known) or f" The nearest is {nearest[0]}; valid are {', '.join(valid)}."
    raise UsageError(f"{line}: unknown key {key!r}.{hint}")


def _switch(value: Any, where: str) -> str:
    """Return what a flag's value says, as the command line would have it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, str) and value.lower() in (*ON, *OFF):
        return "1" if value.lower() in ON else "0"
    raise UsageError(f"{where}: got {_as_toml(value)}; give true or false.")


def _text(value: Any, where: str) -> str:
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(each, (str, int, float)) and not isinstance(each, bool) for each in several):
        raise UsageError(f"{where}: got {_as_toml(value)}; give a text, a number or a list of them.")
    text = ",".join(map(str, several))
    if "\0" in text:
        raise UsageError(f"{where}: got {text!r}; no text may hold a zero byte.")
    return text


def _as_toml(value: Any) -> str:
    """Return a value much as the file has it."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml, value))}]"
    return repr(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


def _line_of(text: str, key: str, table: str = "") -> int:
    """Return the line of a key; the TOML reader of the standard library does not tell it.

    Args:
        text: The file.
        key: The key.
        table: The table that it is in, where it may also be written `table.key`; "" for the top level.
    """
    quoted = rf"""["']?{re.escape(key)}["']?\s*[=\].]"""
    lines = list(enumerate(text.splitlines(), 1))
    if not table:
        return next((number for number, line in lines if re.match(rf"\s*(\[\s*)?{quoted}", line)), 1)
    header = _line_of(text, table)
    inside = [(number, line) for number, line in lines if number >= header]
    pattern = rf"\s*(\[?\s*{table}\s*\.\s*|.*[{{,]\s*)?{quoted}"
    return next((number for number, line in inside if re.match(pattern, line)), header)
