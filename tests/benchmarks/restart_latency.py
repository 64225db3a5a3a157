"""From the death of a rank to the first step of the next attempt, and what the supervisor itself costs.

    python tests/benchmarks/restart_latency.py --sizes 2,8 --pairs 5 --ranks 16 [--device cuda]

`distrain launch` and `torchrun --standalone` run the same script in turn (a tiny model under DDP over gloo, on GPUs
over NCCL, which does not use distrain). After the first step the last rank kills itself with SIGKILL; measured is the
wall time until rank 0 has done the first step of the next attempt. torchrun runs with
`TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`, without which most of its restarts fail (pytorch#135712); its failed restarts
are counted all the same.

Then the supervisor is looked at while `--ranks` ranks take a step each tenth of a second: its share of one core, and
its resident memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = """\
import os, signal, sys, time
import torch, torch.distributed as dist

folder, device = sys.argv[1:]
restart = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if device == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl" if device == "cuda" else "gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(16, 4).to(device))
optimizer = torch.optim.AdamW(model.parameters())
last = dist.get_rank() == dist.get_world_size() - 1
for step in range(3):
    model(torch.randn(8, 16, device=device)).square().mean().backward()
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    if step == 0 and restart == 1 and dist.get_rank() == 0:
        with open(f"{folder}/stepped", "w") as file:
            file.write(str(time.monotonic_ns()))
    if step == 1 and restart == 0 and last:
        with open(f"{folder}/died", "w") as file:
            file.write(str(time.monotonic_ns()))
        os.kill(os.getpid(), signal.SIGKILL)
dist.barrier()
dist.destroy_process_group()
"""

STEADY = """\
import sys, time
import torch, torch.distributed as dist

dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
end = time.monotonic() + float(sys.argv[1])
for step in range(int(float(sys.argv[1]) * 10)):
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    time.sleep(0.1)
dist.barrier()
dist.destroy_process_group()
"""

DEADLINE_S = 180
STEADY_S = 30.0


def command(launcher: str, size: int, device: str, *script: str) -> list[str]:
    if launcher == "torchrun":
        options = [f"--nproc-per-node={size}", "--max-restarts=1", "--log-dir=logs"]  # else in the temporary folder
        words = ["-m", "torch.distributed.run", "--standalone", *options]
    else:
        words = ["-m", "distrain", "launch", "--nproc", str(size), "--device", device, "--max-restarts", "1"]
    return [sys.executable, *words, *script]


def restart_s(launcher: str, size: int, device: str) -> float | None:
    """Return the seconds from the rank's death to the next attempt's first step; None when the restart failed."""
    with tempfile.TemporaryDirectory(prefix="restart-latency-") as name:
        folder = Path(name)
        (folder / "train.py").write_text(SCRIPT)
        env = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command(launcher, size, device, str(folder / "train.py"), name, device),
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        if done.returncode != 0 or not (folder / "stepped").exists():
            return None
        return (int((folder / "stepped").read_text()) - int((folder / "died").read_text())) / 1e9


def supervisor_cost(ranks: int) -> tuple[float, float]:
    """Return the supervisor's share of one core in percent, start and end left out, and its memory in MB."""
    with tempfile.TemporaryDirectory(prefix="restart-latency-") as name:
        (Path(name) / "steady.py").write_text(STEADY)
        process = subprocess.Popen(
            command("distrain", ranks, "cpu", "steady.py", str(STEADY_S + 10)),
            cwd=name,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            time.sleep(10 + ranks / 4)
            before, began = cpu_s(process.pid), time.monotonic()
            time.sleep(STEADY_S / 2)
            used, took = cpu_s(process.pid) - before, time.monotonic() - began
            return 100 * used / took, resident_mb(process.pid)
        finally:
            process.kill()
            process.wait()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def told(values: list[float | None]) -> str:
    whole = [value for value in values if value is not None]
    failed = f" ({len(values) - len(whole)} of {len(values)} failed)" if len(whole) < len(values) else ""
    return (f"{statistics.median(whole):.2f} s" if whole else "none") + failed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="2,8", help="numbers of processes, default %(default)s")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, in turn, default %(default)s")
    parser.add_argument("--ranks", type=int, default=16, help="ranks for the supervisor's cost, 0 for none")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of what is restarted, default %(default)s"
    )
    options = parser.parse_args()
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}")
    print(f"SIGKILL of one rank → first step of the next attempt; medians of {options.pairs} alternating pairs\n")
    print("| n | torchrun | distrain | ratio |\n|---|---:|---:|---:|", flush=True)
    for size in [int(word) for word in options.sizes.split(",")]:
        found: dict[str, list[float | None]] = {"torchrun": [], "distrain": []}
        for pair in range(options.pairs):
            for launcher in sorted(found, reverse=pair % 2 == 0):
                found[launcher].append(restart_s(launcher, size, options.device))
        medians = [statistics.median(filter(None, values)) if any(values) else 0.0 for values in found.values()]
        ratio = f"{medians[1] / medians[0]:.2f}" if all(medians) else "—"
        print(f"| {size} | {told(found['torchrun'])} | {told(found['distrain'])} | {ratio} |", flush=True)
    if options.ranks:
        share, memory = supervisor_cost(options.ranks)
        print(f"\nsupervisor while {options.ranks} ranks train: {share:.1f} % of one core, {memory:.0f} MB resident")


if __name__ == "__main__":
    main()
