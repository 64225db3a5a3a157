"""Train a small convolutional network on scikit-learn's 1,797 scans of handwritten digits.

    distrain launch --nproc 2 launch/scripts/train-digits.py --epochs 8

Interrupted, it goes on from the last epoch when it is started again with the same --run-dir.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset, random_split

import distrain
from distrain.training import detached_loss


def digits() -> TensorDataset:
    """Return the scans, 8x8 pixels between 0 and 1, and their labels."""
    scans, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(scans, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels))


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64 * 4 * 4, 10),
        )


def is_right(x: torch.Tensor, y: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:  # noqa: ARG001  # the evaluator's
    return (y_pred.argmax(1) == y).float().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small convolutional network on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32, help="samples in a batch of one rank")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    args = parser.parse_args()
    amp_mode = "amp" if args.amp else None

    with distrain.init(seed=args.seed) as world:
        train_set, test_set = random_split(digits(), [0.8, 0.2], generator=torch.Generator().manual_seed(0))
        train = distrain.dataloader(train_set, args.batch_size, shuffle=True)
        test = distrain.dataloader(test_set, args.batch_size)

        model = Net().to(world.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
        model, optimizer = distrain.prepare(model, optimizer)

        evaluator = distrain.create_supervised_evaluator(
            model, device=world.device, output_transform=is_right, amp_mode=amp_mode
        )
        distrain.LossAggregator(name="accuracy").attach(evaluator)

        trainer = distrain.create_supervised_trainer(
            model,
            optimizer,
            nn.functional.cross_entropy,
            device=world.device,
            output_transform=detached_loss,
            amp_mode=amp_mode,
            scaler=args.amp and world.device.type == "cuda",
        )
        distrain.LossAggregator(every=10).attach(trainer)

        @trainer.on(distrain.Events.EPOCH_COMPLETED)
        def evaluate() -> None:
            evaluator.run(test)
            if world.is_main:
                trainer.state.metrics["test_accuracy"] = evaluator.state.metrics["epoch_accuracy"]

        distrain.ProgressBar().attach(trainer)
        checkpointer = distrain.Checkpointer(keep=2)
        checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=train)
        if world.is_main and checkpointer.resumed_from:
            print(f"going on from {checkpointer.resumed_from}", flush=True)

        trainer.run(train, max_epochs=args.epochs)
        evaluate()
        if world.is_main:
            accuracy = trainer.state.metrics["test_accuracy"]
            print(f"test accuracy {accuracy:.2%} after {trainer.state.epoch} epochs, run directory {world.run_dir}")


if __name__ == "__main__":
    main()
