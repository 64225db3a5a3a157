"""Frames of a Python stack: which are the user's, which are a library's, and how a stack is shown short."""

from __future__ import annotations

import itertools
import os
import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

__all__ = ["Frame", "fold", "is_library", "package_of", "short_path"]

_INSTALLED = re.compile(r".*[/\\](?:site|dist)-packages[/\\]", re.DOTALL)
# Code without a file: what Python freezes, and what numpy, torch.fx and attrs generate. `<string>` and
# `<stdin>` are not among them: they are `python -c`, and the user's.
_GENERATED = re.compile(r"<(?:frozen (?P<module>\w+)|__array_function__|eval_with_key|attrs generated)")
_OURS = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One call on a Python stack. Two are equal when file, line and function are.

    Args:
        file: The source file, as the code object names it.
        line: The line in it, from 1; 0 when unknown.
        function: The function's name, `<module>` at the top level.
        code: The source line without its indentation, "" when unknown.
    """

    file: str
    line: int
    function: str
    code: str = field(default="", compare=False)


@lru_cache(maxsize=1)
def _roots() -> tuple[str, ...]:
    """The folders whose content is Python's own, then the one that holds distrain; each with a separator at its end."""
    stdlib = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(os.__file__).parent)}
    folders = {real for folder in stdlib for real in (folder, os.path.realpath(folder))}
    return tuple(folder + os.sep for folder in (*sorted(folders, key=len, reverse=True), str(Path(_OURS).parent)))


@lru_cache(maxsize=4096)
def _library_path(file: str) -> str:
    """The path of a library's file below the folder that libraries are found in, "" for a user's file."""
    if generated := _GENERATED.match(file):
        return generated["module"] or file
    if installed := _INSTALLED.match(file):
        return file[installed.end() :]
    *stdlib, home = _roots()
    for root in stdlib:
        if file.startswith(root):
            return file[len(root) :]
    return file[len(home) :] if file.startswith(_OURS + os.sep) else ""


def is_library(file: str) -> bool:
    """Whether a file is installed code rather than the user's: a package, the standard library, or distrain.

    Args:
        file: A path as a code object names it, or a name such as `<frozen runpy>` or `<string>`.
    """
    return bool(_library_path(file))


def package_of(file: str) -> str:
    """Return the top-level package or module that a library's file belongs to (`torch`), "" for a user's file.

    Args:
        file: As for `is_library`.
    """
    return re.split(r"[/\\]", _library_path(file))[0].removesuffix(".py")


def short_path(file: str) -> str:
    """Return a library's file as `torch/nn/functional.py`, and a user's file as it is.

    Args:
        file: As for `is_library`.
    """
    return _library_path(file) or file


def fold(frames: Iterable[Frame]) -> list[str]:
    """Return the lines that show a stack: each frame of the user's, and one line for a run of library frames.

    Args:
        frames: The stack, in the order to be shown.

    Returns:
        Lines without line ends and without indentation before a frame, such as
        `File "train.py", line 31, in step`, its source line two spaces in, and `… 4 frames in torch`.
    """
    lines = []
    for library, run in itertools.groupby(frames, lambda frame: is_library(frame.file)):
        stack = list(run)
        if library:
            packages = dict.fromkeys(package_of(frame.file) for frame in stack)
            lines.append(f"… {len(stack)} frame{'s' if len(stack) > 1 else ''} in {', '.join(packages)}")
            continue
        for frame in stack:
            lines.append(f'File "{frame.file}", line {frame.line or "unknown"}, in {frame.function}')
            if frame.code:
                lines.append(f"  {frame.code}")
    return lines
