"""Which output is shown on the terminal. All of it is on disk in any case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from distrain.errors import UsageError
from distrain.plan.draft import Draft
from distrain.plan.sources import Given

__all__ = ["Shown", "resolve_shown"]

STREAMS = {0: (), 1: ("stdout",), 2: ("stderr",), 3: ("stdout", "stderr")}
"""torchrun's numbers for sets of streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The streams that are shown.

    Args:
        ranks: The ranks; None for all.
        local_ranks: Only those of this node with these local ranks; None for all.
        hidden: Local rank to the streams of it that are not shown; those of `None` are hidden for every rank that has
            no entry of its own.
    """

    ranks: frozenset[int] | None = frozenset({0})
    local_ranks: frozenset[int] | None = None
    hidden: Mapping[int | None, tuple[str, ...]] = field(default_factory=dict)

    def streams(self, rank: int, local_rank: int) -> tuple[str, ...]:
        """Return which of `stdout` and `stderr` of a rank are shown.

        Args:
            rank: The rank.
            local_rank: Its number on this node.
        """
        if self.ranks is not None and rank not in self.ranks:
            return ()
        if self.local_ranks is not None and local_rank not in self.local_ranks:
            return ()
        hidden = self.hidden.get(local_rank, self.hidden.get(None, ()))
        return tuple(each for each in STREAMS[3] if each not in hidden)

    @property
    def only(self) -> int | None:
        """The one rank that is shown, with both streams; None when it may be more or less."""
        if self.ranks is None or len(self.ranks) != 1 or self.local_ranks is not None or self.hidden:
            return None
        return next(iter(self.ranks))


def resolve_shown(draft: Draft, *, nproc: int, world: int) -> Shown:
    """Return what is shown, and note the settings.

    Without any of these options rank 0 is shown. torchrun's, of which it has none set by default, speak of all ranks.

    Args:
        draft: The plan in the making.
        nproc: Ranks on this node; 0 where it is not known yet.
        world: The most ranks there can be; 0 likewise.

    Raises:
        UsageError: A value is not valid.
    """
    found = draft.found
    torchruns = ("redirects", "tee", "local_ranks_filter")
    for name in ("log_ranks", *torchruns):
        draft.text(name, None)
    if "log_ranks" in found:
        ranks = _ranks(found["log_ranks"], world)
    elif any(name in found for name in torchruns):
        ranks = None
    else:
        draft.note("log_ranks", "0", "default")
        ranks = frozenset({0})
    local = found.get("local_ranks_filter")
    redirected, teed = _streams(found.get("redirects")), _streams(found.get("tee"))
    hidden: dict[int | None, tuple[str, ...]] = {}
    for key in {*redirected, *teed}:
        kept = teed.get(key, teed.get(None, ()))
        streams = tuple(each for each in redirected.get(key, redirected.get(None, ())) if each not in kept)
        if streams or None in redirected:
            hidden[key] = streams
    local_ranks = None if local is None else _local_ranks(draft, local, nproc)
    return Shown(ranks=ranks, local_ranks=local_ranks, hidden=hidden)


def _ranks(said: Given, world: int) -> frozenset[int] | None:
    if said.text == "all":
        return None
    if not re.fullmatch(r"\d+(,\d+)*", said.text):
        raise UsageError(f"{said.where}: got {said.text!r}; give all, or ranks separated by commas, such as 0,3.")
    ranks = frozenset(int(part) for part in said.text.split(","))
    if 0 < world <= max(ranks):
        raise UsageError(f"{said.where}: there is no rank {max(ranks)} among {world}; valid are 0 to {world - 1}.")
    return ranks


def _local_ranks(draft: Draft, said: Given, nproc: int) -> frozenset[int]:
    """Return the local ranks of a filter; as under torchrun it may name some that are not there."""
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", said.text):
        raise UsageError(f"{said.where}: got {said.text!r}; give local ranks separated by commas, such as 0,1.")
    ranks = frozenset(int(part) for part in said.text.split(","))
    absent = sorted(rank for rank in ranks if 0 < nproc <= rank)
    if absent:
        names = ", ".join(map(str, absent))
        draft.warnings.append(f"{said.where}: there is no local rank {names} among {nproc}")
    return ranks


def _streams(said: Given | None) -> dict[int | None, tuple[str, ...]]:
    """Read torchrun's form: `3` for all ranks, or `0:1,2:3` by local rank."""
    if said is None:
        return {}
    if re.fullmatch(r"[0-3]", said.text):
        return {None: STREAMS[int(said.text)]}
    if not re.fullmatch(r"\d+:[0-3](,\d+:[0-3])*", said.text):
        raise UsageError(
            f"{said.where}: got {said.text!r}; give 0 (none), 1 (stdout), 2 (stderr) or 3 (both), or these by local "
            "rank, such as 0:1,1:2."
        )
    pairs = (part.split(":") for part in said.text.split(","))
    return {int(rank): STREAMS[int(streams)] for rank, streams in pairs}
