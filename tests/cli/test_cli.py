"""The command line: what it prints and how it answers mistakes, without starting anything."""

from __future__ import annotations

import json
import os

import pytest

from distrain.cli import main
from distrain.plan import detect


@pytest.fixture(autouse=True)
def in_a_folder_of_our_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "train.py").write_text("print(1)")


def answer(capsys, *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    return code, *capsys.readouterr()


def test_help(capsys, golden):
    code, out, _ = answer(capsys, "--help")
    assert code == 0
    golden("help.txt", out)


def test_help_of_launch(capsys, golden):
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--help"])
    assert ended.value.code == 0
    golden("help-launch.txt", capsys.readouterr().out)


def test_version(capsys):
    assert answer(capsys, "--version")[:2] == (0, "distrain 0.1.0\n")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["lanch"], "unknown command 'lanch'; valid commands are launch, submit, requeue. Did you mean launch?"),
        (["train.py"], "Did you mean distrain launch train.py?"),
        (["--nproc", "2"], "unknown option '--nproc'"),
        (["--nproc_per_node=2", "train.py"], "Options come behind the command: distrain launch --nproc_per_node=2 …"),
        (["launch", ""], "no script given, but an empty word (a shell variable that is not set?)"),
        (["launch", "--use_env", "train.py"], "--use_env is not needed: every rank finds its place in RANK and"),
        (["launch"], "no script given"),
        (["launch", "-m"], "no module given"),
        (["launch", "--nproc"], "expected one argument"),
        (["launch", "--nprocs", "2", "train.py"], "unknown option --nprocs. Did you mean --nproc or"),
        (["launch", "--max-restart-count=2", "train.py"], "unknown option --max-restart-count. Did you mean"),
        (["launch", "--n", "2", "train.py"], "unknown option --n. Did you mean --name"),
        (["launch", "--zzz", "train.py"], "unknown option --zzz. distrain launch --help lists the options."),
        (["launch", "--nproc", "0", "train.py"], "--nproc: got '0'"),
        (["launch", "trian.py"], "script 'trian.py' does not exist"),
        (["launch", "--dry-run", "trian.py"], "script 'trian.py' does not exist"),
        (["launch", "--dry-run", "--run-path", "trian.py"], "script 'trian.py' does not exist"),
        (["launch", "-m", "--no-python", "pkg"], "-m and --no-python exclude each other"),
        (["launch", "--device", "xla", "--no-python", "sh"], "--no-python: torch_xla starts the processes of device"),
        (["launch", "--run-dir", "train.py/run", "train.py"], "cannot be used: Not a directory. Give a folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, argv, said):
    code, out, err = answer(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("distrain")
    assert said in err
    assert err.count("\n") == 1


def test_no_command_at_all_shows_the_help(capsys):
    code, out, _ = answer(capsys)
    assert code == 2
    assert out.startswith("usage: distrain")


def test_a_script_that_does_not_parse_is_shown_as_python_shows_it(capsys, tmp_path):
    (tmp_path / "train.py").write_text("def f(:\n    pass\n")
    code, out, err = answer(capsys, "launch", "train.py")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == f'  File "{tmp_path}/train.py", line 1'
    assert "SyntaxError" in err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_text_that_is_no_python_is_pointed_to_no_python(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("these are my notes\n")
    code, _, err = answer(capsys, "launch", "notes.txt")
    assert code == 1
    assert err.splitlines()[-1] == "notes.txt does not read as Python. Use --no-python to run a command."


@pytest.mark.parametrize("words", [("--no-python", "no-such-command"), ("-m", "no.such.module"), ("train.py",)])
def test_a_dry_run_does_not_ask_for_what_the_nodes_may_have(capsys, words):
    code, out, err = answer(capsys, "launch", "--dry-run", *words)
    assert (code, err) == (0, "")
    assert "nothing is started" in out


@pytest.mark.parametrize("other", ["--no-python", "-m"])
def test_run_path_takes_precedence_as_in_torchrun(capsys, other):
    code, out, _ = answer(capsys, "launch", "--dry-run", "--json", "--run-path", other, "train.py")
    assert code == 0
    assert json.loads(out)["program"]["kind"] == "path"


@pytest.mark.parametrize("words", [["launch"], ["submit", "slurm"]], ids=" ".join)
def test_a_dry_run_can_be_asked_for_by_its_variable(capsys, monkeypatch, words):
    """The device that this machine lacks is looked for in both: a plan only warns of it."""
    monkeypatch.setenv("DISTRAIN_DRY_RUN", "1")
    monkeypatch.setattr(detect, "visible_gpus", lambda _: 0)
    code, by_variable, _ = answer(capsys, *words, "--device", "cuda", "train.py")
    assert code == 0
    monkeypatch.delenv("DISTRAIN_DRY_RUN")
    assert by_variable.strip()
    assert answer(capsys, *words, "--dry-run", "--device", "cuda", "train.py")[:2] == (0, by_variable)


def test_json_can_be_asked_for_by_its_variable(capsys, monkeypatch):
    monkeypatch.setenv("DISTRAIN_JSON", "1")
    _, out, _ = answer(capsys, "launch", "--dry-run", "train.py")
    assert json.loads(out)["program"]["target"] == "train.py"


@pytest.mark.parametrize("word", ["--n", "--x", "--l", "--smoke", "--s=1"])
def test_what_follows_the_script_is_the_scripts_own(capsys, word):
    code, out, _ = answer(capsys, "launch", "--dry-run", "train.py", word, "3")
    assert code == 0
    assert out.splitlines()[2].endswith(f" -u train.py {word} 3")


def test_warnings_of_the_plan_are_said_before_the_launch(capsys, monkeypatch):
    monkeypatch.setattr("distrain.launcher.run.run", lambda plan, environ: 0)
    code, _, err = answer(capsys, "launch", "--nproc", "1", "--local-ranks-filter", "5", "train.py")
    assert (code, err) == (0, "distrain: warning: --local-ranks-filter: there is no local rank 5 among 1\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_run_directory(capsys, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    code, _, err = answer(capsys, "launch", "--run-dir", "locked/run", "train.py")
    assert code == 2
    assert "Permission denied" in err


@pytest.mark.parametrize("words", [["launch"], ["submit", "slurm"]], ids=" ".join)
def test_a_current_folder_that_was_removed(capsys, tmp_path, monkeypatch, words):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    said = "the current folder has been removed; change to one that exists: cd DIR."
    assert answer(capsys, *words, "train.py") == (2, "", f"distrain {words[0]}: {said}\n")
