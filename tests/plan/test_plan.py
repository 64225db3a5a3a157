"""Raw options in, a plan with origins out; what cannot be is said in one line."""

from __future__ import annotations

import re

import pytest

from distrain.errors import UsageError
from distrain.plan import Program, detect, resolve

SCRIPT = Program(kind="script", target="train.py")


def planned(program=SCRIPT, environ=None, **flags):
    return resolve(program, {name: text for name, text in flags.items() if text is not None}, environ=environ or {})


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count: int) -> None:
        monkeypatch.setattr(detect, "visible_gpus", lambda environ: count)

    pretend(0)
    monkeypatch.setattr(detect, "visible_cpus", lambda: 6)
    monkeypatch.setattr(detect, "available_cpus", lambda: 6)
    return pretend


@pytest.mark.parametrize(
    ("num_gpus", "nproc", "device", "expected"),
    [
        (0, None, None, (1, "cpu")),
        (4, None, None, (4, "cuda")),
        (4, None, "cpu", (1, "cpu")),
        (4, "2", None, (2, "cuda")),
        (4, "auto", None, (4, "cuda")),
        (4, "gpu", "cuda", (4, "cuda")),
        (4, "cpu", "cpu", (6, "cpu")),
        (0, "auto", None, (6, "cpu")),
        (0, "cpu", None, (6, "cpu")),
        (0, "16", "cpu", (16, "cpu")),
    ],
)
def test_nproc_and_device(gpus, num_gpus, nproc, device, expected):
    gpus(num_gpus)
    plan = planned(nproc=nproc, device=device)
    assert (plan.nproc, plan.device) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nproc": "0"}, "--nproc: got '0'; give a number of processes of at least 1, or auto, cpu or gpu."),
        ({"nproc": "-1"}, "--nproc: got '-1'"),
        ({"nproc": "abc"}, "--nproc: got 'abc'"),
        ({"nproc": "2.5"}, "--nproc: got '2.5'"),
        ({"nproc": "gpu"}, "--nproc gpu: no NVIDIA GPU is visible here."),
        ({"device": "cuda"}, "--device cuda: no NVIDIA GPU is visible here"),
        ({"device": "cudo"}, "--device: got 'cudo'; valid are auto, cpu, cuda, xla. Did you mean cuda?"),
        ({"device": "xla", "nproc": "3"}, "--nproc: got '3' for device xla, where torch_xla starts one process for"),
        ({"xla_spmd": "1", "device": "cpu"}, "--xla-spmd is for device xla, and the device is cpu (--device)"),
        ({"xla_spmd": "1", "device": "xla", "nproc": "4"}, "--nproc: got '4'; with --xla-spmd one process computes on"),
        ({"max_restarts": "-2"}, "--max-restarts: got '-2'; give a whole number of at least 0."),
        ({"log_ranks": "0-3"}, "--log-ranks: got '0-3'; give all, or ranks separated by commas, such as 0,3."),
        ({"nproc": "2", "log_ranks": "0,2"}, "--log-ranks: there is no rank 2 among 2; valid are 0 to 1."),
        ({"environ": {"OMP_NUM_THREADS": "many"}}, "OMP_NUM_THREADS: got 'many'"),
    ],
)
def test_what_is_not_valid_is_said_in_one_line(gpus, options, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        planned(**options)
    assert "\n" not in str(caught.value)


def test_more_ranks_than_gpus_is_an_error_that_says_so(gpus):
    gpus(2)
    with pytest.raises(UsageError, match="got 3 ranks for 2 visible GPUs"):
        planned(nproc="3", device="cuda")


def test_a_dry_run_shows_the_plan_for_gpus_that_are_not_here(gpus):
    plan = planned(nproc="8", device="cuda", dry_run="1")
    assert (plan.nproc, plan.device) == (8, "cuda")
    (warning,) = plan.warnings
    assert warning.startswith("a launch on this machine is refused: --device cuda: no NVIDIA GPU is visible here")
    gpus(2)
    with pytest.raises(UsageError, match="got 3 ranks for 2 visible GPUs"):
        planned(nproc="3", device="cuda", dry_run="1")


def test_more_ranks_than_gpus_that_only_happen_to_be_there_is_none(gpus):
    gpus(2)
    for device in (None, "auto"):
        plan = planned(nproc="4", device=device)
        assert (plan.nproc, plan.device) == (4, "cuda")
        assert plan.warnings == ("4 ranks for 2 visible GPUs: ranks without a GPU of their own work on the CPU only",)
    assert planned(nproc="4", device="cpu").warnings == planned(nproc="2").warnings == ()


def test_a_tpu_host_needs_no_flag(gpus, monkeypatch):
    monkeypatch.setattr(detect, "visible_chips", lambda environ: (4, "4 TPU chips"))
    plan = planned(environ={"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "t0"})
    assert (plan.device, plan.nproc) == ("xla", 4)
    gpus(1)
    assert planned(environ={"PJRT_DEVICE": "TPU"}).device == "cuda"


def test_the_gpus_that_a_profile_leaves_visible_are_counted(tmp_path, monkeypatch):
    (tmp_path / "p.toml").write_text('[env]\nCUDA_VISIBLE_DEVICES = "0,1"')
    seen = []
    monkeypatch.setattr(detect, "visible_gpus", lambda environ: seen.append(environ["CUDA_VISIBLE_DEVICES"]) or 2)
    profile = {"profile": str(tmp_path / "p.toml")}
    assert planned(**profile).nproc == 2
    planned(environ={"CUDA_VISIBLE_DEVICES": "3"}, **profile)
    assert seen == ["0,1", "3"]


def test_a_filter_may_name_local_ranks_that_are_not_there(gpus):
    plan = planned(local_ranks_filter="0, 5")
    assert plan.shown.local_ranks == {0, 5}
    assert plan.warnings == ("--local-ranks-filter: there is no local rank 5 among 1",)
    with pytest.raises(UsageError, match="--local-ranks-filter: got '0,x'"):
        planned(local_ranks_filter="0,x")


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("off", None), ("90", 90.0), ("0.5", 0.5)])
def test_a_hang_is_looked_for_as_asked(gpus, text, value):
    assert planned(hang_timeout=text).hang_timeout == value


@pytest.mark.parametrize("text", ["never", "0", "-3", ""])
def test_another_word_for_the_hang_timeout_is_an_error(gpus, text):
    with pytest.raises(UsageError, match="give auto, a number of seconds above 0, or off"):
        planned(hang_timeout=text)


@pytest.mark.parametrize(
    ("nproc", "environ", "threads", "origin"),
    [
        ("2", {}, 3, "detected"),
        ("4", {}, 1, "detected"),
        ("16", {}, 1, "detected"),
        ("2", {"OMP_NUM_THREADS": "5"}, 5, "environment"),
        ("2", {"OMP_NUM_THREADS": "4,2"}, 4, "environment"),
    ],
)
def test_threads_are_shared_out_among_the_local_ranks(gpus, nproc, environ, threads, origin):
    plan = planned(nproc=nproc, environ=environ)
    assert plan.omp_num_threads == threads
    assert plan.settings["omp_num_threads"].origin == origin


def test_every_setting_carries_its_origin(gpus):
    plan = planned(nproc="2", max_restarts="3", log_ranks="all", name="mine")
    origins = {name: setting.origin for name, setting in plan.settings.items() if setting.value is not None}
    assert origins == {
        "device": "detected",
        "nproc": "flag",
        "hang_timeout": "default",
        "retry": "default",
        "max_restarts": "flag",
        "log_ranks": "flag",
        "fork_server": "default",
        "omp_num_threads": "detected",
        "name": "flag",
        "grace": "default",
        "monitor_interval": "default",
        "nnodes": "default",
        "role": "default",
        "signals_to_handle": "default",
        "virtual_local_rank": "default",
    }
    assert plan.shown.ranks is None
    assert plan.name == "mine"


def test_a_command_and_no_fork_server_start_cold(gpus):
    assert planned().warm
    assert not planned(no_fork_server="1").warm
    assert not planned(Program(kind="command", target="sh")).warm


def test_a_hang_timeout_for_a_program_that_hardly_shows_progress_is_warned_of(gpus):
    command = Program(kind="command", target="sh")
    other = Program(kind="script", target="train.py", interpreter="/opt/python")
    for program, what in ((command, "a program of --no-python"), (other, "a program of another interpreter")):
        (warning,) = planned(program, hang_timeout="30").warnings
        assert what in warning
        assert "distrain.heartbeat()" in warning
        assert planned(program, hang_timeout="off").warnings == planned(program).warnings == ()
    assert planned(no_fork_server="1", hang_timeout="30").warnings == ()


@pytest.mark.parametrize(
    ("program", "tail", "name"),
    [
        (Program(kind="script", target="a/train.py", args=("--lr", "1")), ["-u", "a/train.py", "--lr", "1"], "train"),
        (Program(kind="module", target="pkg.train"), ["-u", "-m", "pkg.train"], "train"),
    ],
)
def test_the_command_line_is_torchruns(program, tail, name):
    assert program.command[1:] == tail
    assert program.name == name


def test_one_node_of_an_allocation_meets_nobody_and_listens_on_its_loopback_only():
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0"}
    plan = planned(rdzv_id="j7", rdzv_backend="c10d", environ=environ)
    assert plan.meeting is None or (plan.meeting.host, plan.meeting.port) == ("127.0.0.1", 0)


def test_inside_slurm_the_signal_ahead_of_the_limit_is_handled_too():
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    assert "SIGUSR2" in planned(environ=environ).signals
    assert planned(environ=environ).settings["signals_to_handle"].origin == "detected"
    assert planned(environ=environ, signals_to_handle="SIGTERM").signals == ("SIGTERM",)
    assert "SIGUSR2" not in planned().signals
