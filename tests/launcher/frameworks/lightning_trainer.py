"""Lightning: a LightningModule and the Trainer."""

import sys

import lightning
import report
import torch


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        features, labels = batch
        loss = torch.nn.functional.cross_entropy(self.layer(features), labels)
        self.log("loss", loss, sync_dist=True)
        if "--fail" in sys.argv and self.global_rank == 1 and batch_idx == 1:
            sys.exit(7)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def main():
    lightning.seed_everything(0)
    model = Model()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(report.dataset(), batch_size=4, shuffle=True))
    report.write(
        rank=trainer.global_rank,
        local_rank=trainer.local_rank,
        world_size=trainer.world_size,
        loss=trainer.callback_metrics["loss"],
        model=model,
        environment=type(trainer.strategy.cluster_environment).__name__,
    )


if __name__ == "__main__":
    main()
