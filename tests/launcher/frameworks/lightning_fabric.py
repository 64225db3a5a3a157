"""Lightning Fabric: an ordinary loop."""

import sys

import lightning
import report
import torch


def main():
    fabric = lightning.Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    fabric.seed_everything(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(report.dataset(), batch_size=4, shuffle=True))
    for _ in range(2):
        for features, labels in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(features), labels)
            fabric.backward(loss)
            optimizer.step()
            if "--fail" in sys.argv and fabric.global_rank == 1:
                sys.exit(7)
    report.write(
        rank=fabric.global_rank,
        local_rank=fabric.local_rank,
        world_size=fabric.world_size,
        loss=fabric.all_reduce(loss.detach()),
        model=model.module,
        environment=type(fabric.strategy.cluster_environment).__name__,
    )
    fabric.barrier()


if __name__ == "__main__":
    main()
