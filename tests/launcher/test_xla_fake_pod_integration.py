"""`distrain launch` on the two hosts of a TPU slice with two chips each. The chips are fake, see `fake_replicas`.

The hosts are real ones of network namespaces; launchers, torch_xla's launch, its topology and all that meets are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

import distrain
from tests.support import fake_replicas
from tests.support.launching import Live
from tests.support.namespaces import Host, hosts
from tests.support.processes import wait_until
from tests.training import xla_replicas

pytestmark = [pytest.mark.xla, pytest.mark.usefixtures("xla_device"), pytest.mark.timeout(300)]

TRAIN = """
import json, os
from pathlib import Path
import distrain
from tests.training.xla_replicas import script

def wait_at(iteration):
    if iteration == 4 and not Path("go").exists():
        print("iteration 4", flush=True)
        while not Path("go").exists():
            pass

with distrain.init() as world:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "CLOUD_TPU_TASK_ID")
    print(json.dumps({**{name: os.environ[name] for name in names}, "host": os.uname().nodename}), flush=True)
    done = script(world.device, world.rank, 4, 6, at_each=wait_at if IS_TO_WAIT else None)
    print(json.dumps(done), flush=True)
"""

STRAY = """
import os, time
import distrain

def stand_still():
    time.sleep(600)

with distrain.init() as world:
    print("pid", os.getpid(), flush=True)
    for step in range(10**9):
        world.barrier()
        distrain.heartbeat()
        if step == 20 and world.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            stand_still()
        time.sleep(0.02)
"""


class Pod:
    """Launches of one script on the hosts of a slice, which share a folder."""

    def __init__(self, folder: Path, made: list[Host]) -> None:
        self.folder = folder
        self.hosts = made
        self.site = fake_replicas.site(folder)

    @contextlib.contextmanager
    def launching(self, script: str, *options: str, run: str = "run", by_metadata: bool = False):
        """Start `distrain launch` on each host; yield the launches."""
        (self.folder / "train.py").write_text(script)
        run_dir = self.folder / run
        with contextlib.ExitStack() as stack:
            if by_metadata:
                stack.enter_context(fake_replicas.metadata(self.hosts, 2))
            live = []
            for worker_id, host in enumerate(self.hosts):
                names = [each.name for each in self.hosts]
                found = {"FAKE_CHIPS": "2"} if by_metadata else fake_replicas.variables(names, worker_id, 2)
                live.append(
                    stack.enter_context(
                        host.launching(
                            *(*options, "--run-dir", run, "train.py"),
                            cwd=self.folder,
                            run_dir=run_dir / f"node-{worker_id}" if worker_id else run_dir,
                            env={**self.site, **found},
                        )
                    )
                )
            yield live


@pytest.fixture(scope="module")
def two_hosts():
    with hosts(2, on_loopback="metadata.google.internal") as made:
        yield made


@pytest.fixture
def pod(tmp_path, two_hosts):
    yield Pod(tmp_path, two_hosts)
    wait_until(lambda: not any(host.processes() for host in two_hosts), 20, what="no process is left on the hosts")


def ends(launches: list[Live], code: int) -> list[str]:
    """Return what the launchers said, once all have ended with the exit code."""
    found = [live.end(200) for live in launches]
    assert [got for got, _, _ in found] == [code, code], "\n".join(text for _, *texts in found for text in texts)
    return [err for _, _, err in found]


def logs(live: Live, attempt: int = 0) -> dict[int, list[str]]:
    """Return what each rank of a host has printed, by rank, without what torch's gloo prints."""
    folders = (live.run_dir / f"attempt-{attempt}").glob("rank-*")
    texts = {int(folder.name[5:]): (folder / "stdout.log").read_text() for folder in folders}
    return {rank: [line for line in text.splitlines() if "[Gloo]" not in line] for rank, text in texts.items()}


def said(launches: list[Live], line: int, attempt: int = 0) -> dict[int, dict[str, object]]:
    """Return what each rank of all hosts said in one of its lines."""
    return {rank: json.loads(lines[line]) for live in launches for rank, lines in logs(live, attempt).items()}


def test_the_hosts_of_a_fake_pod_train_as_one_process_and_go_on_after_a_preemption_of_one(pod, tmp_path, monkeypatch):
    at_once = TRAIN.replace("IS_TO_WAIT", "False")
    with pod.launching(at_once, run="whole") as launches:
        errs = ends(launches, 0)
        places, whole = said(launches, 0), said(launches, 1)
    for err in errs:
        assert "2 nodes together · h0: 2 ranks, h1: 2 ranks" in err
    assert sorted(places) == [0, 1, 2, 3]
    for rank, place in places.items():
        assert (place["RANK"], place["WORLD_SIZE"], place["LOCAL_WORLD_SIZE"]) == (str(rank), "4", "2")
        # the stand-in numbers the chips the other way round, so that rank 0 is on the last host
        assert place["host"] == f"h{place['GROUP_RANK']}" == ("h1" if rank < 2 else "h0")
        assert int(place["CLOUD_TPU_TASK_ID"]) == 2 * int(place["GROUP_RANK"]) + int(place["LOCAL_RANK"])
    assert all(whole[rank]["weights"] == whole[0]["weights"] for rank in whole)
    monkeypatch.setenv("DISTRAIN_RUN_DIR", str(tmp_path / "one"))
    with distrain.init(device="cpu"):
        one = xla_replicas.script("cpu", 0, 16, 6)
    assert one["losses"].keys() == {int(step) for step in whole[0]["losses"]}
    for step, loss in one["losses"].items():
        assert whole[0]["losses"][str(step)] == pytest.approx(loss, abs=1e-5)
    assert not (tmp_path / "whole/node-1/checkpoints").exists()

    with pod.launching(TRAIN.replace("IS_TO_WAIT", "True")) as launches:
        first, other = launches
        first.wait_for_output("iteration 4", rank=2, deadline_s=120)
        other.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM: passed on to the ranks" in other.printed(), 60)
        (tmp_path / "go").touch()
        for err in ends(launches, 75):
            assert "preempted after" in err
    saved = sorted((tmp_path / "run/checkpoints").glob("step-*"))
    assert 4 <= int(saved[-1].name[5:]) < 18
    with pod.launching(at_once) as launches:
        ends(launches, 0)
        resumed = said(launches, 1, attempt=1)
    assert min(map(int, resumed[0]["losses"])) == int(saved[-1].name[5:]) + 1
    assert all(resumed[rank]["weights"] == whole[rank]["weights"] for rank in whole)


def test_a_rank_of_a_fake_pod_that_hangs_begins_again_and_one_that_is_killed_is_the_root_cause_on_both_hosts(pod):
    """The hosts learn of each other from the metadata server, as on Cloud TPU VMs."""
    options = ("--max-restarts", "1", "--retry", "always", "--hang-timeout", "8")
    with pod.launching(STRAY, *options, by_metadata=True) as launches:
        first, other = launches
        for live, rank in ((first, 2), (first, 3), (other, 0), (other, 1)):
            live.wait_for_output("pid", rank=rank, attempt=1, deadline_s=200)
        os.kill(int(logs(other, 1)[1][0].split()[1]), signal.SIGKILL)
        errs = ends(launches, 137)
    assert "rank 1, on h1, is the odd one out" in errs[0]
    for live, err in zip(launches, errs, strict=True):
        assert re.search(r"rank 1\b.*: Hang: no step for \d+ s; it stood in stand_still", err)
        assert "root cause: rank 1 on h1: SIGKILL" in err
        cause = json.loads((live.run_dir / "failure.json").read_text())["root_cause"]
        assert (cause["rank"], cause["host"], cause["attempt"]) == (1, "h1", 1)
