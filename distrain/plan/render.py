"""A plan as people and machines read it. Nothing is asked, started or written here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from distrain.plan.environment import AT_START, rank_variables, shared_variables
from distrain.plan.meeting import Meeting
from distrain.plan.plan import Plan

__all__ = ["as_data", "as_json", "as_text", "headline"]

MOST_RANKS = 16
"""How many ranks the text shows one by one."""


def as_data(plan: Plan, environ: Mapping[str, str], *, host: str, run_dir_variable: str) -> dict[str, Any]:
    """Return everything a plan says, ready to be written as JSON.

    Args:
        plan: The plan.
        environ: The environment that the workers inherit.
        host: This host's name.
        run_dir_variable: The variable that tells workers the run directory.
    """
    meeting = plan.meeting
    nnodes = 1 if meeting is None else meeting.max_nodes
    here = 0 if meeting is None or meeting.node_rank is None else meeting.node_rank
    run_dir = plan.run_dir or AT_START
    return {
        "program": {"kind": plan.program.kind, "target": plan.program.target, "args": list(plan.program.args)},
        "command": plan.program.command,
        "settings": {name: asdict(plan.settings[name]) for name in sorted(plan.settings)},
        "nodes": [
            {
                "node_rank": node,
                "host": _host(plan, node, here=host if node == here else None),
                "ranks": list(range(node * plan.nproc, (node + 1) * plan.nproc)),
            }
            for node in range(nnodes)
        ],
        "environment": shared_variables(plan, run_dir, run_dir_variable),
        "ranks": [
            {
                "rank": node * plan.nproc + local,
                "node_rank": node,
                "local_rank": local,
                "environment": rank_variables(plan, environ, node_rank=node, local_rank=local),
            }
            for node in range(nnodes)
            for local in range(plan.nproc)
        ],
        "slurm_script": None,
        "warnings": list(plan.warnings),
    }


def _host(plan: Plan, node: int, *, here: str | None) -> str | None:
    """Return a node's host by the scheduler's name of it; that of this host where the scheduler has named none."""
    placement = plan.placement
    named = () if placement is None else placement.hosts
    return named[node] if node < len(named) else here


def as_json(data: Mapping[str, Any]) -> str:
    """Return the data as JSON, a line at the end included.

    Args:
        data: What `as_data` returned.
    """
    return json.dumps(data, indent=2) + "\n"


def as_text(data: Mapping[str, Any]) -> str:
    """Return the data as text for a terminal.

    Args:
        data: What `as_data` returned.
    """
    return "\n".join(_lines(data)) + "\n"


def _lines(data: Mapping[str, Any]) -> Iterator[str]:
    yield "distrain launch, dry run: nothing is started"
    yield ""
    yield f"command      {shlex.join(data['command'])}"
    yield ""
    rows = [(name, _shown(s["value"]), _source(s)) for name, s in data["settings"].items() if _is_telling(s)]
    yield from _table(("setting", "value", "from"), rows)
    silent = [name for name, setting in data["settings"].items() if not _is_telling(setting)]
    if silent:
        yield f"not set: {', '.join(silent)}"
    yield ""
    # torch_xla numbers the ranks of several hosts in an order of its own
    is_slice = data["settings"]["device"]["value"] == "xla" and len(data["nodes"]) > 1
    ranks = (str(len(node["ranks"])) if is_slice else _range(node["ranks"]) for node in data["nodes"])
    nodes = [(str(n["node_rank"]), n["host"] or "", each) for n, each in zip(data["nodes"], ranks, strict=True)]
    yield from _table(("node", "host", "number of ranks" if is_slice else "ranks"), nodes)
    yield ""
    ranks = data["ranks"]
    same = {k: v for k, v in ranks[0]["environment"].items() if all(r["environment"].get(k) == v for r in ranks)}
    yield "environment of every rank, beside that of this shell"
    yield from (f"  {name}={value}" for name, value in sorted({**data["environment"], **same}.items()))
    yield ""
    yield "environment of each rank"
    for rank in ranks[:MOST_RANKS]:
        own = {name: value for name, value in rank["environment"].items() if name not in same}
        yield f"  {' '.join(f'{name}={value}' for name, value in own.items()) or 'nothing else'}"
    if len(ranks) > MOST_RANKS:
        yield f"  … and {len(ranks) - MOST_RANKS} more; --json shows all"
    for warning in data["warnings"]:
        yield ""
        yield f"warning: {warning}"
    if data["slurm_script"]:
        yield ""
        yield data["slurm_script"].rstrip()


def _is_telling(setting: Mapping[str, Any]) -> bool:
    return setting["value"] is not None and not (setting["value"] is False and setting["origin"] == "default")


def _shown(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _source(setting: Mapping[str, Any]) -> str:
    if setting["origin"] == "default":
        return "default" if setting["detail"] == "not given" else f"default: {setting['detail']}"
    return f"{setting['origin']}: {setting['detail']}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _range(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def headline(plan: Plan) -> str:
    """Return the line that a launch begins with: which node of how many, its ranks, their threads.

    Args:
        plan: The plan.
    """
    ranks = f"{plan.nproc} rank{'s' * (plan.nproc != 1)} on {plan.device}"
    threads = f"OMP_NUM_THREADS={plan.omp_num_threads} ({plan.settings['omp_num_threads'].detail})"
    return " · ".join(filter(None, [_node(plan.meeting), ranks, threads]))


def _node(meeting: Meeting | None) -> str:
    """Return this node's name among several; nothing on a single one."""
    if meeting is None or meeting.max_nodes == 1:
        return ""
    node = "a node" if meeting.node_rank is None else f"node {meeting.node_rank}"
    of = str(meeting.max_nodes)
    of = of if meeting.min_nodes == meeting.max_nodes else f"{meeting.min_nodes} to {of}"
    return f"{node} of {of}, meeting at {meeting.endpoint} ({meeting.backend})"
