"""Mixed precision: which mode is valid where, the autocast region and the gradient scaler."""

from __future__ import annotations

import warnings

import torch

from distrain.errors import did_you_mean

__all__ = ["AMP_MODES", "autocast", "check_amp_mode", "checked_dtype", "choose_scaler"]

AMP_MODES = ("amp", "apex")

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def check_amp_mode(amp_mode: str | None, device: torch.device, amp_dtype: torch.dtype | None) -> None:
    """Make sure that the mode goes with the device and the type.

    Args:
        amp_mode: None, or one of `AMP_MODES`.
        device: Where the model computes.
        amp_dtype: The type of the autocast region, None for the device's own.

    Raises:
        ValueError: The mode is unknown, is none for this device, or does not go with the type.
    """
    if amp_mode is not None and amp_mode not in AMP_MODES:
        raise ValueError(
            f"amp_mode is {amp_mode!r}; it must be None or one of {', '.join(map(repr, AMP_MODES))}."
            f"{did_you_mean(str(amp_mode), AMP_MODES)} It chooses the mechanism; amp_dtype chooses the type."
        )
    if amp_dtype is not None and amp_mode != "amp":
        raise ValueError(
            f"amp_dtype is {amp_dtype}, but amp_mode is {amp_mode}. It is the type of torch's autocast region: give "
            "amp_mode='amp' with it, or leave it out."
        )
    if amp_mode is None:
        return
    if device.type == "mps":
        raise ValueError("amp_mode cannot be used with mps device. Use amp_mode=None there, or device cpu or cuda.")
    if device.type == "xla" and (amp_mode == "apex" or amp_dtype != torch.bfloat16):
        raise ValueError(
            "amp_mode cannot be used with xla device. Use amp_mode=None there, or amp_mode='amp' together with "
            "amp_dtype=torch.bfloat16, the one type that XLA's autocast has."
        )


def checked_dtype(amp_dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the type of the autocast region.

    Args:
        amp_dtype: One of `DTYPES`, itself or its name; None for the device's own.

    Raises:
        ValueError: It is another one.
    """
    found = DTYPES.get(amp_dtype) if isinstance(amp_dtype, str) else amp_dtype
    if amp_dtype is not None and found not in DTYPES.values():
        raise ValueError(
            f"amp_dtype is {amp_dtype!r}; it must be None or one of {', '.join(map(repr, DTYPES))} (or torch's)."
        )
    return found


def choose_scaler(
    scaler: bool | torch.amp.GradScaler | None,  # noqa: FBT001  # the specification has it so
    amp_mode: str | None,
    device: torch.device,
) -> torch.amp.GradScaler | None:
    """Return the scaler to use: the user's own, a new one for the device when True, none when False.

    Args:
        scaler: What the user gave; None is False.
        amp_mode: The mode; apex scales by itself, and a scaler is ignored with it.
        device: Where the model computes.

    Raises:
        ValueError: A scaler was given where there is nothing to scale.
        TypeError: It is no scaler.
    """
    if scaler is None or scaler is False:
        return None
    if scaler is not True and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(f"scaler is {scaler!r}; it must be True, False or a torch.amp.GradScaler.")
    if amp_mode == "apex":
        warnings.warn("scaler is ignored with amp_mode='apex': apex scales the loss itself.", stacklevel=3)
        return None
    if amp_mode is None:
        raise ValueError(
            f"scaler argument is {scaler}, but amp_mode is {amp_mode}. Gradients are scaled in mixed precision only: "
            "give amp_mode='amp' with it, or leave the scaler out."
        )
    if device.type == "xla":
        raise ValueError(f"scaler argument is {scaler}, but bfloat16, which XLA computes in, needs none. Leave it out.")
    return torch.amp.GradScaler(device.type) if isinstance(scaler, bool) else scaler


def autocast(device: torch.device, dtype: torch.dtype | None = None) -> torch.amp.autocast:
    """Return the autocast region of the device's own kind.

    Args:
        device: Where the model computes.
        dtype: The type in the region; None for torch's choice, float16 on CUDA and bfloat16 on the CPU.
    """
    return torch.amp.autocast(device_type=device.type, dtype=dtype)
