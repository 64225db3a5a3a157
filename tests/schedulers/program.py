"""A training script for jobs: it goes on for ever until it is asked to end, and for a few steps once it was."""

import json
import os
import sys
import time

import torch
from torch.utils.data import TensorDataset

import distrain

STEPS_MORE = 5

with distrain.init(seed=0) as world:
    if world.is_main:
        print("argv", json.dumps(sys.argv[1:]), "host", os.environ["SLURMD_NODENAME"], flush=True)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = distrain.prepare(model, optimizer)
    x = torch.arange(120.0).reshape(40, 3) / 120
    dataset = TensorDataset(x, x.sum(1, keepdim=True))
    num_workers = int(os.environ.get("NUM_WORKERS", "0"))
    loader = distrain.dataloader(dataset, 2, shuffle=True, seed=3, num_workers=num_workers)
    trainer = distrain.create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss)
    checkpointer = distrain.Checkpointer(every=int(os.environ.get("EVERY", "1000000")))
    checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader)
    resumed = checkpointer.resumed_from
    last = None if resumed is None else int(resumed.name.removeprefix("step-")) + STEPS_MORE

    @trainer.on(distrain.Events.ITERATION_COMPLETED)
    def look():
        time.sleep(0.05)
        if trainer.state.iteration == (5 if resumed is None else last - STEPS_MORE + 1) and world.is_main:
            origin = "the beginning" if resumed is None else resumed.name
            print(f"on the way from {origin}, world {world.world_size}", flush=True)
        if trainer.state.iteration == last and "FOR_EVER" not in os.environ:
            trainer.terminate()

    trainer.run(loader, max_epochs=10**6)
    if world.is_main:
        print("finished after", trainer.state.iteration, flush=True)
