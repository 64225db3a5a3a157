"""Who names the rank that failed: the corpus of faults under `distrain launch` and under torchrun.

    python tests/benchmarks/faults_beside_torchrun.py --sizes 2,4

Each fault of tests/launcher/faults strikes once under each launcher. A rank is named rightly when the report's root
cause is a rank that was struck; torchrun's is its "Root Cause (first observed failure)". A traceback is shown when the
function that the fault strikes in stands in that report (for torchrun, anywhere on the terminal).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.launcher.faults.corpus import CASES, PROGRAM, Case

DEADLINE_S = 150


def command(launcher: str, case: Case, nproc: int) -> list[str]:
    script = [str(PROGRAM), case.name, case.struck(nproc)]
    if launcher == "torchrun":
        options = ["--standalone", f"--nproc-per-node={nproc}", "--log-dir=logs"]  # else in the temporary folder
        return [sys.executable, "-m", "torch.distributed.run", *options, *script]
    return [sys.executable, "-m", "distrain", "launch", "--nproc", str(nproc), "--device", "cpu", *script]


def look(launcher: str, case: Case, nproc: int) -> tuple[bool, bool]:
    """Return whether the rank was named rightly, and whether the traceback was shown."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            done = subprocess.run(
                command(launcher, case, nproc),
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DEADLINE_S,
                check=False,
            )
            text = done.stderr
        except subprocess.TimeoutExpired as error:
            text = (error.stderr or b"").decode(errors="replace")
    where = f"in {case.name.replace('-', '_')}"
    if launcher == "distrain":
        report = text[text.find("root cause: ") :] if "root cause: " in text else ""
        return case.fits(report.partition("\n")[0], nproc), where in report or "in __getitem__" in report
    root = re.search(r"Root Cause.*?rank\s*: (\d+)", text, re.DOTALL)
    is_right = root is not None and root[1] in case.struck(nproc).split(",")
    return is_right, where in text or "in __getitem__" in text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="2,4", help="numbers of processes, default %(default)s")
    options = parser.parse_args(argv)
    sizes = [int(word) for word in options.sizes.split(",")]
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs; {len(CASES)} faults × {sizes} processes\n")
    print(
        "| fault | n | torchrun: rank | traceback | distrain: rank | traceback |\n|---|---|---|---|---|---|", flush=True
    )
    totals = {"torchrun": [0, 0], "distrain": [0, 0]}
    pythons = sum(case.is_python for case in CASES) * len(sizes)
    for case in CASES:
        for nproc in sizes:
            cells = []
            for launcher, total in totals.items():
                right, shown = look(launcher, case, nproc)
                total[0] += right
                total[1] += shown and case.is_python
                cells += ["right" if right else "wrong", ("shown" if shown else "—") if case.is_python else ""]
            print(f"| {case.name} | {nproc} | {' | '.join(cells)} |", flush=True)
    runs = len(CASES) * len(sizes)
    for launcher, (right, shown) in totals.items():
        print(
            f"\n{launcher}: the right rank in {right} of {runs}, the traceback in {shown} of {pythons} Python failures"
        )


if __name__ == "__main__":
    main()
