"""The files of checkpoints: written whole or not at all, checked by their checksums, kept in order.

A draft has the number of its launch in its name (`incarnations`): `.draft-2-step-00000100-1f2e3d`. Whether its writer
lives cannot be seen from another host; that a later launch may write here instead, or that this launch has started its
ranks again, can.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import secrets
import shutil
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from distrain.errors import CheckpointError, SupersededError
from distrain.rundir import CHECKPOINT_META, checkpoint_order, step_of
from distrain.training import incarnations

__all__ = ["FORMAT", "in_order", "problem_of", "read", "remove", "remove_drafts", "write"]

STATE, META = "state.pt", CHECKPOINT_META
DRAFT = ".draft-"
FORMAT = 2

PLAIN = {
    *(type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.Size),
    *(dict, OrderedDict, Counter, list, tuple, set),
}
"""Types whose values torch.load reads back; numpy's come on top. They are named to say which value is another."""

_NUMBERED = re.compile(rf"{re.escape(DRAFT)}(\d+)-")


def in_order(directory: Path) -> list[Path]:
    """Return the checkpoints of a directory, the oldest first; one whose number cannot be read counts as newest.

    Args:
        directory: The directory.
    """
    found = [path for path in directory.iterdir() if step_of(path) is not None]
    return sorted(found, key=lambda path: (checkpoint_order(path) or (2**62, 0), step_of(path) or 0))


def problem_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, by the checksums that torch.save writes and by opening it.

    Args:
        path: The checkpoint.
    """
    try:
        if not isinstance(number := json.loads((path / META).read_bytes())["number"], int):
            return f"its number is {number!r}"
        with zipfile.ZipFile(path / STATE) as archive:
            names, bad = archive.namelist(), archive.testzip()
        if bad is not None:
            return f"the checksum of {bad} is wrong"
        torchs: Any = torch._C.PyTorchFileReader(str(path / STATE))  # noqa: SLF001  # which is stricter than Python's
        if not len({*names}) == len(names) == len(torchs.get_all_records()):
            return "a part is missing"
        for name in names:
            torchs.get_record_offset(name.partition("/")[2])
        _load(path / STATE, only_look=True)
    except pickle.UnpicklingError as error:  # mostly it is whole, and holds what `read` refuses
        return str(error) if "Unsupported operand" in str(error) else None
    except Exception as error:  # noqa: BLE001  # a flipped bit takes zipfile and torch to any of them
        return f"{type(error).__name__}: {error}"
    return None


def read(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds.

    Args:
        path: The checkpoint.

    Raises:
        CheckpointError: It cannot be read, or is of another format.
    """
    try:
        content = _load(path / STATE)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read on this rank: {error}") from error
    if content["meta"]["format"] != FORMAT:
        raise CheckpointError(f"The checkpoint {path} has format {content['meta']['format']}; this is for {FORMAT}.")
    return content


def write(path: Path, content: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write a checkpoint: its name stands for a whole one at any moment.

    Args:
        path: Where.
        content: What it holds, tensors and plain values only.
        meta: What is said of it, for people and for the order.

    Raises:
        CheckpointError: It could not be written. Those before it are untouched.
        SupersededError: Another launch trains in the same directory since.
    """
    incarnation = meta["incarnation"]
    draft = _draft(path, incarnation)
    try:
        draft.mkdir(parents=True)
        _write_state(draft / STATE, content, path)
        _write_file(draft / META, lambda file: file.write(json.dumps(meta, indent=2).encode()))
        _sync_directory(draft)
        incarnations.check(path.parent, incarnation)
        before = _set_aside(path, incarnation)  # taken earlier, before the run went back or changed its world size
        os.rename(draft, path)
        _sync_directory(path.parent)
    except (CheckpointError, SupersededError):
        shutil.rmtree(draft, ignore_errors=True)
        raise
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(draft, ignore_errors=True)
        incarnations.check(path.parent, incarnation)  # the other launch has removed the draft
        raise CheckpointError(
            f"The checkpoint {path} could not be written: {_first_of(error)}. The earlier ones are untouched. Free "
            "some space or check the permissions, then start again with the same run directory to go on from the "
            "newest; a smaller keep needs less space."
        ) from error
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def remove(path: Path, incarnation: int) -> None:
    """Remove a checkpoint: it loses its name first, so that nobody finds half of it.

    Args:
        path: The checkpoint.
        incarnation: The number of the launch that removes it.
    """
    with contextlib.suppress(OSError):
        aside = _set_aside(path, incarnation)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def remove_drafts(directory: Path, incarnation: int) -> None:
    """Remove what writers that were stopped have left, when the ranks of a launch begin to train.

    Drafts of earlier launches cannot become checkpoints any more, whether their writers live or not; those of the same
    launch are from before it started its ranks again. Those of later launches stay.

    Args:
        directory: The checkpoint directory.
        incarnation: The number of the launch.
    """
    for path in directory.glob(f"{DRAFT}*"):
        numbered = _NUMBERED.match(path.name)
        if numbered is None or int(numbered[1]) <= incarnation:
            shutil.rmtree(path, ignore_errors=True)


def _draft(path: Path, incarnation: int) -> Path:
    return path.with_name(f"{DRAFT}{incarnation}-{path.name}-{secrets.token_hex(3)}")


def _set_aside(path: Path, incarnation: int) -> Path | None:
    """Rename a checkpoint as a draft is named; return its new path, None where there was none."""
    aside = _draft(path, incarnation)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return None
    return aside


def _write_state(file: Path, content: dict[str, Any], path: Path) -> None:
    """Write what a checkpoint holds, and see that it can be read again: at the resumption it would be too late."""
    try:
        _write_file(file, lambda stream: torch.save(content, stream))
        _load(file, only_look=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:  # what pickle says of a lambda, a lock, …
        odd = _odd_one(content["objects"]) or _odd_one({"the trainer": content["trainer"]})
        what = f"{odd[0]} is a {odd[1]}" if odd else str(error).splitlines()[0]
        raise CheckpointError(
            f"The checkpoint {path} could not be written: {what}, which cannot be read back as plain data. Let its "
            "state_dict() return tensors, numpy arrays, numbers, strings, and lists, tuples, sets and dicts of them. "
            "The earlier checkpoints are untouched."
        ) from error


def _odd_one(value: Any, name: str = "") -> tuple[str, str] | None:
    """Return where something stands in a state that is neither plain nor a tensor, and its type."""
    if isinstance(value, Mapping):
        inner = [(each, f"{name}[{key!r}]" if name else str(key)) for key, each in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = [(each, f"{name}[{number}]") for number, each in enumerate(value)]
    else:
        inner = []
    plain = type(value) in PLAIN or isinstance(value, torch.Tensor) or type(value).__module__ == "numpy"
    if not plain:
        return name, f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return next(filter(None, (_odd_one(each, where) for each, where in inner)), None)


def _first_of(error: BaseException) -> str:
    """Return what an error began with: where a disk is full torch raises another one, of its own archive."""
    while isinstance(error.__context__, OSError):
        error = error.__context__
    return str(error)


def _load(path: Path, *, only_look: bool = False) -> dict[str, Any]:
    """Load a state, or only look whether it can be loaded: then no tensor's data are read.

    Beyond what torch takes for harmless, numpy's arrays and numbers are.
    """
    allowed = getattr(torch.serialization, "safe_globals", None)  # since torch 2.5
    with allowed(_of_numpy()) if allowed else contextlib.nullcontext():
        content: dict[str, Any] = torch.load(path, map_location="meta" if only_look else "cpu", weights_only=True)
    return content


def _of_numpy() -> list[Any]:
    """Return what numpy's arrays and numbers are pickled with."""
    try:
        import numpy as np
    except ImportError:
        return []
    functions = [value.__reduce__()[0] for value in (np.float64(0), np.zeros(0))]
    return [np.ndarray, np.dtype, *functions, *{type(np.dtype(code)) for code in np.typecodes["All"]}]


def _write_file(path: Path, fill: Callable[[Any], object]) -> None:
    with open(path, "xb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
