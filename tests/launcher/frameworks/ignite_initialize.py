"""Ignite: `idist.initialize`, or torch's own process group with `--context`, which ignite then finds."""

import sys

import ignite.distributed as idist
import report
import torch
import torch.distributed as dist


def main():
    if "--context" in sys.argv:
        dist.init_process_group("gloo")
        idist.sync()
    else:
        idist.initialize("gloo")
    torch.manual_seed(0)
    model = idist.auto_model(torch.nn.Linear(4, 2))
    optimizer = idist.auto_optim(torch.optim.SGD(model.parameters(), lr=0.1))
    for features, labels in idist.auto_dataloader(report.dataset(), batch_size=8, shuffle=False):
        loss = torch.nn.functional.cross_entropy(model(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if "--fail" in sys.argv and idist.get_rank() == 1:
            sys.exit(7)
    report.write(
        rank=idist.get_rank(),
        local_rank=idist.get_local_rank(),
        world_size=idist.get_world_size(),
        loss=idist.all_reduce(loss.item()),
        model=model.module,
        nodes=(idist.get_node_rank(), idist.get_nnodes(), idist.get_nproc_per_node()),
    )
    idist.barrier()
    idist.finalize()


if __name__ == "__main__":
    main()
