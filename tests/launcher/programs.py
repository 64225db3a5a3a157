"""Small programs for the launch tests, each the text of a script."""

from __future__ import annotations

TRAIN = """\
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    loss = model(torch.full((2, 4), float(dist.get_rank() + 1))).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("weights", [round(value, 6) for value in model.module.weight.flatten().tolist()])
print("rank", dist.get_rank(), "of", dist.get_world_size(), file=sys.stderr)
dist.barrier()
dist.destroy_process_group()
"""

FAIL_ON_RANK_1 = """\
import os
import torch.distributed as dist

def deep():
    raise KeyError("the missing piece")

dist.init_process_group("gloo")
dist.barrier()
if os.environ["RANK"] == "1":
    deep()
dist.barrier()
"""

KILL_ONE_RANK_UNTIL_THE_LAST_ATTEMPT = """\
import os, signal, sys
import torch
import torch.distributed as dist

attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print("attempt", attempt, "sum", int(total), flush=True)
dist.barrier()  # each has printed
if attempt < int(sys.argv[1]) and dist.get_rank() == attempt % dist.get_world_size():
    os.kill(os.getpid(), signal.SIGKILL)
dist.barrier()
dist.destroy_process_group()
"""

WAIT_FOR_SIGNALS = """\
import os, signal, sys

def end(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    sys.exit(0)

for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(sig, end)
print("waiting", flush=True)
while True:
    signal.pause()
"""

DEAF = """\
import signal

for sig in (signal.SIGINT, signal.SIGTERM):
    signal.signal(sig, signal.SIG_IGN)
print("waiting", flush=True)
while True:
    signal.pause()
"""

WITH_A_CHILD = """\
import os, subprocess, sys

child = subprocess.Popen(["sleep", "1000"])
print("waiting", child.pid, flush=True)
if len(sys.argv) > 1:
    sys.exit(0)
child.wait()
"""

DESTROY_AT_ONCE = """\
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

rank = int(os.environ["RANK"])

def once(number):
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/{number}", rank=rank, world_size=2)
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    model(torch.ones(2, 4)).sum().backward()
    dist.all_gather([torch.zeros(1) for _ in range(2)], torch.ones(1))
    dist.destroy_process_group()

for number in range(20):
    once(number)
"""

ENDLESS = """
import torch, distrain
with distrain.init() as world:
    model = torch.nn.Linear(2, 1).to(world.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = distrain.create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss, device=world.device)
    distrain.Checkpointer(every=10**9).attach(trainer, model=model, optimizer=optimizer)
    trainer.add_event_handler(distrain.Events.ITERATION_COMPLETED(once=2), lambda: print("iteration 2", flush=True))
    try:
        trainer.run([(torch.ones(2, 2), torch.ones(2, 1))], max_iters=10**9)
    finally:
        print("ended after", trainer.state.iteration, flush=True)
"""
