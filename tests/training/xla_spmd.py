"""A program for test_xla_spmd_integration.py: training that is the same on one XLA device and, with SPMD, on four."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import distrain
from distrain import Events, create_supervised_evaluator, create_supervised_trainer

OPTIONS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2, "accumulation_tail": "flush", "max_grad_norm": 0.5},
    "skip": {"nonfinite_loss": "skip"},
}
"""How it is trained, by name."""

NUM_SAMPLES, BATCH_SIZE = 45, 8  # the last batch of an epoch has five, which four devices cannot divide evenly


def parts(device):
    """Return model, optimizer and loader, the same each time."""
    torch.manual_seed(0)
    # A bias ahead of the normalisation would have gradients of rounding errors alone, which AdamW makes steps of.
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).to(device)
    x = torch.randn(NUM_SAMPLES, 6, generator=torch.Generator().manual_seed(1))
    loader = distrain.dataloader(TensorDataset(x, x.sum(1).long() % 3), BATCH_SIZE, shuffle=True, seed=2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05), loader


def train(device, *, folder=None, epochs=2, **options):
    """Train; return the losses by iteration, the weights, and how often the optimizer stepped."""
    model, optimizer, loader = parts(device)
    model, optimizer = distrain.prepare(model, optimizer)
    trainer = create_supervised_trainer(model, optimizer, cross_entropy, device=device, **options)
    losses, steps = {}, []
    optimizer.register_step_post_hook(lambda *_: steps.append(trainer.state.iteration))
    if folder is not None:
        checkpointer = distrain.Checkpointer(directory=folder)
        checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: losses.update({trainer.state.iteration: trainer.state.output})
    )
    trainer.run(loader, max_epochs=epochs)
    found = {
        "losses": losses,
        "steps": steps,
        "weights": [each.detach().cpu().reshape(-1).tolist() for each in model.parameters()],
    }
    evaluator = create_supervised_evaluator(model, device=device, output_transform=_mean_loss)
    distrain.LossAggregator().attach(evaluator)
    evaluator.run(loader)
    return {**found, "evaluated": evaluator.state.metrics["epoch_loss"]}


def _mean_loss(_x, y, y_pred):
    return cross_entropy(y_pred, y)


def divided(device):
    """Return how the parts of a batch, the loss and a parameter lie on the devices."""
    from torch_xla import _XLAC

    model, optimizer, loader = parts(device)
    trainer = create_supervised_trainer(
        model,
        optimizer,
        cross_entropy,
        device=device,
        output_transform=lambda x, y, _, loss: [_XLAC._get_xla_sharding_spec(each) for each in (x, y, loss.detach())],
    )
    trainer.run(loader, max_iters=1)
    return [*trainer.state.output, _XLAC._get_xla_sharding_spec(model[0].weight)]


def resumed(device, folder: Path):
    """Train in one go, and in two with a checkpoint between them."""
    whole = train(device, epochs=3)
    first = train(device, folder=folder, epochs=1)
    second = train(device, folder=folder, epochs=3)
    return {"whole": whole, "parts": {**second, "losses": {**first["losses"], **second["losses"]}}}


def main() -> None:
    with distrain.init() as world:
        import torch_xla.runtime as xr

        found = {
            "devices": xr.global_runtime_device_count(),
            "spmd": xr.is_spmd(),
            "world": [world.rank, world.world_size, str(world.device)],
            "divided": divided(world.device),
            **{name: train(world.device, **options) for name, options in OPTIONS.items()},
            "resumed": resumed(world.device, world.run_dir / "checkpoints"),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
