"""CPUs and GPUs, counted from files."""

from __future__ import annotations

import os

import pytest

from distrain.plan import detect


def machine(root, *, gpus=0, group="", limits=None):
    (root / "dev").mkdir()
    for name in [*(f"nvidia{i}" for i in range(gpus)), "nvidiactl", "nvidia-uvm"]:
        (root / "dev" / name).touch()
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::/{group}\n")
    for path, limit in (limits or {}).items():
        folder = root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(limit + "\n")
    return root


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, 4),
        ("", 0),
        ("0,2", 2),
        ("-1", 0),
        ("1,-1,2", 1),
        ("0,9,1", 1),
        ("2, 3", 2),
        ("1,1", 1),
        ("GPU-8d9f,GPU-77aa", 2),
        ("MIG-1234", 1),
        ("none", 0),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(tmp_path, chosen, expected):
    environ = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert detect.visible_gpus(environ, machine(tmp_path, gpus=4)) == expected


def test_a_machine_without_gpus_has_none_whatever_the_variable_says(tmp_path):
    assert detect.visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-8d9f"}, machine(tmp_path)) == 0


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 8),
        ({"a": "max 100000"}, 8),
        ({"a/b": "250000 100000"}, 2),
        ({"a": "300000 100000", "a/b": "max 100000"}, 3),
        ({"a": "300000 100000", "a/b": "600000 100000"}, 3),
        ({"a/b": "50000 100000"}, 1),
        ({"other": "100000 100000"}, 8),
    ],
)
def test_a_container_s_quota_limits_the_cpus(tmp_path, monkeypatch, limits, expected):
    monkeypatch.setattr(detect, "visible_cpus", lambda: 8)
    assert detect.available_cpus(machine(tmp_path, group="a/b", limits=limits)) == expected


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("limit", "expected"), [("150000", 1), ("400000", 4), ("-1", 8)])
def test_a_quota_of_control_groups_of_version_1(tmp_path, monkeypatch, controllers, limit, expected):
    """Inside a container the group is the root of the hierarchy, and its path is the one outside."""
    monkeypatch.setattr(detect, "visible_cpus", lambda: 8)
    root = machine(tmp_path)
    (root / "proc/self/cgroup").write_text(f"4:memory:/docker/4711\n3:{controllers}:/docker/4711\n0::/docker/4711\n")
    folder = root / "sys/fs/cgroup" / controllers
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{limit}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert detect.available_cpus(root) == expected


def test_affinity_limits_the_cpus():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert detect.visible_cpus() == detect.available_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("nodes", "environ", "expected"),
    [
        ([], {}, (1, "0 TPU chips")),
        (["accel0", "accel1", "accel_x"], {}, (2, "2 TPU chips")),
        (["vfio/0", "vfio/1", "vfio/2", "vfio/vfio"], {}, (3, "3 TPU chips")),
        (["accel0", "accel1"], {"PJRT_DEVICE": "CPU"}, (1, "PJRT_DEVICE=CPU")),
        (["accel0", "accel1"], {"TPU_PROCESS_BOUNDS": "1,1,1"}, (1, "2 TPU chips, TPU_PROCESS_BOUNDS=1,1,1")),
        (["accel0", "accel1"], {"TPU_PROCESS_BOUNDS": "2,2,1"}, (2, "2 TPU chips")),
    ],
)
def test_xla_devices_are_counted_from_device_nodes(tmp_path, nodes, environ, expected):
    for node in nodes:
        path = tmp_path / "dev" / node
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert detect.visible_chips(environ, tmp_path) == expected


@pytest.mark.parametrize(
    ("nodes", "bus", "environ", "expected"),
    [
        ([], (), {}, ""),
        (["accel0", "accel1"], (), {}, "2 TPU chips"),
        (["vfio/0", "vfio/1"], (("0x1ae0", "0x0063"), ("0x1ae0", "0x0063")), {}, "2 TPU chips"),
        (["vfio/0"], (("0x10de", "0x2330"), ("0x1ae0", "0x0042")), {}, ""),  # a GPU in a guest, Google's network card
        (["accel0"], (), {"PJRT_DEVICE": "CPU"}, ""),
        ([], (), {"PJRT_DEVICE": "TPU"}, "PJRT_DEVICE=TPU"),
        ([], (), {"TPU_WORKER_ID": "0"}, "TPU_WORKER_ID"),
    ],
)
def test_a_tpu_host_is_known_by_its_chips_or_its_variables(tmp_path, nodes, bus, environ, expected):
    for node in nodes:
        path = tmp_path / "dev" / node
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for slot, (vendor, device) in enumerate(bus):
        folder = tmp_path / f"sys/bus/pci/devices/0000:00:0{slot}.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "device").write_text(f"{device}\n")
    assert detect.tpu(environ, tmp_path) == expected


def test_where_the_bus_shows_tpu_chips_they_are_counted_and_no_other_device(tmp_path):
    (tmp_path / "dev/vfio").mkdir(parents=True)
    for slot, device in enumerate(("0x0063", "0x0063", "0x0042")):
        (tmp_path / f"dev/vfio/{slot}").touch()
        folder = tmp_path / f"sys/bus/pci/devices/0000:00:0{slot}.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text("0x1ae0\n")
        (folder / "device").write_text(f"{device}\n")
    assert detect.visible_chips({}, tmp_path) == (2, "2 TPU chips")
