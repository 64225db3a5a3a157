"""Out of memory, told from files as the kernel lays them out, in a tree of our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distrain.supervision.memory import OomWatch

MIB = 1 << 20
SECOND = 1_000_000_000
PAGE = os.sysconf("SC_PAGE_SIZE")


class Machine:
    """A fake root of the file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.machine(available=32 << 10, kills=0)

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def machine(self, *, available: int, kills: int) -> None:
        self.write("proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {available << 10} kB\n")
        self.write("proc/vmstat", f"nr_free_pages 5\noom_kill {kills}\n")

    def process(self, pid: int, resident: int, *, shared: int = 0, children: list[int] | None = None) -> None:
        self.write(f"proc/{pid}/statm", f"999999 {resident * MIB // PAGE} {shared * MIB // PAGE} 1 0 9 0\n")
        self.write(f"proc/{pid}/task/{pid}/children", "".join(f"{child} " for child in children or []))

    def v2(self, *, kills: int, used: int = 100, limit: str = str(512 * MIB), folder: str = "job/step") -> None:
        self.write("proc/self/cgroup", f"0::/{folder}\n")
        self.write("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n")
        self.write(f"sys/fs/cgroup/{folder}/memory.events", f"low 0\nhigh 0\nmax 7\noom {kills}\noom_kill {kills}\n")
        self.write(f"sys/fs/cgroup/{folder}/memory.current", f"{used * MIB}\n")
        self.write(f"sys/fs/cgroup/{folder}/memory.max", f"{limit}\n")

    def v1(self, *, kills: int, used: int = 100, limit: int = 512 * MIB, inside: str = "/", path: str = "/job") -> None:
        self.write("proc/self/cgroup", f"9:name=systemd:/\n4:memory:{path}\n1:cpu:/\n0::/\n")
        self.write(
            "proc/self/mountinfo",
            f"35 31 0:32 {inside} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        )
        below = "/" + os.path.relpath(path, inside)
        folder = f"sys/fs/cgroup/memory{below}"
        self.write(f"{folder}/memory.oom_control", f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{used * MIB}\n")
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_kill_in_the_control_group(machine):
    machine.v2(kills=3)
    watch = OomWatch(root=machine.root)
    for second, held in enumerate([12, 12, 30, 60, 90, 120, 180, 240, 300, 360, 400, 430]):
        machine.process(11, held)
        machine.process(10, 20)
        machine.v2(kills=3, used=held + 20)
        watch.sample(second * SECOND, {0: 10, 1: 11})
    assert watch.verdict(1) is None
    machine.v2(kills=4)
    assert watch.verdict(1) == (
        "killed by the kernel, out of memory: the control group's limit is 512 MiB and its oom_kill counter rose; "
        "rank 1 had 430 MiB, 12 MiB 10 seconds before (the others at most 20 MiB)"
    )


def test_a_new_attempt_counts_from_its_beginning(machine):
    machine.v2(kills=0)
    watch = OomWatch(root=machine.root)
    machine.v2(kills=1)
    watch.begin()
    assert watch.verdict(0) is None


@pytest.mark.parametrize(
    ("inside", "path"), [("/", "/job"), ("/docker/abc", "/docker/abc/job"), ("/docker/abc", "/docker/abc")]
)
def test_the_first_version_of_control_groups(machine, inside, path):
    machine.v1(kills=0, inside=inside, path=path)
    watch = OomWatch(root=machine.root)
    machine.v1(kills=1, inside=inside, path=path)
    assert watch.verdict(0) == (
        "killed by the kernel, out of memory: the control group's limit is 512 MiB and its oom_kill counter rose"
    )


def test_a_limit_further_up_counts(machine):
    machine.v2(kills=0, limit="max")
    machine.write("sys/fs/cgroup/job/memory.max", f"{256 * MIB}\n")
    machine.write("sys/fs/cgroup/job/memory.current", f"{250 * MIB}\n")
    watch = OomWatch(root=machine.root)
    watch.sample(0, {})
    assert watch.history()[0].used == 250 * MIB
    machine.v2(kills=1, limit="max")
    assert "limit is 256 MiB" in watch.verdict(0)


def test_the_machine_and_not_the_group_had_none_left(machine):
    machine.v2(kills=0, used=100)
    watch = OomWatch(root=machine.root)
    machine.machine(available=100, kills=0)
    watch.sample(0, {})
    machine.v2(kills=1, used=50)
    assert watch.verdict(0) == (
        "killed by the kernel, out of memory: the machine had none left; the control group, limited to 512 MiB, "
        "used 100 MiB"
    )


def test_a_group_without_a_limit(machine):
    machine.v2(kills=0, limit="max")
    watch = OomWatch(root=machine.root)
    machine.v2(kills=1, limit="max")
    assert "the machine had none left" in watch.verdict(0)


def test_without_control_groups_the_count_of_the_machine_tells(machine):
    watch = OomWatch(root=machine.root)
    assert watch.verdict(0) is None
    machine.machine(available=30_000, kills=1)
    assert watch.verdict(0).startswith("probably killed by the kernel, out of memory")


def test_the_count_of_the_machine_is_nothing_to_a_group_that_has_its_own(machine):
    machine.v2(kills=0)
    watch = OomWatch(root=machine.root)
    machine.machine(available=30_000, kills=1)
    assert watch.verdict(0) is None


def test_killers_that_leave_no_count_are_guessed_by_scarcity(machine):
    machine.v2(kills=0)
    watch = OomWatch(root=machine.root)
    machine.process(10, 300)
    machine.machine(available=300, kills=0)
    watch.sample(0, {0: 10})
    assert watch.verdict(0) == (
        "probably killed for want of memory: the machine had 300 MiB available of 64 GiB; rank 0 had 300 MiB"
    )


def test_a_group_full_of_page_cache_is_no_evidence(machine):
    machine.v2(kills=0, used=511)
    watch = OomWatch(root=machine.root)
    watch.sample(0, {})
    assert watch.verdict(0) is None


def test_children_count_with_what_is_their_own(machine):
    machine.process(10, 100, shared=50, children=[20, 21])
    machine.process(20, 60, shared=40, children=[30])
    machine.process(21, 70, shared=40)
    machine.process(30, 5, shared=5)
    watch = OomWatch(root=machine.root)
    watch.sample(0, {0: 10, 1: 99})
    assert watch.history()[0].resident == {0: 150 * MIB}


def test_samples_are_a_second_apart_and_not_kept_for_good(machine):
    watch = OomWatch(root=machine.root)
    for tenth in range(2_000):
        watch.sample(tenth * SECOND // 10, {})
    assert len(watch.history()) == 120
    assert {b.monotonic_ns - a.monotonic_ns for a, b in zip(watch.history(), watch.history()[1:], strict=False)} == {
        SECOND
    }


def test_this_machine_is_readable():
    watch = OomWatch()
    watch.sample(0, {0: os.getpid()})
    assert watch.history()[0].resident[0] > MIB
    assert watch.verdict(0) is None or "probably" in watch.verdict(0)
