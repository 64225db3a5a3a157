"""What an iteration costs in our engine, beside a hand-written loop and ignite's engine, in one process.

    python tests/benchmarks/engine_overhead.py [--iterations 20000] [--rounds 15]

Two tables. *Empty step*: the engine alone, in microseconds an iteration, less the hand-written loop. *Tiny model*: a
10→1 linear layer, batch of 8, SGD, one thread, and the loss read by `.item()`. The contenders take turns, round after
round, and the best round of each counts; the clock is the thread's CPU time. A busy machine only ever adds to it.
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from distrain.engine import Engine, Events

Contender = Callable[[], Callable[[Iterable[Any]], Any]]


def best_us(
    contenders: dict[str, Contender], num_iterations: int, num_rounds: int, data: Iterable[Any]
) -> dict[str, float]:
    """Return the microseconds an iteration of each contender in its best round."""
    best = dict.fromkeys(contenders, float("inf"))
    gc.collect()
    for _ in range(num_rounds):
        for name, make in contenders.items():
            run = make()
            gc.disable()
            started = time.thread_time()
            run(data)
            seconds = time.thread_time() - started
            gc.enable()
            best[name] = min(best[name], seconds / num_iterations * 1e6)
    return best


def engines(step: Callable[[Any, Any], Any]) -> dict[str, Contender]:
    """Return ours and ignite's: without handlers, with one whose filter never fires, with one that runs."""

    def ours(*events: Any) -> Contender:
        def make() -> Callable[[Iterable[Any]], Any]:
            engine = Engine(step)
            for event in events:
                engine.add_event_handler(event, lambda engine: None)
            return engine.run

        return make

    found = {
        "distrain": ours(),
        "distrain, a filter that does not fire": ours(Events.ITERATION_COMPLETED(every=10**9)),
        "distrain, a handler every iteration": ours(Events.ITERATION_COMPLETED),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from ignite.engine import Engine as PeerEngine
            from ignite.engine import Events as PeerEvents
        except ImportError:
            return found

    def filtered() -> Callable[[Iterable[Any]], Any]:
        engine = PeerEngine(step)
        engine.add_event_handler(PeerEvents.ITERATION_COMPLETED(every=10**9), lambda engine: None)
        return engine.run

    return {**found, "ignite": lambda: PeerEngine(step).run, "ignite, a filter that does not fire": filtered}


def empty_step(num_iterations: int, num_rounds: int) -> dict[str, float]:
    def step(engine: Any, batch: Any) -> Any:
        return batch

    def by_hand() -> Callable[[Iterable[Any]], Any]:
        def run(data: Iterable[Any]) -> Any:
            output = None
            for batch in data:
                output = step(None, batch)
            return output

        return run

    return best_us({"hand-written": by_hand, **engines(step)}, num_iterations, num_rounds, range(num_iterations))


def tiny_model(num_iterations: int, num_rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, loss_fn = torch.nn.Linear(10, 1), torch.nn.functional.mse_loss
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batches = [(torch.randn(8, 10), torch.randn(8, 1))] * num_iterations

    def step(engine: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        x, y = batch
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    def by_hand() -> Callable[[Iterable[Any]], Any]:
        def run(data: Iterable[Any]) -> Any:
            output = None
            for batch in data:
                output = step(None, batch)
            return output

        return run

    return best_us({"hand-written": by_hand, **engines(step)}, num_iterations, num_rounds, batches)


def table(title: str, times: dict[str, float]) -> str:
    base, ours = times["hand-written"], times["distrain"]
    lines = [f"{title:42} {'us/iteration':>12} {'x by hand':>10} {'- by hand':>10} {'- no handler':>13}"]
    for name, us in times.items():
        more = f"{us - ours:13.2f}" if name.startswith("distrain") else " " * 13
        lines.append(f"{name:42} {us:12.2f} {us / base:10.2f} {us - base:10.2f} {more}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20_000, help="iterations of the empty step in a round")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print(table("empty step", empty_step(args.iterations, args.rounds)), end="\n\n")
    print(table("tiny model", tiny_model(max(args.iterations // 50, 1), args.rounds)))


if __name__ == "__main__":
    main()
