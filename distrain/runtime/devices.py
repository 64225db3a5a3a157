"""Which device this worker computes on."""

from __future__ import annotations

import torch

from distrain.errors import RuntimeStateError
from distrain.runtime import xla
from distrain.runtime.environment import WorkerEnvironment

__all__ = ["choose_device"]

SUPPORTED = ("cpu", "cuda", "mps", "xla")


def choose_device(requested: str | torch.device | None, environment: WorkerEnvironment) -> torch.device:
    """Return the device of this worker.

    The order is: what the call asked for, what the launcher's `--device` asked for, then `auto`: the CUDA device
    of this local rank where torch sees CUDA, the CPU otherwise. MPS is never chosen by itself, because no backend
    of torch.distributed reduces on it.

    Args:
        requested: What the call asked for. A CUDA device without an index gets the local rank's.
        environment: The place of this worker.

    Raises:
        RuntimeStateError: The device is not supported here, is not visible, or several ranks would share a GPU.
        ValueError: torch does not know the name.
    """
    name = environment.device if requested is None else requested
    if isinstance(name, str) and name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"torch knows no device {name!r}; give one of {', '.join(SUPPORTED)} or auto.") from error
    if device.type == "cuda":
        return _cuda_device(device, environment)
    if device.type == "xla":
        return _xla_device(environment)
    if device.type == "mps" and environment.world_size > 1:
        raise RuntimeStateError("Device mps works with one process only: torch.distributed has no backend for it.")
    if device.type not in SUPPORTED:
        raise RuntimeStateError(
            f"Device {device.type!r} is not supported by distrain {_version()}; supported are {', '.join(SUPPORTED)}. "
            "Ask for one of them with --device or init(device=…)."
        )
    return device


def _cuda_device(device: torch.device, environment: WorkerEnvironment) -> torch.device:
    visible = torch.cuda.device_count()
    if visible == 0:
        raise RuntimeStateError(
            "Device cuda was asked for and torch sees no CUDA device here. Check CUDA_VISIBLE_DEVICES and that torch "
            f"{torch.__version__} is a CUDA build, or ask for cpu."
        )
    given: int | None = device.index  # torch declares it as int only
    index = environment.local_rank if given is None else given
    if index >= visible:
        raise RuntimeStateError(
            f"Rank {environment.rank} needs CUDA device {index} and {visible} are visible on this node, which runs "
            f"{environment.local_world_size} ranks. Start at most {visible} ranks here, or ask for device cpu."
        )
    return torch.device("cuda", index)


def _xla_device(environment: WorkerEnvironment) -> torch.device:
    xla.check_installed()
    if environment.xla_spmd:
        xla.use_spmd()
    device, (_, num) = xla.device(), xla.rank_and_size()
    if environment.world_size > 1 and environment.world_size != num:
        raise RuntimeStateError(
            f"The launcher has started {environment.world_size} processes and torch_xla reduces over {num}: they would "
            "train apart. `distrain launch --device xla` has torch_xla start a process for each device; with torchrun "
            "start one process only."
        )
    return device


def _version() -> str:
    from distrain import __version__

    return __version__
