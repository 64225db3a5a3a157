"""The files of checkpoints: written whole or not at all, checked by their checksums, kept in order.

A draft has the number of its launch in its name (`incarnations`): `.draft-2-step-00000100-1f2e3d`. Whether its writer
lives cannot be seen from another host; that a later launch may write here instead, or that this launch has started its
ranks again, can.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable
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

_NUMBERED = re.compile(rf"{re.escape(DRAFT)}(\d+)-")


def in_order(directory: Path) -> list[Path]:
    """Return the checkpoints of a directory, the oldest first; one whose number cannot be read counts as newest.

    Args:
        directory: The directory.
    """
    found = [path for path in directory.iterdir() if step_of(path) is not None]
    return sorted(found, key=lambda path: (checkpoint_order(path) or (2**62, 0), step_of(path) or 0))


def problem_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, by the checksums that torch.save puts beside every part of it.

    Args:
        path: The checkpoint.
    """
    try:
        json.loads((path / META).read_bytes())["number"]
        with zipfile.ZipFile(path / STATE) as archive:
            bad = archive.testzip()
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        return f"{type(error).__name__}: {error}"
    return None if bad is None else f"the checksum of {bad} is wrong"


def read(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds.

    Args:
        path: The checkpoint.

    Raises:
        CheckpointError: It cannot be read, or is of another format.
    """
    try:
        content: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
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
        _write_file(draft / STATE, lambda file: torch.save(content, file))
        _write_file(draft / META, lambda file: file.write(json.dumps(meta, indent=2).encode()))
        _sync_directory(draft)
        incarnations.check(path.parent, incarnation)
        before = _set_aside(path, incarnation)  # taken earlier, before the run went back or changed its world size
        os.rename(draft, path)
        _sync_directory(path.parent)
    except SupersededError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(draft, ignore_errors=True)
        incarnations.check(path.parent, incarnation)  # the other launch has removed the draft
        raise CheckpointError(
            f"The checkpoint {path} could not be written: {error}. The earlier ones are untouched. Free some space or "
            "check the permissions, then start again with the same run directory to go on from the newest; a smaller "
            "keep needs less space."
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
