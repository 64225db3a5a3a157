"""The guards of tests/conftest.py, tried on tests that break each rule."""

import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.processes import REPOSITORY, Finished, run

LEAKS = {
    "environment variable LEAKED": "os.environ['LEAKED'] = '1'",
    "environment variable HOME": "del os.environ['HOME']",
    "thread 'leaked'": "threading.Thread(target=threading.Event().wait, name='leaked', daemon=True).start()",
    "process": "subprocess.Popen(['sleep', '100'])",
    # The shell ends at once and nobody waits for its child, which has a session of its own.
    "process ": "subprocess.run(['sh', '-c', 'setsid sleep 100 </dev/null >/dev/null 2>&1 &'], check=True)",
    "listening TCP port": "globals().update(kept=socket.create_server(('127.0.0.1', 0)))",
    "handler of SIGUSR1": "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
    "working directory": "os.chdir('/')",
    "torch.distributed process group": "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)",
}


def run_pytest(folder: Path, body: str, *args: str, env: dict[str, str | None] | None = None) -> Finished:
    (folder / "conftest.py").write_text(
        "from tests.conftest import *\nfrom tests.support import leaks\n\nleaks.PATIENCE_S = 1.0\n"
    )
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    slurm\n    xla\ntimeout = 30\n"
        + "addopts = -p pytest_timeout -p no:cacheprovider --strict-markers\n"
    )
    (folder / "test_inner.py").write_text(textwrap.dedent(body))
    return run(
        [sys.executable, "-m", "pytest", *args, "test_inner.py"],
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CI": None, **(env or {})},
    )


def test_a_leak_fails_its_test_and_not_the_next_one(tmp_path: Path) -> None:
    pairs = [
        f"""
def test_leaking_{number}():
    {deed}

def test_clean_{number}():
    assert "LEAKED" not in os.environ and "HOME" in os.environ
"""
        for number, deed in enumerate(LEAKS.values())
    ]
    body = "import os, signal, socket, subprocess, threading, torch.distributed as dist\n" + "".join(pairs)
    finished = run_pytest(tmp_path, body).check(1)
    assert f"{2 * len(LEAKS)} passed, {len(LEAKS)} errors" in finished.stdout
    for number, what in enumerate(LEAKS):
        section = finished.stdout.partition(f"ERROR at teardown of test_leaking_{number} ")[2]
        assert "the test left behind" in section.splitlines()[1]
        assert section.splitlines()[2].strip().startswith(what.strip())


def test_what_is_put_back_is_no_leak(tmp_path: Path) -> None:
    finished = run_pytest(
        tmp_path,
        """
        import os, socket, subprocess, threading

        def test_tidy(monkeypatch, tmp_path):
            monkeypatch.setenv("BORROWED", "1")
            monkeypatch.chdir(tmp_path)
            thread = threading.Thread(target=lambda: None)
            thread.start()
            socket.create_server(("127.0.0.1", 0)).close()
            subprocess.run(["sh", "-c", "true & true"], check=True)
        """,
    ).check()
    assert "1 passed" in finished.stdout


SKIPPING = """
    import pytest
    from tests.support.real_parts import missing

    @pytest.mark.slurm
    def test_by_hand():
        pytest.skip("no controller")

    @pytest.mark.slurm
    def test_by_helper():
        missing("slurmctld is not on PATH")

    def test_unmarked():
        pytest.skip("another matter")
    """


def test_at_home_a_missing_part_skips_its_test(tmp_path: Path) -> None:
    finished = run_pytest(tmp_path, SKIPPING, env={"CI": None}).check()
    assert "3 skipped" in finished.stdout


def test_in_ci_a_missing_part_fails_its_test(tmp_path: Path) -> None:
    finished = run_pytest(tmp_path, SKIPPING, env={"CI": "true"}).check(1)
    assert "2 failed, 1 skipped" in finished.stdout
    assert "must not skip in CI: " in finished.stdout
    assert "no controller" in finished.stdout


def test_in_ci_a_module_cannot_skip_as_a_whole(tmp_path: Path) -> None:
    body = """
        import pytest

        pytest.importorskip("a_part_that_is_not_here")

        @pytest.mark.xla
        def test_hidden():
            pass
        """
    assert "1 skipped" in run_pytest(tmp_path, body, env={"CI": None}).check(5).stdout
    finished = run_pytest(tmp_path, body, env={"CI": "true"}).check(2)
    assert "hides its tests from CI" in finished.stdout


def test_golden_text_is_compared_and_written_anew(tmp_path: Path) -> None:
    body = """
        import tests.conftest
        from pathlib import Path

        def test_text(golden, monkeypatch):
            monkeypatch.setattr(tests.conftest, "GOLDEN", Path(__file__).parent / "golden")
            golden("some/help.txt", "usage: new\\n")
        """
    assert "there is no golden text" in run_pytest(tmp_path, body).check(1).stdout
    run_pytest(tmp_path, body, "--regenerate-golden").check()
    text = tmp_path / "golden" / "some" / "help.txt"
    assert text.read_text() == "usage: new\n"
    run_pytest(tmp_path, body).check()
    text.write_text("usage: old\n")
    finished = run_pytest(tmp_path, body).check(1)
    assert "-usage: old" in finished.stdout
    assert "pytest --regenerate-golden" in finished.stdout


def test_run_kills_the_whole_tree_at_its_deadline() -> None:
    with pytest.raises(TimeoutError, match="said before") as caught:
        run(["sh", "-c", "echo said before; setsid sleep 100 & sleep 100"], deadline_s=1)
    assert "sleep 100" in str(caught.value)
