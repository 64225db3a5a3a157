"""`distrain submit` on a machine without Slurm: it renders, says what is missing, and names mistakes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from distrain.cli import main
from tests.support.processes import REPOSITORY


@pytest.fixture(autouse=True)
def in_a_folder_of_our_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "train.py").write_text("print(1)")


@pytest.mark.parametrize(("name", "argv"), [("submit-slurm", ["submit", "slurm"]), ("requeue", ["requeue"])])
def test_help(capsys, golden, name, argv):
    with pytest.raises(SystemExit):
        main([*argv, "--help"])
    golden(f"help-{name}.txt", capsys.readouterr().out)


def test_a_dry_run_shows_the_script_and_makes_nothing(capfdbinary, tmp_path):
    argv = [
        "--nodes",
        "2",
        "--time",
        "4:00:00",
        "--sbatch=--qos=high",
        "--nproc",
        "2",
        "-m",
        "pkg.train",
        "--lr",
        "a b",
    ]
    assert main(["submit", "slurm", "--dry-run", *argv]) == 0
    out = capfdbinary.readouterr().out.decode()
    assert "#SBATCH --nodes=2\n#SBATCH --time=4:00:00\n" in out
    assert "#SBATCH --qos=high\n" in out
    assert f"{sys.executable} -m distrain launch --nproc=2 --module --grace=105 pkg.train --lr 'a b' ||" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("argv", "grace"),
    [
        ([], "--grace=105"),
        (["--signal-lead", "600"], "--grace=585"),
        (["--signal-lead", "45"], None),
        (["--signal-lead", "0"], None),
        (["--grace", "5"], "--grace=5"),
    ],
)
def test_the_ranks_may_use_the_whole_lead(capfdbinary, argv, grace):
    assert main(["submit", "slurm", "--dry-run", *argv, "train.py"]) == 0
    (line,) = [line for line in capfdbinary.readouterr().out.decode().splitlines() if line.startswith("srun ")]
    assert [word for word in line.split() if word.startswith("--grace")] == ([grace] if grace else [])


def test_a_run_directory_is_the_one_of_the_launch(capfdbinary, monkeypatch, tmp_path):
    for argv, variable, expected in ((["--run-dir", "mine"], "other", "mine"), ([], "other", "other")):
        monkeypatch.setenv("DISTRAIN_RUN_DIR", variable)
        assert main(["submit", "slurm", "--dry-run", *argv, "train.py"]) == 0
        assert f"export DISTRAIN_RUN_DIR={tmp_path}/{expected}\n" in capfdbinary.readouterr().out.decode()


def test_without_slurm_it_says_so_and_still_renders(capfdbinary):
    assert main(["submit", "slurm", "train.py"]) == 1
    out, err = capfdbinary.readouterr()
    assert out.startswith(b"#!/bin/bash\n#SBATCH --job-name=train\n")
    assert b"sbatch is not on PATH, so nothing is submitted" in err


FAKES = {
    "sinfo": "echo 'main*|1:00:00'",
    "sbatch": "echo '17;east'",
    "scontrol": 'echo "$@" >>asked\n'
    '[ "$1" = --clusters=east ] && echo "JobId=17 JobState=COMPLETED Reason=None ExitCode=0:0"',
}


def test_fake_slurm_a_job_of_another_cluster_is_asked_for_there(capfdbinary, tmp_path):
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    argv = ["--time=2:00:00", "--sbatch=--clusters=east,west", "train.py"]
    assert main(["submit", "slurm", *argv]) == 0
    out, err = capfdbinary.readouterr()
    assert b"end it:    scancel --clusters=east 17\n" in out
    assert b"longer than its partition allows" not in err
    assert main(["submit", "slurm", "--array=0-3", *argv]) == 0
    assert b"follow it: squeue --clusters=east --job=17\n" in capfdbinary.readouterr().out
    assert main(["submit", "slurm", "--wait", *argv]) == 0
    assert (tmp_path / "asked").read_text() == "--clusters=east show job --oneliner 17\n"


def test_nothing_of_torch_is_imported():
    program = "import sys; from distrain.cli import main; main(['submit', 'slurm', '--dry-run', 'train.py']); " + (
        "sys.exit('torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["submit"], "no scheduler given; valid are slurm"),
        (["submit", "slrum", "train.py"], "unknown scheduler 'slrum'; valid are slurm"),
        (["submit", "slurm"], "no script given. Usage: distrain submit slurm [options] script.py"),
        (["submit", "slurm", "trian.py"], "script 'trian.py' does not exist"),
        (["submit", "slurm", "--nods", "2", "train.py"], "unknown option --nods. Did you mean --nodes"),
        (["submit", "slurm", "--time", "2", "train.py"], "--time 2 is 120 s, and --signal-lead 120 s before it"),
        (["submit", "slurm", "--signal-lead", "2m", "train.py"], "--signal-lead: got '2m'; give a whole number"),
        (["submit", "slurm", "--budget", "0", "train.py"], "--budget: got '0'; give a whole number of at least 1"),
        (["submit", "slurm", "--sbatch", "qos=high", "train.py"], "--sbatch: got 'qos=high'; give options of sbatch"),
        (["submit", "slurm", "--sbatch=--comment='a", "train.py"], "it does not read as words of a shell"),
        (["submit", "slurm", "--sbatch=-o x.log", "train.py"], "--sbatch: got '-o'; the log goes where distrain looks"),
        (["submit", "slurm", "--sbatch=--outp=x.log", "train.py"], "--sbatch: got '--outp=x.log'; the log goes where"),
        (["submit", "slurm", "--sbatch", "--error=x", "train.py"], "one argument, behind an equals sign: --sbatch="),
        (["submit", "slurm", "--sbatch=--wait", "train.py"], "--sbatch: got '--wait', with which sbatch does not tell"),
        (["submit", "slurm", "--sbatch=-W", "train.py"], "does not tell the job's number; give --wait."),
        (["submit", "slurm", "--sbatch=--arr=0-3", "--wait", "train.py"], "--wait follows one job, and an array has"),
        (["submit", "slurm", "--array", "0-3", "--wait", "train.py"], "--wait follows one job, and an array has many"),
        (["submit", "slurm", "--name", "a/b", "train.py"], "--name: got 'a/b'"),
        (["submit", "slurm", "--dry-run", "--json", "train.py"], "a batch script is text"),
        (["submit", "slurm", "--partition", "a\nb", "train.py"], "holds a line break"),
        (["submit", "slurm", "--time", "4h", "train.py"], "--time: got '4h'; give minutes, hours:minutes:seconds"),
        (["submit", "slurm", "--nodes", "two", "train.py"], "--nodes: got 'two'; give a number of nodes"),
        (["submit", "slurm", "--dry-run", "--hang-timeout", "foo", "train.py"], "--hang-timeout: got 'foo'; give auto"),
        (
            ["submit", "slurm", "--nodes", "2", "--nnodes", "4", "train.py"],
            "--nnodes: got '4', and the allocation has 2 (--nodes 2)",
        ),
        (["submit", "slurm", "--nnodes", "four", "train.py"], "--nnodes: got 'four'"),
        (["submit", "slurm", "--nodes", "2", "--node-rank", "0", "train.py"], "--node-rank: got 0, and every node of"),
        (["submit", "slurm", "--profile", "none", "train.py"], "--profile: there is no profile 'none'; known here are"),
        (["requeue"], "no run directory: set DISTRAIN_RUN_DIR"),
        (["requeue", "--run-dir", "none"], "the run directory none does not exist"),
        (["requeue", "--run-dir", "."], "SLURM_JOB_ID is not set: distrain requeue belongs into a batch script"),
        (["requeue", "--run-dir", ".", "--budget", "x"], "--budget: got 'x'"),
    ],
)
def test_mistakes_are_said_in_one_line(capsys, monkeypatch, argv, said):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("DISTRAIN_RUN_DIR", raising=False)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "nodes"),
    [
        ([], 1),
        (["--nnodes", "3"], 3),
        (["--nnodes", "1:4"], 4),
        (["--profile", "slurm-2x8"], 2),
        (["--profile", "slurm-2x8", "--nodes", "2-4"], "2-4"),
        (["--profile", "slurm-2x8", "--standalone"], 1),
    ],
)
def test_a_job_has_as_many_nodes_as_its_launch_asks_for(capfdbinary, argv, nodes):
    assert main(["submit", "slurm", "--dry-run", *argv, "train.py"]) == 0
    assert f"#SBATCH --nodes={nodes}\n".encode() in capfdbinary.readouterr().out


def test_what_the_launch_would_warn_of_is_said_beside_the_script(capfdbinary):
    assert main(["submit", "slurm", "--dry-run", "--gpus-per-node", "4", "--nproc", "8", "train.py"]) == 0
    out, err = capfdbinary.readouterr()
    assert b"distrain: warning: 8 ranks for 4 visible GPUs: ranks without a GPU of their own" in err
    assert out.startswith(b"#!/bin/bash")


def test_outside_of_slurms_commands_a_job_is_not_queued_again(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("DISTRAIN_RUN_DIR", str(tmp_path))
    assert main(["requeue", str(tmp_path / "train.py")]) == 1
    assert "distrain requeue: job 17 is not queued again: scontrol requeue: not on PATH" in capsys.readouterr().err
    assert main(["requeue", "--check"]) == 0
    assert "job 17 may be queued again, before the first checkpoint" in capsys.readouterr().err


def test_the_end_of_the_present_incarnation_does_not_strike_the_one_who_asks(monkeypatch, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "$@" >>asked\nkill -TERM $PPID $$\nexit 0\n')
    scontrol.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
    command = [sys.executable, "-m", "distrain", "requeue", "--run-dir", ".", "job.sbatch"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "distrain: job 17 is queued again, before the first checkpoint\n")
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
