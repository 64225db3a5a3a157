"""The plugin in whole pytest runs, each a process of its own with a server and ranks of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.support.processes import Finished, Process, descendants, is_alive, run, wait_until

HEAD = """
    import gc, os, sys, time, threading, warnings
    import pytest, torch
    import torch.distributed as dist

    two = pytest.mark.distributed(nproc=2)
"""


PATIENT = """
from distrain.testing import ranks

ranks.GRACE_S, ranks.STACKS_S = 2.0, 10.0
"""
"""On a loaded machine ranks do the same further apart than a user should wait for."""


def write(folder: Path, body: str, name: str = "test_inner.py") -> None:
    (folder / "conftest.py").write_text(PATIENT)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (folder / name).write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))


def run_pytest(folder: Path, body: str, *args: str, **env: str) -> Finished:
    write(folder, body)
    return run(
        [sys.executable, "-m", "pytest", *args], cwd=folder, env={"CI": None, "COLUMNS": "120", **env}, deadline_s=110
    )


def outcomes(done: Finished) -> dict[str, int]:
    last = done.stdout.strip().rpartition("\n")[2]
    return {word.rstrip("s"): int(number) for number, word in re.findall(r"(\d+) (\w+)", last.partition(" in ")[0])}


def section(done: Finished, name: str) -> str:
    """Return what is said of a test that did not pass."""
    found = re.search(
        rf"^_+ (?:ERROR at \w+ of )?{re.escape(name)} _+\n(.*?)(?=^_{{5,}} |^={{5,}} )",
        done.stdout,
        re.MULTILINE | re.DOTALL,
    )
    assert found, done.stdout
    return found[1]


def test_outcomes_of_one_run(tmp_path: Path) -> None:
    """Every kind of end in one run: a server's start is what costs."""
    done = run_pytest(
        tmp_path,
        """
        @two
        def test_passes(world):
            total = torch.tensor(world.rank + 1.0)
            dist.all_reduce(total)
            assert total == 3 and os.environ["RANK"] == str(world.rank)
            assert gc.isenabled()

        @pytest.mark.distributed(nproc=4)
        def test_same_failure(world):
            print("the same on each")
            print("from", world.rank % 2, file=sys.stderr)
            seen = {"step": 1}
            assert seen == {"step": 2}

        @two
        def test_one_fails(world):
            if world.rank == 1:
                raise ValueError("rank 1 is lost")
            dist.all_reduce(torch.ones(1))

        @two
        def test_different_failures(world):
            assert world.rank == 5

        @two
        def test_dies(world):
            print("last words")
            if world.rank == 1:
                os.kill(os.getpid(), 9)
            dist.all_reduce(torch.ones(1))

        @two
        def test_exits(world):
            if world.rank == 0:
                os._exit(3)

        @pytest.mark.distributed(nproc=2, timeout_s=5)
        def test_hangs(world):
            if world.rank == 0:
                dist.all_reduce(torch.ones(1))
            threading.Event().wait()

        @two
        def test_raises(world):
            with pytest.raises(ZeroDivisionError, match="division"):
                1 / 0

        @two
        def test_skips(world):
            pytest.skip("not today")

        @pytest.mark.skip(reason="never")
        @two
        def test_skip_mark(world):
            pass

        @two
        def test_skips_on_one(world):
            if world.rank == 1:
                pytest.skip("only I")
            dist.barrier()

        @pytest.mark.xfail(strict=True)
        @two
        def test_xfail_on_one(world):
            assert world.rank == 0

        @pytest.mark.xfail(strict=True)
        @two
        def test_strict_pass(world):
            pass

        @pytest.mark.xfail(raises=KeyError)
        @two
        def test_xfail_of_another_kind(world):
            raise ValueError("not that one")

        @two
        def test_breakpoint(world):
            breakpoint()

        @pytest.fixture
        def broken():
            raise OSError("no disk")

        @two
        def test_set_up(broken):
            pass

        @pytest.fixture
        def leaking():
            yield
            raise OSError("cannot clean up")

        @two
        def test_tear_down(leaking):
            pass

        @two
        def test_warns(world):
            warnings.warn("careful")

        def test_unmarked(world):
            pass

        @two
        def test_interrupts(world):
            if world.rank == 1:
                raise KeyboardInterrupt

        import hypothesis

        @two
        @hypothesis.given(hypothesis.strategies.integers())
        def test_hypothesis(world, number):
            pass

        @two
        def test_subtests(subtests, world):
            for number in range(3):
                with subtests.test("both", number=number):
                    print("subtest", number)
                    assert number != 1
            with subtests.test("one", lock=threading.Lock()):
                assert world.rank == 0
            world.barrier()

        @two
        def test_subtests_pass(subtests, world):
            with subtests.test("all well"):
                pass
            with subtests.test("left out"):
                pytest.skip("not today")

        @pytest.mark.distributed(nproc=2, timeout=3)
        def test_wrong_mark():
            pass
        """,
        "-rA",
        "--junitxml=report.xml",
    ).check(1)
    assert outcomes(done) == {"failed": 15, "passed": 5, "skipped": 2, "xfailed": 1, "warning": 1, "error": 4}, (
        done.stdout
    )

    same = section(done, "test_same_failure")
    assert "ranks 0-3:" in same
    assert same.count("assert {'step': 1} == {'step': 2}") == 1
    assert "{'step': 1} != {'step': 2}" in same
    assert "Captured stdout call (ranks 0-3)" in same
    assert "Captured stderr call (ranks 0, 2)" in same
    assert "Captured stderr call (ranks 1, 3)" in same

    one = section(done, "test_one_fails")
    assert "rank 0, waiting in all_reduce" in one
    assert "in test_one_fails\n    dist.all_reduce(torch.ones(1))" in one
    assert "ValueError: rank 1 is lost" in one

    different = section(done, "test_different_failures")
    assert "assert 0 == 5" in different
    assert "assert 1 == 5" in different

    dead = section(done, "test_dies")
    assert "rank 1 died of SIGKILL" in dead
    assert "rank 0 lost the connection to a peer" in dead or "rank 0, waiting in all_reduce" in dead
    assert "Captured stdout (rank 1)" in dead
    assert dead.count("last words") == 2
    assert "rank 0 ended with exit code 3 in the middle of the test (os._exit)" in section(done, "test_exits")

    hung = section(done, "test_hangs")
    assert "Timeout: the ranks did not end their call within 5 s" in hung
    assert "rank 0, waiting in all_reduce" in hung
    assert "in test_hangs\n    threading.Event().wait()" in hung

    assert "The ranks disagree: rank 1 skipped (Skipped: only I), rank 0 did not" in section(done, "test_skips_on_one")
    assert "[XPASS(strict)]" in section(done, "test_strict_pass")
    assert "ValueError: not that one" in section(done, "test_xfail_of_another_kind")
    assert "pdb does not reach the ranks of a distributed test" in section(done, "test_breakpoint")
    assert "ERROR at setup of test_set_up" in done.stdout
    assert "ranks 0-1: OSError: no disk" in done.stdout
    assert "ERROR at teardown of test_tear_down" in done.stdout
    assert done.stdout.count("UserWarning: careful") == 1
    assert "mark the test with @pytest.mark.distributed(nproc=2)" in section(done, "test_unmarked")
    interrupted = section(done, "test_interrupts")
    assert "rank 1:" in interrupted
    assert "pluggy" not in interrupted
    assert "HealthCheck.function_scoped_fixture" in section(done, "test_hypothesis")
    assert "has no argument 'timeout'; there are nproc, timeout_s, shared. Did you mean timeout_s?" in done.stdout

    assert "contains 2 failed subtests" in section(done, "test_subtests")
    assert "rank 1: contains 2 failed subtests" in done.stdout
    both = section(done, "test_subtests [both] (number=1)")
    assert "ranks 0-1:" in both
    assert "assert 1 != 1" in both
    assert "Captured stdout call (ranks 0-1)" in both
    assert "SUBFAILED[both] (number=1) test_inner.py::test_subtests - ranks 0-1: assert 1 != 1" in done.stdout
    assert "SUBFAILED[one] (lock=<unlocked _thread.lock" in done.stdout
    assert "PASSED test_inner.py::test_subtests_pass" in done.stdout

    cases = {case.get("name"): case for case in ET.parse(tmp_path / "report.xml").iter("testcase")}
    failure = cases["test_one_fails"].find("failure")
    assert failure is not None
    assert failure.get("message") == "rank 1: ValueError: rank 1 is lost"
    assert cases["test_skips"].find("skipped") is not None


@pytest.mark.parametrize("option", ["--setup-plan", pytest.param("--setup-only", marks=pytest.mark.deep)])
def test_a_plan_of_the_fixtures_starts_no_ranks(tmp_path: Path, option: str) -> None:
    (tmp_path / "test_planned.py").write_text(
        "import pytest\n@pytest.mark.distributed(nproc=2)\ndef test_planned(world):\n    pass\n"
    )
    done = run([sys.executable, "-m", "pytest", option], cwd=tmp_path, env={"CI": None}).check()
    assert "test_planned.py::test_planned (fixtures used: request, world)" in done.stdout


def test_fixtures_run_where_they_are_said_to(tmp_path: Path) -> None:
    for name in ("first", "second"):  # each folder has a conftest of its own, which holds for it alone
        (tmp_path / name).mkdir()
        (tmp_path / name / "conftest.py").write_text(f"import pytest\n@pytest.fixture\ndef place(): return {name!r}\n")
        write(
            tmp_path, f"@two\ndef test_place(world, place):\n    assert place == {name!r}\n", f"{name}/test_{name}.py"
        )
    done = run_pytest(
        tmp_path,
        """
        PARENT = os.getppid

        @pytest.fixture(scope="session")
        def address(tmp_path_factory):
            made = tmp_path_factory.getbasetemp() / "made"
            made.write_text(made.read_text() + "." if made.exists() else ".")
            return {"pid": os.getpid(), "text": made.read_text()}

        @pytest.fixture
        def model(address):
            return torch.nn.Linear(2, 1), os.getpid(), address

        @pytest.fixture(autouse=True)
        def setting(monkeypatch):
            monkeypatch.setenv("SETTING", "on")

        @pytest.mark.parametrize("value", [1, {"a": 2}], ids=["int", "dict"])
        @pytest.mark.distributed(nproc=2, shared=["address"])
        def test_all(
            request, world, tmp_path, tmp_path_factory, run_dir, model, address, value, capsys, record_property
        ):
            request.config.get_terminal_writer()         # pytest 8 does so where a comparison fails
            assert os.environ["SETTING"] == "on"
            assert model[1] == os.getpid() != address["pid"]
            assert model[2] is address
            assert address["text"] == "."                # made once for both tests, by pytest's own process
            both = [None, None]
            own = str(tmp_path_factory.mktemp("own"))
            dist.all_gather_object(both, (str(tmp_path), str(run_dir), own, os.getpid()))
            assert both[0][:2] == both[1][:2]
            assert both[0][2] != both[1][2]
            assert both[0][3] != both[1][3]
            assert run_dir == world.run_dir
            assert run_dir.is_dir()
            assert value in (1, {"a": 2})
            print("seen")
            assert capsys.readouterr().out == "seen\\n"
            record_property("rank", world.rank)

        @pytest.fixture
        def lock():
            return threading.Lock()

        @pytest.mark.distributed(nproc=2, shared=["lock"])
        def test_what_cannot_be_copied(lock):
            pass
        """,
        "--junitxml=report.xml",
        "--setup-show",
    ).check(1)
    assert outcomes(done) == {"passed": 4, "error": 1}, done.stdout
    assert done.stdout.count("SETUP    S address (fixtures used: tmp_path_factory)") == 1
    assert "The shared fixture 'lock' returned lock, which cannot be copied to the ranks" in done.stdout
    assert "SETTING" not in os.environ
    values = [each.get("value") for each in ET.parse(tmp_path / "report.xml").iter("property")]
    assert values == ["0", "1"] * 2


@pytest.mark.deep
@pytest.mark.parametrize("args", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_plugins_tell_the_server_what_they_tell_a_worker_of_xdist(tmp_path: Path, args: tuple[str, ...]) -> None:
    """As pytest-randomly and pytest-rerunfailures do."""
    (tmp_path / "telling.py").write_text(
        textwrap.dedent("""
        class Teller:
            def pytest_configure_node(self, node):
                node.workerinput["told"] = node.config.told

        def pytest_configure(config):
            if hasattr(config, "workerinput"):
                config.told = config.workerinput["told"]
            else:
                config.told = "what the worker needs"
                config.pluginmanager.register(Teller())
        """)
    )
    done = run_pytest(
        tmp_path,
        """
        @two
        def test_told(world, pytestconfig):
            assert pytestconfig.told == "what the worker needs"
        """,
        "-p",
        "telling",
        *args,
    ).check()
    assert outcomes(done) == {"passed": 1}, done.stdout


@pytest.mark.deep
def test_coverage_counts_what_the_ranks_have_run(tmp_path: Path) -> None:
    (tmp_path / "measured.py").write_text(
        "def name(rank):\n    if rank == 0:\n        return 'zero'\n    return 'one'\n"
    )
    (tmp_path / ".coveragerc").write_text("[run]\nparallel = true\n")
    body = """
        import measured

        @two
        def test_measured(world):
            measured.name(world.rank)
        """
    done = run_pytest(tmp_path, body, "--cov=measured", "--cov-report=term-missing").check()
    assert re.search(r"^measured.py +4 +0 +100% *$", done.stdout, re.MULTILINE), done.stdout
    assert not list(tmp_path.glob(".coverage.*"))


@pytest.mark.deep
def test_faults(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        """
        def train(num_steps=3):
            model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            losses = []
            for _ in range(num_steps):
                loss = model(torch.ones(2)).sum()
                optimizer.zero_grad()
                loss.backward()
                losses.append(loss.item())
                optimizer.step()
            return losses

        @pytest.mark.parametrize("kind", ["kill", "raise"])
        @two
        def test_lost_peer(world, faults, kind, tmp_path):
            faults.inject(kind, rank=1, step=2)
            (tmp_path / f"{world.rank}").write_text("")
            train()
            assert world.rank == 0
            with pytest.raises(RuntimeError, match="Connection|peer"):
                dist.all_reduce(torch.ones(1))

        @two
        def test_hung_peer(world, faults):
            faults.inject("hang", rank=0, step=1)
            train()
            assert world.rank == 1

        @two
        def test_caught(world, faults):
            faults.inject("raise", rank=1, step=2)
            if world.rank == 1:
                with pytest.raises(RuntimeError, match="fault injected at rank 1, step 2"):
                    train()
            dist.barrier()

        @two
        def test_delay(world, faults):
            faults.inject("delay", rank=1, step=1, seconds=0.3)
            began = time.monotonic()
            train(1)
            assert (time.monotonic() - began >= 0.3) or world.rank == 0

        @two
        def test_nan(world, faults):
            faults.inject("nan", rank=1, step=2)
            losses = train()
            assert losses[0] == losses[0]
            assert (losses[1] != losses[1]) == (world.rank == 1)

        @two
        def test_without_optimizer(faults, request):
            faults.inject("kill", rank=0, step=2)
            faults.step()
            faults.step()
            assert os.environ["RANK"] == "1"

        @pytest.mark.distributed(nproc=1)
        def test_nobody_left(faults):
            faults.inject("kill", rank=0, step=1)
            faults.step()

        @two
        def test_the_others_must_pass(world, faults):
            faults.inject("kill", rank=1, step=1)
            faults.step()
            assert world.rank == 1

        @two
        def test_unknown(faults):
            faults.inject("explode", rank=0, step=1)
        """,
        "-W",
        "error",
    ).check(1)
    assert outcomes(done) == {"passed": 7, "failed": 3}, done.stdout
    assert "Every rank was hit by a fault: none is left to pass" in section(done, "test_nobody_left")
    assert "assert 0 == 1" in section(done, "test_the_others_must_pass")
    assert "There is no fault 'explode'; there are kill, raise, hang, delay, nan." in section(done, "test_unknown")


MIXED = """
    import test_other

    @pytest.mark.parametrize("number", range(4))
    @two
    def test_first(world, number):
        dist.barrier()

    @two
    def test_fails(world):
        assert world.rank == 7

    @two
    def test_after(world):
        dist.barrier()
"""


@pytest.mark.deep
def test_xdist_and_last_failed(tmp_path: Path) -> None:
    write(tmp_path, "@two\ndef test_there(world):\n    dist.barrier()\n", "test_other.py")
    done = run_pytest(tmp_path, MIXED, "-n", "2").check(1)
    assert outcomes(done) == {"passed": 6, "failed": 1}, done.stdout
    assert re.search(r"FAILED test_inner.py::test_fails - rank ([01]): AssertionError: assert \1 == 7", done.stdout)
    assert "assert 0 == 7" in section(done, "test_fails")
    again = run_pytest(tmp_path, MIXED, "--lf", "-x").check(1)
    assert outcomes(again)["failed"] == 1, again.stdout
    assert "passed" not in outcomes(again)


@pytest.mark.deep
def test_stopping_at_the_first_failure_and_pdb(tmp_path: Path) -> None:
    write(tmp_path, "", "test_other.py")
    done = run_pytest(tmp_path, MIXED, "-x", "--pdb").check(1)
    assert outcomes(done) == {"passed": 4, "failed": 1}, done.stdout
    assert "pdb does not reach the ranks of a distributed test" in done.stdout
    assert "(Pdb)" not in done.stdout


@pytest.mark.deep
def test_a_file_of_any_name_has_its_assertions_explained(tmp_path: Path) -> None:
    write(tmp_path, "@two\ndef test_named(world):\n    assert world.world_size == 3\n", "checks.py")
    done = run([sys.executable, "-m", "pytest", "checks.py"], cwd=tmp_path, env={"CI": None}, deadline_s=110).check(1)
    assert "assert 2 == 3" in section(done, "test_named")


@pytest.mark.deep
def test_a_module_that_starts_a_thread_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    write(tmp_path, "@two\ndef test_there(world):\n    dist.barrier()\n", "test_other.py")
    done = run_pytest(
        tmp_path,
        """
        threading.Thread(target=threading.Event().wait, daemon=True, name="collector").start()

        @two
        def test_here():
            pass
        """,
    ).check(1)
    assert outcomes(done) == {"error": 1, "passed": 1}, done.stdout
    assert re.search(r"the import of .*test_inner.py has left 1 thread\(s\) running \(collector\)", done.stdout)


def test_a_run_without_distributed_tests_imports_neither_torch_nor_the_server(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text(
        "import sys\n"
        "def test_plain():\n"
        "    assert 'distrain.testing.plugin' in sys.modules\n"
        "    assert {'torch', 'multiprocessing', 'distrain.launcher'}.isdisjoint(sys.modules)\n"
    )
    run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], cwd=tmp_path, env={"CI": None}).check()


def test_a_projects_own_mark_of_this_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        'def pytest_configure(config):\n    config.addinivalue_line("markers", "distributed: needs a process group")\n'
    )
    (tmp_path / "test_theirs.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.distributed\n"
        "def test_theirs():\n"
        "    assert 'RANK' not in os.environ\n"
        "@pytest.mark.distributed('nccl', gpus=2)\n"
        "def test_theirs_with_arguments():\n"
        "    assert 'RANK' not in os.environ\n"
        "@pytest.mark.distributed(nprocs=2)\n"
        "def test_ours_with_a_slip():\n"
        "    pass\n"
    )
    done = run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], cwd=tmp_path, env={"CI": None}).check(1)
    assert outcomes(done) == {"passed": 2, "error": 1}, done.stdout
    assert "has no argument 'nprocs'" in done.stdout


def test_pytest_warns_of_no_module_where_a_program_has_imported_ours_before(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text("def test_plain():\n    pass\n")
    call = "import distrain, pytest; raise SystemExit(pytest.main(['-p', 'distrain', '-p', 'no:cacheprovider']))"
    done = run([sys.executable, "-c", call], cwd=tmp_path, env={"CI": None}).check()
    assert outcomes(done) == {"passed": 1}, done.stdout


@pytest.mark.parametrize("ours_is_loaded_first", [False, True])
def test_another_plugins_fixture_of_the_same_name_is_left_alone(tmp_path: Path, *, ours_is_loaded_first: bool) -> None:
    (tmp_path / "theirs.py").write_text('import pytest\n@pytest.fixture(scope="session")\ndef world():\n    return 3\n')
    (tmp_path / "test_theirs.py").write_text("def test_theirs(world):\n    assert world == 3\n")
    ours = ["-p", "distrain"] if ours_is_loaded_first else []
    done = run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *ours, "-p", "theirs"],
        cwd=tmp_path,
        env={"CI": None, "PYTHONPATH": str(tmp_path)},
    )
    assert outcomes(done.check()) == {"passed": 1}, done.stdout


def test_a_mark_without_arguments_is_refused_where_no_other_is_known(tmp_path: Path) -> None:
    (tmp_path / "test_bare.py").write_text("import pytest\n@pytest.mark.distributed\ndef test_bare():\n    pass\n")
    done = run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], cwd=tmp_path, env={"CI": None}).check(1)
    assert "it must be the number of ranks" in done.stdout


@contextlib.contextmanager
def pytest_inside_a_test(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[Process]]]:
    """Start a pytest whose two ranks have each started a process in a session of its own; yield it and its tree."""
    write(
        folder,
        """
        import subprocess

        @two
        def test_waits(world, tmp_path):
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
            open(f"started-{world.rank}", "w").close()
            threading.Event().wait()
        """,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: len(list(folder.glob("started-*"))) == 2, 60, what="both ranks are in the test")
        tree = descendants(process.pid)
        assert len(tree) >= 7  # guard, server, store, two ranks, two of their own
        yield process, tree
        wait_until(lambda: not any(is_alive(each.pid) for each in tree), 20, what="all processes end")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.deep)], ids=str)
def test_nothing_outlives_pytest(tmp_path: Path, number: int) -> None:
    with pytest_inside_a_test(tmp_path) as (process, _):
        os.kill(process.pid, number)
        assert process.wait(30) == (2 if number == signal.SIGINT else -number)


@pytest.mark.deep
@pytest.mark.parametrize("with_pytest", [False, True])
def test_nothing_outlives_the_server_of_the_ranks(tmp_path: Path, with_pytest: bool) -> None:
    with pytest_inside_a_test(tmp_path) as (process, tree):
        (guard,) = (each.pid for each in tree if each.ppid == process.pid)
        (server,) = (each.pid for each in tree if each.ppid == guard)
        victims = [server, process.pid] if with_pytest else [server]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # neither has time to act on the other's end
            for victim in victims:
                os.kill(victim, number)
        assert process.wait(60) == (-signal.SIGKILL if with_pytest else 1)
