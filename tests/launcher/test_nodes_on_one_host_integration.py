"""Two launches on one host that make one run. With hosts of their own: test_nodes_integration."""

from __future__ import annotations

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


@pytest.mark.parametrize("code", [0, 5])
def test_a_node_that_waits_for_a_place_ends_as_the_run_does(tmp_path, code):
    (tmp_path / "train.py").write_text(WAITS)
    meet = ["--nnodes", "2", "--device", "cpu", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--run-dir", "run"]
    whole = {key: value for key, value in {**os.environ, **environment()}.items() if value is not None}
    logs = [tmp_path / f"node-{number}.log" for number in range(3)]
    nodes = []

    def start(log):
        with log.open("w") as file:
            nodes.append(
                subprocess.Popen(command(*meet, "train.py"), cwd=tmp_path, env=whole, stdout=file, stderr=file)
            )

    try:
        for log in logs[:2]:
            start(log)
        wait_until(lambda: "2 nodes together" in logs[0].read_text(), 100, what="the round of two")
        start(logs[2])
        wait_until(lambda: "or all places are taken" in logs[2].read_text(), 60, what="that the third one waits")
        (tmp_path / "stop.new").write_text(str(code))
        (tmp_path / "stop.new").rename(tmp_path / "stop")
        codes = [node.wait(60) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    said = logs[2].read_text()
    assert codes == [code] * 3, said
    assert ("the run has ended well, and this node has had no ranks in it" in said) == (code == 0), said
    assert ("root cause: rank " in said) == (code != 0), said
