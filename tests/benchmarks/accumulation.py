"""What gradient accumulation costs under DDP: two ranks over gloo on this machine, windows of 8 micro-batches.

    python tests/benchmarks/accumulation.py [--windows 2] [--rounds 40]

Our trainer with `gradient_accumulation_steps=8` beside a hand-written loop that leaves communication out until the
window's last micro-batch (`no_sync`), one that does not, and ignite's trainer. The model is a perceptron of 4.5 million
parameters, whose gradients fill several of DDP's buckets.

First each contender trains with a communication hook that does DDP's own all-reduce and counts it: all-reduces in a
window, and how many MB each rank brings into them. Then, without the hook, the contenders take turns in one world,
round after round on models of their own; a turn begins behind a barrier and lasts until both ranks are done. Told are
the wall time of a window and its CPU time (that of both ranks, all threads), each as the median over the rounds, and as
the median and the quartiles of each round's ratio to the hand-written `no_sync` loop. Where other programs want the
CPUs too, the CPU time is the steadier of the two.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import distrain

WORLD_SIZE = 2
NUM_MICRO = 8
WIDTH = 1024
BATCH = 4
BUCKET_MB = 5
"""Buckets of a large model would be DDP's 25 MB; this one gets several of them so."""

Batches = Sequence[Any]
Run = Callable[[Batches], Any]
BASE = "by hand, no_sync"


@dataclass(frozen=True, slots=True, kw_only=True)
class Milliseconds:
    """What a window took.

    Args:
        wall: By the clock, the mean of the ranks.
        cpu: Of CPU time, the sum of the ranks.
    """

    wall: float
    cpu: float


def parts() -> tuple[DistributedDataParallel, torch.optim.Optimizer, Callable[..., torch.Tensor]]:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = DistributedDataParallel(nn.Sequential(*layers, nn.Linear(WIDTH, 256)), bucket_cap_mb=BUCKET_MB)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3), nn.functional.mse_loss


def by_hand(model: Any, optimizer: Any, loss_fn: Any, *, has_no_sync: bool) -> Run:
    def run(batches: Batches) -> None:
        model.train()
        for number, (x, y) in enumerate(batches, 1):
            if number % NUM_MICRO == 1:
                optimizer.zero_grad()
            is_last = number % NUM_MICRO == 0
            with model.no_sync() if has_no_sync and not is_last else nullcontext():
                loss = loss_fn(model(x), y)
                (loss / NUM_MICRO).backward()
            if is_last:
                optimizer.step()
            loss.item()

    return run


def contenders() -> dict[str, Callable[..., Run]]:
    """Return what makes a run of a model, its optimizer and its loss."""
    found: dict[str, Callable[..., Run]] = {
        BASE: lambda *given: by_hand(*given, has_no_sync=True),
        "distrain": lambda *given: (
            distrain.create_supervised_trainer(*given, gradient_accumulation_steps=NUM_MICRO).run
        ),
        "by hand, every micro-batch reduced": lambda *given: by_hand(*given, has_no_sync=False),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from ignite.engine import create_supervised_trainer
        except ImportError:
            return found
    return {
        **found,
        "ignite": lambda *given: create_supervised_trainer(*given, gradient_accumulation_steps=NUM_MICRO).run,
    }


def count(make: Callable[..., Run], batches: Batches) -> tuple[float, float]:
    """Return the all-reduces in a window and the MB that a rank brings into them."""
    model, *others = parts()
    sizes: list[int] = []

    def reduce_and_note(state, bucket):  # DDP refuses annotations that are text
        sizes.append(bucket.buffer().nbytes)
        mean = bucket.buffer().div_(WORLD_SIZE)
        return dist.all_reduce(mean, async_op=True).get_future().then(lambda future: future.value()[0])

    model.register_comm_hook(None, reduce_and_note)
    run = make(model, *others)
    run(batches[:NUM_MICRO])  # DDP makes its buckets anew behind the first backward pass
    sizes.clear()
    run(batches)
    num_windows = len(batches) / NUM_MICRO
    return len(sizes) / num_windows, sum(sizes) / num_windows / 1e6


def measure(runs: dict[str, Run], batches: Batches, num_rounds: int) -> dict[str, list[Milliseconds]]:
    """Return the milliseconds of a window of each contender, round by round. Every other round goes backwards."""
    found: dict[str, list[Milliseconds]] = {name: [] for name in runs}
    for number in range(-1, num_rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            gc.collect()
            dist.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            runs[name](batches)
            dist.barrier()
            taken = torch.tensor([time.perf_counter() - wall, time.process_time() - cpu])
            dist.all_reduce(taken)
            if number >= 0:  # the one before is for what happens on first use
                wall_ms, cpu_ms = (taken / (len(batches) / NUM_MICRO) * 1e3).tolist()
                found[name].append(Milliseconds(wall=wall_ms / WORLD_SIZE, cpu=cpu_ms))
    return found


def table(counts: dict[str, tuple[float, float]], times: dict[str, list[Milliseconds]]) -> str:
    columns = ("all-reduces", "MB", "wall ms", "x", "quartiles", "CPU ms", "x", "quartiles")
    lines = [f"{f'a window of {NUM_MICRO}':34}" + "".join(f"{name:>12}" for name in columns)]
    for name, (reductions, megabytes) in counts.items():
        lines.append(f"{name:34}{reductions:12.1f}{megabytes:12.1f}")
        for clock in ("wall", "cpu"):
            mine = [getattr(each, clock) for each in times[name]]
            ratios = [a / getattr(b, clock) for a, b in zip(mine, times[BASE], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            lines[-1] += f"{statistics.median(mine):12.1f}{middle:12.3f}{f'{low:.2f}–{high:.2f}':>12}"
    return "\n".join(lines)


def rank_main(rank: int, store: str, num_windows: int, num_rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE)
    torch.manual_seed(rank)
    batches = [(torch.randn(BATCH, WIDTH), torch.randn(BATCH, 256)) for _ in range(num_windows * NUM_MICRO)]
    makers = contenders()
    counts = {name: count(make, batches) for name, make in makers.items()}
    times = measure({name: make(*parts()) for name, make in makers.items()}, batches, num_rounds)
    if rank == 0:
        if "ignite" not in makers:
            print("ignite is not installed: its row is left out\n")
        print(table(counts, times))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=2, help="windows in a round, default %(default)s")
    parser.add_argument("--rounds", type=int, default=40, help="rounds, default %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="accumulation-") as folder:
        mp.spawn(rank_main, args=(f"{folder}/store", options.windows, options.rounds), nprocs=WORLD_SIZE)


if __name__ == "__main__":
    main()
