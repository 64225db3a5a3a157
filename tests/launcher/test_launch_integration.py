"""`distrain launch` from its command line to its last process, with real workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher import programs
from tests.support.launching import command, environment, events, launch, launching
from tests.support.processes import Finished, descendants, is_alive, wait_until

HOST = socket.gethostname()


@pytest.fixture
def script(tmp_path: Path):
    def write(text: str, name: str = "train.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def log(run_dir: Path, rank: int, stream: str = "stdout", attempt: int = 0) -> str:
    return (run_dir / f"attempt-{attempt}" / f"rank-{rank}" / f"{stream}.log").read_text()


@pytest.mark.parametrize("how", ["warm", pytest.param("--no-fork-server", marks=pytest.mark.deep)])
def test_two_ranks_train_together_and_their_output_is_kept(tmp_path, script, how):
    options = [] if how == "warm" else [how]
    run_dir = tmp_path / "run"
    done = launch("--nproc", "2", "--run-dir", run_dir, *options, script(programs.TRAIN), cwd=tmp_path).check()

    assert log(run_dir, 0) == log(run_dir, 1) != ""
    assert done.stdout == log(run_dir, 0)
    assert [log(run_dir, rank, "stderr") for rank in (0, 1)] == ["rank 0 of 2\n", "rank 1 of 2\n"]
    assert "rank 0 of 2" in done.stderr
    assert "rank 1 of 2" not in done.stderr
    assert "run directory run" in done.stderr.splitlines()[-1]
    record = json.loads((run_dir / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("succeeded", 0)
    assert record["plan"]["nproc"] == {"value": 2, "origin": "flag", "detail": "--nproc"}
    assert record["versions"]["torch"]


@pytest.mark.parametrize("options", [(), pytest.param(("--no-fork-server",), marks=pytest.mark.deep)])
def test_a_program_that_destroys_its_group_at_once_does_not_hang(tmp_path, script, options):
    """torch frees the group holding the interpreter's lock, for which gloo's thread may wait (pytorch#56297)."""
    launch("--nproc", "2", *options, script(programs.DESTROY_AT_ONCE), tmp_path, cwd=tmp_path).check()


def test_torch_is_imported_once_for_all_ranks_and_attempts(tmp_path, script):
    counted = tmp_path / "imports"
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sys\n"
        "class Count:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'torch': open({str(counted)!r}, 'a').write('x')\n"
        "sys.meta_path.insert(0, Count())\n"
    )
    program = script(programs.KILL_ONE_RANK_UNTIL_THE_LAST_ATTEMPT)
    done = launch(
        "--nproc", "4", "--max-restarts", "2", program, "2", cwd=tmp_path, env={"PYTHONPATH": str(hook)}
    ).check()
    assert done.stderr.count("starting the next") == 2
    assert counted.read_text() == "x"


@pytest.mark.timeout(300)
def test_every_restart_works_and_each_attempt_keeps_its_logs(tmp_path, script):
    """torch's own store survives a restart with the keys of the attempt before; most restarts then fail."""
    restarts = 20
    run_dir = tmp_path / "run"
    program = script(programs.KILL_ONE_RANK_UNTIL_THE_LAST_ATTEMPT)
    launch(
        *("--nproc", "2", "--max-restarts", str(restarts), "--run-dir", run_dir, program, str(restarts)),
        cwd=tmp_path,
        deadline_s=280,
    ).check()
    for attempt in range(restarts + 1):
        for rank in (0, 1):
            assert log(run_dir, rank, attempt=attempt) == f"attempt {attempt} sum 2\n"
    killed = [event for event in events(run_dir, "worker_exited") if event["exit_code"] == -signal.SIGKILL]
    assert len(killed) >= restarts


def test_the_failure_report_names_the_rank_and_shows_its_traceback(tmp_path, script):
    run_dir = tmp_path / "run"
    program = script(programs.FAIL_ON_RANK_1)
    done = launch("--nproc", "2", "--run-dir", run_dir, program, cwd=tmp_path).check(1)
    report = done.stderr[done.stderr.index("root cause") :].splitlines()
    assert report[0].startswith("root cause: rank 1 on ")
    assert report[0].endswith(": KeyError: 'the missing piece'")
    trace = [line.strip() for line in report if line.strip().startswith("File")]
    assert trace == [
        f'File "{program}", line 10, in <module>',
        f'File "{program}", line 5, in deep',
    ]
    assert "distrain" not in "\n".join(report[1:-1])
    cause = json.loads((run_dir / "failure.json").read_text())["root_cause"]
    assert (cause["rank"], cause["kind"], cause["exit_code"]) == (1, "KeyError", 1)
    assert 'raise KeyError("the missing piece")' in cause["traceback"]


@pytest.mark.parametrize(
    ("ending", "code", "kind"),
    [
        ("import sys; sys.exit(7)", 7, "exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 128 + 11, "SIGSEGV"),
        pytest.param("import os; os.abort()", 128 + 6, "SIGABRT", marks=pytest.mark.deep),
        pytest.param("import no_such_module_anywhere", 1, "ModuleNotFoundError", marks=pytest.mark.deep),
    ],
)
def test_the_exit_code_is_that_of_the_root_cause(tmp_path, script, ending, code, kind):
    done = launch("--nproc", "1", script(ending), cwd=tmp_path).check(code)
    assert f": {kind}: " in done.stderr


@pytest.mark.deep
def test_a_module_a_folder_and_a_command_can_be_launched(tmp_path, script):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("value = 42\n")
    (package / "__main__.py").write_text("import sys\nfrom package.part import value\nprint(value, sys.argv[1:])\n")
    (package / "relative.py").write_text("import sys\nfrom .part import value\nprint(value, sys.argv[1:])\n")

    assert launch("-m", "package", "a", cwd=tmp_path).check().stdout == "42 ['a']\n"
    assert launch("-m", "package.relative", "--nproc", "3", cwd=tmp_path).check().stdout == "42 ['--nproc', '3']\n"
    done = launch("--nproc", "2", "--log-ranks", "all", "--no-python", "sh", "-c", "echo $RANK", cwd=tmp_path).check()
    assert sorted(done.stdout.splitlines()) == [f"[{HOST}:0] 0", f"[{HOST}:1] 1"]


def test_a_used_run_directory_goes_on_with_the_next_attempt(tmp_path, script):
    run_dir = tmp_path / "run"
    program = script("print('hello')")
    for _ in range(2):
        launch("--run-dir", run_dir, program, cwd=tmp_path).check()
    assert [log(run_dir, 0, attempt=attempt) for attempt in (0, 1)] == ["hello\n", "hello\n"]


def test_a_run_directory_has_one_owner(tmp_path, script):
    with launching(script(programs.WAIT_FOR_SIGNALS), cwd=tmp_path) as live:
        live.wait_for("run_started")
        second = launch("--run-dir", live.run_dir, script("print('never')", "second.py"), cwd=tmp_path).check(2)
        assert second.stderr.count("\n") == 1
        assert f"pid {live.process.pid}" in second.stderr
        live.wait_for_output("waiting")
        live.process.terminate()
        assert live.end()[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("sig", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.deep)],
)
def test_a_signal_reaches_every_rank_and_ends_the_run(tmp_path, script, sig, code):
    with launching("--nproc", "2", script(programs.WAIT_FOR_SIGNALS), cwd=tmp_path) as live:
        for rank in (0, 1):
            live.wait_for_output("waiting", rank)
        live.process.send_signal(sig)
        assert live.end()[0] == code
        for rank in (0, 1):
            assert log(live.run_dir, rank).splitlines() == ["waiting", f"got {sig.name}"]
        assert json.loads((live.run_dir / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.deep
def test_a_signal_while_ranks_are_being_started_reaches_those_that_run(tmp_path, script):
    with launching("--nproc", "12", script(programs.WAIT_FOR_SIGNALS), cwd=tmp_path) as live:
        live.wait_for_output("waiting")
        live.process.send_signal(signal.SIGINT)
        assert live.end()[0] == 130
        assert log(live.run_dir, 0).splitlines() == ["waiting", "got SIGINT"]


def test_under_nohup_the_run_outlives_the_terminal(tmp_path, script):
    text = "import os, time\nprint('waiting', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
    with launching(script(text), cwd=tmp_path, before=["nohup"]) as live:
        live.wait_for_output("waiting")
        live.process.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        assert live.end()[0] == 0
        assert events(live.run_dir, "signal") == []


def test_a_second_interrupt_ends_ranks_that_do_not_listen(tmp_path, script):
    with launching("--nproc", "2", script(programs.DEAF), cwd=tmp_path) as live:
        for rank in (0, 1):
            live.wait_for_output("waiting", rank)
        workers = [event["pid"] for event in live.wait_for("worker_started", 2)]
        live.process.send_signal(signal.SIGINT)
        live.wait_for("signal")
        live.process.send_signal(signal.SIGINT)
        code, _, err = live.end()
        assert code == 130
        assert "Traceback" not in err
        assert not any(is_alive(pid) for pid in workers)


@pytest.mark.deep
@pytest.mark.slow
def test_one_signal_ends_the_run_also_when_the_agent_is_stuck(tmp_path, script):
    """Slurm and Kubernetes send SIGTERM once."""
    with launching("--grace", "0", script(programs.WAIT_FOR_SIGNALS), cwd=tmp_path) as live:
        live.wait_for_output("waiting")
        os.kill(live.wait_for("agent_started")[0]["pid"], signal.SIGSTOP)
        live.process.terminate()
        code, _, err = live.end(60)
        assert code == 143
        assert "the agent does not end by itself; ending it and all ranks now" in err


def test_an_interrupt_while_torch_is_being_imported_ends_the_run_at_once(tmp_path, script):
    with launching(script("print('never')"), cwd=tmp_path) as live:
        live.wait_for("run_started")
        live.process.send_signal(signal.SIGINT)
        code, out, err = live.end(30)
        assert (code, out) == (130, "")
        assert "Traceback" not in err


def test_what_a_rank_leaves_running_ends_with_the_run(tmp_path, script):
    done = launch("--nproc", "2", "--run-dir", "run", script(programs.WITH_A_CHILD), "leave", cwd=tmp_path).check()
    children = [int(log(tmp_path / "run", rank).split()[1]) for rank in (0, 1)]
    assert not any(is_alive(pid) for pid in children), done.stderr


@pytest.mark.parametrize("victim", ["fork server", "agent"])
def test_when_a_part_of_the_launcher_is_killed_the_run_ends_and_says_so(tmp_path, script, victim):
    with launching("--nproc", "2", script(programs.WITH_A_CHILD), cwd=tmp_path) as live:
        for rank in (0, 1):
            live.wait_for_output("waiting", rank)
        tree = [process.pid for process in descendants(live.process.pid)]
        name = "ready" if victim == "fork server" else "agent_started"
        os.kill(live.wait_for(name)[0]["pid"], signal.SIGKILL)
        code, _, err = live.end(40)
        assert code == 1
        assert f"the {victim} ended unexpectedly" in err
        assert not any(is_alive(pid) for pid in tree)


def test_when_the_supervisor_is_killed_nothing_survives_it(tmp_path, script):
    with launching("--nproc", "2", script(programs.WITH_A_CHILD), cwd=tmp_path) as live:
        for rank in (0, 1):
            live.wait_for_output("waiting", rank)
        tree = [process.pid for process in descendants(live.process.pid)]
        assert len(tree) == 7  # guard, fork server, agent, two ranks, two of their own
        live.process.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in tree), 30, what="the whole tree ends")


def test_several_ranks_on_the_terminal_keep_their_lines_whole(tmp_path, script):
    text = "import os\nfor i in range(2000): print(os.environ['RANK'] * 40, i, flush=True)\nprint('end', end='')\n"
    done = launch("--nproc", "3", "--log-ranks", "0,2", script(text), cwd=tmp_path).check()
    for rank in ("0", "2"):
        mine = [line for line in done.stdout.splitlines() if line.startswith(f"[{HOST}:{rank}] ")]
        assert mine == [*(f"[{HOST}:{rank}] {rank * 40} {i}" for i in range(2000)), f"[{HOST}:{rank}] end"]
    assert len(done.stdout.splitlines()) == 2 * 2001


def test_nobody_reading_our_output_does_not_end_the_training(tmp_path, script):
    program = script("for i in range(20000): print('line', i, flush=True)")
    line = " ".join([*command("--run-dir", "run", program), "| head -1"])
    whole = {key: value for key, value in {**os.environ, **environment()}.items() if value is not None}
    shell = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, env=whole, capture_output=True, text=True, timeout=60, check=True
    )
    assert shell.stdout == "line 0\n"
    assert "Traceback" not in shell.stderr
    wait_until(lambda: events(tmp_path / "run", "run_ended"), 30)
    assert log(tmp_path / "run", 0).count("\n") == 20000
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "succeeded"


def broken_torch(tmp_path: Path, text: str) -> Finished:
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "torch.py").write_text(text)
    (tmp_path / "train.py").write_text("print('never')")
    done = launch("train.py", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "shadow")}, deadline_s=60).check(1)
    assert done.stdout == ""
    return done


def test_a_missing_torch_is_said(tmp_path):
    done = broken_torch(tmp_path, "raise ModuleNotFoundError('No module named torch', name='torch')")
    assert f"torch is not installed for {sys.executable}" in done.stderr


def test_a_torch_that_does_not_load_is_shown(tmp_path):
    done = broken_torch(tmp_path, "raise ImportError('libcudart.so.99: cannot open shared object file')")
    assert "torch cannot be imported: ImportError: libcudart.so.99" in done.stderr
    assert "shadow/torch.py" in done.stderr


def test_a_failed_preload_is_said_and_the_run_goes_on(tmp_path, script):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch._dynamo': raise ImportError('no dynamo today')\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    done = launch(script("print('ran')"), cwd=tmp_path, env={"PYTHONPATH": str(hook)}).check()
    assert "warning: torch._dynamo could not be imported ahead of time: ImportError: no dynamo today" in done.stderr
    assert done.stdout == "ran\n"


@pytest.mark.deep
def test_a_fork_server_with_a_second_thread_starts_its_workers_cold(tmp_path, script):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    program = script("import sys; print('torch' in sys.modules)")
    assert launch(program, cwd=tmp_path).check().stdout == "True\n"
    done = launch("--run-dir", "run", program, cwd=tmp_path, env={"PYTHONPATH": str(hook)}).check()
    assert "workers start cold" in done.stderr
    assert events(tmp_path / "run", "ready")[0]["threads"] == 2
    assert done.stdout == "False\n"
