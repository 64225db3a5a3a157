"""What an iteration costs in our engine and in our trainer, beside hand-written loops and the trainers of others.

    python tests/benchmarks/engine_overhead.py [--iterations 1000] [--rounds 30] [--only trainer] [--device cuda]

Four tables.

- *empty step*: the engine alone, a step that does nothing, beside a `for` loop and ignite's engine; the difference is
  in microseconds an iteration. A filter that does not fire is a handler that is attached and never called.
- *nothing but calls*: the trainer with a model, a loss and an optimizer that do nothing, beside a `for` loop that makes
  the same calls. What is left is what the trainer itself costs when the processor's caches are its own; on a busy
  machine this is the figure to compare two versions by. With a real step in between it is more.
- *trainer*: `create_supervised_trainer` on a tiny model (a 10→1 linear layer, batches of 8, SGD, one thread) beside a
  hand-written loop that does the same: zero_grad, forward, loss, backward, step, `.item()`, with `model.train()` once
  before it (the trainer calls it in each iteration, as its contract says: there is a row for a loop that does). Each
  option of the trainer stands beside a hand-written loop with that option, or beside the trainer without it. ignite's
  trainer is in the same process.
- *other trainers*: Lightning Fabric, accelerate and Lightning's Trainer (barebones: no logging, no checkpoints, no bar,
  no summary) on the same model, each in a process of its own beside a hand-written loop, since they patch torch.

The contenders of a process take turns, round after round, on models of their own. The clock is the thread's CPU time.
Told are the best round, the ratio of the best rounds, and the medians over the rounds of the ratio and of the
difference to what the row stands beside. A busy machine only ever adds time: with enough rounds the ratios settle.

On a GPU (`--device cuda`) there is the *trainer* table alone, and the clock is the wall's, from an idle device to an
idle device.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import logging
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import distrain
from distrain.engine import Engine, Events

Batches = Sequence[Any]
Run = Callable[[Batches], float]
"""Trains on the batches and returns the CPU seconds that it took."""

MAX_NORM = 1.0
NUM_MICRO = 4
NUM_EMPTY = 50
"""Iterations of a step that computes nothing for one of the tiny model: about as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A row of a table.

    Args:
        make: Returns what is run in each round.
        beside: The row that it is compared with.
    """

    make: Callable[[], Run]
    beside: str


def timed(run: Callable[[Batches], Any]) -> Run:
    def run_timed(batches: Batches) -> float:
        started = seconds()
        run(batches)
        return seconds() - started

    return run_timed


def seconds() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()


def measure(
    contenders: dict[str, Contender], batches: Batches, num_rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Return the microseconds an iteration of each contender, round by round. Every other round goes backwards."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.device(device):
        runs = {name: contender.make() for name, contender in contenders.items()}
    for run in runs.values():
        run(batches[:NUM_MICRO])  # what is imported or compiled on first use
    gc.collect()
    gc.freeze()  # so that collecting between the rounds is short: contenders are compared at about the same moment
    gc.disable()
    for number in range(num_rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            found[name].append(runs[name](batches) / len(batches) * 1e6)
        gc.collect()
    return found


def table(title: str, contenders: dict[str, Contender], times: dict[str, list[float]]) -> str:
    columns = ("us best", "x best", "x median", "+us best", "+us median")
    lines = [f"{title:48}" + "".join(f"{name:>11}" for name in columns) + "  beside"]
    for name, contender in contenders.items():
        pairs = list(zip(times[name], times[contender.beside], strict=True))
        best, base = min(times[name]), min(times[contender.beside])
        ratio, more = statistics.median(a / b for a, b in pairs), statistics.median(a - b for a, b in pairs)
        compared = "" if name == contender.beside else f"  {contender.beside}"
        lines.append(f"{name:48}{best:11.2f}{best / base:11.3f}{ratio:11.3f}{best - base:11.2f}{more:11.2f}{compared}")
    return "\n".join(lines)


# The engine alone.


def empty_step() -> dict[str, Contender]:
    def step(engine: Any, batch: Any) -> Any:
        return batch

    def by_hand() -> Run:
        def run(batches: Batches) -> Any:
            output = None
            for batch in batches:
                output = step(None, batch)
            return output

        return timed(run)

    def ours(*events: Any) -> Run:
        engine = Engine(step)
        for event in events:
            engine.add_event_handler(event, lambda engine: None)
        return timed(engine.run)

    found = {
        "by hand": Contender(make=by_hand, beside="by hand"),
        "distrain": Contender(make=ours, beside="by hand"),
        "distrain, a filter that does not fire": Contender(
            make=lambda: ours(Events.ITERATION_COMPLETED(every=10**9)), beside="distrain"
        ),
        "distrain, a handler every iteration": Contender(
            make=lambda: ours(Events.ITERATION_COMPLETED), beside="distrain"
        ),
    }
    if (ignite := import_ignite()) is None:
        return found
    never = ignite.Events.ITERATION_COMPLETED(every=10**9)

    def theirs(*events: Any) -> Run:
        engine = ignite.Engine(step)
        for event in events:
            engine.add_event_handler(event, lambda engine: None)
        return timed(engine.run)

    return {
        **found,
        "ignite": Contender(make=theirs, beside="by hand"),
        "ignite, a filter that does not fire": Contender(make=lambda: theirs(never), beside="ignite"),
    }


# The tiny model.


def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer, Callable[..., torch.Tensor]]:
    torch.manual_seed(0)
    model = torch.nn.Linear(10, 1)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3), torch.nn.functional.mse_loss


def by_hand(given: Any = None) -> Run:
    model, optimizer, loss_fn = given or parts()

    def run(batches: Batches) -> Any:
        model.train()
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            output = loss.item()
        return output

    return timed(run)


def by_hand_train_each() -> Run:
    model, optimizer, loss_fn = parts()

    def run(batches: Batches) -> Any:
        for x, y in batches:
            optimizer.zero_grad()
            model.train()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            output = loss.item()
        return output

    return timed(run)


def by_hand_detached() -> Run:
    model, optimizer, loss_fn = parts()

    def run(batches: Batches) -> Any:
        model.train()
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            output = loss.detach()
        return output

    return timed(run)


def by_hand_clipped() -> Run:
    model, optimizer, loss_fn = parts()

    def run(batches: Batches) -> Any:
        model.train()
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            output = loss.item()
        return output

    return timed(run)


def by_hand_accumulated(given: Any = None) -> Run:
    model, optimizer, loss_fn = given or parts()

    def run(batches: Batches) -> Any:
        model.train()
        for number, (x, y) in enumerate(batches, 1):
            if number % NUM_MICRO == 1:
                optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            (loss / NUM_MICRO).backward()
            if number % NUM_MICRO == 0:
                optimizer.step()
            output = loss.item()
        return output

    return timed(run)


def by_hand_scaled() -> Run:
    model, optimizer, loss_fn = parts()
    kind = next(model.parameters()).device.type
    scaler = torch.amp.GradScaler(kind)

    def run(batches: Batches) -> Any:
        model.train()
        for x, y in batches:
            optimizer.zero_grad()
            with torch.autocast(kind):
                loss = loss_fn(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            output = loss.item()
        return output

    return timed(run)


def ours(attach: Callable[[Engine], Any] = lambda trainer: None, **options: Any) -> Run:
    trainer = distrain.create_supervised_trainer(*parts(), **options)
    attach(trainer)
    return timed(trainer.run)


def never_fired(trainer: Engine) -> None:
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=10**9), lambda engine: None)


def trainers() -> dict[str, Contender]:
    found = {
        "by hand": Contender(make=by_hand, beside="by hand"),
        "by hand, model.train() in each iteration": Contender(make=by_hand_train_each, beside="by hand"),
        "distrain": Contender(make=ours, beside="by hand"),
        "distrain, a filter that does not fire": Contender(make=lambda: ours(never_fired), beside="distrain"),
        "distrain, LossAggregator(every=100)": Contender(
            make=lambda: ours(distrain.LossAggregator(every=100).attach), beside="distrain"
        ),
        "by hand, detached loss": Contender(make=by_hand_detached, beside="by hand"),
        "distrain, detached_loss": Contender(
            make=lambda: ours(output_transform=distrain.detached_loss), beside="by hand, detached loss"
        ),
        "by hand, clipped": Contender(make=by_hand_clipped, beside="by hand"),
        "distrain, max_grad_norm": Contender(make=lambda: ours(max_grad_norm=MAX_NORM), beside="by hand, clipped"),
        "by hand, windows of 4": Contender(make=by_hand_accumulated, beside="by hand"),
        "distrain, windows of 4": Contender(
            make=lambda: ours(gradient_accumulation_steps=NUM_MICRO), beside="by hand, windows of 4"
        ),
        "by hand, amp with a scaler": Contender(make=by_hand_scaled, beside="by hand"),
        "distrain, amp with a scaler": Contender(
            make=lambda: ours(amp_mode="amp", scaler=True), beside="by hand, amp with a scaler"
        ),
    }
    if (ignite := import_ignite()) is None:
        return found

    def theirs(**options: Any) -> Run:
        return timed(ignite.create_supervised_trainer(*parts(), **options).run)

    found |= {
        "ignite": Contender(make=theirs, beside="by hand"),
        "ignite, windows of 4": Contender(
            make=lambda: theirs(gradient_accumulation_steps=NUM_MICRO), beside="by hand, windows of 4"
        ),
    }
    if torch.cuda.is_initialized():  # on the CPU it does without amp
        found["ignite, amp with a scaler"] = Contender(
            make=lambda: theirs(amp_mode="amp", scaler=True), beside="by hand, amp with a scaler"
        )
    return found


# Nothing but calls.


class NoLoss:
    def backward(self) -> None: ...

    def item(self) -> float:
        return 0.0

    def __truediv__(self, other: int) -> NoLoss:
        return self

    __mul__ = __truediv__


class NoModel:
    def train(self) -> None: ...

    def __call__(self, x: Any) -> Any:
        return x


class NoOptimizer:
    param_groups: Sequence[Any] = ()

    def zero_grad(self) -> None: ...

    def step(self) -> None: ...


def nothing_but_calls() -> dict[str, Contender]:
    loss = NoLoss()
    given: Any = (NoModel(), NoOptimizer(), lambda y_pred, y: loss)
    cpu = torch.device("cpu")

    def ours(**options: Any) -> Callable[[], Run]:
        return lambda: timed(distrain.create_supervised_trainer(*given, **options).run)

    found = {
        "by hand": Contender(make=lambda: by_hand(given), beside="by hand"),
        "distrain": Contender(make=ours(), beside="by hand"),
        "distrain, device=torch.device('cpu')": Contender(make=ours(device=cpu), beside="by hand"),
        "by hand, windows of 4": Contender(make=lambda: by_hand_accumulated(given), beside="by hand"),
        "distrain, windows of 4": Contender(
            make=ours(gradient_accumulation_steps=NUM_MICRO), beside="by hand, windows of 4"
        ),
    }
    if (ignite := import_ignite()) is None:
        return found

    def theirs(**options: Any) -> Callable[[], Run]:
        return lambda: timed(ignite.create_supervised_trainer(*given, **options).run)

    return {
        **found,
        "ignite": Contender(make=theirs(), beside="by hand"),
        "ignite, device=torch.device('cpu')": Contender(make=theirs(device=cpu), beside="by hand"),
        "ignite, windows of 4": Contender(
            make=theirs(gradient_accumulation_steps=NUM_MICRO), beside="by hand, windows of 4"
        ),
    }


# Other trainers. Each is imported in its own process only.


def import_ignite() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import ignite.engine
        except ImportError:
            return None
    return ignite.engine


def fabric() -> Run:
    from lightning import Fabric

    model, optimizer, loss_fn = parts()
    setup = Fabric(accelerator="cpu", devices=1)
    model, optimizer = setup.setup(model, optimizer)
    return timed(loop_with(model, optimizer, loss_fn, setup.backward))


def accelerate() -> Run:
    from accelerate import Accelerator

    model, optimizer, loss_fn = parts()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    return timed(loop_with(model, optimizer, loss_fn, accelerator.backward))


def loop_with(model: Any, optimizer: Any, loss_fn: Any, backward: Callable[[Any], Any]) -> Callable[[Batches], Any]:
    def run(batches: Batches) -> Any:
        model.train()
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            backward(loss)
            optimizer.step()
            output = loss.item()
        return output

    return run


def lightning() -> Run:
    """Return a run of Lightning's Trainer, timed from its epoch's start to its epoch's end."""
    import lightning.pytorch as pl

    model, optimizer, loss_fn = parts()

    class Loader:
        """Lightning takes a list for several loaders."""

        def __init__(self, batches: Batches) -> None:
            self.batches = batches

        def __iter__(self) -> Iterator[Any]:
            return iter(self.batches)

        def __len__(self) -> int:
            return len(self.batches)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def configure_optimizers(self) -> Any:
            return optimizer

        def training_step(self, batch: Any) -> Any:
            x, y = batch
            loss = loss_fn(self.model(x), y)
            self.seen = loss.item()
            return loss

        def on_train_epoch_start(self) -> None:
            self.started = time.thread_time()

        def on_train_epoch_end(self) -> None:
            self.seconds = time.thread_time() - self.started

    def run(batches: Batches) -> float:
        module = Module()
        pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, barebones=True).fit(module, Loader(batches))
        return module.seconds

    return run


PEERS = {
    "Lightning Fabric": ("lightning", fabric),
    "accelerate": ("accelerate", accelerate),
    "Lightning Trainer": ("lightning", lightning),
}
"""Other trainers: the package each is in, and what makes it."""


def peer(name: str) -> dict[str, Contender]:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    return {
        "by hand": Contender(make=by_hand, beside="by hand"),
        name: Contender(make=PEERS[name][1], beside="by hand"),
    }


# The tables.


def tiny_batches(num_iterations: int, device: str) -> Batches:
    torch.manual_seed(0)
    with torch.device(device):
        return [(torch.randn(8, 10), torch.randn(8, 1)) for _ in range(num_iterations)]


def print_table(title: str, num_iterations: int, num_rounds: int, device: str) -> None:
    """Measure and print one table; each is made in a process of its own."""
    torch.set_num_threads(1)
    batches = tiny_batches(num_iterations, device)
    if title == "empty step":
        contenders, batches = empty_step(), range(num_iterations * NUM_EMPTY)
    elif title == "nothing but calls":
        contenders, batches = nothing_but_calls(), batches * NUM_EMPTY
    else:
        contenders = trainers() if title == "trainer" else peer(title)
    print(table(title, contenders, measure(contenders, batches, num_rounds, device)), end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--iterations",
        type=int,
        default=1000,
        help=f"of the tiny model in a round, {NUM_EMPTY} times as many of what computes nothing; default %(default)s",
    )
    parser.add_argument("--rounds", type=int, default=30, help="rounds, default %(default)s")
    titles = ("empty step", "nothing but calls", "trainer", *PEERS)
    parser.add_argument("--only", choices=titles, help="this table alone; default: all of them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    options = parser.parse_args()
    if options.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no CUDA device here")
        titles = ("trainer",)

    if import_ignite() is None:
        print("ignite is not installed: its rows are left out\n")
    for title in titles if options.only is None else [options.only]:
        package = PEERS[title][0] if title in PEERS else "torch"
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: {title} is left out\n")
            continue
        process = multiprocessing.get_context("spawn").Process(
            target=print_table, args=(title, options.iterations, options.rounds, options.device)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"the process of the table {title!r} ended with exit code {process.exitcode}")


if __name__ == "__main__":
    main()
