"""Ignite: the training function is given to `idist.Parallel`."""

import sys

import ignite.distributed as idist
import report
import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.metrics import Average
from ignite.utils import manual_seed


def training(local_rank):
    manual_seed(0)
    loader = idist.auto_dataloader(report.dataset(), batch_size=8, shuffle=True)
    model = idist.auto_model(torch.nn.Linear(4, 2))
    optimizer = idist.auto_optim(torch.optim.SGD(model.parameters(), lr=0.1))
    trainer = create_supervised_trainer(model, optimizer, torch.nn.functional.cross_entropy, device=idist.device())
    Average().attach(trainer, "mean_loss")  # over all ranks

    @trainer.on(Events.ITERATION_COMPLETED(once=2))
    def fail():
        if "--fail" in sys.argv and idist.get_rank() == 1:
            sys.exit(7)

    trainer.run(loader, max_epochs=2)
    report.write(
        rank=idist.get_rank(),
        local_rank=local_rank,
        world_size=idist.get_world_size(),
        loss=trainer.state.metrics["mean_loss"],
        model=model.module,
        nodes=(idist.get_node_rank(), idist.get_nnodes(), idist.get_nproc_per_node()),
    )


if __name__ == "__main__":
    with idist.Parallel(backend="gloo") as parallel:
        parallel.run(training)
