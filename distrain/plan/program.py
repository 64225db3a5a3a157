"""What every rank runs, and whether it can be run at all."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distrain.errors import UsageError, did_you_mean

__all__ = ["Program", "check_program", "current_folder"]

RUN_PATH = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What every rank runs.

    Args:
        kind: `script` (a file, or a folder or archive with a `__main__.py`), `module` (as `python -m`), `path` (as
            `runpy.run_path`) or `command` (any executable, started as it is).
        target: The path, the module's name or the executable.
        args: What follows it on the command line; `${local_rank}` in it becomes the local rank, as torchrun has it.
        interpreter: The Python to run it with.
    """

    kind: Literal["script", "module", "path", "command"]
    target: str
    args: tuple[str, ...] = ()
    interpreter: str = sys.executable

    @property
    def command(self) -> list[str]:
        """The command line a fresh process would be started with, interpreter included, as torchrun has it."""
        if self.kind == "command":
            return [self.target, *self.args]
        how = {"module": ["-m"], "path": ["-c", RUN_PATH]}.get(self.kind, [])
        return [self.interpreter, "-u", *how, self.target, *self.args]

    @property
    def foreign(self) -> str:
        """What it is when no line of ours can run ahead of it in its process, in a few words; else ""."""
        if self.kind == "command":
            return "a program of --no-python"
        return "" if self.interpreter == sys.executable else "a program of another interpreter (PYTHON_EXEC)"

    @property
    def name(self) -> str:
        """A short name: the file's stem or the module's last part."""
        if self.kind == "module":
            return self.target.rpartition(".")[2]
        return Path(self.target).name.removesuffix(".py")


def current_folder() -> Path:
    """Return the current folder.

    Raises:
        UsageError: It has been removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UsageError("the current folder has been removed; change to one that exists: cd DIR.") from None


def check_program(program: Program, *, cwd: Path) -> None:
    """Refuse a program that no rank could run, before anything is started.

    Args:
        program: What every rank would run.
        cwd: The directory relative paths start from.

    Raises:
        UsageError: The file is missing or unreadable, is no Python, or the executable is not on the PATH.
        SyntaxError: The script is Python that does not parse.
    """
    if program.kind == "module":
        return
    if program.kind == "command":
        _check_command(program.target)
        return
    path = cwd / program.target
    if path.is_dir():
        if not (path / "__main__.py").is_file():
            raise UsageError(f"{program.target} is a folder without a __main__.py; give a script, or -m with a module.")
        return
    if not path.exists():
        siblings = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        raise UsageError(f"script {program.target!r} does not exist (looked in {path.parent}).{hint}")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(f"script {program.target!r} cannot be read: {error.strerror}.") from None
    if path.suffix == ".pyc" or _is_archive(path, source):
        return
    first_line = source.split(b"\n", 1)[0]
    foreign = first_line.startswith(b"#!") and b"python" not in first_line
    if foreign or b"\0" in source:
        what = first_line.decode(errors="replace").strip() if foreign else "a binary file"
        raise UsageError(f"{program.target!r} is not a Python script ({what}). Use --no-python to run it as a command.")
    compile(source, str(path), "exec", dont_inherit=True)


def _is_archive(path: Path, source: bytes) -> bool:
    """Whether Python would run a file as an archive, also one that begins with the line that names its interpreter."""
    if b"PK\5\6" not in source:  # what ends one; zipfile takes 15 ms to import
        return False
    import zipfile

    return zipfile.is_zipfile(path)


def _check_command(target: str) -> None:
    import shutil

    if shutil.which(target) is None:
        exists = os.path.exists(target)
        what = "is not executable (chmod +x it)" if exists else "is not an executable on the PATH"
        raise UsageError(f"--no-python: {target!r} {what}.")
