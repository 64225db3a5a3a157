"""A program for test_xla.py: one of several replicas on XLA devices, with the stand-in for their reduction."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import TensorDataset

import distrain
from tests.support import fake_replicas


def train(rank: int, world_size: int, *, bad: tuple[int, int] | None = None, **options: object) -> dict[str, object]:
    """Train on this rank's part of each batch; on rank and iteration `bad` the loss is nan."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).to("xla")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = []
    for iteration in range(1, 7):
        x, y = torch.randn(4 * world_size, 3), torch.randn(4 * world_size, 1)
        x, y = x[rank::world_size], y[rank::world_size].clone()
        data.append((x, y.fill_(math.nan) if bad == (rank, iteration) else y))
    trainer = distrain.create_supervised_trainer(
        model, optimizer, mse_loss, "xla", gradient_accumulation_steps=3, **options
    )
    stepped = []
    optimizer.register_step_post_hook(lambda *_: stepped.append(trainer.state.iteration))
    fake_replicas.reductions.clear()
    trainer.run(data)
    return {
        "steps": stepped,
        "reductions": fake_replicas.reductions.copy(),
        "weights": torch.cat([p.detach().cpu().reshape(-1) for p in model.parameters()]).tolist(),
    }


def script(
    device: torch.device | str,
    rank: int,
    batch_size: int,
    max_epochs: int,
    at_each: Callable[[int], None] | None = None,
) -> dict[str, object]:
    """Do what a user's script does, and `at_each` iteration's end; started again it goes on from its checkpoint."""
    torch.manual_seed(rank)  # the weights begin apart
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model.register_buffer("place", torch.tensor([float(rank)]))
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = distrain.prepare(model, optimizer)
    x = torch.randn(48, 3, generator=torch.Generator().manual_seed(5))
    loader = distrain.dataloader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size, shuffle=True, seed=3)
    trainer = distrain.create_supervised_trainer(model, optimizer, mse_loss, device=device)
    distrain.LossAggregator(every=1).attach(trainer)
    checkpointer = distrain.Checkpointer()
    checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader)
    losses = {}
    trainer.add_event_handler(
        distrain.Events.ITERATION_COMPLETED,
        lambda: losses.update({trainer.state.iteration: trainer.state.metrics.get("loss")}),
    )
    if at_each is not None:
        trainer.add_event_handler(distrain.Events.ITERATION_COMPLETED, lambda: at_each(trainer.state.iteration))
    trainer.run(loader, max_epochs=max_epochs)
    return {
        "losses": losses,
        "weights": torch.cat([each.detach().cpu().reshape(-1) for each in model.state_dict().values()]).tolist(),
    }


def main() -> None:
    os.environ["PJRT_DEVICE"] = "CPU"
    fake_replicas.install()
    with distrain.init(device="xla") as world:
        rank, world_size = world.rank, world.world_size
        results = {
            "rank": rank,
            "plain": train(rank, world_size),
            "clipped": train(rank, world_size, max_grad_norm=0.1),
            "skipped": train(rank, world_size, bad=(1, 5), nonfinite_loss="skip"),
            "script": script(world.device, rank, 4, 2),
            "resumed": script(world.device, rank, 4, 3),
        }
        print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
