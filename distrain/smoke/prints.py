"""Short names of what tensors, batches and data sets hold: equal content has the same name on each rank."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.nn.parameter import is_lazy

__all__ = ["print_of", "print_of_parameter"]

NBYTES = 12


def print_of_parameter(parameter: torch.Tensor) -> str:
    """Return the name of a parameter's bits; "" where each rank has a part of it only, or where it has none.

    Args:
        parameter: A parameter or buffer, on any device.
    """
    has_no_bits = parameter.is_meta or is_lazy(parameter)
    return "" if hasattr(parameter, "device_mesh") or has_no_bits else print_of(parameter)


def print_of(value: Any) -> str:
    """Return the name of anything: of tensors and arrays the bits, of containers what is in them.

    Args:
        value: A batch, a sample or a tensor. Of an object that is none of these only its type counts.
    """
    digest = hashlib.blake2b(digest_size=NBYTES)
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterable[bytes]:
    yield type(value).__name__.encode()
    if isinstance(value, torch.Tensor):
        yield from _bits(value)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield repr(key).encode()
            yield from _parts(each)
    elif isinstance(value, (list, tuple, set)):
        for each in value:
            yield from _parts(each)
    elif isinstance(value, (str, bytes, int, float, complex, bool, type(None))):
        yield repr(value).encode()
    elif hasattr(value, "tobytes"):  # numpy's arrays and scalars, PIL's images
        yield value.tobytes()
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from _parts(getattr(value, each.name))


def _bits(tensor: torch.Tensor) -> Iterable[bytes]:
    yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    dense = tensor.detach()
    if dense.layout != torch.strided:
        dense = dense.to_dense()
    dense = dense.cpu().contiguous()
    if dense.numel():
        yield ctypes.string_at(dense.data_ptr(), dense.numel() * dense.element_size())
