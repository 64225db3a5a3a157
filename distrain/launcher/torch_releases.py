"""What torch's elastic agent has learnt since torch 2.9, which XLA devices need: newer releases have more settings."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import LogsDest, PContext
from torch.distributed.elastic.multiprocessing.tail_log import TailLog
from torch.distributed.launcher.api import LaunchConfig

from distrain.errors import LaunchError

__all__ = ["launch_config", "logs_dest", "show_nothing"]

_DONE_HERE = ("shutdown_timeout", "signals_to_handle")
"""Settings that distrain carries out itself, so that a torch without them does not need them."""


def launch_config(fields: Mapping[str, Any]) -> LaunchConfig:
    """Return torch's settings of a launch.

    Args:
        fields: What they are to be; a torch that does not know one may leave it out where it asks for nothing.

    Raises:
        LaunchError: The user asks for something that this torch does not have.
    """
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    missing = [name for name, value in fields.items() if name not in known and name not in _DONE_HERE and value]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise LaunchError(f"torch {torch.__version__} does not have {options}; leave it out, or install a newer torch.")
    return LaunchConfig(**{name: value for name, value in fields.items() if name in known})


def logs_dest(*, filtered_stdout: str, filtered_stderr: str) -> LogsDest:
    """Return where the ranks' output goes, with no rank yet.

    Args:
        filtered_stdout: Where lines of standard output are copied to that the user has chosen.
        filtered_stderr: Likewise for standard error.
    """
    found = LogsDest()
    for name, path in (("filtered_stdout", filtered_stdout), ("filtered_stderr", filtered_stderr)):
        if hasattr(found, name):
            setattr(found, name, path)
    return found


def show_nothing(context: PContext) -> None:
    """Keep torch from showing the ranks' output, which the supervisor does; chosen lines are still copied.

    Args:
        context: A group of workers that was just made.
    """
    if hasattr(context, "_tail_logs"):
        del context._tail_logs[:2]  # noqa: SLF001 - torch has no setting for it
        return
    assert hasattr(context, "_stdout_tail"), "torch's elastic agent shows the ranks' output another way now"
    for name, stream in (("_stdout_tail", sys.stdout), ("_stderr_tail", sys.stderr)):
        setattr(context, name, TailLog(context.name, {}, stream))
