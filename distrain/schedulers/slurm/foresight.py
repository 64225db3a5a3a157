"""What the launch on a node would refuse, found where the job is submitted: hours earlier, and in the same words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from distrain.errors import UsageError
from distrain.plan import Ahead, Plan, Program, profile, resolve
from distrain.plan.cluster import Placement
from distrain.plan.related import without_overruled
from distrain.plan.sources import Given, given
from distrain.schedulers.slurm.options import gpus_of, nodes_of, value_of

__all__ = ["exported", "foresee", "nodes_asked"]

_OF_ONE_NODE = ("node_rank", "local_addr")
"""What has to be another one on each node."""


def foresee(
    program: Program,
    flags: Mapping[str, str],
    environ: Mapping[str, str],
    *,
    options: Mapping[str, str],
    passed: Sequence[str] = (),
) -> Plan:
    """Return the plan of the launch on the first node, as far as it can be known before there is one.

    Args:
        program: What every rank runs.
        flags: Option of the launch to its text.
        environ: The environment that the job is submitted from.
        options: Option of sbatch, as in `gpus_per_node`, to its value.
        passed: Words for sbatch that are stronger than those.

    Raises:
        UsageError: The launch would refuse its options, or every node would claim the same place or run directory.
    """
    environ = exported(environ, value_of(passed, "export"))
    nodes = value_of(passed, "nodes", "N") or options.get("nodes", "1")
    gpus = value_of(passed, "gpus-per-node") or options.get("gpus_per_node")
    num_gpus = gpus_of(gpus) if gpus else None
    found = _found(flags, environ)
    alone = found.get("standalone")
    if alone is not None and nodes_of(nodes)[1] > 1:
        raise UsageError(
            f"{alone.where}: every node of the job would train by itself (--nodes {nodes}), all of them in one run "
            "directory. Leave it out to join them, or submit a job of one node for each run."
        )
    ahead = Ahead(placement=_first_of(nodes, found, passed), gpus=num_gpus or None)
    plan = resolve(program, flags, environ=environ, ahead=ahead)
    several = plan.meeting is not None and plan.meeting.max_nodes > 1
    for said in (plan.settings.get(name) for name in _OF_ONE_NODE if several):
        if said is not None and said.origin in ("flag", "environment", "profile"):
            raise UsageError(
                f"{said.detail}: got {said.value}, and every node of the job would have it ({ahead.placement.detail}). "
                "Leave it out: each node finds its own."
            )
    return plan


def nodes_asked(flags: Mapping[str, str], environ: Mapping[str, str], passed: Sequence[str]) -> str:
    """Return how many nodes the launch asks for, by a flag, a variable or its profile; 1 where none of them says it.

    Of an elastic run, `MIN:MAX`, they are the most: the nodes of a job do not become more while it runs.

    Args:
        flags: Option of the launch to its text.
        environ: The environment that the job is submitted from.
        passed: Words for sbatch.

    Raises:
        UsageError: The profile cannot be used.
    """
    found = _found(flags, exported(environ, value_of(passed, "export")))
    asked = re.fullmatch(r"(?:\d+:)?0*([1-9]\d*)", found["nnodes"].text) if "nnodes" in found else None
    return asked[1] if asked else "1"  # what is no number the launch refuses


def _found(flags: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, Given]:
    """Return what was given for the launch, as it counts."""
    named = given(flags, environ, None).get("profile")
    read = None if named is None else profile.read(named.text, cwd=Path.cwd(), environ=environ, where=named.where)
    return without_overruled(given(flags, environ, read))[0]


def _first_of(nodes: str, found: Mapping[str, Given], passed: Sequence[str]) -> Placement:
    """Return the place of the first node. How many there are stays open where Slurm, or a number of tasks, decides."""
    fewest, most = nodes_of(nodes)
    said = found.get("nnodes")
    asked = None if said is None else re.fullmatch(r"(?:\d+:)?(\d+)", said.text)
    is_open = any(re.match(r"--ntasks|-n", word) for word in passed)
    if asked is not None and (is_open or fewest <= int(asked[1]) <= most):
        most = max(1, int(asked[1]))
    return Placement(scheduler="Slurm", detail=f"--nodes {nodes}", nnodes=most, node_rank=0, head="the first node")


def exported(environ: Mapping[str, str], export: str | None) -> dict[str, str]:
    """Return the variables that the job gets: what sbatch takes over, and nothing of a job that this one is made in.

    Args:
        environ: The environment that the job is submitted from.
        export: The value of --export: `ALL`, `NONE`, or names, some with values; None where it is not given.
    """
    words = ["ALL"] if export is None else export.split(",")
    names = {word for word in words if "=" not in word}
    is_all = any(name.upper() == "ALL" for name in names)
    taken = {
        name: text
        for name, text in environ.items()
        if not name.startswith("SLURM_") and (is_all or name == "HOME" or name in names)
    }
    return taken | dict(word.split("=", 1) for word in words if "=" in word)
