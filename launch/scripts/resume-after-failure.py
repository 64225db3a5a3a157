"""Lose a rank on purpose, go on from the last checkpoint, and end as if nothing had happened, bit for bit.

    distrain launch --nproc 2 --device cpu --max-restarts 1 launch/scripts/resume-after-failure.py
    distrain launch --nproc 2 --device cpu launch/scripts/resume-after-failure.py --without-failure
    distrain launch --profile gpu-8 --max-restarts 1 launch/scripts/resume-after-failure.py

Both runs print the same two digests. Without distrain's launcher the run directory must be named, so that the second
attempt finds the checkpoints of the first; with no launcher at all, the second attempt is you. Under torchrun it takes
--standalone: without it, torch 2.13 leaves the lost rank's address in the store that the next attempt reads.

    export DISTRAIN_RUN_DIR=$PWD/runs/lost     # another for each run
    torchrun --standalone --nproc-per-node 2 --max-restarts 1 launch/scripts/resume-after-failure.py

    export DISTRAIN_RUN_DIR=$PWD/runs/alone
    python launch/scripts/resume-after-failure.py    # killed; the same command again goes on
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import distrain


class Losses(list[float]):
    """The loss of each step so far. Whatever has these two methods can be saved with the trainer."""

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self[:] = state["losses"]


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(each.cpu().numpy().tobytes() for each in tensors)).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on handwritten digits, and survive the loss of a rank.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument("--fail-at", type=int, default=38, help="the step at which the last rank is lost")
    parser.add_argument("--without-failure", action="store_true")
    args = parser.parse_args()
    if args.fail_at <= args.every:
        parser.error("--fail-at must come after the first checkpoint, or every attempt would fail there")

    with distrain.init(seed=0) as world:
        scans, labels = load_digits(return_X_y=True)
        digits = TensorDataset(torch.tensor(scans, dtype=torch.float32) / 16, torch.tensor(labels))
        loader = distrain.dataloader(digits, batch_size=32, shuffle=True)

        # Dropout draws random numbers on each rank: these, too, go on where they were.
        bare = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)).to(world.device)
        optimizer = torch.optim.AdamW(bare.parameters(), lr=3e-3)
        model, optimizer = distrain.prepare(bare, optimizer)
        trainer = distrain.create_supervised_trainer(
            model, optimizer, nn.functional.cross_entropy, device=world.device, output_transform=distrain.detached_loss
        )
        distrain.LossAggregator(every=1).attach(trainer)
        losses = Losses()

        @trainer.on(distrain.Events.ITERATION_COMPLETED)
        def remember() -> None:
            if world.is_main:
                losses.append(trainer.state.metrics["loss"])

        checkpointer = distrain.Checkpointer(every=args.every)
        checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader, losses=losses)

        if checkpointer.resumed_from is not None:
            if world.is_main:
                print(f"going on from {checkpointer.resumed_from.name}", flush=True)
        elif not args.without_failure and world.rank == world.world_size - 1:

            @trainer.on(distrain.Events.ITERATION_STARTED(once=args.fail_at))
            def fail() -> None:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.run(loader, max_epochs=args.epochs)
        if world.is_main:
            print(f"{len(losses)} steps, loss {losses[0]:.4f} → {losses[-1]:.4f}")
            print(f"losses  {digest(torch.tensor(losses, dtype=torch.float64))}")
            print(f"weights {digest(*bare.state_dict().values())}")


if __name__ == "__main__":
    main()
