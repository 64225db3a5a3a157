"""Show what one optimizer step is made of: micro-batches, mixed precision, a clipped norm, and a nan that is left out.

    python launch/scripts/train-amp-accumulation.py                                     # one process
    distrain launch --nproc 2 --device cpu launch/scripts/train-amp-accumulation.py     # two on the CPU
    distrain launch --profile gpu-8 launch/scripts/train-amp-accumulation.py            # what a profile says
    torchrun --nproc-per-node 2 launch/scripts/train-amp-accumulation.py

bfloat16 on the CPU and on XLA; float16 with a gradient scaler on CUDA. With --nan-at 6 the last rank's sixth
micro-batch is spoilt: all ranks leave that window's step out and stay alike.
"""

from __future__ import annotations

import argparse
import math

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import distrain

MAX_NORM = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on handwritten digits with mixed precision and accumulation.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32, help="digits in a micro-batch of one rank")
    parser.add_argument("--accumulate", type=int, default=8, help="micro-batches in a window")
    parser.add_argument("--nan-at", type=int, default=0, help="the iteration whose micro-batch is spoilt on one rank")
    args = parser.parse_args()

    with distrain.init(seed=0) as world:
        scans, labels = load_digits(return_X_y=True)
        digits = TensorDataset(torch.tensor(scans, dtype=torch.float32) / 16, torch.tensor(labels))
        loader = distrain.dataloader(digits, args.batch_size, shuffle=True)
        num_whole, tail = divmod(len(loader), args.accumulate)
        num_steps = num_whole + (tail > 0)

        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(world.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model, optimizer = distrain.prepare(model, optimizer)
        on_cuda = world.device.type == "cuda"
        trainer = distrain.create_supervised_trainer(
            model,
            optimizer,
            nn.functional.cross_entropy,
            device=world.device,
            amp_mode="amp",
            amp_dtype="float16" if on_cuda else "bfloat16",
            scaler=on_cuda,
            gradient_accumulation_steps=args.accumulate,
            accumulation_tail="flush",
            max_grad_norm=MAX_NORM,
            nonfinite_loss="skip",
            output_transform=distrain.detached_loss,
        )
        distrain.LossAggregator(every=len(loader)).attach(trainer)
        steps: list[int] = []

        def stepped(*_: object) -> None:
            iteration = trainer.state.iteration
            steps.append(iteration)
            if world.is_main:
                held = (iteration - 1) % len(loader) % args.accumulate + 1
                norm = trainer.state.grad_norm.item()  # waits for the device: for showing only
                clipped = f", clipped to {MAX_NORM}" if norm > MAX_NORM else ""
                what = f"{held} × {world.world_size} micro-batches, gradient norm {norm:.2f}{clipped}"
                print(f"  step {len(steps):2}, iteration {iteration:2}: {what}", flush=True)

        optimizer.register_step_post_hook(stepped)

        @trainer.on(distrain.Events.ITERATION_STARTED)
        def spoil() -> None:
            if trainer.state.iteration == args.nan_at and world.rank == world.world_size - 1:
                trainer.state.batch[0].fill_(math.nan)

        @trainer.on(distrain.Events.EPOCH_COMPLETED)
        def show() -> None:
            if world.is_main:
                print(f"epoch {trainer.state.epoch}: loss {trainer.state.metrics['epoch_loss']:.3f}", flush=True)

        if world.is_main:
            size, window, ranks = args.batch_size, args.accumulate, world.world_size
            print(f"{len(digits)} digits, {size} × {ranks} at a time: {len(loader)} micro-batches an epoch")
            print(f"windows of {window}: {num_whole} whole ones and a tail of {tail}, {num_steps} steps an epoch")
            print(f"a whole step: {window} × {size} × {ranks} = {window * size * ranks} digits", flush=True)
        trainer.run(loader, max_epochs=args.epochs)
        if world.is_main:
            print(f"{len(steps)} of {args.epochs} × {num_steps} steps in {trainer.state.iteration} iterations")


if __name__ == "__main__":
    main()
