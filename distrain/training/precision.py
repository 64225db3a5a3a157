"""Mixed precision: which mode is valid where, the autocast region and the gradient scaler."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch

from distrain.errors import did_you_mean

__all__ = ["AMP_MODES", "autocast", "check_amp_mode", "choose_scaler"]

AMP_MODES = ("amp", "apex")

NO_APEX = (
    "Please install apex from https://github.com/nvidia/apex to use amp_mode='apex': the last release with apex.amp is "
    "tag 25.05 (apex.amp was removed in May 2025). Without it, amp_mode='amp' does the same with what torch has."
)


def check_amp_mode(amp_mode: str | None, device: torch.device, scaler: Any) -> None:
    """Make sure that the mode, the device and the scaler go together.

    Args:
        amp_mode: None, or one of `AMP_MODES`.
        device: Where the batches go.
        scaler: What the user gave as `scaler`.

    Raises:
        ValueError: The mode is unknown, is none for this device, or a scaler was given without amp.
        ModuleNotFoundError: apex was asked for and is not installed.
    """
    if amp_mode is not None and amp_mode not in AMP_MODES:
        raise ValueError(
            f"amp_mode is {amp_mode!r}; it must be None or one of {', '.join(map(repr, AMP_MODES))}."
            f"{did_you_mean(str(amp_mode), AMP_MODES)} It chooses the mechanism; the type comes from torch.autocast."
        )
    if amp_mode is not None and device.type in ("mps", "xla"):
        raise ValueError(
            f"amp_mode cannot be used with {device.type} device. Use amp_mode=None there, or device cpu or cuda."
        )
    if scaler and amp_mode is None:
        raise ValueError(
            f"scaler argument is {scaler}, but amp_mode is {amp_mode}. Gradients are scaled in mixed precision only: "
            "give amp_mode='amp' with it, or leave the scaler out."
        )
    if amp_mode == "apex":
        if scaler:
            warnings.warn("scaler is ignored with amp_mode='apex': apex scales the loss itself.", stacklevel=3)
        if importlib.util.find_spec("apex") is None or importlib.util.find_spec("apex.amp") is None:
            raise ModuleNotFoundError(NO_APEX)


def choose_scaler(
    scaler: bool | torch.amp.GradScaler,  # noqa: FBT001  # the specification has it so
    device: torch.device,
) -> torch.amp.GradScaler | None:
    """Return the scaler to use: the user's own, a new one for the device when True, none when False.

    Args:
        scaler: What the user gave.
        device: Where the model computes.
    """
    if isinstance(scaler, bool):
        return torch.amp.GradScaler(device.type) if scaler else None
    return scaler


def autocast(device: torch.device) -> torch.autocast:
    """Return the autocast region of the device's own type: float16 on CUDA, bfloat16 on the CPU, as torch has it.

    Args:
        device: Where the model computes.
    """
    return torch.autocast(device_type=device.type)
