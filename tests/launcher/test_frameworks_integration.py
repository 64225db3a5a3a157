"""Other frameworks' training scripts, as their users write them for torchrun, under `distrain launch`.

The scripts of tests/launcher/frameworks know nothing of distrain. Each is run under both launchers, and what its
ranks have seen and learnt is compared to the last bit.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import real_parts
from tests.support.launching import events, launch, launching
from tests.support.processes import Finished, run, wait_until

SCRIPTS = Path(__file__).parent / "frameworks"
DEADLINE_S = 120
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
"""The same for both launchers, whose default thread counts differ; the last is for accelerate's own test."""

MEETING_PORT = 24711
"""20000 and the last digits of the job's number."""

pytestmark = pytest.mark.timeout(3 * DEADLINE_S)

INSTALLED = ["plain_ddp", "accelerate_loop", "ignite_parallel", "ignite_initialize"]
EXTRA = {"lightning_fabric": "lightning", "lightning_trainer": "lightning", "hugging_face_trainer": "transformers"}
"""Scripts of the frameworks of the extra `frameworks`, and the package each needs."""

FRAMEWORKS = [
    *(pytest.param(name, marks=pytest.mark.deep) for name in INSTALLED),
    *(pytest.param(name, marks=pytest.mark.frameworks) for name in EXTRA),
]


@pytest.fixture
def script(request):
    """Return the script of the case; its framework must be there."""
    name = request.param
    if name in EXTRA and importlib.util.find_spec(EXTRA[name]) is None:
        real_parts.missing(f"{EXTRA[name]} is not installed: pip install -e '.[test,frameworks]'")
    return SCRIPTS / f"{name}.py"


def under_torchrun(folder: Path, *words: str | Path, env: Mapping[str, str] | None = None) -> Finished:
    """Run two ranks under torchrun."""
    options = ["--standalone", "--nproc-per-node", "2", "--log-dir", str(folder / "torchrun-logs")]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *map(str, words)]
    return run(command, cwd=folder, env={**ENVIRONMENT, **(env or {})}, deadline_s=DEADLINE_S)


def under_distrain(folder: Path, *words: str | Path, env: Mapping[str, str] | None = None) -> Finished:
    """Run two ranks under `distrain launch`; its run directory is `folder/run`."""
    options = ["--nproc", "2", "--device", "cpu", "--run-dir", folder / "run"]
    return launch(*options, *words, cwd=folder, env={**ENVIRONMENT, **(env or {})}, deadline_s=DEADLINE_S)


def reports(folder: Path, ranks: int = 2) -> list[dict[str, Any]]:
    """Return what each rank wrote at the end of its training."""
    assert sorted(path.name for path in folder.glob("*.json")) == [f"{rank}.json" for rank in range(ranks)]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def without_pid(seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in each.items() if key != "pid"} for each in seen]


def trained(launcher: Any, folder: Path, script: Path, *options: str, arguments: list[str] | None = None, **more: Any):
    """Run a script to its good end under a launcher and return its ranks' reports."""
    out = folder / "out"
    out.mkdir(parents=True)
    launcher(folder, *options, script, out, *(arguments or []), **more).check()
    return reports(out)


HOWS = [
    pytest.param(name, how, marks=mark, id=f"{name}-{how}")
    for mark, names in ((pytest.mark.deep, INSTALLED), (pytest.mark.frameworks, list(EXTRA)))
    for name in names
    for how in ("warm", *(["--no-fork-server"] if name in {"accelerate_loop", "lightning_trainer"} else []))
]


@functools.cache
def torchruns_reports(folder: Path, script: Path) -> list[dict[str, Any]]:
    """Run a script under torchrun. It gets a second chance: now and then its start or end fails or hangs."""
    try:
        return trained(under_torchrun, folder / "first", script)
    except (AssertionError, TimeoutError):
        return trained(under_torchrun, folder / "second", script)


@pytest.mark.parametrize(("script", "how"), HOWS, indirect=["script"])
def test_it_learns_the_same_as_under_torchrun(tmp_path, tmp_path_factory, script, how):
    options = [] if how == "warm" else [how]
    ours = trained(under_distrain, tmp_path, script, *options)
    assert [(each["rank"], each["local_rank"], each["world_size"]) for each in ours] == [(0, 0, 2), (1, 1, 2)]
    assert ours[0]["weights"] == ours[1]["weights"] != []

    started = {event["rank"]: event["pid"] for event in events(tmp_path / "run", "worker_started")}
    assert started == {each["rank"]: each["pid"] for each in ours}  # no process of the framework's own trains
    exits = {event["rank"]: event["exit_code"] for event in events(tmp_path / "run", "worker_exited")}
    assert exits == {0: 0, 1: 0}

    theirs = torchruns_reports(tmp_path_factory.getbasetemp() / f"torchrun-{script.stem}", script)
    assert without_pid(ours) == without_pid(theirs)


@pytest.mark.parametrize("script", FRAMEWORKS, indirect=True)
def test_a_failing_scripts_exit_code_is_passed_on(tmp_path, script):
    """Rank 1 leaves in the first epoch. The other is in a collective then, or its framework fails."""
    out = tmp_path / "out"
    out.mkdir()
    done = under_distrain(tmp_path, "--grace", "2", script, out, "--fail").check(7)
    assert "rank 1" in done.stderr
    assert list(out.glob("*.json")) == []


@pytest.mark.deep
def test_accelerates_own_test_passes(tmp_path):
    """It needs no option but the device: torchrun's environment is what accelerate looks at."""
    done = under_distrain(tmp_path, "-m", "accelerate.test_utils.scripts.test_script").check()
    assert "Num processes: 2" in done.stdout
    for part in ("Test process execution", "DataLoader integration test", "Training integration test"):
        assert part in done.stdout
    assert "Training yielded the same results on one CPU or distributed setup with no batch split." in done.stdout
    assert "Test reinstantiated state" in done.stdout


def slurm_task(*nodes: str, node: int = 0) -> dict[str, str]:
    """Return what srun with one task a node, of which each starts two ranks, sets on one of `nodes`."""
    count = str(len(nodes))
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": count,
        "SLURM_JOB_NODELIST": ",".join(nodes),
        "SLURM_NNODES": count,
        "SLURM_NODELIST": ",".join(nodes),
        "SLURM_NTASKS": count,
        "SLURM_NPROCS": count,
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_TASKS_PER_NODE": f"1(x{count})" if len(nodes) > 1 else "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": ",".join(nodes),
        "SLURM_STEP_NUM_NODES": count,
        "SLURM_STEP_NUM_TASKS": count,
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{count})" if len(nodes) > 1 else "1",
        "SLURM_PROCID": str(node),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": "0",
        "SLURMD_NODENAME": nodes[node],
    }


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("ignite_parallel", []), ("ignite_initialize", []), ("ignite_initialize", ["--context"])],
    ids=["parallel", "initialize", "context"],
)
def test_ignite_in_a_slurm_task_that_starts_two_ranks(tmp_path, name, arguments):
    """ignite believes Slurm where the two disagree: with `--context` both ranks would take local rank 0."""
    ours = trained(
        under_distrain, tmp_path, SCRIPTS / f"{name}.py", arguments=arguments, env=slurm_task(socket.gethostname())
    )
    assert [(each["rank"], each["local_rank"], each["world_size"]) for each in ours] == [(0, 0, 2), (1, 1, 2)]
    assert [each["more"]["nodes"] for each in ours] == [[0, 1, 2]] * 2


def meeting_place_answers() -> bool:
    with contextlib.suppress(OSError), socket.create_connection((socket.gethostname(), MEETING_PORT), timeout=1):
        return True
    return False


@pytest.mark.deep
def test_ignite_on_two_slurm_nodes_with_two_ranks_each(tmp_path):
    """Here ignite refuses a RANK that is not SLURM_PROCID (ignite#2048), which under torchrun it never is.

    Two names of this host are the nodes.
    """
    out = tmp_path / "out"
    out.mkdir()
    nodes = (socket.gethostname(), "localhost")
    options = ("--nproc", "2", "--device", "cpu", SCRIPTS / "ignite_parallel.py", out)
    with contextlib.ExitStack() as stack:
        lives = []
        for node in range(2):
            env = {**ENVIRONMENT, **slurm_task(*nodes, node=node)}
            (folder := tmp_path / f"node-{node}").mkdir()
            lives.append(stack.enter_context(launching(*options, cwd=folder, env=env)))
            # The first hosts the meeting; on one host the second would do so too if it came earlier.
            wait_until(meeting_place_answers, 90)
        ended = [live.end(deadline_s=60) for live in lives]
    assert [code for code, _, _ in ended] == [0, 0], ended
    seen = reports(out, ranks=4)
    assert [(each["rank"], each["local_rank"], each["world_size"]) for each in seen] == [
        (0, 0, 4),
        (1, 1, 4),
        (2, 0, 4),
        (3, 1, 4),
    ]
    assert [each["more"]["nodes"] for each in seen] == [[0, 2, 2], [0, 2, 2], [1, 2, 2], [1, 2, 2]]
