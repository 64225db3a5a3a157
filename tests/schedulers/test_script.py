"""The batch script as text; that sbatch and bash read it as meant is the Slurm suite's to show."""

import shlex

import pytest

from distrain.errors import UsageError
from distrain.schedulers.slurm.script import BatchJob, directive, render, seconds_of
from tests.support.processes import REPOSITORY, run

JOB = {
    "name": "train",
    "folder": "/home/me/project/runs",
    "launch": ["distrain", "launch", "train.py"],
    "requeue": ["distrain", "requeue"],
}

PLAIN = BatchJob(**JOB, options=[("nodes", "1")])

WHOLE = BatchJob(
    name='it\'s "50%" $HOME é',
    folder='/home/me/my "work"/50%/runs',
    launch=["/opt/my venv/bin/distrain", "launch", "--nproc=2", "tr ain.py", "it's", '"q" `x` $HOME \\', "a\nb", ""],
    requeue=["/opt/my venv/bin/distrain", "requeue"],
    options=[("nodes", "2"), ("gpus-per-node", "8"), ("cpus-per-task", "64"), ("time", "1-0"), ("array", "0-3%2")],
    passed=["--qos=high", '--comment=a "b" \\ c', "--exclude", "node[1-3]"],
    container=["apptainer", "exec", "--nv", "my image.sif"],
    setup=["module load cuda", "ulimit -c 0"],
    signal_lead_s=300,
    budget=5,
    is_array=True,
)


@pytest.mark.parametrize(("name", "job"), [("plain", PLAIN), ("whole", WHOLE)])
def test_golden(golden, name, job):
    golden(f"slurm-{name}.sbatch", render(job))


@pytest.mark.parametrize("job", [PLAIN, WHOLE])
def test_bash_gets_every_word_back(tmp_path, job):
    """Everything but srun and the second distrain is bash's own; a function in their place prints what it got."""
    stand_in = 'srun() { printf "%s\\0" "$DISTRAIN_RUN_DIR" "${@:3}"; }\nmodule() { :; }\n'
    script = tmp_path / "job.sbatch"
    script.write_text(stand_in + render(job))
    numbers = {"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "1", "DISTRAIN_RUN_DIR": None}
    done = run(["bash", script], env=numbers).check()
    run_dir, *words = done.stdout.split("\0")[:-1]
    number = "17_1" if job.is_array else "18"
    assert run_dir == f"{job.folder}/slurm-{number}-{job.name}"
    assert words == [*job.container, *job.launch]
    assert run(["bash", script], env={**numbers, "DISTRAIN_RUN_DIR": "/else where"}).stdout.startswith("/else where\0")


STRICT = "set -Eeuo pipefail; trap 'exit 9' ERR"
"""What many put at the head of every script."""


@pytest.mark.parametrize("setup", [[], ["set -e"], [STRICT]])
@pytest.mark.parametrize(("code", "asks"), [(0, False), (1, False), (75, True), (143, False)])
def test_only_a_saved_state_is_queued_again(tmp_path, setup, code, asks):
    script = tmp_path / "my job.sbatch"
    text = render(BatchJob(**JOB, options=[("nodes", "1")], setup=setup))
    script.write_text(f'srun() {{ return {code}; }}\ndistrain() {{ printf "%s|" "$@"; return 1; }}\n{text}')
    done = run(["bash", script], env={"SLURM_JOB_ID": "18", "DISTRAIN_RUN_DIR": None}).check(code)
    assert done.stdout == (f"requeue|--budget=3|{script}|" if asks else "")


@pytest.mark.parametrize("head", ["", STRICT])
@pytest.mark.parametrize("name", ["array", "container", "requeue"])
def test_a_script_to_copy_asks_also_where_a_shell_ends_at_errors(tmp_path, name, head):
    script = tmp_path / "my job.sbatch"
    stand_ins = 'srun() { return 75; }\nscontrol() { printf "%s|" "$@"; return 1; }\ndistrain() { scontrol "$@"; }'
    stand_ins += "\napptainer() { :; }"
    script.write_text(f"{stand_ins}\n{head}\n{(REPOSITORY / 'slurm' / f'{name}.sbatch').read_text()}")
    numbers = dict.fromkeys(("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), "1")
    env = {**numbers, "SLURM_CPUS_PER_TASK": "8", "DISTRAIN_RUN_DIR": None, "IMAGE": None}
    done = run(["bash", script], env=env).check(75)
    assert done.stdout == ("requeue|1|" if name == "container" else f"requeue|{script}|")


def test_a_run_directory_that_was_given_stays():
    text = render(BatchJob(**JOB, run_dir="/data/my run"))
    assert "export DISTRAIN_RUN_DIR='/data/my run'\n" in text
    assert "SLURM_JOB_ID" not in text


def test_without_a_lead_there_is_no_signal():
    assert "--signal" not in render(BatchJob(**JOB, signal_lead_s=0))


def test_the_paths_of_a_job():
    job = BatchJob(**{**JOB, "folder": "/50%"})
    assert job.log == "/50%%/slurm-%j-train.log"
    assert job.log_of("17") == "/50%/slurm-17-train.log"
    assert job.run_dir_of("17") == "/50%/slurm-17-train"


@pytest.mark.parametrize("word", ["--job-name=a b", "--x='\"\\", "é", "#", ""])
def test_a_word_of_the_head_is_quoted_as_a_shell_would_read_it(word):
    assert shlex.split(directive(word)) == [word]


def test_a_line_break_cannot_stand_in_the_head():
    with pytest.raises(UsageError, match="line break"):
        render(BatchJob(**{**JOB, "name": "a\nb"}))


@pytest.mark.parametrize("part", ["folder", "name"])
def test_a_backslash_cannot_stand_in_the_path_of_the_log(part):
    """sbatch(1): it means not to process any of the replacement symbols."""
    with pytest.raises(UsageError, match="holds a backslash, with which sbatch does not put the job's number"):
        render(BatchJob(**{**JOB, part: "/b\\s"}))


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("1:00:05", 3605),
        ("2-0", 172800),
        ("1-1:30", 91800),
        ("1-01:01:01", 90061),
        ("UNLIMITED", None),
        ("1:2:3:4", None),
    ],
)
def test_time_limits(limit, seconds):
    assert seconds_of(limit) == seconds
