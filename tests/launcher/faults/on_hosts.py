"""A fault among ranks on two hosts: `distrain launch` on each, and what both told of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launcher.faults.corpus import PROGRAM, Case
from tests.support.namespaces import Host

__all__ = ["Told", "strike"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the launcher of one host told.

    Args:
        exit_code: How it ended.
        printed: All it printed on standard error.
        record: What stands in its failure.json; empty without one.
    """

    exit_code: int
    printed: str
    record: dict[str, Any]

    @property
    def report(self) -> str:
        """The failure report of the last attempt, from `root cause: ` on; "" without one."""
        _, found, rest = self.printed.rpartition("\nroot cause: ")
        return "root cause: " + rest.partition("\ndistrain: ")[0] if found else ""


def strike(
    two: Sequence[Host],
    folder: Path,
    case: Case,
    struck: str,
    *,
    nproc: int = 1,
    nnodes: str = "2",
    options: Sequence[str] = (),
    deadline_s: float = 90,
) -> list[Told]:
    """Run the program of the corpus on two hosts until both launchers have ended.

    Args:
        two: The hosts; they meet on the first.
        folder: Where it runs, as on a shared disk.
        case: The fault.
        struck: The ranks that it strikes, separated by commas.
        nproc: Ranks on each host.
        nnodes: How many nodes there may be.
        options: More options of the launch.
        deadline_s: How long each launcher may take.
    """
    how = ("--nnodes", nnodes, "--nproc", str(nproc), "--device", "cpu", "--grace", "5", "--run-dir", "run")
    told = [*how, *options, "--rdzv-endpoint", f"{two[0].name}:29400", PROGRAM, case.name, struck]
    folders = [folder / "run", folder / "run" / "node-1"]
    with (
        two[0].launching("--node-rank", "0", *told, cwd=folder, run_dir=folders[0]) as head,
        two[1].launching("--node-rank", "1", *told, cwd=folder, run_dir=folders[1]) as member,
    ):
        ends = [live.end(deadline_s) for live in (head, member)]
    records = [folder / "failure.json" for folder in folders]
    return [
        Told(exit_code=code, printed=err, record=json.loads(path.read_text()) if path.exists() else {})
        for (code, _, err), path in zip(ends, records, strict=True)
    ]
