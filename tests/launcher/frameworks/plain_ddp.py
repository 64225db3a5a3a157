"""Plain PyTorch: DistributedDataParallel, DistributedSampler, environment variables."""

import os
import sys

import report
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    dataset = report.dataset()
    sampler = DistributedSampler(dataset, seed=1)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    model = DistributedDataParallel(torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for features, labels in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(features), labels)
            loss.backward()
            optimizer.step()
            if "--fail" in sys.argv and dist.get_rank() == 1:
                sys.exit(7)
    report.write(
        rank=dist.get_rank(),
        local_rank=int(os.environ["LOCAL_RANK"]),
        world_size=dist.get_world_size(),
        loss=loss,
        model=model.module,
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
