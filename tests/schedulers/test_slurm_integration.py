"""Jobs on a real Slurm of two nodes, which the test run starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.processes import REPOSITORY, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).with_name("program.py")
SCRIPTS = REPOSITORY / "slurm"
DISTRAIN = [sys.executable, "-m", "distrain"]

SMALL = ["--cpus-per-task=2", "--time=10"]
"""What the scripts ask for is more than the nodes of a test have."""

CPU = ["--device", "cpu", "--nproc", "1"]


@pytest.fixture
def folder(tmp_path):
    shutil.copy(PROGRAM, tmp_path / "train.py")
    return tmp_path


def wait_for(path: Path, *texts: str, deadline_s: float = 90) -> str:
    """Return what stands in a log once all of these texts do."""

    def written():
        text = path.read_text() if path.exists() else ""
        return text if all(each in text for each in texts) else None

    try:
        return wait_until(written, deadline_s, poll_s=0.1)
    except TimeoutError:
        now = path.read_text() if path.exists() else "(there is no such file)"
        pytest.fail(f"{texts} did not all come up in {path}:\n{now}", pytrace=False)


def saved_after(text: str) -> list[int]:
    """Return the steps after which a log says that the state was saved."""
    return [int(step) for step in re.findall(r"stopped after step (\d+), saved in", text)]


def writers(run_dir: Path) -> list[int]:
    """Return the incarnations whose checkpoints are there, in the order of the checkpoints."""
    metas = [json.loads(path.read_text()) for path in run_dir.glob("checkpoints/step-*/meta.json")]
    return [meta["incarnation"] for meta in sorted(metas, key=lambda meta: meta["step"])]


def test_submit_follows_a_job_over_its_time_limit_to_its_end(slurm, folder):
    """Two nodes, a task on each: the signal ahead of the limit, a checkpoint, the requeue; every odd word survives."""
    odd = folder / 'it\'s "odd" %j $HOME é'
    odd.mkdir()
    shutil.copy(PROGRAM, odd / "tr ain's.py")
    args = ["a b", "it's", '"q" `x` $HOME \\ %j', "two\nlines", "é", ""]
    options = ["--wait", "--nodes", "2", "--cpus-per-task", "2", "--time", "1", "--signal-lead", "55"]
    options += ["--name", "a 'b' %j", "--setup", "export NUM_WORKERS=1", '--sbatch=--comment="a \\"b\\"" --mem 200']
    done = slurm.run(*DISTRAIN, "submit", "slurm", *options, *CPU, "tr ain's.py", *args, cwd=odd, deadline_s=240)
    done.check()
    job = re.match(r"job (\d+) · log ", done.stdout)[1]
    assert slurm.job(job).restarts == 1
    (step,) = saved_after(done.stdout)
    assert "SIGUSR2: passed on to the ranks" in done.stdout
    assert f"job {job} is queued again, after step-{step:08d}" in done.stdout
    assert f"on the way from step-{step:08d}, world 2" in done.stdout
    assert f"finished after {step + 5}" in done.stdout
    assert [json.loads(each) for each in re.findall(r"^argv (.*) host h1$", done.stdout, re.MULTILINE)] == [args, args]
    run_dir = odd / "runs" / f"slurm-{job}-a 'b' %j"
    assert (odd / "runs" / f"slurm-{job}-a 'b' %j.log").read_text() in done.stdout
    assert json.loads((run_dir / "run.json").read_text())["status"] == "succeeded"
    assert json.loads((run_dir / "requeue.json").read_text())["without_progress"] == 0
    for said in ("is running", "is pending", "is completed"):
        assert f"distrain: job {job} {said}" in done.stderr


def test_the_shortest_scripts_need_no_options_of_distrains(slurm, folder):
    told = ["--log-ranks", "all", "--no-python", "sh", "-c", "echo $SLURMD_NODENAME has $RANK of $WORLD_SIZE"]
    words = ["--device", "cpu", *told]
    alone = slurm.submit(*SMALL, SCRIPTS / "single-node.sbatch", "--nproc", "2", *words, cwd=folder)
    both = slurm.submit(*SMALL, SCRIPTS / "several-nodes.sbatch", *words, cwd=folder)
    for job, nodes in ((alone, ["h1", "h1"]), (both, ["h1", "h2"])):
        ended = slurm.wait_for(job, "COMPLETED", "FAILED")
        text = (folder / f"train-{job}.log").read_text()
        assert ended.exit_code == 0, text
        assert sorted(re.findall(r"(h\d) has (\d) of 2", text)) == list(zip(nodes, "01", strict=True))
        assert (folder / "runs" / f"slurm-{job}.0-sh" / "run.json").exists()


def test_a_preempted_job_goes_on_where_it_stopped(slurm, folder):
    """Slurm itself ends it and queues it again: SIGTERM to every process of the step, and to the batch script."""
    job = slurm.submit(*SMALL, SCRIPTS / "requeue.sbatch", *CPU, "train.py", cwd=folder)
    log = folder / f"train-{job}.log"
    wait_for(log, "on the way from the beginning, world 2")
    slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true", cwd=folder)
    slurm.wait_for(job, "COMPLETED")
    text = log.read_text()
    (step,) = saved_after(text)
    assert text.count("SIGTERM: passed on to the ranks") == 2
    assert "is queued again" not in text  # by the script, that is
    assert f"on the way from step-{step:08d}, world 2" in text
    assert f"finished after {step + 5}" in text
    assert slurm.job(job).restarts == 1


def test_a_cancelled_job_saves_its_state_and_does_not_come_again(slurm, folder):
    """A task for each rank, two on each node."""
    (folder / "job.sbatch").write_text(
        (SCRIPTS / "requeue.sbatch").read_text().replace("--ntasks-per-node=1", "--ntasks-per-node=2")
    )
    job = slurm.submit("--cpus-per-task=1", "job.sbatch", "--device", "cpu", "train.py", cwd=folder)
    log = folder / f"train-{job}.log"
    text = wait_for(log, "on the way from the beginning, world 4")
    assert "4 nodes together · h1: rank 0, h1: rank 1, h2: rank 2, h2: rank 3" in text
    slurm.run("scancel", job).check()
    slurm.wait_until_idle()
    (step,) = saved_after(log.read_text())
    assert slurm.job(job).state == "CANCELLED"
    run_dir = folder / "runs" / f"train-{job}"
    assert [path.name for path in run_dir.glob("checkpoints/step-*")] == [f"step-{step:08d}"]
    assert json.loads((run_dir / "run.json").read_text())["exit_code"] == 75
    assert not (run_dir / "requeue.json").exists()


def test_without_srun_the_launch_is_the_batch_script(slurm, folder):
    (folder / "job.sbatch").write_text(
        '#!/bin/bash\n#SBATCH --output=%j.log --no-requeue\nexec distrain launch --run-dir run "$@"\n'
    )
    job = slurm.submit("job.sbatch", "--device", "cpu", "--nproc", "2", "train.py", cwd=folder)
    wait_for(folder / f"{job}.log", "on the way from the beginning, world 2")
    slurm.run("scancel", "--batch", "--signal=USR2", job).check()  # what --signal=B:USR2@120 has Slurm do
    ended = slurm.wait_for(job, "FAILED")
    text = (folder / f"{job}.log").read_text()
    assert ended.exit_code == 75, text
    assert len(saved_after(text)) == 1


def test_each_task_of_an_array_is_a_run_and_is_queued_again_alone(slurm, folder):
    (folder / "train.py").write_text("import sys; sys.argv = sys.argv[:1]\n" + PROGRAM.read_text())
    job = slurm.submit(*SMALL, "--array=0-1", SCRIPTS / "array.sbatch", *CPU, "train.py", cwd=folder)
    logs = [folder / f"sweep-{job}_{task}.log" for task in (0, 1)]
    for log in logs:
        wait_for(log, "on the way from the beginning, world 1")
    slurm.run("scancel", "--signal=USR2", f"{job}_1").check()
    text = wait_for(logs[1], "finished after")
    (step,) = saved_after(text)
    assert f"job {job}_1 is queued again, after step-{step:08d}" in text
    assert f"finished after {step + 5}" in text
    assert "finished" not in logs[0].read_text()
    assert slurm.job(f"{job}_0").state == "RUNNING"
    assert slurm.job(f"{job}_0").restarts == 0
    assert writers(folder / "runs" / f"sweep-{job}_1") == [1, 2]
    assert writers(folder / "runs" / f"sweep-{job}_0") == []


def test_where_slurm_does_not_requeue_the_job_is_submitted_again(slurm, folder):
    options = ["--wait", "--time", "10", "--sbatch=--no-requeue", "--cpus-per-task", "2"]
    before = set(slurm.run("squeue", "-h", "-o", "%i").stdout.split())
    command = " ".join(["exec", *DISTRAIN, "submit", "slurm", *options, *CPU, "train.py", ">out", "2>err", "&"])
    slurm.run("bash", "-c", command.replace("exec ", ""), cwd=folder).check()
    wait_for(folder / "out", "on the way from the beginning")
    (job,) = set(slurm.run("squeue", "-h", "-o", "%i").stdout.split()) - before
    slurm.run("scancel", "--signal=USR2", job).check()
    wait_for(folder / "err", "goes on as job", "is completed")
    text, (step,) = (folder / "out").read_text(), saved_after((folder / "out").read_text())
    following = re.search(rf"job {job} goes on as job (\d+), after step-{step:08d} \(scontrol requeue: .+\)", text)[1]
    assert f"finished after {step + 5}" in text
    assert slurm.job(job).exit_code == 75
    assert slurm.job(following).exit_code == 0
    assert writers(folder / "runs" / f"slurm-{job}-train") == [1, 2]
    assert [path.name for path in (folder / "runs").iterdir() if path.is_dir()] == [f"slurm-{job}-train"]


def test_a_job_that_gets_nowhere_stops_asking(slurm, folder):
    options = ["--wait", "--time", "10", "--budget", "1", "--no-python"]
    done = slurm.run(*DISTRAIN, "submit", "slurm", *options, *CPU, "sh", "-c", "exit 75", cwd=folder).check(75)
    job = re.match(r"job (\d+) · log ", done.stdout)[1]
    assert done.stdout.count("is queued again, before the first checkpoint") == 1
    assert "is not queued again: it was 1 times in a row without getting on (there is no checkpoint yet)" in done.stdout
    assert slurm.job(job).restarts == 1


def test_submit_says_what_it_has_submitted_or_why_not(slurm, folder):
    refused = slurm.run(*DISTRAIN, "submit", "slurm", "--partition", "none", "train.py", cwd=folder).check(1)
    assert refused.stderr.startswith("distrain submit: sbatch refuses the job: ")
    assert "invalid partition specified: none" in refused.stderr
    for options, job_of in ((["--array", "0-1"], "{}_N"), ([], "{}")):
        done = slurm.run(*DISTRAIN, "submit", "slurm", "--sbatch=--hold", *options, "train.py", cwd=folder).check()
        number = re.match(r"job (\d+) · ", done.stdout)[1]
        where = f"runs/slurm-{job_of.format(number)}-train"
        first, follow, end = done.stdout.splitlines()
        assert first == f"job {number} · log {where}.log · run directory {where}"
        assert follow == f"follow it: {f'squeue --job={number}' if options else f'tail -F {where}.log'}"
        assert end == f"end it:    scancel {number}"


def test_in_a_container_without_slurms_commands_a_fake_one_has_the_host_ask(slurm, folder):
    """A stand-in for apptainer, which Debian has not, starts the same words with nothing else on the PATH."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "apptainer").write_text(
        "#!/bin/bash\nshift; while [[ $1 == -* ]]; do [ $1 = --bind ] && shift; shift; done; shift\n"
        f'export PATH={folder}/inside\nexec "$@"\n'
    )
    (folder / "inside").mkdir()
    (folder / "inside" / "distrain").write_text(f'#!/bin/bash\nexec {sys.executable} -m distrain "$@"\n')
    for path in (tools / "apptainer", folder / "inside" / "distrain"):
        path.chmod(0o755)
    path = f"--export=ALL,PATH={tools}:{slurm.environment['PATH']}"
    job = slurm.submit(path, "--nodes=1", *SMALL, SCRIPTS / "container.sbatch", *CPU, "train.py", cwd=folder)
    log = folder / f"train-{job}.log"
    wait_for(log, "on the way from the beginning, world 1")
    slurm.run("scancel", "--signal=USR2", job).check()
    text = wait_for(log, "finished after")
    (step,) = saved_after(text)
    assert f"job {job} may be queued again, after step-{step:08d}" in text
    assert f"finished after {step + 5}" in text


def test_a_lost_node_that_trains_on_writes_no_checkpoint_beside_the_next_incarnation(slurm, folder):
    """The link of h1 is cut: Slurm starts the job again on h2, while on h1 it lives and sees the same file system."""
    lost = slurm.nodes[0]
    options = ["--export=ALL,EVERY=10,FOR_EVER=1", "--nodes=1", *SMALL]
    words = [*CPU, "--max-restarts", "2", "train.py"]
    job = slurm.submit(*options, SCRIPTS / "requeue.sbatch", *words, cwd=folder)
    log, run_dir = folder / f"train-{job}.log", folder / "runs" / f"train-{job}"
    wait_for(log, "host h1", "on the way from the beginning, world 1")
    lost.cut()
    try:
        text = wait_for(log, "host h2", "SupersededError", "not started again: ", deadline_s=120)
        assert "an earlier incarnation of this run still lives (pid" in text
        assert f"Another launch trains in {run_dir}/checkpoints since " in text
        assert re.search(rf"\(pid \d+ on h2, Slurm job {job}, queued again 1 time\)", text)
        assert "not started again: another launch trains in the same run directory since" in text
        wait_until(lambda: writers(run_dir).count(2) >= 2, 60, what="two checkpoints of the second incarnation")
        found = writers(run_dir)
        assert found == sorted(found)
        assert set(found) <= {1, 2}
        assert len(os.listdir(run_dir / "checkpoints" / ".incarnations")) == 2
        assert json.loads((run_dir / "run.json").read_text())["host"] == "h2"
        slurm.run("scancel", job).check()
    finally:
        lost.mend()
