"""A hang of a run on two hosts: both name the same rank, which one of them does not have."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from tests.launcher.test_nodes_integration import Run, ends, log
from tests.support.namespaces import hosts
from tests.support.processes import wait_until

pytestmark = pytest.mark.netns

TRAIN = """\
import os, sys, time
import distrain
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank, (how, struck) = dist.get_rank(), sys.argv[1:]
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(1000):
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    if step == 5 and rank == int(struck):
        if how == "evaluate":
            for _ in range(25):
                time.sleep(0.2)
                distrain.heartbeat()
        elif how == "skip":
            dist.barrier()
    if step == 8:
        print("moving", flush=True)
    time.sleep(0.02)
"""

TIMEOUT_S = 3
LATE_S = 5
"""How much later a loaded machine may notice."""


@pytest.fixture
def two():
    with hosts(2) as made:
        yield made
        wait_until(lambda: not any(host.processes() for host in made), 20, what="no process is left on the hosts")


def start(tmp_path, two, nproc, how, struck):
    """Start the script on both hosts, as `Run`."""
    options = ("--nnodes", "2", "--nproc", str(nproc), "--device", "cpu", "--hang-timeout", str(TIMEOUT_S))
    run = Run(tmp_path, TRAIN, *options, head=two[0])
    run.options += [how, str(struck)]
    return run, [run.start(host, rank) for rank, host in enumerate(two)]


def reported(lives, errs):
    """Return the one report of all, which each shows and has kept."""
    records = [json.loads((live.run_dir / "failure.json").read_text()) for live in lives]
    assert records[0] == records[1]
    texts = {err[err.index("root cause: ") :].partition("\ndistrain: ")[0] for err in errs}
    assert len(texts) == 1, texts
    return records[0]["root_cause"], texts.pop()


def test_a_rank_that_is_stopped_is_named_on_both_nodes_and_one_that_is_busy_is_waited_for(tmp_path, two):
    """Rank 1 evaluates for longer than the timeout while rank 0, alone on its host, waits. Then rank 0 is stopped."""
    run, lives = start(tmp_path, two, 1, "evaluate", 1)
    with run:
        lives[0].wait_for_output("moving")
        assert not any("no progress" in live.printed() for live in lives)
        (worker,) = lives[0].wait_for("worker_started")
        os.kill(worker["pid"], signal.SIGSTOP)
        errs = [ends(live, 124) for live in lives]
        cause, text = reported(lives, errs)
        assert re.match(r"root cause: rank 0 on h0: Hang: no step for \d+ s; it stood in ", text), text
        assert "process stopped by a signal" in text.splitlines()[0]
        assert (cause["rank"], cause["host"], cause["exit_code"]) == (0, "h0", 124)
        assert "rank 1  in <module> (line" in text[text.index("the other ranks meanwhile:") :]
        assert "rank 0, on h0, is the odd one out" in errs[1]
        for live in lives:
            (hang,) = live.wait_for("hang")
            assert hang["silent_s"] <= TIMEOUT_S + LATE_S


def test_a_rank_that_skips_a_collective_is_named_by_all_of_its_nodes(tmp_path, two):
    """Rank 3 is in a barrier, the others reduce: on h1 alone one is as good as the other, on h0 there is none."""
    run, lives = start(tmp_path, two, 2, "skip", 3)
    with run:
        errs = [ends(live, 124) for live in lives]
        cause, text = reported(lives, errs)
        assert text.startswith("root cause: rank 3 on h1: Hang: no step for ")
        assert "waiting in barrier (torch/distributed/distributed_c10d.py)" in text.splitlines()[0]
        assert cause["exit_code"] == 124
        assert "ranks 0-2  in <module> (line" in text[text.index("the other ranks meanwhile:") :]
        assert log(lives[0], 0) == ""
