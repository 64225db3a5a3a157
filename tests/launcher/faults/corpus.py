"""The faults, and what a report must say of each: which rank, which kind, whether a traceback of the user's code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CASES", "PROGRAM", "Case"]

PROGRAM = Path(__file__).parent / "program.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fault.

    Args:
        name: Its name in `program.py`, where it strikes in the function of that name.
        kind: What the first line of the report says after the host, as a pattern.
        exit_code: The launcher's exit code.
        is_python: Whether a Python exception is the reason, so that its traceback must be shown.
        is_crash: Whether native code crashed, so that the Python stack must be shown.
        ranks: The ranks that it strikes, where those are not the last one alone.
    """

    name: str
    kind: str
    exit_code: int = 1
    is_python: bool = True
    is_crash: bool = False
    ranks: str = ""

    def struck(self, nproc: int) -> str:
        return self.ranks or str(nproc - 1)

    def fits(self, first_line: str, struck: str) -> bool:
        """Whether a report's first line names one of the struck ranks and the kind."""
        match = re.match(r"root cause: rank (\d+) on [^:]+: (.*)", first_line)
        return match is not None and match[1] in struck.split(",") and re.match(self.kind, match[2]) is not None


def _ended(name: str, kind: str, exit_code: int) -> Case:
    return Case(name=name, kind=kind, exit_code=exit_code, is_python=False)


def _signalled(name: str, signal: str, number: int, *, is_crash: bool = False) -> Case:
    return Case(name=name, kind=f"{signal}: .", exit_code=128 + number, is_python=False, is_crash=is_crash)


CASES = (
    Case(name="value-error", kind="ValueError: the batch is empty"),
    Case(name="error-inside-torch", kind="RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    Case(name="assertion", kind="AssertionError: steps do not add up"),
    Case(name="chained-error", kind="RuntimeError: the configuration is incomplete"),
    Case(name="message-of-several-lines", kind="RuntimeError: first line"),
    Case(name="error-without-a-message", kind="NotImplementedError: ."),
    Case(name="error-that-cannot-be-shown", kind=r".*BrokenError: ."),
    Case(name="recursion", kind="RecursionError: maximum recursion depth exceeded"),
    Case(name="memory-error", kind="MemoryError: ."),
    Case(name="missing-file", kind=r"FileNotFoundError: \[Errno 2\]"),
    Case(name="missing-module", kind="ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
    Case(name="syntax-error-in-a-module", kind="SyntaxError: invalid syntax"),
    Case(name="no-cuda", kind="(AssertionError|RuntimeError|torch.*Error): .*(CUDA|cuda)"),
    Case(name="error-in-a-loader-process", kind="OSError: .*"),
    Case(name="killed-loader-process", kind=r"RuntimeError: DataLoader worker \(pid"),
    Case(name="fails-before-the-first-step", kind="LookupError: no such model"),
    Case(name="fails-while-a-thread-goes-on", kind="ValueError: with a thread"),
    Case(name="loses-a-connection-of-its-own", kind="ConnectionResetError: the link to the storage is gone"),
    Case(name="two-fail-together", kind="ValueError: both of us", ranks="0,1"),
    _ended("exit-3", "exit code 3: .", 3),
    _ended("exit-with-words", "exit code 1: .*no data for this rank", 1),
    _ended("hard-exit-7", "exit code 7: .", 7),
    _ended("leaves-early", "exit code 0: .", 1),
    _ended("does-not-take-part", "Timeout: .", 1),
    _signalled("segmentation-fault", "SIGSEGV", 11, is_crash=True),
    _signalled("killed", "SIGKILL", 9),
    _signalled("terminated", "SIGTERM", 15),
    _signalled("aborted", "SIGABRT", 6, is_crash=True),
    _signalled("bus-error", "SIGBUS", 7, is_crash=True),
    _signalled("floating-point-signal", "SIGFPE", 8, is_crash=True),
    _signalled("illegal-instruction", "SIGILL", 4, is_crash=True),
)
