"""From the command to the first optimizer step: `distrain launch` beside `torchrun --standalone`.

    python tests/benchmarks/launch_latency.py --sizes 1,2,8,16 --pairs 5 [--device cuda]

Both launch the same script in turn (a tiny model under DDP over gloo, on GPUs over NCCL, which does not use distrain).
Measured are

- the wall time from the command to rank 0's first optimizer step, and to the end of the command;
- the CPU seconds of every process that the command started, until the last one ended;
- with `--memory N`, the proportional set size (PSS) of the whole tree when every rank has done its first step;
- the wall time of `--help`, and of a dry run beside torchrun's `--help`, since torchrun has none; the goal is a
  ratio of at most 0.15 (`--sizes "" --memory 0` measures these two alone).

The launcher runs below a small reaper of its own, which adopts whatever loses its parent: `RUSAGE_CHILDREN` of the
reaper is then the whole tree's CPU time, whoever waited for whom, and the process table below it is the whole tree.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = """\
import os, sys, time
import torch, torch.distributed as dist

folder, device = sys.argv[1:]
if device == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl" if device == "cuda" else "gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(16, 4).to(device))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(3):
    optimizer.zero_grad()
    model(torch.randn(8, 16, device=device)).square().mean().backward()
    optimizer.step()
    if step == 0:
        if device == "cuda":
            torch.cuda.synchronize()
        with open(f"{folder}/step-{rank}.draft", "w") as file:
            file.write(str(time.clock_gettime_ns(time.CLOCK_MONOTONIC)))
        os.rename(f"{folder}/step-{rank}.draft", f"{folder}/step-{rank}")
        while os.path.exists(f"{folder}/hold"):
            time.sleep(0.01)
dist.barrier()
dist.destroy_process_group()
"""

PR_SET_CHILD_SUBREAPER = 36
NANO = 1e-9
DEADLINE_S = 180
DRY_RUN_GOAL = 0.15
DRY_RUN_SCRIPT = Path(__file__).parents[2] / "launch/scripts/train-digits.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One launch.

    Args:
        first_step_s: Wall time from the command to rank 0's first optimizer step.
        whole_s: Wall time from the command to its exit.
        cpu_s: User and system time of every process that it started.
        pss_mb: The tree's proportional set size when all ranks have done a step, or None when not asked for.
    """

    first_step_s: float
    whole_s: float
    cpu_s: float
    pss_mb: float | None


def command(launcher: str, size: int, folder: Path, device: str) -> list[str]:
    script = [str(folder / "train.py"), str(folder), device]
    if launcher == "torchrun":
        # Without a folder for logs it would leave some in the temporary one.
        options = ["--standalone", f"--nproc-per-node={size}", f"--log-dir={folder}/logs"]
        return [sys.executable, "-m", "torch.distributed.run", *options, *script]
    options = ["--nproc", str(size), "--device", device, "--run-dir", str(folder / "run")]
    return [sys.executable, "-m", "distrain", "launch", *options, *script]


def measure(launcher: str, size: int, device: str, *, memory: bool) -> Reading:
    """Launch once, in a reaper forked for it, and return what it cost."""
    folder = Path(tempfile.mkdtemp(prefix="launch-latency-"))
    try:
        (folder / "train.py").write_text(SCRIPT)
        read_fd, write_fd = os.pipe()
        reaper = os.fork()
        if reaper == 0:
            os.close(read_fd)
            code = 1
            try:
                text = json.dumps(reap(command(launcher, size, folder, device), size, folder, memory=memory))
                os.write(write_fd, text.encode())
                code = 0
            finally:
                os._exit(code)
        os.close(write_fd)
        with os.fdopen(read_fd) as pipe:
            text = pipe.read()
        os.waitpid(reaper, 0)
        if not text:
            raise SystemExit(f"{launcher} with {size} processes failed:\n{(folder / 'output').read_text()}")
        return Reading(**json.loads(text))
    finally:
        shutil.rmtree(folder)


def reap(words: Sequence[str], size: int, folder: Path, *, memory: bool) -> dict[str, float | None]:
    """Run `words` below this process, wait for all that it started, and return the fields of a `Reading`."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if memory:
        (folder / "hold").touch()
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / "output", "wb") as output:
        began = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)
    pss_mb = None
    if memory:
        wait_until(lambda: all((folder / f"step-{rank}").exists() for rank in range(size)) or process.poll(), "steps")
        pss_mb = sum(map(pss_of, tree(os.getpid()))) / 1e6
        (folder / "hold").unlink()
    if process.wait(DEADLINE_S) != 0:
        raise RuntimeError("the launch failed")
    ended = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    wait_until(nobody_is_left, "the last process's end")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    stepped = int((folder / "step-0").read_text())
    return {
        "first_step_s": (stepped - began) * NANO,
        "whole_s": (ended - began) * NANO,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "pss_mb": pss_mb,
    }


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {DEADLINE_S} s")
        time.sleep(0.01)


def nobody_is_left() -> bool:
    """Reap what has ended; return whether no child, own or adopted, is there any more."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return True
    return False


def tree(pid: int) -> list[int]:
    """Return every process below `pid`."""
    below: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        below.setdefault(int(fields[1]), []).append(int(entry))
    found, ahead = [], [pid]
    while ahead:
        ahead += (children := below.get(ahead.pop(), []))
        found += children
    return found


def pss_of(pid: int) -> int:
    """Return the bytes of memory of `pid`, shared pages divided by the number of their users."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def help_s(launcher: str) -> float:
    words = ["torch.distributed.run"] if launcher == "torchrun" else ["distrain"]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *words, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def dry_run_s(launcher: str) -> float:
    if launcher == "torchrun":
        return help_s(launcher)
    began = time.perf_counter()
    options = ["--nproc", "8", "--device", "cpu", "--dry-run", str(DRY_RUN_SCRIPT)]
    words = [sys.executable, "-m", "distrain", "launch", *options]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def row(name: str, peer: Sequence[float], ours: Sequence[float], unit: str) -> str:
    """One line of the table: medians, their ratio, and the range of the ratios of the pairs."""
    ratios = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
    a, b = statistics.median(peer), statistics.median(ours)
    spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
    digits = 0 if unit == "MB" else 2
    return f"| {name} | {a:,.{digits}f} {unit} | {b:,.{digits}f} {unit} | {b / a:.2f} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="1,2,8,16", help="numbers of processes, default %(default)s")
    parser.add_argument("--pairs", type=int, default=5, help="launches of each, in turn, default %(default)s")
    parser.add_argument("--memory", type=int, default=8, help="number of processes for the memory's row, 0 for none")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    options = parser.parse_args()
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}")
    print(f"medians of {options.pairs} alternating pairs\n")
    print("| | torchrun | distrain | ratio | ratios of the pairs |\n|---|---:|---:|---:|---:|", flush=True)

    for size in [int(word) for word in options.sizes.split(",") if word]:
        readings = in_turn(
            options.pairs, lambda launcher, size=size: measure(launcher, size, options.device, memory=False)
        )
        for name, attribute in (("first step", "first_step_s"), ("whole run", "whole_s"), ("CPU time", "cpu_s")):
            values = {key: [getattr(each, attribute) for each in found] for key, found in readings.items()}
            print(row(f"n = {size}: {name}", values["torchrun"], values["distrain"], "s"), flush=True)
    if options.memory:
        size = options.memory
        held = in_turn(
            options.pairs, lambda launcher: measure(launcher, size, options.device, memory=True).pss_mb or 0.0
        )
        print(row(f"n = {size}: memory (PSS)", held["torchrun"], held["distrain"], "MB"), flush=True)
    helps = in_turn(options.pairs, help_s)
    print(row("--help", helps["torchrun"], helps["distrain"], "s"))
    plans = in_turn(options.pairs, dry_run_s)
    print(
        row(
            f"--dry-run beside torchrun --help (goal: ratio ≤ {DRY_RUN_GOAL})",
            plans["torchrun"],
            plans["distrain"],
            "s",
        )
    )


def in_turn(pairs: int, function: Callable[[str], object]) -> dict[str, list]:
    """Call `function` for both launchers in turn, each pair beginning with the other one."""
    found: dict[str, list] = {"torchrun": [], "distrain": []}
    for pair in range(pairs):
        for launcher in sorted(found, reverse=pair % 2 == 0):
            found[launcher].append(function(launcher))
    return found


if __name__ == "__main__":
    main()
