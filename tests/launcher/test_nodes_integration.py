"""`distrain launch` on several nodes, which are hosts of their own with links that can be cut."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher import programs
from tests.launcher.test_preemption_integration import PROGRAM as STOPPED
from tests.support.launching import Live
from tests.support.namespaces import Host, hosts
from tests.support.processes import REPOSITORY, descendants, wait_until

pytestmark = pytest.mark.netns

WHERE = """\
import os
names = ("RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "DISTRAIN_RUN_DIR")
print(os.uname().nodename, *(os.environ[name] for name in names), flush=True)
"""

COUNT = """\
import os, time
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
path = os.path.join(os.environ["DISTRAIN_RUN_DIR"], "step")
step = int(open(path).read()) if os.path.exists(path) else 0
restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
print("world", dist.get_world_size(), "from step", step, "restarts", restarts, flush=True)
stop = torch.zeros(1)
while not stop:
    stop = torch.tensor([float(dist.get_rank() == 0 and os.path.exists("stop"))])
    dist.all_reduce(stop)
    step += 1
    if dist.get_rank() == 0:
        with open(path + ".new", "w") as file:
            file.write(str(step))
        os.replace(path + ".new", path)
    time.sleep(0.05)
print("finished", flush=True)
dist.barrier()
dist.destroy_process_group()
"""


class Run:
    """Launches of one script on several hosts, which share a folder as they would share a file system."""

    def __init__(self, folder: Path, script: str, *options: str, head: Host) -> None:
        self.folder = folder
        self.stack = contextlib.ExitStack()
        self.options = [*options, "--rdzv-endpoint", f"{head.name}:29400", "--run-dir", "run", "train.py"]
        (folder / "train.py").write_text(script)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def start(self, host: Host, node_rank: int | None, *options: str, env: dict[str, str] | None = None) -> Live:
        """Start a node; its run directory is known where it has a node rank."""
        rank = () if node_rank is None else ("--node-rank", str(node_rank))
        run_dir = self.folder / "run" if not node_rank else self.folder / "run" / f"node-{node_rank}"
        return self.stack.enter_context(
            host.launching(*rank, *options, *self.options, cwd=self.folder, run_dir=run_dir, env=env)
        )


def log(live: Live, rank: int, attempt: int = 0) -> str:
    return (live.run_dir / f"attempt-{attempt}" / f"rank-{rank}" / "stdout.log").read_text()


def notes(live: Live) -> list[str]:
    return [line for line in live.printed().splitlines() if line.startswith("distrain: ")]


def said(live: Live, pattern: str, deadline_s: float = 60) -> float:
    """Return how long it took until a line of the launcher matched."""
    began = time.monotonic()

    def look() -> bool:
        return any(re.search(pattern, line) for line in notes(live))

    try:
        wait_until(look, deadline_s, what=pattern)
    except TimeoutError as error:
        raise TimeoutError(f"{error}\n" + "\n".join(notes(live))) from None
    return time.monotonic() - began


def ends(live: Live, code: int, deadline_s: float = 60) -> str:
    """Return what the launcher said, once it has ended with the exit code."""
    got, out, err = live.end(deadline_s)
    assert got == code, f"exit code {got}, expected {code}\n{out}\n{err}"
    return err


@pytest.fixture
def two():
    with hosts(2) as made:
        yield made
        wait_until(lambda: not any(host.processes() for host in made), 20, what="no process is left on the hosts")


@pytest.fixture
def three():
    with hosts(3) as made:
        yield made
        wait_until(lambda: not any(host.processes() for host in made), 20, what="no process is left on the hosts")


def test_two_nodes_train_together_in_the_order_of_their_node_ranks(tmp_path, two):
    """torch alone orders nodes by address, so that h0 would come first; it is started first, too."""
    second, first = two
    with Run(tmp_path, WHERE + programs.TRAIN, "--nnodes", "2", "--nproc", "2", "--rdzv-id", "job7", head=first) as run:
        live1 = run.start(second, 1)
        live1.wait_for("agent_started")
        live0 = run.start(first, 0)
        err0, err1 = ends(live0, 0), ends(live1, 0)
        weights = set()
        for live, name, ranks, node in ((live0, "h1", (0, 1), 0), (live1, "h0", (2, 3), 1)):
            for rank in ranks:
                where, trained = log(live, rank).splitlines()
                assert where == f"{name} {rank} {node} 4 2 {first.address} {tmp_path / 'run'}"
                weights.add(trained)
        assert len(weights) == 1
        assert "node 0 of 2, meeting at h1:29400 (c10d)" in err0.splitlines()[0]
        assert "node 1 of 2, meeting at h1:29400 (c10d)" in err1.splitlines()[0]
        for err in (err0, err1):
            assert "2 nodes together · h1: ranks 0-1, h0: ranks 2-3" in err
        records = [json.loads((live.run_dir / "run.json").read_text()) for live in (live0, live1)]
        assert [(record["status"], record["host"]) for record in records] == [("succeeded", "h1"), ("succeeded", "h0")]


def test_every_restart_works_on_both_nodes(tmp_path, two):
    """A rank is killed in each of ten attempts, on one node or the other; the eleventh ends well."""
    script = programs.KILL_ONE_RANK_UNTIL_THE_LAST_ATTEMPT
    with Run(tmp_path, script, "--nnodes", "2", "--max-restarts", "10", head=two[0]) as run:
        run.options.append("10")
        lives = [run.start(host, rank) for rank, host in enumerate(two)]
        errs = [ends(live, 0, 110) for live in lives]
        for rank, live in enumerate(lives):
            for attempt in range(11):
                assert log(live, rank, attempt) == f"attempt {attempt} sum 2\n", errs[rank]


def test_nodes_join_leave_and_are_cut_off_and_the_run_goes_on(tmp_path, three):
    """One node begins, two join, one is ended by a signal, one is cut off: the first finishes."""
    with Run(tmp_path, COUNT, "--nnodes", "1:3", "--rdzv-conf", "last_call_timeout=1", head=three[0]) as run:
        first = run.start(three[0], 0)
        first.wait_for_output("world 1")
        wait_until((tmp_path / "run" / "step").exists, 60, what="the first step")
        second = run.start(three[1], 1)
        said(first, "2 nodes together")
        first.wait_for_output("world 2", attempt=1)
        third = run.start(three[2], 2)
        said(first, "3 nodes together · h0: rank 0, h1: rank 1, h2: rank 2")
        for live, rank in ((first, 0), (third, 2)):
            live.wait_for_output("world 3", rank=rank, attempt=2)
        third.process.terminate()
        said(first, r"node 2 \(host h2\) was ended by SIGTERM; going on with 2 nodes")
        assert "ended by SIGTERM" in ends(third, 143)
        said(first, "2 nodes together · h0: rank 0, h1: rank 1")
        first.wait_for_output("world 2", attempt=3)
        second.wait_for_output("world 2", rank=1, attempt=3)
        three[1].cut()
        said(first, r"node 1 \(host h1\) has not been heard of for 10 s; going on with 1 node", 40)
        assert "node 0 (host h0) has not been heard of for 10 s" in ends(second, 1, 40)
        assert not three[1].processes()
        first.wait_for_output("world 1", attempt=4)
        (tmp_path / "stop").touch()
        err = ends(first, 0)
        told = [log(first, 0, attempt).splitlines() for attempt in range(5)]
        assert [lines[0].split(" from")[0] for lines in told] == [f"world {count}" for count in (1, 2, 3, 2, 1)]
        steps = [int(lines[0].split()[4]) for lines in told]
        assert 0 == steps[0] < steps[1] <= steps[2] <= steps[3] <= steps[4], "each goes on from the one before"
        assert told[4][-1] == "finished"
        assert all(lines[0].endswith("restarts 0") for lines in told), "no restart was used up"
        assert "root cause" not in err, "nothing has failed"
        assert err.count("another node comes in; all ranks start anew") == 2


ONE_EPOCH = """\
import time
import torch
from torch.utils.data import TensorDataset
import distrain

with distrain.init(seed=0) as world:
    loader = distrain.dataloader(TensorDataset(torch.arange(6000)), 4, shuffle=True)
    model, optimizer = distrain.prepare(model := torch.nn.Linear(1, 1), torch.optim.SGD(model.parameters(), lr=1e-9))

    def prepare_batch(batch, device, non_blocking):
        print("had", *batch[0].tolist(), flush=True)
        x = batch[0].float().unsqueeze(1)
        return x, x

    trainer = distrain.create_supervised_trainer(
        model, optimizer, torch.nn.functional.mse_loss, prepare_batch=prepare_batch
    )
    distrain.Checkpointer().attach(trainer, model=model, loader=loader)
    pause_s = 0.05 if world.world_size == 1 else 0.01  # alone for long enough that the other can join
    trainer.add_event_handler(distrain.Events.ITERATION_COMPLETED, lambda: time.sleep(pause_s))
    trainer.run(loader, max_epochs=1)
    print("ended", trainer.state.iteration, trainer.state.epoch, world.world_size, flush=True)
"""


def test_every_sample_comes_once_also_when_a_node_joins_inside_an_epoch(tmp_path, two):
    """The ranks are asked to end for it, so they save where they are, and what is left is divided among them all."""
    with Run(tmp_path, ONE_EPOCH, "--nnodes", "1:2", "--rdzv-conf", "last_call_timeout=1", head=two[0]) as run:
        first = run.start(two[0], 0)
        first.wait_for_output("had")
        second = run.start(two[1], 1)
        ends(first, 0, 110)
        ends(second, 0)
        logs = [path.read_text() for path in (tmp_path / "run").glob("**/stdout.log")]
        assert len(logs) == 3
        had = [
            int(each)
            for text in logs
            for line in re.findall(r"^had (.+)$", text, re.MULTILINE)
            for each in line.split()
        ]
        assert sorted(had) == list(range(6000))
        assert log(first, 0, 1).splitlines()[-1] == "ended 750 1 2", "an epoch of two ranks has 750 steps"


NO_REVERSE_LOOKUP = r"\[c10d\] The hostname of the client socket cannot be retrieved"
"""torch says so of hosts that no name server knows."""


class Recording:
    """The terminals of several hosts: what was typed, then what each printed until the next was typed."""

    def __init__(self) -> None:
        self.text = ""
        self._seen: dict[tuple[str, int], int] = {}

    def typed(self, where: str, *words: str) -> None:
        self.text += f"{where}$ {' '.join(words)}\n"

    def printed(self, where: str, live: Live) -> None:
        launcher, ranks = live.err, live.out
        has_ended = live.process.poll() is not None
        for stream in (ranks, launcher) if has_ended else (launcher, ranks):
            key = (where, stream.fileno())
            begin = self._seen.get(key, 0)
            data = os.pread(stream.fileno(), 1 << 20, begin)
            whole = data[: data.rfind(b"\n") + 1]
            self._seen[key] = begin + len(whole)
            lines = [line for line in whole.decode().splitlines() if not re.search(NO_REVERSE_LOOKUP, line)]
            self.text += "".join(f"{where}  {normal(line)}\n" for line in lines)


def normal(line: str) -> str:
    """Return a line with what differs from run to run written as a letter."""
    for pattern, letter in (
        (r"(?<=from step )[1-9]\d*", "N"),
        (r"\d+\.\d s", "T s"),
        (r"(store at \S+:)\d+", r"\1PORT"),
        (r"(?<=since )[\d: +-]+(?=,)", "TIME"),
    ):
        line = re.sub(pattern, letter, line)
    return line


def test_a_recording_of_two_nodes_that_join_and_of_one_that_is_cut_off(tmp_path, two, golden):
    recording = Recording()
    threads = {"OMP_NUM_THREADS": "1"}
    options = ("--nnodes", "1:2", "--log-ranks", "all")
    with Run(tmp_path, COUNT, *options, "--rdzv-conf", "last_call_timeout=1", head=two[0]) as run:
        recording.typed("h0", "distrain launch --node-rank 0", *run.options)
        first = run.start(two[0], 0, env=threads)
        first.wait_for_output("world 1")
        wait_until(lambda: b"world 1" in shown(first), 40)
        recording.printed("h0", first)
        recording.typed("h1", "distrain launch --node-rank 1", *run.options)
        second = run.start(two[1], 1, env=threads)
        for live in (first, second):
            wait_until(lambda live=live: b"world 2" in shown(live), 40)
        recording.printed("h0", first)
        recording.printed("h1", second)
        recording.typed("the switch", "ip link set h1 down")
        two[1].cut()
        ends(second, 1, 60)
        wait_until(lambda: shown(first).count(b"world 1") == 2, 40)
        recording.printed("h1", second)
        recording.printed("h0", first)
        recording.typed("h0", "touch stop")
        (tmp_path / "stop").touch()
        ends(first, 0)
        recording.printed("h0", first)
    golden("nodes-cut.txt", recording.text)


def shown(live: Live) -> bytes:
    return os.pread(live.out.fileno(), 1 << 20, 0)


@pytest.mark.parametrize("cut", ["the head", "the other"])
def test_without_enough_nodes_left_both_sides_of_a_cut_end_and_say_so(tmp_path, two, cut):
    with Run(tmp_path, COUNT, "--nnodes", "2", "--max-restarts", "3", head=two[0]) as run:
        lives = [run.start(host, rank) for rank, host in enumerate(two)]
        lives[0].wait_for_output("world 2")
        lives[1].wait_for_output("world 2", rank=1)
        two[0 if cut == "the head" else 1].cut()
        err0, err1 = ends(lives[0], 1, 40), ends(lives[1], 1, 40)  # and not after the half hour of torch's groups
        silent = "has not been heard of for 10 s"
        assert f"node 1 (host h1) {silent}; 1 node left and the run needs 2" in err0
        assert f"node 0 (host h0) {silent}; the nodes meet there, so the run ends on this one" in err1


@pytest.mark.parametrize("victim", ["head", "member"])
def test_a_machine_that_dies_is_noticed_at_once(tmp_path, two, victim):
    """Everything on it is killed, so that its kernel closes the connections, as it does when it reboots."""
    with Run(tmp_path, COUNT, "--nnodes", "1:2", head=two[0]) as run:
        lives = [run.start(host, rank) for rank, host in enumerate(two)]
        lives[0].wait_for_output("world 2")
        lives[1].wait_for_output("world 2", rank=1)
        signal_all(lives[0 if victim == "head" else 1], signal.SIGKILL)
        lost, left = (0, lives[1]) if victim == "head" else (1, lives[0])
        said(left, rf"node {lost} \(host h{lost}\) has gone: its connection was closed; going on with 1 node", 30)
        left.wait_for_output("world 1", attempt=1)
        (tmp_path / "stop").touch()
        ends(left, 0)


def signal_all(live: Live, number: signal.Signals) -> None:
    """Send a signal to every process of a launch, as nothing but the loss of a machine does."""
    for pid in [live.process.pid, *(process.pid for process in descendants(live.process.pid))]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def began(run_dir: Path) -> list[tuple[int, int]]:
    """Return the size of the world and the step that rank 0 began with, for each attempt in their order."""
    paths = [*run_dir.glob("attempt-*/rank-0/stdout.log"), *run_dir.glob("node-*/attempt-*/rank-0/stdout.log")]
    found = {}
    for path in paths:
        if match := re.match(r"world (\d+) from step (\d+) ", path.read_text()):
            found[int(path.parts[-3].removeprefix("attempt-"))] = int(match[1]), int(match[2])
    return [found[attempt] for attempt in sorted(found)]


def trains(run_dir: Path, world: int, deadline_s: float = 60) -> None:
    """Wait until the last attempt is one of so many ranks."""
    wait_until(lambda: (told := began(run_dir)) and told[-1][0] == world, deadline_s, what=f"a world of {world}")


def test_a_run_survives_the_loss_of_the_node_where_all_meet_which_may_come_back(tmp_path, three):
    """It is started again with the same words, as its scheduler would, and finds the others where they meet now."""
    shared = tmp_path / "run"
    with Run(tmp_path, COUNT, "--nnodes", "1:3", "--rdzv-conf", "last_call_timeout=5", head=three[0]) as run:
        first, second, third = (run.start(host, rank) for rank, host in enumerate(three))
        trains(shared, 3)
        signal_all(first, signal.SIGKILL)
        for live in (second, third):
            said(live, r"node 0 \(host h0\) has gone: its connection was closed; going on with 2 nodes", 30)
        said(second, "the nodes meet at this one now")
        said(third, r"the nodes meet at node 1 \(host h1\) now")
        said(third, "2 nodes together · h1: rank 0, h2: rank 1", 60)
        trains(shared, 2)
        back = run.start(three[0], 0)
        said(back, "the nodes do not meet at h0:29400 any more, but at 10.77.0.11:")
        said(back, "3 nodes together · h0: rank 0, h1: rank 1, h2: rank 2", 60)
        trains(shared, 3)
        signal_all(second, signal.SIGKILL)
        said(back, r"node 1 \(host h1\) has gone: its connection was closed; going on with 2 nodes", 30)
        trains(shared, 2)
        (tmp_path / "stop").touch()
        errs = [ends(back, 0), ends(third, 0)]
        told = began(shared)
        assert [world for world, _ in told][-4:] == [3, 2, 3, 2]
        assert [step for _, step in told] == sorted(step for _, step in told), "each goes on from the one before"
        assert not any("root cause" in err for err in errs)


@pytest.mark.parametrize("how", ["stands still", "is cut off"])
def test_a_head_without_most_of_the_others_loses_the_run_to_them(tmp_path, three, how):
    shared = tmp_path / "run"
    conf = ("--rdzv-conf", "node_timeout=3,last_call_timeout=2")
    with Run(tmp_path, COUNT, "--nnodes", "1:3", *conf, head=three[0]) as run:
        first, second, third = (run.start(host, rank) for rank, host in enumerate(three))
        trains(shared, 3)
        if how == "is cut off":
            three[0].cut()
        else:
            signal_all(first, signal.SIGSTOP)
        said(second, r"node 0 \(host h0\) has not been heard of for 3 s; going on with 2 nodes", 30)
        trains(shared, 2)
        signal_all(first, signal.SIGCONT)
        assert "the nodes that this one has lost go on without it, led by node 1 (host h1) since 20" in ends(first, 1)
        (tmp_path / "stop").touch()
        ends(second, 0)
        ends(third, 0)


def test_a_node_that_stood_still_comes_back(tmp_path, three):
    shared = tmp_path / "run"
    conf = ("--rdzv-conf", "node_timeout=3,last_call_timeout=2")
    with Run(tmp_path, COUNT, "--nnodes", "1:3", *conf, head=three[0]) as run:
        lives = [run.start(host, rank) for rank, host in enumerate(three)]
        trains(shared, 3)
        signal_all(lives[1], signal.SIGSTOP)
        said(lives[0], r"node 1 \(host h1\) has not been heard of for 3 s; going on with 2 nodes", 30)
        signal_all(lives[1], signal.SIGCONT)
        said(
            lives[1], r"node 0 \(host h0\) has not heard of this one for 3 s; going on with 2 nodes, unless it has the"
        )
        said(lives[1], r"the nodes meet at node 0 \(host h0\) now")
        wait_until(lambda: len(began(shared)) >= 2, 60, what="another attempt")
        trains(shared, 3)
        (tmp_path / "stop").touch()
        for live in lives:
            ends(live, 0)


def test_when_only_the_agent_of_a_node_is_killed_the_others_go_on(tmp_path, two):
    with Run(tmp_path, COUNT, "--nnodes", "1:2", head=two[0]) as run:
        lives = [run.start(host, rank) for rank, host in enumerate(two)]
        lives[1].wait_for_output("world 2", rank=1)
        os.kill(lives[1].wait_for("agent_started")[0]["pid"], signal.SIGKILL)
        assert "the agent ended unexpectedly" in ends(lives[1], 1, 30)
        lives[0].wait_for_output("world 1", attempt=1)
        (tmp_path / "stop").touch()
        ends(lives[0], 0)


def test_a_place_that_cannot_be_is_said_before_anything_starts(tmp_path, two):
    with Run(tmp_path, COUNT, "--nnodes", "2", "--rdzv-conf", "join_timeout=2", head=two[0]) as run:
        run.options[run.options.index("h0:29400")] = "nowhere:29400"
        err = ends(run.start(two[1], 1), 2)
        assert "node 1: 'nowhere', where the nodes are to meet, does not resolve on h1; trying for 2 s" in err
        assert "'nowhere' does not resolve on h1 (" in err.splitlines()[1]
    with Run(tmp_path, COUNT, "--nnodes", "2", "--rdzv-conf", "join_timeout=7", head=two[0]) as run:
        run.options[run.options.index("h0:29400")] = "late:29400"
        alone = run.start(two[1], 1)
        said(alone, r"node 1: 'late', where the nodes are to meet, does not resolve on h1; trying for 7 s", 60)
        two[1].run("sh", "-c", f"echo {two[0].address} late >> /etc/hosts").check()
        said(alone, r"node 1: nothing answers at late:29400 yet \(connection refused\); waiting up to 7 s", 60)
        err = ends(alone, 1)
        assert "node 1: nothing has answered at late:29400 for 7 s (connection refused)" in err
    with Run(tmp_path, COUNT, "--nnodes", "2", "--rdzv-conf", "join_timeout=7", head=two[0]) as run:
        err = ends(run.start(two[0], 0), 1)
        assert "1 of 2 nodes are here after 7 s at h0:29400" in err
        assert not (tmp_path / "run" / "attempt-0").exists()


def test_a_taken_port_is_said_with_its_owner(tmp_path, two):
    taker = (
        "import socket, sys; server = socket.create_server(('', 29400)); print('ready', flush=True); sys.stdin.read()"
    )
    with serving(two[0], taker) as pid, Run(tmp_path, COUNT, "--nnodes", "2", head=two[0]) as run:
        err = ends(run.start(two[0], 0), 2)
        assert err.count("\n") == 1
        assert f"port 29400 on h0, where the nodes are to meet, is taken by pid {pid} (" in err


STRANGERS = {
    "a web server": """
import http.server, sys, threading
server = http.server.HTTPServer(("", 29400), http.server.BaseHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
""",
    "silence": """
import socket, sys
server = socket.create_server(("", 29400))
""",
    "a store of torch": """
import sys
import textwrap
from torch.distributed import TCPStore
store = TCPStore("h0", 29400, is_master=True, wait_for_workers=False)
""",
}


@contextlib.contextmanager
def serving(host: Host, program: str) -> Iterator[int]:
    """Run a program on a host that listens to port 29400 and lives until its standard input ends; yield its pid."""
    words = [*host.enter, sys.executable, "-c", f"{program}\nprint('ready', flush=True); sys.stdin.read()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_answers_at_the_place_and_is_no_launch_is_named_in_seconds(tmp_path, two, stranger):
    conf = ("--rdzv-conf", "join_timeout=8")
    with serving(two[0], STRANGERS[stranger]), Run(tmp_path, COUNT, "--nnodes", "2", *conf, head=two[0]) as run:
        alone = run.start(two[1], 1)
        said(alone, "node 1: no launch of distrain answers at h0:29400 yet; waiting up to 8 s")
        err = ends(alone, 1, 40)
        assert "node 1: what answers at h0:29400 is no launch of distrain. Is it " in err
        assert ("Is it torchrun?" in err) == (stranger == "a store of torch")
        assert "Traceback" not in err


def test_one_signal_ends_a_node_that_waits_for_what_is_no_launch(tmp_path, two):
    with serving(two[0], STRANGERS["silence"]), Run(tmp_path, COUNT, "--nnodes", "2", head=two[0]) as run:
        alone = run.start(two[1], 1)
        said(alone, "no launch of distrain answers at h0:29400 yet; waiting up to 15 s")
        alone.process.terminate()
        ends(alone, 143, 8)


def test_a_head_that_does_not_have_the_address_says_so_at_once(tmp_path, two):
    with Run(tmp_path, COUNT, "--nnodes", "2", "--rdzv-conf", "join_timeout=8", head=two[0]) as run:
        wrong = run.start(two[1], 0)
        said(wrong, r"warning: .* because --node-rank is 0 here, and h0 is no address of this host \(h1\)", 30)
        err = ends(wrong, 1, 30)
        assert "node 0: it has opened the place where all meet, and does not reach it itself at h0:29400" in err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_rank_given_twice_is_refused_by_name(tmp_path, three, rank):
    with Run(tmp_path, COUNT, "--nnodes", "3", head=three[0]) as run:
        head = run.start(three[0], 0)
        if rank == 1:
            run.start(three[1], 1)
        said(head, "1 of 3 nodes are here" if rank == 0 else "2 of 3 nodes are here", 30)
        run.options += ["--name", "other"]
        run.options[run.options.index("run")] = "other"
        second = run.start(three[2], rank)
        text = f"node rank {rank} is that of node {rank} (host h{rank}) already; give each node one of its own"
        assert text in ends(second, 1, 30)
        said(head, re.escape(f"node {rank} (host h2) was turned away: {text}"), 30)
        assert head.process.poll() is None


def test_a_node_lost_while_all_wait_is_said(tmp_path, three):
    with Run(tmp_path, COUNT, "--nnodes", "3", head=three[0]) as run:
        head, other = run.start(three[0], 0), run.start(three[1], 1)
        said(other, "fewer than 3 nodes are here")
        three[1].cut()
        said(head, r"node 1 \(host h1\) has not been heard of for 10 s; it had no ranks yet", 40)
        ends(other, 1, 40)
        head.process.terminate()
        ends(head, 143, 40)


def profiles(folder, variable, *values):
    """Write a profile of one name for each host, with another value for a variable."""
    for number, value in enumerate(values):
        mine = folder / f"h{number}" / "distrain/profiles"
        mine.mkdir(parents=True, exist_ok=True)
        (mine / "ours.toml").write_text(f'nnodes = "2"\ndevice = "cpu"\n[env]\n{variable} = "{value}"\n')


def test_profiles_of_one_name_that_differ_where_it_matters_do_not_start(tmp_path, two):
    profiles(tmp_path, "NCCL_ALGO", "Ring", "Tree")
    with Run(tmp_path, programs.TRAIN, "--profile", "ours", head=two[0]) as run:
        for live in [
            run.start(host, rank, env={"XDG_CONFIG_HOME": str(tmp_path / host.name)}) for rank, host in enumerate(two)
        ]:
            err = ends(live, 1)
            assert (
                "cannot work together: NCCL_ALGO in the profile is Ring on node 0 (host h0) and Tree on node 1" in err
            )
        assert not (tmp_path / "run" / "attempt-0").exists()


def test_profiles_of_one_name_that_differ_are_said_on_both_nodes(tmp_path, two):
    profiles(tmp_path, "NCCL_DEBUG", "WARN", "INFO")
    with Run(tmp_path, programs.TRAIN, "--profile", "ours", head=two[0]) as run:
        lives = [
            run.start(host, rank, env={"XDG_CONFIG_HOME": str(tmp_path / host.name)}) for rank, host in enumerate(two)
        ]
        for live, here, there in ((lives[0], "0 (host h0)", "1 (host h1)"), (lives[1], "1 (host h1)", "0 (host h0)")):
            err = ends(live, 0)
            text = f"the profile ours of node {here} is not that of node {there}: they differ in env.NCCL_DEBUG"
            assert text in err[: err.index("together")]


def test_nodes_of_different_versions_do_not_start(tmp_path, two):
    other = tmp_path / "other"
    shutil.copytree(REPOSITORY / "distrain", other / "distrain")
    module = other / "distrain" / "__init__.py"
    text = module.read_text()
    version = re.search(r'__version__ = "(.*)"', text)[1]
    module.write_text(text.replace(f'__version__ = "{version}"', '__version__ = "9.9.9"'))
    with Run(tmp_path, COUNT, "--nnodes", "2", head=two[0]) as run:
        live0 = run.start(two[0], 0)
        host = two[1]
        stack = run.stack
        live1 = stack.enter_context(
            host.launching(
                *("--node-rank", "1", *run.options),
                cwd=tmp_path,
                run_dir=tmp_path / "run" / "node-1",
                package=other,
            )
        )
        text = f"distrain is {version} on node 0 (host h0) and 9.9.9 on node 1 (host h1)"
        for live in (live0, live1):
            assert f"these nodes cannot work together: {text}" in ends(live, 1)
            assert not (live.run_dir / "attempt-0").exists()


def test_on_one_node_nothing_listens_beyond_the_loopback_interface(tmp_path):
    with hosts(1) as (host,):
        (tmp_path / "train.py").write_text(COUNT)
        with host.launching(
            "--nproc", "2", "--run-dir", "run", "train.py", cwd=tmp_path, run_dir=tmp_path / "run"
        ) as live:
            live.wait_for_output("world 2", rank=1)
            listening = host.listening()
            assert len(listening) >= 3, "the store, and each rank's gloo"
            assert all(address.startswith("127.0.0.1:") for address in listening), listening
            (tmp_path / "stop").touch()
            ends(live, 0)


def test_where_launches_on_one_host_meet_at_its_loopback_interface_nothing_listens_beyond_it(tmp_path):
    """As `mpirun` with a task for each rank does on one host."""
    with hosts(1) as (host,), Run(tmp_path, COUNT, "--nnodes", "2", head=host) as run:
        run.options[run.options.index("h0:29400")] = "127.0.0.1:29500"
        lives = [run.start(host, rank) for rank in (0, 1)]
        lives[1].wait_for_output("world 2", rank=1)
        listening = host.listening()
        assert "127.0.0.1:29500" in listening
        assert all(address.startswith("127.0.0.1:") for address in listening), listening
        (tmp_path / "stop").touch()
        for live in lives:
            ends(live, 0)


def test_nodes_whose_own_names_lead_to_the_loopback_interface_train_together(tmp_path):
    """Debian's /etc/hosts: the head's endpoint and gloo's address would both be 127.0.1.1."""
    with hosts(2, own_name_is_loopback=True) as made:
        with Run(tmp_path, WHERE + programs.TRAIN, "--nnodes", "2", head=made[0]) as run:
            lives = [run.start(host, rank) for rank, host in enumerate(made)]
            for live in lives:
                ends(live, 0)
        trained = [log(live, rank).splitlines() for rank, live in enumerate(lives)]
        assert [lines[0].split()[-2] for lines in trained] == [made[0].address] * 2
        assert trained[0][1] == trained[1][1]


def test_clocks_apart_are_said_and_do_no_harm(tmp_path, two):
    """torch's rendezvous compares times of several clocks: 45 s apart, each node takes the other for dead."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() + 45\n")
    with Run(tmp_path, programs.TRAIN, "--nnodes", "2", head=two[0]) as run:
        live0 = run.start(two[0], 0)
        live1 = run.start(two[1], 1, env={"PYTHONPATH": str(hook)})
        assert re.search(
            r"warning: the clock of node 1 \(host h1\) is 4\d s ahead of that of node 0 \(host h0\)", ends(live0, 0)
        )
        assert re.search(
            r"warning: the clock of node 0 \(host h0\) is 4\d s behind that of node 1 \(host h1\)", ends(live1, 0)
        )


def test_a_node_that_does_not_fit_is_turned_away_and_the_run_goes_on(tmp_path, two):
    with Run(tmp_path, COUNT, "--rdzv-conf", "last_call_timeout=1", head=two[0]) as run:
        first = run.start(two[0], 0, "--nnodes", "1:2")
        first.wait_for_output("world 1")
        err = ends(run.start(two[1], 1, "--nnodes", "1:3"), 1)
        assert (
            "these nodes cannot work together: --nnodes is 1:2 on node 0 (host h0) and 1:3 on node 1 (host h1)" in err
        )
        said(first, r"node 1 \(host h1\) was turned away: --nnodes is 1:2", 30)
        (tmp_path / "stop").touch()
        ends(first, 0)
        assert log(first, 0).splitlines()[-1] == "finished"


@pytest.mark.parametrize("ranked", [True, False])
def test_several_launches_on_one_host_make_one_run(tmp_path, ranked):
    with hosts(1) as (host,):
        with Run(
            tmp_path, WHERE + programs.TRAIN, "--nnodes", "2", "--rdzv-endpoint", "localhost:29400", head=host
        ) as run:
            del run.options[run.options.index("h0:29400") - 1 : run.options.index("h0:29400") + 1]
            lives = [run.start(host, rank if ranked else None) for rank in (0, 1)]
            errs = [ends(live, 0) for live in lives]
        assert all("2 nodes together · h0: rank 0, h0: rank 1" in err for err in errs)
        second = tmp_path / "run" / ("node-1" if ranked else "node-h0")
        for record in (tmp_path / "run", second):
            assert json.loads((record / "run.json").read_text())["status"] == "succeeded"


def test_torchs_static_rendezvous_is_left_as_it_is(tmp_path, two):
    options = ("--nnodes", "2", "--rdzv-backend", "static", "--master-addr", "h0", "--master-port", "29501")
    with Run(tmp_path, WHERE + programs.TRAIN, *options, head=two[0]) as run:
        run.options = [*options, "--run-dir", "run", "train.py"]
        lives = [run.start(host, rank) for rank, host in enumerate(two)]
        for live in lives:
            ends(live, 0)
        trained = [log(live, rank).splitlines() for rank, live in enumerate(lives)]
        assert [lines[0].split()[:3] for lines in trained] == [["h0", "0", "0"], ["h1", "1", "1"]]
        assert trained[0][1] == trained[1][1]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_node_ends_the_other_with_its_reason_and_code(tmp_path, two, victim):
    with Run(tmp_path, COUNT, "--nnodes", "2", head=two[0]) as run:
        lives = [run.start(host, rank) for rank, host in enumerate(two)]
        lives[1].wait_for_output("world 2", rank=1)
        lives[victim].process.terminate()
        ends(lives[victim], 143, 40)
        what = ("the nodes meet there, so the run ends on this one", "1 node left and the run needs 2")[victim]
        err = ends(lives[1 - victim], 143, 40)
        assert f"node {victim} (host h{victim}) was ended by SIGTERM; {what}" in err


@pytest.mark.parametrize("where", ["the door is closed", "the others are awaited"])
def test_an_interrupt_while_waiting_for_the_others_ends_the_node(tmp_path, two, where):
    with Run(tmp_path, COUNT, "--nnodes", "2", head=two[0]) as run:
        if where == "the door is closed":
            alone = run.start(two[1], 1)
            said(alone, "nothing answers at h0:29400 yet")
        else:
            alone = run.start(two[0], 0)
            said(alone, "1 of 2 nodes are here at h0:29400; waiting up to 300 s for the others")
        alone.process.send_signal(signal.SIGINT)
        ends(alone, 130, 30)


SLOW_TO_LEAVE = """\
import atexit, os, time
if os.environ["GROUP_RANK"] == "{node}":
    atexit.register(lambda: (time.sleep(2), print("left in peace", flush=True)))
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_node_has_the_ranks_of_all_stop_after_the_same_step_and_save(tmp_path, two, victim):
    """The node that got the signal is done first; it must not take with it what ranks elsewhere still need."""
    script = SLOW_TO_LEAVE.format(node=1 - victim) + textwrap.dedent(STOPPED)
    with Run(tmp_path, script, "--nnodes", "2", "--nproc", "2", "--max-restarts", "1", head=two[0]) as run:
        run.options += ["1000", "0.02", "-1"]
        lives = [run.start(host, rank) for rank, host in enumerate(two)]
        for rank in range(4):
            lives[rank // 2].wait_for_output("on the way", rank=rank)
        lives[victim].process.terminate()
        errs = [ends(live, 75) for live in lives]
        (step,) = re.findall(r"SIGTERM: stopped after step (\d+), saved in \S+", errs[0])
        saved = (tmp_path / "run" / "checkpoints").glob("step-*")
        assert [path.name for path in saved] == [f"step-{int(step):08d}"]
        for live, err in zip(lives, errs, strict=True):
            assert [event["exit_code"] for event in live.wait_for("worker_exited", 2)] == [75, 75]
            assert json.loads((live.run_dir / "run.json").read_text())["status"] == "preempted"
            assert "root cause" not in err
            assert not (live.run_dir / "attempt-1").exists()
        assert "left in peace" in log(lives[1 - victim], 2 * (1 - victim))
