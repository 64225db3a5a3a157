"""A program for test_xla.py: one of several replicas on XLA devices, with the stand-in for their reduction."""

from __future__ import annotations

import json
import math
import os

os.environ["PJRT_DEVICE"] = "CPU"

import torch
import torch.distributed as dist
import torch_xla
from torch import nn
from torch.nn.functional import mse_loss

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


def main() -> None:
    torch_xla.device()
    dist.init_process_group("gloo")
    fake_replicas.install()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    results = {
        "plain": train(rank, world_size),
        "clipped": train(rank, world_size, max_grad_norm=0.1),
        "skipped": train(rank, world_size, bad=(1, 5), nonfinite_loss="skip"),
    }
    print(json.dumps(results), flush=True)
    dist.barrier()
    dist.destroy_process_group()


main()
