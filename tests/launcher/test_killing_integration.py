"""Whatever is killed with SIGKILL, at whatever moment: no process of the run survives it."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.launching import Live, events, launch, launching
from tests.support.processes import Process, descendants, is_alive, wait_until

FAMILY = """\
import os, subprocess, sys, time
import torch
from torch.utils.data import DataLoader

class Endless:
    def __len__(self):
        return 1 << 30
    def __getitem__(self, index):
        time.sleep(0.01)
        return index

if __name__ == "__main__":
    child = "import subprocess; subprocess.run(['sleep', '600'])"
    subprocess.Popen([sys.executable, "-c", child], start_new_session="apart" in sys.argv)
    torch.distributed.init_process_group("gloo")
    print("going", flush=True)
    for number, batch in enumerate(DataLoader(Endless(), num_workers=2)):
        torch.distributed.all_reduce(torch.ones(1))
        if "apart" in sys.argv and number == 300:
            break
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""

ENDS_S = 40

KILLS = int(os.environ.get("DISTRAIN_TEST_KILLS", "10"))
"""How often in the deep tests the supervisor is killed, and how often other members of a run are, all together."""

LIVES_S = {"guard": 7, "fork server": 7, "agent": 5, "worker": 4, "loader": 2, "grandchild": 3}
"""The members of a run below the supervisor, and about how long each lives when nothing happens."""


LEAVES = """\
import json, os, pathlib, signal, subprocess, sys, time

attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), os.environ["RANK"]
here = pathlib.Path(sys.argv[1])
if attempt == 1:
    left = [pid for path in here.iterdir() for pid in json.loads(path.read_text()) if os.path.exists(f"/proc/{pid}")]
    print("left", left, flush=True)
    sys.exit()
started = [subprocess.Popen(["sleep", "8888"], start_new_session=apart) for apart in (False, True)]
(here / ("." + rank)).write_text(json.dumps([each.pid for each in started]))
(here / ("." + rank)).rename(here / rank)
while len(list(here.glob("[01]"))) < 2:
    time.sleep(0.01)
if rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1000)
"""
"""What the ranks of the first attempt start, of which each of the second one prints what is still there."""


def of_the_run(pid: int, known: set[int]) -> set[int]:
    """Return what lives of a run now; who has lost its parent is a child of this process, the reaper of orphans."""
    return {process.pid for process in descendants(os.getpid())} - known | ({pid} if is_alive(pid) else set())


@pytest.fixture
def family(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(FAMILY)
    return str(path)


def kill_and_look(live, victim: int, known: set[int]) -> None:
    tree = {process.pid for process in descendants(live.process.pid)}
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: live.process.poll() is not None and not of_the_run(live.process.pid, known),
        ENDS_S,
        what=f"nothing is left after {victim} was killed",
    )
    assert not any(is_alive(pid) for pid in tree)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [1, pytest.param(KILLS, marks=pytest.mark.deep)])
def test_the_supervisor_is_killed_at_any_moment(tmp_path, family, count):
    """From its first breath to the middle of the training: 0 to 5 seconds."""
    draw = random.Random(count)
    for _ in range(count):
        known = {process.pid for process in descendants(os.getpid())}
        with launching("--nproc", "2", "--device", "cpu", family, cwd=tmp_path) as live:
            end = time.monotonic() + draw.uniform(0, 5)
            wait_until(lambda end=end: time.monotonic() > end, 10, what="the moment")
            kill_and_look(live, live.process.pid, known)


@pytest.mark.deep
@pytest.mark.parametrize("options", [(), ("--no-fork-server",)])
def test_what_a_failed_attempt_has_started_ends_before_the_next_one_begins(tmp_path, options):
    """Also what has a session of its own, and what the rank that died has left in its own."""
    script, started = tmp_path / "train.py", tmp_path / "started"
    script.write_text(LEAVES)
    started.mkdir()
    retried = ("--max-restarts", "1", "--device", "cpu", "--nproc", "2", "--run-dir", "run")
    launch(*retried, *options, script, started, cwd=tmp_path).check()
    assert len(list(started.iterdir())) == 2
    for rank in (0, 1):
        assert (tmp_path / f"run/attempt-1/rank-{rank}/stdout.log").read_text() == "left []\n"


def members(live: Live, kind: str) -> list[Process]:
    """Return the processes of a kind that a run has now."""
    tree = descendants(live.process.pid)
    agents = [event["pid"] for event in events(live.run_dir, "agent_started")]
    workers = [event["pid"] for event in events(live.run_dir, "worker_started")]
    guards = [process.pid for process in tree if process.ppid == live.process.pid]
    servers = [process.pid for process in tree if process.ppid in guards]
    ours = {live.process.pid, *guards, *servers, *agents, *workers}
    return [
        process
        for process in tree
        if {
            "guard": process.pid in guards,
            "fork server": process.pid in servers,
            "agent": process.pid in agents,
            "worker": process.pid in workers,
            "loader": process.ppid in workers and process.session == process.ppid,
            "grandchild": process.session not in ours,
        }[kind]
    ]


def strike(live: Live, kind: str, after_s: float, draw: random.Random) -> Process | None:
    """Kill a member of a kind, so long after there is one; None when the run was over before."""

    def is_over() -> bool:
        return live.process.poll() is not None

    wait_until(lambda: is_over() or members(live, kind), 60, what=f"a {kind}", poll_s=0.01)
    end = time.monotonic() + after_s
    wait_until(lambda: is_over() or time.monotonic() > end, after_s + 10, what="the moment", poll_s=0.01)
    found = [] if is_over() else members(live, kind)
    if not found:
        return None
    victim = draw.choice(found)
    try:
        os.kill(victim.pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return victim


def rank_of(live: Live, pid: int) -> int | None:
    started = events(live.run_dir, "worker_started")
    return next((event["rank"] for event in started if event["pid"] == pid), None)


def check_what_was_told(live: Live, kind: str, victim: Process, code: int, err: str) -> None:
    """A worker or its loader is the root cause, the launcher's own parts are named, a grandchild is not missed."""
    if kind == "guard":  # the run needs none, but for what forks its ranks, before that is ready to do so
        assert code == 0 or (code, "the fork server ended unexpectedly" in err) == (1, True), err
    elif kind == "fork server":
        assert (code, "the fork server ended unexpectedly" in err) == (1, True), err
    elif kind == "agent":
        assert (code, "the agent ended unexpectedly (exit code -9)" in err) == (1, True), err
    elif kind == "worker":
        root = json.loads((live.run_dir / "failure.json").read_text())["root_cause"]
        assert (root["rank"], root["kind"], code) == (rank_of(live, victim.pid), "SIGKILL", 137), err
    elif kind == "loader" and code != 0:  # one that is killed when its data were all taken is not missed
        root = json.loads((live.run_dir / "failure.json").read_text())["root_cause"]
        assert (root["rank"], root["class"], code) == (rank_of(live, victim.ppid), "cause", 1), err
        is_noticed_in_hand_over = "A DataLoader worker died with a batch" in err
        assert "DataLoader worker" in root["message"] or is_noticed_in_hand_over, err
    else:
        assert code == 0, err
        assert not (live.run_dir / "failure.json").exists()


def strike_at_once(pids: Iterable[int]) -> None:
    """Kill processes, none of which has time to act on another one's end."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def test_what_a_word_of_their_command_lines_selects_is_killed_at_once(tmp_path, family):
    """As `pkill -9 -f distrain` does: the supervisor, and the fork server, whose command line has the module's name."""
    known = {process.pid for process in descendants(os.getpid())}
    with launching("--nproc", "2", "--device", "cpu", family, "apart", cwd=tmp_path) as live:
        live.wait_for_output("going")
        (guard,), (server,) = members(live, "guard"), members(live, "fork server")
        (grandchild, *_) = members(live, "grandchild")
        selected = {
            pid
            for pid in of_the_run(live.process.pid, known)
            if b"distrain" in Path(f"/proc/{pid}/cmdline").read_bytes()
        }
        assert selected >= {live.process.pid, server.pid}
        assert not selected & {guard.pid, grandchild.pid}
        strike_at_once(selected)
        wait_until(lambda: not of_the_run(live.process.pid, known), ENDS_S, what="nothing is left")


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "pair", [("supervisor", "fork server"), ("supervisor", "guard"), ("guard", "fork server")], ids="+".join
)
def test_two_of_those_that_end_the_others_are_killed_at_once(tmp_path, family, pair):
    """At any moment of the run's first seconds, also when one of the two has not begun."""
    draw = random.Random(",".join(pair))
    for _ in range(max(1, KILLS // 5)):
        known = {process.pid for process in descendants(os.getpid())}
        with launching("--nproc", "2", "--device", "cpu", "--grace", "2", family, "apart", cwd=tmp_path) as live:
            end = time.monotonic() + draw.uniform(0, 6)
            wait_until(lambda end=end: time.monotonic() > end, 10, what="the moment", poll_s=0.005)
            victims = [live.process.pid] if "supervisor" in pair else []
            victims += [each.pid for kind in pair if kind != "supervisor" for each in members(live, kind)]
            strike_at_once(victims)
            wait_until(
                lambda live=live, known=known: (
                    live.process.poll() is not None and not of_the_run(live.process.pid, known)
                ),
                ENDS_S,
                what="nothing is left",
            )


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", LIVES_S)
def test_a_member_of_the_run_is_killed_at_any_moment(tmp_path, family, kind):
    """Each in a run of its own, from its first breath to its last: 100 ms of them or seconds."""
    draw, count = random.Random(kind), max(1, KILLS // len(LIVES_S))
    moments, codes, num_runs = [], collections.Counter(), 0
    while len(moments) < count:
        known = {process.pid for process in descendants(os.getpid())}
        folder = tmp_path / str(num_runs)
        folder.mkdir()
        num_runs += 1
        assert num_runs < 3 * count + 3, f"the run is over too often before there was a {kind} to kill: {moments}"
        after_s = draw.uniform(0, LIVES_S[kind])
        with launching("--nproc", "2", "--device", "cpu", "--grace", "2", family, "apart", cwd=folder) as live:
            victim = strike(live, kind, after_s, draw)
            code, _, err = live.end()
            wait_until(
                lambda live=live, known=known: not of_the_run(live.process.pid, known), 10, what="nothing is left"
            )
            if victim is not None:
                moments.append(round(after_s, 1))
                codes[code] += 1
                check_what_was_told(live, kind, victim, code, err)
            else:
                assert code == 0, err
    print(f"{kind}: killed {count} in {num_runs} runs, after {sorted(moments)} s of its life; exit codes {dict(codes)}")


@pytest.mark.deep
def test_the_agent_dies_while_the_workers_it_has_asked_for_are_started(tmp_path, family):
    """The fork server, held meanwhile, finds the request of an agent that is gone."""
    with launching("--nproc", "2", "--device", "cpu", "--grace", "2", family, cwd=tmp_path) as live:
        (started,) = live.wait_for("agent_started")
        (server,) = members(live, "fork server")
        os.kill(server.pid, signal.SIGSTOP)
        wait_until((live.run_dir / "attempt-0").exists, 30)
        times = [-1.0]

        def is_waiting() -> bool:
            used = sum(map(int, Path(f"/proc/{started['pid']}/stat").read_text().rpartition(")")[2].split()[11:13]))
            times[:] = [used] if used != times[0] else [*times, used]
            return len(times) > 10

        wait_until(is_waiting, 30, what="the agent waits for its workers", poll_s=0.05)
        os.kill(started["pid"], signal.SIGKILL)
        os.kill(server.pid, signal.SIGCONT)
        code, _, err = live.end()
    assert (code, "the agent ended unexpectedly (exit code -9)" in err) == (1, True), err


@pytest.mark.deep
def test_the_terminal_is_closed(tmp_path, family):
    """The shell's SIGHUP: every process hears of it, and nothing stays."""
    known = {process.pid for process in descendants(os.getpid())}
    with launching("--nproc", "2", "--device", "cpu", "--grace", "2", family, cwd=tmp_path) as live:
        live.wait_for_output("going")
        live.process.send_signal(signal.SIGHUP)
        assert live.end()[0] == 128 + signal.SIGHUP
        assert not of_the_run(live.process.pid, known)
