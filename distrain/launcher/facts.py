"""What the nodes of a run tell each other about themselves, and what follows from it: do they fit, who comes first.

Nothing here needs torch or a network.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from distrain.launcher.profile_facts import differing_keys, differing_variables

__all__ = ["CLOCKS_APART_S", "Facts", "clock_warning", "in_order", "misfit", "spans", "warnings"]

CLOCKS_APART_S = 30.0

MUST_AGREE = {
    "torch": "torch",
    "distrain": "distrain",
    "device": "the device",
    "nnodes": "--nnodes",
    "run_id": "--rdzv-id",
    "max_restarts": "--max-restarts",
    "retry": "--retry",
}
"""What cannot work when it differs, or would have the run end otherwise on one node than on another; and how a message
calls it."""

SHOULD_AGREE = {"python": "Python", "profile": "the profile"}
"""What may differ, but hardly on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One node, as the others see it.

    Args:
        token: Names this agent among all there ever were.
        host: Its host name.
        address: Its own address on the way to where the nodes meet.
        head_address: The address under which it reaches the place where the nodes meet.
        node_rank: Its wanted number, or None.
        nproc: Its number of ranks.
        torch: torch's version.
        distrain: distrain's.
        python: Python's.
        device: `cpu`, `cuda` or `xla`.
        nnodes: How many nodes it waits for, as `2` or `1:3`.
        run_id: The id of the run it belongs to.
        profile: The profile it was launched with, "" without one.
        profile_says: What that sets, as `profile_facts.profile_says` returns it.
        max_restarts: As in `Plan`.
        retry: As there.
        run_dir: The run directory that the ranks would share if this node came first.
        attempt: The number that its next attempt would get.
        restarts: How many failures the run has restarted from, as far as it knows.
        failed: Whether it comes because ranks of its own have failed.
    """

    token: str
    host: str
    address: str
    head_address: str
    node_rank: int | None
    nproc: int
    torch: str
    distrain: str
    python: str
    device: str
    nnodes: str
    run_id: str
    profile: str
    max_restarts: int
    run_dir: str
    retry: str = "auto"
    profile_says: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 0
    restarts: int = 0
    failed: bool = False

    @property
    def agent(self) -> str:
        """What all tokens of one agent have in common."""
        return self.token.rpartition("-")[0] or self.token

    def anew(self) -> Facts:
        """Return the facts of this node under a new token: it comes again, and the old one may be known as gone."""
        return replace(self, token=f"{self.agent}-{secrets.token_hex(4)}")

    @property
    def name(self) -> str:
        """How a message calls this node."""
        return f"host {self.host}" if self.node_rank is None else f"node {self.node_rank} (host {self.host})"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Facts:
        """Return the facts in `data`; those that another version of distrain does not tell are empty."""
        empty: dict[str, Any] = dict.fromkeys(cls.__dataclass_fields__, "") | {
            "node_rank": None,
            "nproc": 0,
            "profile_says": {},
        }
        return cls(**{name: data.get(name, default) for name, default in empty.items()})


def misfit(one: Facts, other: Facts) -> str | None:
    """Return why two nodes cannot work together, with what each has; None when they can."""
    differing = [
        f"{called} is {getattr(one, field)} on {one.name} and {getattr(other, field)} on {other.name}"
        for field, called in MUST_AGREE.items()
        if getattr(one, field) != getattr(other, field)
    ]
    if not differing:  # else the profiles may be those of two versions
        differing = differing_variables(one.profile_says, other.profile_says, one.name, other.name)
    return "; ".join(differing) or None


def warnings(one: Facts, other: Facts) -> list[str]:
    """Return what two nodes hardly mean to have different, a line for each."""
    pairs = {called: (getattr(one, field), getattr(other, field)) for field, called in SHOULD_AGREE.items()}
    lines = [
        f"{called} is {here or 'none'} on {one.name} and {there or 'none'} on {other.name}"
        for called, (here, there) in pairs.items()
        if here != there
    ]
    differing = differing_keys(one.profile_says, other.profile_says)
    if one.profile == other.profile and differing:
        keys = ", ".join(differing)
        lines.append(f"the profile {one.profile} of {one.name} is not that of {other.name}: they differ in {keys}")
    return lines


def clock_warning(one: Facts, other: Facts, ahead_s: float) -> str | None:
    """Return a line when the clock of `other` is far ahead of that of `one`, or behind it (negative seconds)."""
    if abs(ahead_s) <= CLOCKS_APART_S:
        return None
    direction = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"the clock of {other.name} is {abs(ahead_s):.0f} s {direction} that of {one.name}; the times in the logs do "
        "not compare"
    )


def in_order(nodes: Sequence[Facts]) -> list[Facts]:
    """Return the nodes in the order of their ranks: by wanted number, those without one behind, ties as they stand."""
    return sorted(nodes, key=lambda node: (node.node_rank is None, node.node_rank or 0))


def spans(nodes: Iterable[Facts]) -> str:
    """Return which ranks are where: `h1: ranks 0-1, h2: rank 2`; how many, where torch_xla will number them."""
    parts, first = [], 0
    for node in nodes:
        if node.device == "xla":
            parts.append(f"{node.host}: {node.nproc} rank{'s' * (node.nproc != 1)}")
            continue
        last = first + node.nproc - 1
        parts.append(f"{node.host}: " + (f"rank {first}" if first == last else f"ranks {first}-{last}"))
        first = last + 1
    return ", ".join(parts)
