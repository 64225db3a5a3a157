"""A program for tests: fork the ranks of many small worlds from one import of torch, and count how they end.

    python -m tests.support.forked_ranks BODY NUM_RANKS NUM_WORLDS

Prints the ends as JSON, such as {"0": 11, "-6": 1, "hang": 1}: exit codes, and ranks that had to be killed. The switch
interval is set so long that no thread gets the interpreter lock while another one runs Python: this is what makes
the races at the end of a process show in a few worlds instead of a few thousand.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import sys
import time
from collections.abc import Callable

import torch
import torch._dynamo  # backward would import it in each rank otherwise
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import distrain
import distrain.runtime
import distrain.training

PATIENCE_S = 60.0


def train(model: torch.nn.Module) -> None:
    for _ in range(3):
        model(torch.randn(4, 64)).sum().backward()


def by_hand() -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(64, 64))
    train(model)
    dist.barrier()
    dist.destroy_process_group()


def in_with() -> None:
    with distrain.init():
        model = distrain.prepare(torch.nn.Linear(64, 64))
        train(model)


def with_slow_peers() -> None:
    with distrain.init() as world:
        model = DistributedDataParallel(torch.nn.Linear(64, 64))
        train(model)
        time.sleep(0.1 * world.rank)


def at_exit() -> None:
    distrain.init()
    globals()["kept"] = model = distrain.prepare(torch.nn.Linear(64, 64))
    train(model)


BODIES: dict[str, Callable[[], None]] = {each.__name__: each for each in (by_hand, in_with, with_slow_peers, at_exit)}


def serve_store(num_ranks: int) -> tuple[int, int]:
    """Serve a store from a process of its own, so that this one stays free of threads and can fork."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        store = dist.TCPStore("127.0.0.1", 0, num_ranks, is_master=True, wait_for_workers=False)
        os.write(write, str(store.port).encode())
        os.close(write)
        signal.pause()
    os.close(write)
    port = int(os.read(read, 16))
    os.close(read)
    return pid, port


def rank_main(body: str, rank: int, num_ranks: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        LOCAL_WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    torch.set_num_threads(1)
    sys.setswitchinterval(1000)
    BODIES[body]()


def ends_of(pids: list[int]) -> list[str]:
    ends = []
    deadline = time.monotonic() + PATIENCE_S
    for pid in pids:
        done, status = os.waitpid(pid, os.WNOHANG)
        while not done and time.monotonic() < deadline:
            time.sleep(0.01)
            done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        ends.append(str(os.waitstatus_to_exitcode(status)) if done else "hang")
    return ends


def main() -> None:
    body, num_ranks, num_worlds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    ends: collections.Counter[str] = collections.Counter()
    for _ in range(num_worlds):
        server, port = serve_store(num_ranks)
        pids = []
        for rank in range(num_ranks):
            pid = os.fork()
            if pid == 0:
                rank_main(body, rank, num_ranks, port)
                sys.exit(0)
            pids.append(pid)
        ends.update(ends_of(pids))
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        if body == "by_hand" and set(ends) != {"0"}:
            break
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
