"""What this machine offers, found without torch: CPUs this process may use, accelerators it can see."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["available_cpus", "has_tpu_chips", "tpu", "visible_chips", "visible_cpus", "visible_gpus"]

TPU_VARIABLES = ("TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "TPU_CHIPS_PER_HOST_BOUNDS")
"""Variables that only the TPU's runtime sets."""

GOOGLE = "0x1ae0"
TPU_CHIPS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
"""The PCI ids of TPU v2 to v7x, as torch_xla has them; Google's network card has its vendor id too."""


def visible_cpus() -> int:
    """Return the number of CPUs this process may be scheduled on: the count torchrun means by `cpu`."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs' worth of time this process gets, at least 1.

    That is `visible_cpus()`, less when the control group has a quota, as a container with `--cpus 2` has.

    Args:
        root: Where `sys/fs/cgroup` and `proc/self/cgroup` are looked for.
    """
    quota = _cgroup_quota(root)
    return max(1, min(visible_cpus(), int(quota))) if quota is not None else visible_cpus()


def _cgroup_quota(root: Path) -> float | None:
    """Return the tightest CPU quota from our control group up to the root, in CPUs.

    A container sees its own group as the root of the hierarchy; of version 1 it is told a path from outside, which is
    not there.
    """
    try:
        entries = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    quotas = []
    for _, controllers, ours in (entry for entry in entries if len(entry) == 3):
        base = root / "sys/fs/cgroup" / controllers
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = base / ours.strip("/")
        quotas += [quota for folder in (group, *group.parents) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _quota_of(group: Path) -> float | None:
    """Return the quota of one control group, of version 2 or 1, in CPUs."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            limit, period = " ".join((group / name).read_text() for name in names).split()
            return int(limit) / int(period) if limit not in ("max", "-1") else None
    return None


def visible_gpus(environ: Mapping[str, str], root: Path = Path("/")) -> int:
    """Return the number of NVIDIA GPUs a worker would see, without loading the driver.

    The device nodes are counted, which inside a container are the GPUs handed to it, and
    `CUDA_VISIBLE_DEVICES` is applied as CUDA does: the list counts up to its first invalid entry.

    Args:
        environ: The environment the workers will get.
        root: Where `dev` is looked for.
    """
    nodes = [path for path in (root / "dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not nodes:
        return len(nodes)
    seen: list[str] = []
    for entry in (part.strip() for part in chosen.split(",")):
        valid = int(entry) < len(nodes) if entry.isdigit() else entry.startswith(("GPU-", "MIG-"))
        if not valid or entry in seen:
            break
        seen.append(entry)
    return len(seen)


def visible_chips(environ: Mapping[str, str], root: Path = Path("/")) -> tuple[int, str]:
    """Return the number of XLA devices that torch_xla would start a process for, at least 1, and what was seen.

    It counts chips on the PCI bus, and starts no more processes than `TPU_PROCESS_BOUNDS` has places. Where the bus
    shows none, a chip has a node `/dev/accel<N>`, or `/dev/vfio/<N>` since TPU v5. `PJRT_DEVICE=CPU` makes one device
    of the CPU.

    Args:
        environ: The environment the workers will get.
        root: Where `dev` and `sys` are looked for.
    """
    if environ.get("PJRT_DEVICE", "").upper() == "CPU":
        return 1, "PJRT_DEVICE=CPU"
    nodes = [path for path in (root / "dev").glob("accel[0-9]*") if path.name[5:].isdigit()]
    nodes = nodes or [path for path in (root / "dev/vfio").glob("[0-9]*") if path.name.isdigit()]
    chips = _num_on_the_bus(root) or len(nodes)
    seen = f"{chips} TPU chip{'s' * (chips != 1)}"
    bounds = environ.get("TPU_PROCESS_BOUNDS", "")
    if re.fullmatch(r"\d+(,\d+)*", bounds) and math.prod(map(int, bounds.split(","))) < chips:
        chips = math.prod(map(int, bounds.split(",")))
        seen += f", TPU_PROCESS_BOUNDS={bounds}"
    return max(1, chips), seen


def tpu(environ: Mapping[str, str], root: Path = Path("/")) -> str:
    """Return what shows that this is a TPU host, "" when it is none.

    Other devices have nodes in /dev/vfio too, so there a chip counts where the PCI bus knows it as Google's.

    Args:
        environ: The environment the workers will get.
        root: Where `dev` and `sys` are looked for.
    """
    if environ.get("PJRT_DEVICE", "").upper() == "TPU":
        return "PJRT_DEVICE=TPU"
    if "PJRT_DEVICE" in environ:
        return ""
    variable = next((name for name in TPU_VARIABLES if environ.get(name)), "")
    if variable:
        return variable
    return visible_chips({}, root)[1] if has_tpu_chips(root) else ""


def has_tpu_chips(root: Path = Path("/")) -> bool:
    """Whether this machine has TPU chips.

    Args:
        root: Where `dev` and `sys` are looked for.
    """
    return any((root / "dev").glob("accel[0-9]*")) or _num_on_the_bus(root) > 0


def _num_on_the_bus(root: Path) -> int:
    return sum(map(_is_tpu, (root / "sys/bus/pci/devices").glob("*")))


def _is_tpu(device: Path) -> bool:
    try:
        vendor, chip = ((device / name).read_text().strip() for name in ("vendor", "device"))
    except OSError:
        return False
    return vendor == GOOGLE and chip in TPU_CHIPS
