"""What is told about /dev/shm before the ranks start."""

from __future__ import annotations

import pytest

from distrain.launcher.shared_memory import free_and_size, shortage

MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "size", "nproc"),
    [(128, 128, 1), (1024, 1024, 8), (1024, 64_000, 8)],
)
def test_enough_is_not_mentioned(free, size, nproc):
    assert shortage(free * MIB, size * MIB, nproc) is None


@pytest.mark.parametrize(("nproc", "who"), [(1, "this rank"), (2, "2 ranks")])
def test_a_container_s_default_is_told_with_what_gives_more(nproc, who):
    text = shortage(64 * MIB, 64 * MIB, nproc)
    assert text.startswith(f"/dev/shm has 64 MiB, which is little for {who}: DataLoader workers")
    assert "--shm-size=8g" in text
    assert "--ipc=host" in text


def test_ranks_share_it():
    assert shortage(512 * MIB, 512 * MIB, 4) is None
    assert shortage(512 * MIB, 512 * MIB, 5) is not None


def test_a_large_one_that_is_full_is_told_apart():
    text = shortage(3 * MIB, 12_000 * MIB, 2)
    assert text.startswith("/dev/shm has 3 MiB free of 12,000 MiB")
    assert "`ls -l` there" in text
    assert "docker" not in text


def test_what_a_file_system_has_free(tmp_path):
    free, size = free_and_size(str(tmp_path))
    assert 0 <= free <= size
    assert free_and_size(str(tmp_path / "missing")) is None
