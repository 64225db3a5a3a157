"""A run that hangs is noticed, explained and ended, or started again; one that is slow is left alone."""

from __future__ import annotations

import json
import re
import signal
import sys
import time

import pytest

from tests.support.launching import events, launching
from tests.support.processes import wait_until

TRAIN = """\
import io, os, signal, sys, threading, time
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

class Data:
    def __len__(self):
        return 1 << 20
    def __getitem__(self, index):
        if index == 40 and sys.argv[1] == "loader" and os.environ["RANK"] == "1":
            time.sleep(3600)
        return torch.ones(4)

def lock():
    mutex = threading.Lock()
    mutex.acquire()
    print("in the lock", flush=True)
    mutex.acquire()

def stop():
    os.kill(os.getpid(), signal.SIGSTOP)

def stay():
    threading.Thread(target=time.sleep, args=(3600,)).start()
    raise LookupError("no such batch")

def loop():
    sum(iter(int, 1))

def skip():
    dist.barrier()

def sleep():
    time.sleep(3600)

class SlowFile(io.BytesIO):
    def write(self, data):
        time.sleep(0.15)
        return super().write(data)

def save():
    torch.save([torch.zeros(1) for _ in range(4)], SlowFile())
    print("saved", flush=True)

def loader():
    pass

dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step, batch in enumerate(DataLoader(Data(), batch_size=2, num_workers=1)):
    model(batch).sum().backward()
    optimizer.step()
    is_struck = step == 5 and dist.get_rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if is_struck and sys.argv[1] in globals():
        globals()[sys.argv[1]]()
    if step == 30 and sys.argv[1] == "slow":
        time.sleep(6)
    if step == 60:
        break
    time.sleep(0.02)
print("finished", flush=True)
dist.barrier()
dist.destroy_process_group()
"""

TIMEOUT_S = 5
LATE_S = 5
"""How much later a loaded machine may notice."""


@pytest.fixture
def train(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    return "train.py"


def start(train, how, *options, cwd):
    options = ("--nproc", "3", "--device", "cpu", "--hang-timeout", str(TIMEOUT_S), *options)
    return launching(*options, train, how, cwd=cwd)


WHERE = {
    "lock": "in lock",
    "stop": "in stop",
    "loop": "in loop",
    "skip": "barrier",
    "sleep": "in sleep",
    "loader": "DataLoader",
}
OTHERS = [how for how in WHERE if how != "lock"]


@pytest.mark.parametrize(
    "how", ["lock", *(pytest.param(how, marks=pytest.mark.deep) for how in WHERE if how != "lock")]
)
def test_a_hang_is_noticed_in_time_and_the_right_rank_named(tmp_path, train, how):
    with start(train, how, cwd=tmp_path) as live:
        live.wait_for("hang")
        code, _, err = live.end()
        (hang,) = events(live.run_dir, "hang")
    assert code == 124
    assert hang["silent_s"] <= TIMEOUT_S + LATE_S
    report = err[err.index("root cause: ") :]
    assert report.startswith("root cause: rank 1 on ")
    assert ": Hang: no step for " in report.splitlines()[0]
    if how == "lock":
        rank_dirs = [live.run_dir / "attempt-0" / f"rank-{rank}" for rank in range(3)]
        begun = [json.loads((each / "flight.json").read_text())["pg_status"]["0"] for each in rank_dirs]
        numbers = [int(each["last_enqueued_collective"]) for each in begun]
        assert numbers == [numbers[1] + 1, numbers[1], numbers[1] + 1]
        assert f", past collective {numbers[1]}" in report.splitlines()[0]
        others = report[report.index("the other ranks meanwhile:") :].splitlines()[1]
        assert f", at collective {numbers[0]} (gloo:all_reduce)" in others
    assert json.loads((live.run_dir / "failure.json").read_text())["root_cause"]["exit_code"] == 124
    stacks = (live.run_dir / "attempt-0" / "stacks.txt").read_text()
    assert "ranks 0, 2, " in stacks
    assert "rank 1, the odd one out" in stacks
    if how == "lock":
        assert f"\nranks 0, 2, by torch's flight recorder: at collective {numbers[0]} (gloo:all_reduce)\n" in stacks
    assert WHERE[how] in stacks[stacks.index("rank 1, the odd") :]
    if how == "stop":
        assert "\n  rank 1, pid" in report
        assert "· after step 6 ·" in report
        assert "collective" not in report.splitlines()[0]
        assert re.search(r"\nranks 0, 2, by torch's flight recorder: at collective \d+ \(gloo:all_reduce\)\n", stacks)


@pytest.mark.deep
def test_a_rank_that_raised_and_did_not_end_for_its_threads_is_told_by_what_it_raised(tmp_path, train):
    with start(train, "stay", cwd=tmp_path) as live:
        code, _, err = live.end()
        assert events(live.run_dir, "hang")
    assert code == 1
    words = r"root cause: rank 1 on \S+: LookupError: no such batch; its threads kept it from ending\n"
    assert re.search(words, err), err


@pytest.mark.deep
def test_a_rank_of_a_plain_interpreter_is_seen_as_a_forked_one_is(tmp_path, train):
    """SIGQUIT shows its stack, its steps are the heartbeats, and it is named when it hangs: without a change to it."""
    with start(train, "lock", "--no-fork-server", cwd=tmp_path) as live:
        live.wait_for_output("in the lock", 1)
        live.process.send_signal(signal.SIGQUIT)
        asked = wait_until(lambda: told if "mutex.acquire()" in (told := live.printed()) else "", 60, what="the stacks")
        code, _, err = live.end()
    assert "in lock\n    mutex.acquire()" in asked
    assert "no Python stack" not in asked
    assert code == 124
    report = err[err.index("root cause: ") :]
    assert re.match(r"root cause: rank 1 on \S+: Hang: no step for \d+ s; it stood in lock \(line", report), report
    assert "\n  rank 1, pid" in report
    assert "· after step 6 ·" in report
    assert (live.run_dir / "attempt-0" / "rank-1" / "flight.json").exists()


def test_of_a_foreign_program_no_stack_is_expected_and_that_is_said(tmp_path):
    """It shows that it moves by distrain.heartbeat() alone."""
    (tmp_path / "train.py").write_text("import time, distrain\ndistrain.heartbeat()\ntime.sleep(60)\n")
    options = ("--nproc", "1", "--device", "cpu", "--hang-timeout", "1", "--no-python")
    with launching(*options, sys.executable, "train.py", cwd=tmp_path) as live:
        code, _, err = live.end()
    assert code == 124
    why = "a program of --no-python"
    assert f"--hang-timeout (1): {why} shows progress only through distrain's own trainer and" in err
    assert f"\n  no Python stack was given: {why} gives none\n" in err
    assert re.search(rf": Hang: no step for \d+ s; no Python stack: {why} gives none\n", err), err


@pytest.mark.deep
def test_after_a_hang_the_next_attempt_begins(tmp_path, train):
    with start(train, "lock", "--max-restarts", "1", cwd=tmp_path) as live:
        code, out, err = live.end(60)
    assert code == 0, err
    assert "finished" in out
    assert "attempt 0 failed, starting the next · root cause: rank 1" in err
    assert ": Hang: " in err


@pytest.mark.deep
@pytest.mark.parametrize("options", [(), ("--no-fork-server",)], ids=["warm", "plain"])
def test_saving_with_torch_is_no_hang(tmp_path, train, options):
    with start(train, "save", *options, cwd=tmp_path) as live:
        live.wait_for_output("saved", 1)
        code, _, err = live.end(60)
    assert code == 0, err
    assert events(live.run_dir, "hang") == []


@pytest.mark.deep
def test_a_slow_step_is_no_hang_where_the_timeout_is_longer(tmp_path, train):
    with launching(*("--nproc", "2", "--device", "cpu", "--hang-timeout", "auto", train, "slow"), cwd=tmp_path) as live:
        code, _, err = live.end(60)
    assert code == 0, err
    assert events(live.run_dir, "hang") == []


@pytest.mark.deep
def test_switched_off_it_waits_for_ever(tmp_path, train):
    with launching("--nproc", "2", "--device", "cpu", "--hang-timeout", "off", train, "lock", cwd=tmp_path) as live:
        live.wait_for("worker_started", 2)
        live.wait_for_output("", 0)
        end = time.monotonic() + 8
        while time.monotonic() < end:
            assert live.process.poll() is None
            time.sleep(0.1)
        live.process.send_signal(signal.SIGTERM)
        live.process.send_signal(signal.SIGTERM)
        live.end()
    assert events(live.run_dir, "hang") == []


def test_sigquit_shows_where_the_ranks_stand_and_the_run_goes_on(tmp_path):
    text = (
        "import os, time\ndef waiting():\n    print('waiting', flush=True)\n"
        "    while not os.path.exists('go'): time.sleep(0.02)\nwaiting()\n"
    )
    (tmp_path / "train.py").write_text(text)
    with launching("--nproc", "2", "--device", "cpu", "train.py", cwd=tmp_path) as live:
        for rank in (0, 1):
            live.wait_for_output("waiting", rank)
        live.process.send_signal(signal.SIGQUIT)
        live.wait_for("stacks")
        (tmp_path / "go").touch()
        code, _, err = live.end()
    assert code == 0
    assert "where the ranks stand" in err
    assert "ranks 0-1" in err
    assert "in waiting" in err
    assert "in waiting" in (live.run_dir / "attempt-0" / "stacks.txt").read_text()
