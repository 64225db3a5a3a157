"""Raw options in, a plan with origins out; what cannot be is said in one line."""

from __future__ import annotations

import py_compile
import re
import zipfile

import pytest

from distrain.errors import UsageError
from distrain.plan import Program, detect, resolve
from distrain.plan.options import check_program

SCRIPT = Program(kind="script", target="train.py")


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
    plan = resolve(SCRIPT, nproc=nproc, device=device, environ={})
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
        ({"device": "xla"}, "--device xla: this version cannot launch on XLA devices yet"),
        ({"max_restarts": "-2"}, "--max-restarts: got '-2'; give a whole number of at least 0."),
        ({"log_ranks": "0-3"}, "--log-ranks: got '0-3'; give all, or ranks separated by commas, such as 0,3."),
        ({"nproc": "2", "log_ranks": "0,2"}, "--log-ranks: there is no rank 2 among 2; valid are 0 to 1."),
        ({"environ": {"OMP_NUM_THREADS": "many"}}, "OMP_NUM_THREADS: got 'many'"),
    ],
)
def test_what_is_not_valid_is_said_in_one_line(gpus, options, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        resolve(SCRIPT, **{"environ": {}, **options})
    assert "\n" not in str(caught.value)


def test_more_ranks_than_gpus_is_an_error_that_says_so(gpus):
    gpus(2)
    with pytest.raises(UsageError, match="got 3 ranks for 2 visible GPUs"):
        resolve(SCRIPT, nproc="3", device="cuda", environ={})


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
    plan = resolve(SCRIPT, nproc=nproc, environ=environ)
    assert plan.omp_num_threads == threads
    assert plan.settings["omp_num_threads"].origin == origin


def test_every_setting_carries_its_origin(gpus):
    plan = resolve(SCRIPT, nproc="2", max_restarts="3", log_ranks="all", name="mine", environ={})
    assert {name: setting.origin for name, setting in plan.settings.items()} == {
        "device": "detected",
        "nproc": "flag",
        "max_restarts": "flag",
        "log_ranks": "flag",
        "fork_server": "default",
        "omp_num_threads": "detected",
        "name": "flag",
        "run_dir": "default",
    }
    assert plan.log_ranks is None
    assert plan.name == "mine"


def test_a_command_and_no_fork_server_start_cold(gpus):
    assert resolve(SCRIPT, environ={}).warm
    assert not resolve(SCRIPT, fork_server=False, environ={}).warm
    assert not resolve(Program(kind="command", target="sh"), environ={}).warm


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


class TestCheckProgram:
    def check(self, folder, target, kind="script"):
        check_program(Program(kind=kind, target=target), cwd=folder)

    def test_a_script_a_folder_an_archive_and_bytecode_pass(self, tmp_path):
        (tmp_path / "train.py").write_text("print(1)")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "__main__.py").write_text("print(1)")
        with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
            archive.writestr("__main__.py", "print(1)")
        py_compile.compile(str(tmp_path / "train.py"), cfile=str(tmp_path / "train.pyc"))
        for target in ("train.py", "folder", "app.zip", "train.pyc"):
            self.check(tmp_path, target)
        self.check(tmp_path, "no.such.module", "module")
        self.check(tmp_path, "sh", "command")

    def test_a_missing_script_names_the_nearest(self, tmp_path):
        (tmp_path / "train.py").write_text("")
        with pytest.raises(UsageError, match=r"script 'trian.py' does not exist .*Did you mean train.py\?"):
            self.check(tmp_path, "trian.py")

    def test_a_folder_without_main(self, tmp_path):
        with pytest.raises(UsageError, match=r"without a __main__\.py"):
            self.check(tmp_path, ".")

    @pytest.mark.parametrize("content", [b"#!/bin/bash\necho hi\n", b"\x7fELF\x02\x01\0\0", b"a = 1\0"])
    def test_what_is_no_python_is_pointed_to_no_python(self, tmp_path, content):
        (tmp_path / "prog").write_bytes(content)
        with pytest.raises(UsageError, match=r"not a Python script.*--no-python"):
            self.check(tmp_path, "prog")

    def test_a_script_that_does_not_parse(self, tmp_path):
        (tmp_path / "train.py").write_text("def f(:\n")
        with pytest.raises(SyntaxError) as caught:
            self.check(tmp_path, "train.py")
        assert caught.value.lineno == 1

    def test_a_command_that_is_not_there_or_not_executable(self, tmp_path):
        with pytest.raises(UsageError, match="not an executable on the PATH"):
            self.check(tmp_path, "no-such-command-anywhere", "command")
        (tmp_path / "plain").write_text("")
        with pytest.raises(UsageError, match="is not executable"):
            self.check(tmp_path, str(tmp_path / "plain"), "command")
