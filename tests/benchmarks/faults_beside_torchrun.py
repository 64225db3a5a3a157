"""Who names the rank that failed: the corpus of faults under `distrain launch` and under torchrun.

    python tests/benchmarks/faults_beside_torchrun.py --sizes 2,4
    python tests/benchmarks/faults_beside_torchrun.py --sizes 2,4 --hosts 2

Each fault of tests/launcher/faults strikes once under each launcher. A rank is named rightly when the report's root
cause is a rank that was struck; torchrun's is its "Root Cause (first observed failure)". A traceback is shown when the
function that the fault strikes in stands in that report (for torchrun, anywhere on the terminal).

With two hosts, which are network namespaces (this needs root), half of the ranks run on each. The fault strikes the
last rank where there are four or more, else the first. Every host has a terminal of its own: a rank counts as named
rightly, and a traceback as shown, when that is so on both; where it is so on one the table says "1 of 2".
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.launcher.faults.corpus import CASES, PROGRAM, Case
from tests.support.namespaces import Host, hosts
from tests.support.processes import wait_until

DEADLINE_S = 150
OTHER_S = 30
"""How long the second launcher may go on once the first has ended."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one terminal showed: whether the rank was named rightly, whether the traceback was there, and the end."""

    is_right: bool
    is_shown: bool
    has_ended: bool


def command(launcher: str, case: Case, nproc: int, struck: str, node: int | None) -> list[str]:
    """Return the command line for one host; `node` is its number among two, None on one host alone."""
    script = [str(PROGRAM), case.name, struck]
    local = nproc if node is None else nproc // 2
    meeting = [] if node is None else ["--nnodes=2", f"--node-rank={node}", "--rdzv-endpoint=h0:29400"]
    if launcher == "torchrun":
        how = [*meeting, "--rdzv-backend=c10d", "--rdzv-id=faults"] if meeting else ["--standalone"]
        how += [f"--nproc-per-node={local}", "--log-dir=logs"]  # else in the temporary folder
        return [sys.executable, "-m", "torch.distributed.run", *how, *script]
    return [sys.executable, "-m", "distrain", "launch", *meeting, f"--nproc={local}", "--device=cpu", *script]


def look(launcher: str, case: Case, nproc: int, two: Sequence[Host]) -> list[Seen]:
    """Return what each host's terminal showed; without hosts there is one."""
    struck = "0" if two and nproc < 4 and not case.ranks else case.struck(nproc)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, tempfile.TemporaryDirectory() as logs:
        started = []
        for node in range(len(two)) if two else [None]:
            enter = [] if node is None else [*two[node].enter, f"--wdns={folder}"]
            file = open(Path(logs) / f"{node}", "wb")  # noqa: SIM115 - closed with the process
            process = subprocess.Popen(
                [*enter, *command(launcher, case, nproc, struck, node)],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
            started.append((process, file))
        processes = [process for process, _ in started]
        _wait(processes, any, DEADLINE_S)
        _wait(processes, all, OTHER_S)
        ended = [process.poll() is not None for process in processes]
        for process, file in started:
            process.kill()
            process.wait()
            file.close()
        for pid in [pid for host in two for pid in host.processes()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # what a launcher has left behind would meet the next ones
        texts = [Path(file.name).read_text(errors="replace") for _, file in started]
        return [judge(launcher, case, struck, *each) for each in zip(texts, ended, strict=True)]


def _wait(processes: Sequence[subprocess.Popen[bytes]], how_many: Callable[[list[bool]], bool], deadline_s: float):
    """Wait until any or all of them have ended, at most until the deadline."""
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: how_many([process.poll() is not None for process in processes]), deadline_s)


def judge(launcher: str, case: Case, struck: str, text: str, has_ended: bool) -> Seen:
    """Return what a terminal showed."""
    where = f"in {case.name.replace('-', '_')}"
    if launcher == "distrain":
        text = text[text.find("root cause: ") :] if "root cause: " in text else ""
        is_right = case.fits(text.partition("\n")[0], struck)
    else:
        root = re.search(r"Root Cause.*?rank\s*: (\d+)", text, re.DOTALL)
        is_right = root is not None and root[1] in struck.split(",")
    return Seen(is_right, where in text or "in __getitem__" in text, has_ended)


def cells(case: Case, seen: Sequence[Seen]) -> list[str]:
    right, shown = sum(each.is_right for each in seen), sum(each.is_shown for each in seen)
    rank = "right" if right == len(seen) else f"{right} of {len(seen)}" if right else "wrong"
    late = len(seen) - sum(each.has_ended for each in seen)
    traceback = "shown" if shown == len(seen) else f"{shown} of {len(seen)}" if shown else "—"
    return [rank + (f", {late} did not end" if late else ""), traceback if case.is_python else ""]


def measure(sizes: Sequence[int], two: Sequence[Host]) -> None:
    where = f" on {len(two)} hosts" if two else ""
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs; {len(CASES)} faults × {sizes} processes{where}\n"
    )
    print(
        "| fault | n | torchrun: rank | traceback | distrain: rank | traceback |\n|---|---|---|---|---|---|", flush=True
    )
    totals = {"torchrun": [0, 0, 0], "distrain": [0, 0, 0]}
    pythons = sum(case.is_python for case in CASES) * len(sizes)
    for case in CASES:
        for nproc in sizes:
            row = []
            for launcher, total in totals.items():
                seen = look(launcher, case, nproc, two)
                total[0] += all(each.is_right for each in seen)
                total[1] += case.is_python and all(each.is_shown for each in seen)
                total[2] += any(each.is_right for each in seen)
                row += cells(case, seen)
            print(f"| {case.name} | {nproc} | {' | '.join(row)} |", flush=True)
    runs = len(CASES) * len(sizes)
    for launcher, (right, shown, somewhere) in totals.items():
        rank = f"the right rank in {right} of {runs}" + (f" (on one host at least in {somewhere})" if two else "")
        print(f"\n{launcher}: {rank}, the traceback in {shown} of {pythons} Python failures")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="2,4", help="numbers of processes, default %(default)s")
    parser.add_argument("--hosts", type=int, choices=(1, 2), default=1, help="hosts they run on, default %(default)s")
    options = parser.parse_args(argv)
    sizes = [int(word) for word in options.sizes.split(",")]
    if options.hosts == 1:
        measure(sizes, ())
        return
    with hosts(2) as two:
        measure(sizes, two)


if __name__ == "__main__":
    main()
