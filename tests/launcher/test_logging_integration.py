"""What the ranks print is on disk, whole and in order, whatever happens; a full disk is said and hangs nobody."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

import pytest

from tests.support.launching import command, environment, launch, launching
from tests.support.processes import descendants, kill_all, run, wait_until

CHATTER = """\
import os, sys, time
rank, count = os.environ["RANK"], int(sys.argv[1])
began = time.monotonic()
for n in range(count):
    print(f"{rank} line {n} " + "x" * 60, flush=True)
print(f"took {time.monotonic() - began:.3f}", file=sys.stderr)
"""

HOST = socket.gethostname()


@pytest.fixture
def chatter(tmp_path):
    (tmp_path / "train.py").write_text(CHATTER)
    return "train.py"


def lines_of(run_dir, rank):
    return (run_dir / "attempt-0" / f"rank-{rank}" / "stdout.log").read_text().splitlines()


@pytest.mark.deep
def test_eight_ranks_print_at_full_speed_and_no_line_is_lost_or_torn(tmp_path, chatter):
    count = 25_000
    done = launch(
        *("--nproc", "8", "--device", "cpu", "--log-ranks", "all", "--run-dir", "run", chatter, str(count)),
        cwd=tmp_path,
        deadline_s=110,
    ).check()
    shown = {rank: [] for rank in range(8)}
    for line in done.stdout.splitlines():
        place, _, text = line.partition("] ")
        shown[int(place.removeprefix(f"[{HOST}:"))].append(text)
    for rank in range(8):
        wanted = [f"{rank} line {n} " + "x" * 60 for n in range(count)]
        assert lines_of(tmp_path / "run", rank) == wanted
        assert shown[rank] == wanted


def test_what_was_printed_is_on_disk_when_the_supervisor_is_killed(tmp_path):
    text = (
        "import os, time\nfor n in range(1000): print(n, flush=True)\nprint('waiting', flush=True)\ntime.sleep(600)\n"
    )
    (tmp_path / "train.py").write_text(text)
    with launching("--nproc", "2", "--device", "cpu", "train.py", cwd=tmp_path) as live:
        for rank in (0, 1):
            live.wait_for_output("waiting", rank)
        live.process.send_signal(signal.SIGKILL)
        live.process.wait(30)
        for rank in (0, 1):
            assert lines_of(live.run_dir, rank) == [*map(str, range(1000)), "waiting"]


UNREAD = """\
import os, signal
for n in range(20_000):
    print("line", n)
open("printed", "w").close()
signal.pause()
"""


@pytest.mark.deep
def test_a_run_whose_output_nobody_reads_is_ended_by_a_signal_all_the_same(tmp_path):
    (tmp_path / "train.py").write_text(UNREAD)
    read_fd, write_fd = os.pipe()
    process = subprocess.Popen(
        command("--nproc", "1", "--device", "cpu", "--run-dir", "run", "train.py"),
        cwd=tmp_path,
        env={**os.environ, **environment({"PYTHONWARNINGS": "always::ResourceWarning"}), "OMP_NUM_THREADS": "1"},
        stdout=write_fd,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until((tmp_path / "printed").exists, 60, what="the rank has printed all")
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1].decode()
    finally:
        tree = descendants(process.pid)
        process.kill()
        process.wait()
        kill_all(tree)
        os.close(read_fd)
        os.close(write_fd)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: passed on to the ranks" in said
    assert "nobody reads it; what the ranks print is in their logs" in said
    assert "ResourceWarning" not in said
    assert lines_of(tmp_path / "run", 0) == [f"line {n}" for n in range(20_000)]


@pytest.mark.deep
@pytest.mark.parametrize("streams", [">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
def test_a_run_without_streams_ends_well_and_its_logs_are_whole(tmp_path, chatter, streams):
    words = command("--nproc", "2", "--device", "cpu", "--run-dir", "run", chatter, "100")
    run(["sh", "-c", f'exec "$@" {streams}', "sh", *words], cwd=tmp_path, env=environment(), deadline_s=60).check()
    for rank in (0, 1):
        assert lines_of(tmp_path / "run", rank) == [f"{rank} line {n} " + "x" * 60 for n in range(100)]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "distrain-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_hangs_nobody(tmp_path, small_disk, chatter):
    began = time.monotonic()
    done = launch(
        *("--nproc", "2", "--device", "cpu", "--run-dir", small_disk / "run", chatter, "200000"), cwd=tmp_path
    )
    assert time.monotonic() - began < 60
    assert done.returncode == 1
    report = done.stderr[done.stderr.index("root cause: ") :]
    assert "OSError: [Errno 28] No space left on device" in report.splitlines()[0]
    assert "train.py" in report
    assert "disk is full" in report.lower() or "no space left" in report.lower()
    assert "run.json could not be written: No space left on device" in done.stderr
    assert "failure.json could not be written: No space left on device" in done.stderr
