"""Profiles: launch settings in a TOML file.

    extends = "gpu-8"        # another profile, whose settings are weaker
    nproc = 4
    max_restarts = 3
    [env]                    # variables for the workers; what this shell has set is stronger
    NCCL_DEBUG = "WARN"

A name is looked for as `launch/profiles/<name>.toml` below the current folder, then in `~/.config/distrain/profiles`,
then among those that come with distrain. With a slash or `.toml` it is a path.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrain.errors import UsageError, did_you_mean
from distrain.plan.options import OPTIONS

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


def read(name: str, *, cwd: Path, environ: Mapping[str, str]) -> Profile:
    """Read a profile and what it extends.

    Args:
        name: Its name, or a path.
        cwd: The folder that relative paths start from.
        environ: The environment, for the folders.

    Raises:
        UsageError: There is none of that name, it is no TOML, it has an unknown key, or profiles extend each other in a
            circle.
    """
    places = folders(cwd, environ)
    values: dict[str, ProfileValue] = {}
    env: dict[str, ProfileValue] = {}
    files: list[Path] = []
    path = _find(name, cwd, places)
    while True:
        if path in files:
            chain = " → ".join(each.name for each in [*files, path])
            raise UsageError(f"--profile {name}: profiles extend each other in a circle: {chain}.")
        files.append(path)
        content, text = _parse(path)
        for key, value in content.items():
            where = f"{path.name}, line {_line_of(text, key)}"
            if key == EXTENDS:
                continue
            if key == ENV:
                for variable, each in _table(value, where).items():
                    env.setdefault(variable, ProfileValue(text=_text(each, where), where=f"{path.name} [env]"))
                continue
            option_name = _known(key, where)
            values.setdefault(option_name, ProfileValue(text=_text(value, where), where=f"{where}: {key}"))
        if EXTENDS not in content:
            return Profile(name=name, files=tuple(files), values=values, env=env)
        parent = content[EXTENDS]
        if not isinstance(parent, str):
            raise UsageError(f"{path.name}, line {_line_of(text, EXTENDS)}: extends takes a profile's name or path.")
        path = _find(parent, path.parent, [path.parent, *places])


def _find(name: str, cwd: Path, places: list[Path]) -> Path:
    if "/" in name or name.endswith(".toml"):
        path = (cwd / name).absolute()
        if not path.is_file():
            raise UsageError(f"--profile: there is no file {path}.")
        return path
    for place in places:
        path = (place / f"{name}.toml").absolute()
        if path.is_file():
            return path
    known = sorted({each.stem for place in places if place.is_dir() for each in place.glob("*.toml")})
    raise UsageError(
        f"--profile: there is no profile {name!r}; known here are {', '.join(known) or 'none'}."
        f"{did_you_mean(name, known)}"
    )


def _parse(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text()
        return tomllib.loads(text), text
    except OSError as error:
        raise UsageError(f"--profile: {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--profile: {path} is no valid TOML: {error}.") from None


def _known(key: str, where: str) -> str:
    valid = [each.name for each in OPTIONS if each.in_profile]
    name = key.replace("-", "_")
    if name in valid:
        return name
    if any(name == each.name for each in OPTIONS):
        raise UsageError(f"{where}: {key!r} cannot be set in a profile, only on the command line.")
    valid += [ENV, EXTENDS]
    hint = did_you_mean(name, valid) or f" Valid are {', '.join(valid)}."
    raise UsageError(f"{where}: unknown key {key!r}.{hint}")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: [env] is a table of variables.")
    return value


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(each, (str, int)) for each in value):
        return ",".join(map(str, value))
    raise UsageError(f"{where}: got {type(value).__name__}; give a text, a number, true, false or a list of them.")


def _line_of(text: str, key: str) -> int:
    """Return the line of a key; the TOML reader of the standard library does not tell it."""
    pattern = re.compile(rf"""\s*(\[\s*)?["']?{re.escape(key)}["']?\s*[=\].]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)
