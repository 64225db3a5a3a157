"""Which run directory this node's supervisor owns, and which one the ranks of all nodes share."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from distrain.errors import RunDirError
from distrain.plan.plan import Plan
from distrain.rundir import DEFAULT_PARENT, RunDir, new_run_name, run_name_of
from distrain.supervision.record import RunRecord

__all__ = ["named_run_dir", "open_run_dir"]

_MOST_ON_A_HOST = 64


def open_run_dir(plan: Plan, *, is_head: bool) -> tuple[RunRecord, Path]:
    """Take a run directory of this node's own.

    The nodes may have one file system in common, so their directories differ: node 0 takes the run's, node k takes
    `node-<k>` in it. Without node ranks the node where all meet takes the run's, and the others `node-<host>`. Where
    the run has an id, the run directory is named after it, the same on every node and at every start.

    Args:
        plan: The plan.
        is_head: Whether the nodes meet on this one.

    Returns:
        The record of this node, and the directory that the ranks share if this node comes first.

    Raises:
        RunDirError: It cannot be used.
    """
    meeting = plan.meeting
    placement = plan.placement
    several = meeting is not None and meeting.max_nodes > 1
    shared = named_run_dir(plan) or Path(DEFAULT_PARENT).absolute() / new_run_name(plan.name)
    run = RunDir(root=shared)
    first = meeting is None or meeting.node_rank == 0 or (meeting.node_rank is None and is_head)
    of, incarnation = ("", 0) if placement is None else (placement.run_id, placement.incarnation)
    if meeting is None or not several or first:
        return RunRecord(run, run_id=of, incarnation=incarnation), shared
    if meeting.node_rank is not None:
        return RunRecord(RunDir(root=run.node_dir(str(meeting.node_rank))), run_id=of, incarnation=incarnation), shared
    return _first_free(run), shared


def named_run_dir(plan: Plan) -> Path | None:
    """Return the run directory that the ranks share where it has a name that comes again; None where it is a new one.

    Args:
        plan: The plan.
    """
    meeting, placement = plan.meeting, plan.placement
    if plan.run_dir is not None:
        return plan.run_dir
    run_id = meeting.run_id if meeting is not None and meeting.max_nodes > 1 and meeting.run_id != "none" else ""
    if placement is not None and placement.is_repeated and meeting is None:
        run_id = placement.run_id
    return Path(DEFAULT_PARENT).absolute() / run_name_of(run_id, plan.name) if run_id else None


def _first_free(run: RunDir) -> RunRecord:
    """Take `node-<host>`, or the first of `node-<host>-2` and so on that no other launch on this host has."""
    host = re.sub(r"[^A-Za-z0-9_.-]+", "-", socket.gethostname()) or "host"
    for number in range(1, _MOST_ON_A_HOST):
        try:
            return RunRecord(RunDir(root=run.node_dir(host if number == 1 else f"{host}-{number}")))
        except RunDirError as error:  # noqa: PERF203 - a few times at most
            refused = error
            if "belongs to a run" not in str(error):
                raise
    raise refused
