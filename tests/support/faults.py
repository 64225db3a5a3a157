"""Faults on demand: which rank fails, at which optimizer step, in which attempt, and how.

Two ways in, both told by the variable `DISTRAIN_TEST_FAULT`:

- any script, unchanged: `python tests/support/faults.py script.py args…` counts the script's optimizer steps;
- a script of the test's own: `faults.strike(step)` where it should happen.

A worker finds this module because `environment()` names its folder in PYTHONPATH.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "Fault", "environment", "strike"]

VARIABLE = "DISTRAIN_TEST_FAULT"
KINDS = ("exception", "exit", "signal", "hang", "spin", "thread-hang")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Args:
        kind: One of `KINDS`.
        rank: The global rank that it hits.
        step: The optimizer step, from 1, before whose end it happens.
        attempt: The attempt in which it happens (torchrun's restart count), or None for each.
        code: The exit code of `exit`, the number of `signal`.
    """

    kind: str
    rank: int = 0
    step: int = 1
    attempt: int | None = 0
    code: int = int(signal.SIGKILL)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault {self.kind!r}; there are {', '.join(KINDS)}")

    def to_text(self) -> str:
        attempt = "*" if self.attempt is None else self.attempt
        return f"{self.kind},{self.rank},{self.step},{attempt},{self.code}"

    @classmethod
    def from_text(cls, text: str) -> Fault:
        kind, rank, step, attempt, code = text.split(",")
        return cls(
            kind=kind,
            rank=int(rank),
            step=int(step),
            attempt=None if attempt == "*" else int(attempt),
            code=int(code),
        )

    def is_due(self, step: int) -> bool:
        """Whether it happens in this process at `step`."""
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        here = self.rank == int(os.environ.get("RANK", "0")) and self.attempt in {None, attempt}
        return here and step == self.step


def environment(*faults: Fault) -> dict[str, str]:
    """Return the variables that make `faults` happen in the workers of a launch."""
    folder = str(Path(__file__).resolve().parent)
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    return {VARIABLE: ";".join(fault.to_text() for fault in faults), "PYTHONPATH": path}


def strike(step: int) -> None:
    """Let the fault that is due in this process at `step` happen; return when there is none."""
    for text in filter(None, os.environ.get(VARIABLE, "").split(";")):
        fault = Fault.from_text(text)
        if fault.is_due(step):
            _happen(fault, step)


def _happen(fault: Fault, step: int) -> None:
    where = f"injected at rank {fault.rank}, step {step}"
    print(f"fault {fault.kind} {where}", file=sys.stderr, flush=True)
    match fault.kind:
        case "exception":
            raise RuntimeError(f"fault {where}")
        case "exit":
            sys.exit(fault.code)
        case "signal":
            os.kill(os.getpid(), fault.code)
        case "hang":
            threading.Event().wait()
        case "spin":
            while True:
                pass
        case "thread-hang":
            threading.Thread(target=threading.Event().wait, name="hung").start()
            raise RuntimeError(f"fault {where}")


def main() -> None:
    """Run another script with its faults: `faults.py script.py args…`."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = 0

    def after_step(*_: object) -> None:
        nonlocal steps
        steps += 1
        strike(steps)

    register_optimizer_step_post_hook(after_step)
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
