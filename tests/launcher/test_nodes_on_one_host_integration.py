"""Two launches on one host that make one run. With hosts of their own: test_nodes_integration."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from tests.support.launching import command, environment
from tests.support.processes import free_port, run, wait_until

pytestmark = pytest.mark.deep

RANK_0_ENDS_FIRST = """
import os, pathlib, time
if os.environ["RANK"] == "0":
    pathlib.Path("first").touch()
else:
    while not pathlib.Path("first").exists():
        time.sleep(0.05)
    time.sleep(3)
"""

STOPPED = """
import atexit, os, sys, time
import torch, distrain

with distrain.init(seed=0) as world:
    if world.rank == int(sys.argv[1]):
        atexit.register(time.sleep, 2)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = distrain.prepare(model, optimizer)
    data = torch.utils.data.TensorDataset(torch.ones(10**6, 3), torch.ones(10**6, 1))
    loader = distrain.dataloader(data, 2)
    trainer = distrain.create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss)
    checkpointer = distrain.Checkpointer(every=10**9)
    checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader)
    trainer.add_event_handler(distrain.Events.ITERATION_COMPLETED(once=5), lambda: print("on the way", flush=True))
    trainer.run(loader)
"""


def test_the_node_where_all_meet_may_finish_first(tmp_path):
    (tmp_path / "train.py").write_text(RANK_0_ENDS_FIRST)
    meet = ["--nnodes", "2", "--device", "cpu", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--run-dir", "run"]
    both = f"""
import subprocess, sys
nodes = [subprocess.Popen([*{command(*meet)!r}, "--node-rank", str(rank), "train.py"]) for rank in (0, 1)]
sys.exit(max(node.wait() for node in nodes))
"""
    done = run([sys.executable, "-c", both], cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, deadline_s=100)
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / "run" / path).read_text() for path in ("launcher.log", "node-1/launcher.log")]
    assert not [log for log in logs if "Traceback" in log]


@pytest.mark.parametrize("stopped", [0, 1])
def test_one_node_is_stopped_and_the_other_s_ranks_take_longer_to_end(tmp_path, stopped):
    """Both have saved the same step, so both are preempted, whichever was asked."""
    (tmp_path / "train.py").write_text(STOPPED)
    meet = [
        "--nnodes",
        "2",
        "--device",
        "cpu",
        "--rdzv-endpoint",
        f"127.0.0.1:{free_port()}",
        "--run-dir",
        tmp_path / "run",
    ]
    whole = {key: value for key, value in {**os.environ, **environment()}.items() if value is not None}
    logs = [tmp_path / f"node-{rank}.log" for rank in (0, 1)]
    nodes = []
    try:
        for rank, log in enumerate(logs):
            words = command(*meet, "--log-ranks", "all", "--node-rank", str(rank), "train.py", str(1 - stopped))
            with log.open("w") as file:
                nodes.append(subprocess.Popen(words, cwd=tmp_path, env=whole, stdout=file, stderr=file))
        wait_until(lambda: all("on the way" in log.read_text() for log in logs), 60, what="both ranks train")
        nodes[stopped].terminate()
        codes = [node.wait(50) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    assert codes == [75, 75], [log.read_text() for log in logs]
    assert all("the state is saved" in log.read_text() for log in logs)


WAITS = """
import pathlib, sys, time
while not pathlib.Path("stop").exists():
    time.sleep(0.05)
sys.exit(int(pathlib.Path("stop").read_text()))
"""


@contextlib.contextmanager
def nodes_of(folder, nnodes):
    """Yield what starts a node of a run that lasts until there is a file `stop`, and returns it with its log."""
    (folder / "train.py").write_text(WAITS)
    meet = ["--nnodes", nnodes, "--device", "cpu", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--run-dir", "run"]
    whole = {key: value for key, value in {**os.environ, **environment()}.items() if value is not None}
    nodes = []

    def start():
        log = folder / f"node-{len(nodes)}.log"
        with log.open("w") as file:
            words = command(*meet, "train.py")
            nodes.append(subprocess.Popen(words, cwd=folder, env=whole, stdout=file, stderr=file))
        return nodes[-1], log

    try:
        yield start
    finally:
        for node in nodes:
            node.kill()
            node.wait()


def stop(folder, code):
    (folder / "stop.new").write_text(str(code))
    (folder / "stop.new").rename(folder / "stop")


@pytest.mark.parametrize("code", [0, 5])
def test_a_node_that_waits_for_a_place_ends_as_the_run_does(tmp_path, code):
    with nodes_of(tmp_path, "1:2") as start:
        nodes = [start(), start()]
        wait_until(lambda: "2 nodes together" in nodes[0][1].read_text(), 100, what="the round of two")
        nodes.append(start())
        wait_until(lambda: "or all places are taken" in nodes[2][1].read_text(), 60, what="that the third one waits")
        stop(tmp_path, code)
        codes = [node.wait(60) for node, _ in nodes]
        said = nodes[2][1].read_text()
    assert codes == [code] * 3, said
    assert ("the run has ended well, and this node has had no ranks in it" in said) == (code == 0), said
    assert ("root cause: rank " in said) == (code != 0), said


def test_a_node_too_many_is_turned_away_at_once(tmp_path):
    with nodes_of(tmp_path, "2") as start:
        nodes = [start(), start()]
        wait_until(lambda: "2 nodes together" in nodes[0][1].read_text(), 100, what="the round of two")
        late, log = start()
        assert late.wait(60) == 1
        said = log.read_text()
        stop(tmp_path, 0)
        assert [node.wait(60) for node, _ in nodes] == [0, 0]
    assert "it is a node too many: --nnodes is 2, and the run has begun with host " in said
